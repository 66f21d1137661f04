"""One float64 number from any criterion, weighted or not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from zoestim.evaluation import BatchLoss

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

OUTPUTS = torch.tensor([[0.5, -1.0], [2.0, 0.25], [-0.5, 1.5]], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 1])
NUMBERS = torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, -1.0]], dtype=torch.float64)
WEIGHT = torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64)
CE = nn.CrossEntropyLoss()
EACH = nn.CrossEntropyLoss(reduction="none")(OUTPUTS, LABELS)


def each_error(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs - y).square()


def mean_error(outputs: Tensor, y: Tensor) -> Tensor:
    return each_error(outputs, y).mean()


@pytest.mark.parametrize("name", ["cross_entropy", "mse_loss", "huber_loss", "l1_loss"])
def test_a_function_of_torch_counts_as_its_criterion(name: str):
    y = LABELS if name == "cross_entropy" else NUMBERS
    found = BatchLoss(getattr(nn.functional, name))
    assert isinstance(found.criterion, nn.Module)
    assert found(OUTPUTS, y) == getattr(nn.functional, name)(OUTPUTS, y)
    assert found(OUTPUTS, (y, WEIGHT)).isfinite()


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        (lambda outputs, y: 2, 2.0),
        (lambda outputs, y: 0.25, 0.25),
        (lambda outputs, y: np.float32(0.25), 0.25),
        (lambda outputs, y: np.array(0.25), 0.25),
        (lambda outputs, y: torch.tensor(0.25, dtype=torch.float32), 0.25),
        (lambda outputs, y: [1.0, 2.0, 4.5], 2.5),
        (lambda outputs, y: np.array([1, 2, 6]), 3.0),
        (lambda outputs, y: outputs.argmax(1) != y, 1 / 3),
        (lambda outputs, y: torch.tensor([[1.0, 3.0], [0.0, 0.0], [5.0, 3.0]]), 2.0),
    ],
    ids=["int", "float", "numpy0", "array0", "float32", "list", "array", "bool", "matrix"],
)
def test_whatever_a_criterion_returns_becomes_one_float64_number(criterion, expected: float):
    loss = BatchLoss(criterion)(OUTPUTS, LABELS)
    assert loss.shape == ()
    assert loss.dtype == torch.float64
    assert float(loss) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_torch_criteria_keep_their_reduction_and_per_sample_losses_are_averaged(reduction: str):
    criterion = nn.CrossEntropyLoss(reduction=reduction)
    expected = EACH.sum() if reduction == "sum" else EACH.mean()
    torch.testing.assert_close(BatchLoss(criterion)(OUTPUTS, LABELS), expected)


@pytest.mark.parametrize("n", [3, 10_000])
def test_float32_losses_are_averaged_in_float64(n: int):
    losses = torch.rand(n, generator=torch.Generator().manual_seed(0))
    found = BatchLoss(lambda outputs, y: losses)(torch.zeros(n), torch.zeros(n))
    assert float(found) == float(losses.double().mean())


# --- Sample weights


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_weights_give_the_weighted_mean_whatever_the_reduction(reduction: str):
    criterion = nn.CrossEntropyLoss(reduction=reduction)
    expected = (EACH * WEIGHT).sum() / 4
    torch.testing.assert_close(BatchLoss(criterion)(OUTPUTS, (LABELS, WEIGHT)), expected)
    assert criterion.reduction == reduction


def test_a_sum_cannot_be_weighted():
    with pytest.raises(ValueError, match="reduction='sum', which has no loss of one sample"):
        BatchLoss(nn.CrossEntropyLoss(reduction="sum"))(OUTPUTS, (LABELS, WEIGHT))


def test_weights_of_one_change_nothing_beside_class_weights():
    criterion = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 9.0], dtype=OUTPUTS.dtype))
    loss, ones = BatchLoss(criterion), torch.ones(len(LABELS))
    torch.testing.assert_close(loss(OUTPUTS, (LABELS, ones)), loss(OUTPUTS, LABELS))


@pytest.mark.parametrize("criterion", [nn.MSELoss(), nn.L1Loss(reduction="none"), nn.HuberLoss()])
def test_one_column_of_outputs_is_not_broadcast_against_the_targets(criterion: nn.Module):
    outputs, y = torch.rand(5, 1, generator=torch.Generator().manual_seed(0)), torch.ones(5)
    expected = criterion(outputs.flatten(), y).mean().double()
    torch.testing.assert_close(BatchLoss(criterion)(outputs, y), expected)


def test_a_function_that_broadcasts_is_refused():
    loss = BatchLoss(lambda outputs, y: (outputs - y) ** 2)
    with pytest.raises(ValueError, match="outputs and y were broadcast against each other"):
        loss(torch.ones(5, 1), torch.ones(5))


@pytest.mark.parametrize("criterion", [nn.BCEWithLogitsLoss(), nn.BCELoss()])
@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_binary_cross_entropy_takes_integer_labels(criterion: nn.Module, shape: tuple):
    outputs, labels = torch.full((4,), 0.25), torch.tensor([0, 1, 1, 0])
    expected = criterion(outputs, labels.float()).double()
    torch.testing.assert_close(BatchLoss(criterion)(outputs.reshape(shape), labels), expected)


@pytest.mark.parametrize("criterion", [nn.MSELoss, "mse", None])
def test_a_criterion_is_something_to_call(criterion):
    with pytest.raises(TypeError, match="criterion must be a callable"):
        BatchLoss(criterion)


@given(st.lists(st.floats(0.01, 100), min_size=3, max_size=3), st.floats(0.01, 100))
@settings(derandomize=True, deadline=None, max_examples=25)
def test_only_the_ratios_of_weights_count(weights: list[float], factor: float):
    weight = torch.tensor(weights, dtype=torch.float64)
    loss = BatchLoss(CE)
    first, scaled = (loss(OUTPUTS, (LABELS, w)) for w in (weight, factor * weight))
    torch.testing.assert_close(first, scaled)
    torch.testing.assert_close(first, (EACH * weight).sum() / weight.sum())


def test_equal_weights_give_the_plain_loss():
    weight = torch.full((3,), 0.5, dtype=torch.float64)
    loss = BatchLoss(nn.MSELoss())
    torch.testing.assert_close(loss(OUTPUTS, (NUMBERS, weight)), loss(OUTPUTS, NUMBERS))


def test_a_weight_of_two_is_the_sample_twice():
    twice, weight = torch.tensor([0, 1, 2, 2]), torch.tensor([1.0, 1.0, 2.0])
    loss = BatchLoss(each_error)
    torch.testing.assert_close(
        loss(OUTPUTS, (NUMBERS, weight)), loss(OUTPUTS[twice], NUMBERS[twice])
    )


def test_weights_that_are_all_zero_give_zero():
    assert BatchLoss(CE)(OUTPUTS, (LABELS, torch.zeros(3))) == 0


# --- What it refuses


def test_one_number_a_batch_cannot_be_weighed():
    text = r"mean_error returns one number a batch.* Return one loss a sample, shape \(n_samples,\)"
    with pytest.raises(ValueError, match=text):
        BatchLoss(mean_error)(OUTPUTS, (NUMBERS, WEIGHT))


def test_losses_of_another_length_than_the_batch_are_refused():
    text = r"<lambda> returned losses of shape \(2,\) for 3 samples; .* shape \(\) or \(3,\)"
    with pytest.raises(ValueError, match=text):
        BatchLoss(lambda outputs, y: outputs[:2, 0])(OUTPUTS, NUMBERS)
