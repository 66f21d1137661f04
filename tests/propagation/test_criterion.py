"""Closed forms of criteria against torch's losses in float64, and against themselves in float32."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from propagation.strategies import changes, normal, quick, rank_ones, slabs
from zoestim.evaluation import BatchLoss
from zoestim.propagation import Dense, RankOne, Slab, Value, mean_divisor, sample_changes

CE = nn.CrossEntropyLoss
WEIGHT = torch.tensor([0.5, 2.0, 1.0, 0.0], dtype=torch.float64)
REGRESSION = [
    nn.MSELoss(),
    nn.L1Loss(),
    nn.HuberLoss(delta=0.7),
    *(nn.SmoothL1Loss(beta=0.4), nn.SmoothL1Loss(beta=0.0)),
]
BINARY = [
    nn.BCEWithLogitsLoss(),
    nn.BCEWithLogitsLoss(weight=WEIGHT[:3]),
    nn.BCEWithLogitsLoss(pos_weight=2 * WEIGHT[:3]),
]
LABELS = [
    *(CE(), CE(weight=WEIGHT), CE(ignore_index=1), CE(weight=WEIGHT, ignore_index=0)),
    *(CE(label_smoothing=0.1), CE(weight=WEIGHT, ignore_index=2, label_smoothing=0.3)),
    *(nn.NLLLoss(), nn.NLLLoss(weight=WEIGHT, ignore_index=1)),
]
PROBABILITIES = [CE(), CE(weight=WEIGHT), CE(label_smoothing=0.2), CE(WEIGHT, label_smoothing=0.2)]


def each_loss(criterion: nn.Module, outputs: Tensor, y: Tensor) -> Tensor:
    each = copy.copy(criterion)
    each.reduction = "none"
    return each(outputs, y)


def losses_of_lanes(criterion: nn.Module, outputs: Value, y: Tensor) -> Tensor:
    before = each_loss(criterion, outputs.base, y)
    lanes = [each_loss(criterion, outputs.base + lane, y) - before for lane in outputs.dense()]
    return torch.stack(lanes)


def labels_for(base: Tensor, seed: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (base.shape[0], *base.shape[2:])
    return torch.randint(base.shape[1], shape, generator=generator)


def probabilities_for(base: Tensor) -> Tensor:
    return normal(*base.shape, seed=3).softmax(1)


def check(criterion: nn.Module, outputs: Value, y: Tensor) -> None:
    found = sample_changes(criterion, outputs, y)
    expected = losses_of_lanes(criterion, outputs, y)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


# --- In float64, torch's own losses


@pytest.mark.parametrize("criterion", REGRESSION + BINARY, ids=str)
@given(st.data(), st.sampled_from([(5, 3), (1, 3), (2, 4, 3)]), st.sampled_from([0.1, 1.0, 30.0]))
@quick
def test_regression_and_binary_labels(criterion: nn.Module, data: st.DataObject, shape, scale):
    outputs = data.draw(changes(scale * normal(*shape)))
    y = normal(*shape, seed=3)
    if isinstance(criterion, nn.BCEWithLogitsLoss):
        y = data.draw(st.sampled_from([y.sigmoid(), (y > 0).double()]))
    check(criterion, outputs, y)


@pytest.mark.parametrize("criterion", LABELS, ids=str)
@given(st.data(), st.sampled_from([(5, 4), (1, 4), (5, 4, 3), (2, 4, 3, 1)]))
@quick
def test_labels(criterion: nn.Module, data: st.DataObject, shape: tuple[int, ...]):
    base = data.draw(st.sampled_from([0.1, 1.0, 30.0])) * normal(*shape)
    outputs = data.draw(st.one_of(changes(base), slabs(base, dims=[1])))
    check(criterion, outputs, labels_for(base))


@pytest.mark.parametrize("criterion", PROBABILITIES, ids=str)
@given(st.data(), st.sampled_from([(5, 4), (5, 4, 3)]))
@quick
def test_class_probabilities(criterion: nn.Module, data: st.DataObject, shape: tuple[int, ...]):
    base = normal(*shape)
    check(criterion, data.draw(changes(base)), probabilities_for(base))


@given(st.data(), st.sampled_from([1e-6, 1e-2, 1.0, 3.0, 30.0, 500.0]))
@quick
def test_rank_one_by_its_series_and_directly(data: st.DataObject, reach: float):
    base = normal(5, 4)
    outputs = data.draw(rank_ones(base))
    change = outputs.change
    outputs = Value(base, RankOne(reach * change.column, change.features, change.table))
    for criterion in (CE(), CE(weight=WEIGHT, ignore_index=1)):
        check(criterion, outputs, labels_for(base))


@pytest.mark.parametrize("size", [40.0, 200.0, 1000.0])
@pytest.mark.parametrize("criterion", [CE(), CE(label_smoothing=0.1)], ids=str)
def test_steps_that_overflow_the_exponential(criterion: nn.Module, size: float):
    base, y = normal(5, 4), labels_for(normal(5, 4))
    for sign in (1, -1):
        values = torch.full((4, 1, 5), sign * size, dtype=torch.float64)
        check(criterion, Value(base, Slab(values, torch.arange(4), 1)), y)
        check(criterion, Value(base, Dense(sign * size * normal(3, 5, 4, seed=2))), y)
        check(criterion, Value(base, Dense(torch.full((1, 5, 4), sign * size).double())), y)
        step = torch.full((1, 5, 4), sign * size, dtype=torch.float64)
        check(nn.BCEWithLogitsLoss(), Value(base, Dense(step)), base.sigmoid())


# --- In float32, the digits of a small step


def confident(sign: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return float32 logits from hesitant to certain, right (or wrong), and the labels."""
    base = normal(8, 4).float()
    y = labels_for(base)
    lead = sign * torch.linspace(0, 25, 8)[:, None]
    return base + lead * nn.functional.one_hot(y, 4), y


def forms(base: Tensor, scale: float) -> list[Value]:
    column, table = scale * normal(4, 8, seed=4).float(), normal(4, 4, seed=5).float()
    slab = Slab(column[:, None], torch.arange(4), 1)
    rank_one = RankOne(column, torch.tensor([0, 1, 1, 3]), table)
    dense = Dense(scale * normal(3, 8, 4, seed=6).float())
    return [Value(base, change) for change in (slab, rank_one, dense)]


def expanded(outputs: Value, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the change up to its third order in d, and the sum of its terms' magnitudes."""
    b, d = outputs.base.double(), outputs.dense().double()
    p = torch.softmax(b, 1)
    others = p * (1 - nn.functional.one_hot(y, 4))
    relative = d - d.gather(2, y.expand(len(d), -1)[..., None])
    first, second = (others * relative).sum(2), (others * relative**2).sum(2)
    magnitude = (others * (d.abs() + (d - relative).abs())).sum(2)
    return first + second / 2 - first**2 / 2, magnitude


@pytest.mark.parametrize("scale", [1e-7, 1e-5])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_small_steps_keep_their_digits_however_certain_the_model_is(scale: float, sign: float):
    base, y = confident(sign)
    for outputs in forms(base, scale):
        found = sample_changes(CE(), outputs, y).double()
        expected, magnitude = expanded(outputs, y)
        assert ((found - expected).abs() <= 1e-6 * magnitude).all()


@pytest.mark.parametrize("scale", [1e-7, 1e-5])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_binary_labels_keep_their_digits_too(scale: float, label: float):
    base = torch.linspace(-30, 30, 13)
    y, d = torch.full_like(base, label), scale * torch.ones(2, 13) * torch.tensor([[1.0], [-1.0]])
    found = sample_changes(nn.BCEWithLogitsLoss(), Value(base, Dense(d)), y).double()
    p = torch.sigmoid(base.double()) if label == 0 else -torch.sigmoid(-base.double())
    q = torch.sigmoid(base.double()) * torch.sigmoid(-base.double())
    expected = d.double() * p + d.double() ** 2 * q / 2
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("criterion", REGRESSION, ids=str)
def test_errors_keep_their_digits_where_they_are_large(criterion: nn.Module):
    base, y = torch.tensor([1000.0, -1000.0, 1.0]), torch.tensor([1.0, 1.0, 0.5])
    d = torch.tensor([[1e-5, -1e-5, 1e-6], [-1e-5, 1e-7, 0.0]])
    found = sample_changes(criterion, Value(base, Dense(d)), y).double()
    b, d, y = base.double(), d.double(), y.double()
    slope = torch.autograd.functional.jacobian(lambda o: each_loss(criterion, o, y).sum(), b)
    curved = {"MSELoss": torch.ones(3), "HuberLoss": torch.tensor([0, 0, 0.5])}
    curved["SmoothL1Loss"] = torch.tensor([0, 0, 0.0])
    second = curved.get(type(criterion).__name__, torch.zeros(3)).double()
    torch.testing.assert_close(found, d * slope + d**2 * second, rtol=1e-6, atol=1e-12)


# --- Reduced as the criterion does it


def reductions() -> list[tuple[nn.Module, str]]:
    rows = []
    for kind, criteria in [
        ("numbers", REGRESSION),
        ("binary", BINARY),
        ("labels", LABELS),
        ("probabilities", PROBABILITIES),
    ]:
        for criterion in criteria:
            for reduction in ("mean", "sum", "none"):
                reduced = copy.copy(criterion)
                reduced.reduction = reduction
                rows.append((reduced, kind))
    return rows


def target_of(kind: str, base: Tensor) -> Tensor:
    if kind == "labels":
        return labels_for(base)
    if kind == "probabilities":
        return probabilities_for(base)
    return normal(*base.shape, seed=3).sigmoid()


def check_reduced(criterion: nn.Module, outputs: Value, target: Any) -> None:
    loss = BatchLoss(criterion)
    before = loss(outputs.base, target)
    expected = torch.stack([loss(outputs.base + lane, target) for lane in outputs.dense()]) - before
    found = loss.changes(outputs, target)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("criterion", "kind"), reductions(), ids=str)
def test_the_reduction_is_that_of_the_loss(criterion: nn.Module, kind: str, weighted: bool):
    shapes = [(5, 3), (2, 2, 3)] if kind in ("numbers", "binary") else [(5, 4), (5, 4, 3)]
    weighted = weighted and criterion.reduction != "sum"  # a sum cannot be
    for shape in shapes:
        base = normal(*shape)
        y = target_of(kind, base)
        weight = normal(len(base), seed=9).abs()
        outputs = Value(base, Dense(0.1 * normal(3, *shape, seed=4)))
        check_reduced(criterion, outputs, (y, weight) if weighted else y)


@pytest.mark.parametrize("criterion", [*REGRESSION, nn.BCEWithLogitsLoss()], ids=str)
def test_a_column_of_outputs_meets_flat_targets(criterion: nn.Module):
    column = Value(normal(5, 1), Dense(normal(3, 5, 1, seed=4)))
    check_reduced(criterion, column, normal(5, seed=3).sigmoid())
    check_reduced(criterion, column, torch.tensor([0, 1, 1, 0, 1]))


def test_a_mean_divides_by_what_the_labels_count():
    y = torch.tensor([0, 1, 1, 2])
    outputs = torch.zeros(4, 4)
    assert mean_divisor(CE(), outputs, y) == 4
    assert mean_divisor(CE(ignore_index=1), outputs, y) == 2
    assert mean_divisor(CE(weight=WEIGHT.float(), ignore_index=2), outputs, y) == 4.5
    assert mean_divisor(CE(), outputs, torch.zeros(4, 4)) == 4
    assert mean_divisor(nn.MSELoss(), outputs, torch.zeros(4, 4)) == 16


# --- What is left to the criterion itself


class Own(nn.MSELoss):
    """A user's criterion may compute anything."""


@pytest.mark.parametrize(
    ("criterion", "y"),
    [
        (Own(), torch.zeros(5, 3)),
        (nn.KLDivLoss(), torch.zeros(5, 3)),
        (nn.MSELoss(), torch.zeros(5, 1)),
        (CE(), torch.zeros(5, 1, dtype=torch.int64)),
        (CE(), torch.zeros(5, 1)),
        (nn.NLLLoss(), torch.zeros(5, 3)),
        (lambda outputs, y: (outputs - y).square().mean(), torch.zeros(5, 3)),
    ],
    ids=["own", "divergence", "broadcast", "labels", "probabilities", "nll", "function"],
)
def test_what_has_no_closed_form_here(criterion: Any, y: Tensor):
    outputs = Value(torch.zeros(5, 3), Dense(torch.ones(2, 5, 3)))
    assert sample_changes(criterion, outputs, y) is None
