"""Losses of queries: equal however they are folded, refused by name where they are no number."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reference
from cases import CASES, Case, ids
from zoestim import QueryError
from zoestim.evaluation import (
    Batch,
    FeatureReuseWarning,
    Objective,
    RandomState,
    evaluate,
    unchanged_generators,
)
from zoestim.gradients import CoordinateEstimator, RandomizedEstimator

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

every_case = pytest.mark.parametrize("case", CASES, ids=ids)
FOLD_BYTES = "zoestim.evaluation._cost.FOLD_BYTES"
CPU = torch.device("cpu")


def case_of(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


@contextmanager
def quietly() -> Iterator[None]:
    """Let modules say that they are not cut; which do is for test_objective.py."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FeatureReuseWarning)
        yield


def all_queries(objective: Objective):
    return CoordinateEstimator(5e-3).queries(torch.arange(objective.parameters.size))


def losses_of(case: Case, feature_reuse: bool = True) -> Tensor:
    objective = Objective(case.module(), case.criterion, feature_reuse=feature_reuse)
    with quietly():
        return evaluate(
            objective, Batch(case.X, case.y), all_queries(objective), RandomState.seeded(0, CPU)
        ).losses


# --- Folding


@every_case
def test_losses_do_not_depend_on_how_many_queries_are_folded(case: Case, monkeypatch):
    found = []
    for fold_bytes in (1, 8_000, 2**23):
        monkeypatch.setattr(FOLD_BYTES, fold_bytes)
        found.append(losses_of(case))
    torch.testing.assert_close(found[1], found[0], rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(found[2], found[0], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("distribution", ["gaussian", "sphere", "per-tensor"])
@pytest.mark.parametrize("name", ["mlp", "cnn_train", "tied", "dropout_train"])
def test_losses_of_directions_do_not_depend_on_folding_either(name, distribution, monkeypatch):
    case, found = case_of(name), []
    for fold_bytes in (1, 2**23):
        monkeypatch.setattr(FOLD_BYTES, fold_bytes)
        objective = Objective(case.module(), case.criterion)
        d = torch.arange(objective.parameters.size)
        estimator = RandomizedEstimator(7, scheme="central", distribution=distribution)
        generator = torch.Generator().manual_seed(0)
        queries = estimator.queries(d, objective.parameters.segments(d), generator)
        random = RandomState.seeded(0, CPU)
        found.append(evaluate(objective, Batch(case.X, case.y), queries, random).losses)
    torch.testing.assert_close(found[1], found[0], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(("fold_bytes", "calls"), [(1, 12), (2**23, 2)])
def test_a_fold_calls_each_layer_once_for_all_its_queries(fold_bytes: int, calls: int, monkeypatch):
    monkeypatch.setattr(FOLD_BYTES, fold_bytes)
    module, called = case_of("linear").module(), []
    objective = Objective(nn.Sequential(module), nn.MSELoss())
    module.register_forward_hook(lambda *_: called.append(1))
    batch = Batch(case_of("linear").X, case_of("linear").y)
    weights = CoordinateEstimator().queries(torch.arange(12))
    evaluate(objective, batch, weights)  # traces, proves, and judges the first fold
    called.clear()
    evaluate(objective, batch, weights)
    assert len(called) == calls + (fold_bytes == 1)  # the base pass is one call


@every_case
def test_float32_estimates_are_within_a_thousandth_of_the_float64_loop(case: Case):
    module = case.module().float()
    X, y = (t.float() if t.is_floating_point() else t for t in (case.X, case.y))
    objective, estimator = Objective(module, case.criterion), CoordinateEstimator(5e-3)
    queries, random = all_queries(objective), RandomState.seeded(0, CPU)
    with quietly():
        found = evaluate(objective, Batch(X, y), queries, random)
    estimate = estimator.combine(queries, found.base_loss, found.losses).values
    exact = copy.deepcopy(module).double()
    X, y = (t.double() if t.is_floating_point() else t for t in (X, y))
    loss = reference.module_loss(exact, case.criterion, X, y, random.cpu)
    theta = reference.flat_parameters(exact)
    expected = reference.cge(loss, theta, range(len(theta)), 5e-3)
    assert (estimate - expected).norm() <= 1e-3 * expected.norm()


def test_a_criterion_that_torch_would_run_one_by_one_says_nothing():
    module, case = case_of("linear").module(), case_of("linear")
    objective = Objective(module, nn.KLDivLoss(reduction="batchmean"))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = evaluate(objective, Batch(case.X, case.y.sigmoid()), all_queries(objective))
    assert [str(warning.message) for warning in told] == []
    assert found.losses.isfinite().all()


# --- What an evaluation holds


@pytest.mark.parametrize("feature_reuse", [True, False])
@every_case
def test_it_holds_what_one_training_forward_gives_and_leaves(case: Case, feature_reuse: bool):
    module, trained = case.module(), case.module()
    objective = Objective(module, case.criterion, feature_reuse=feature_reuse)
    queries, random = CoordinateEstimator().queries(torch.tensor([0])), RandomState.seeded(0, CPU)
    with quietly():
        found = evaluate(objective, Batch(case.X, case.y), queries, random)
    with unchanged_generators(CPU), torch.no_grad():
        random.restore()
        outputs = trained(case.X)
        loss = torch.as_tensor(case.criterion(outputs, case.y), dtype=torch.float64).mean()
    assert found.base_loss == pytest.approx(float(loss), rel=1e-14)
    torch.testing.assert_close(found.outputs, outputs, rtol=1e-13, atol=1e-14)
    own = dict([*trained.named_parameters(), *trained.named_buffers()])
    assert list(found.tensors) == list(own)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in own.items())


def test_no_query_at_all_still_gives_the_base_loss():
    case = case_of("mlp")
    objective = Objective(case.module(), case.criterion)
    none = torch.empty(0, dtype=torch.int64)
    found = evaluate(objective, Batch(case.X, case.y), CoordinateEstimator().queries(none))
    assert found.losses.shape == (0,)
    assert found.base_loss == case.criterion(case.module()(case.X), case.y).item()


def test_sample_weights_weigh_every_query():
    case = case_of("mlp")
    twice = torch.tensor([0, 1, 1, 2, 3, 4, 5, 5])
    weight = torch.tensor([1.0, 2, 1, 1, 1, 2], dtype=torch.float64)
    objective = Objective(case.module(), case.criterion)
    queries = all_queries(objective)
    weighted = evaluate(objective, Batch(case.X, case.y, weight), queries)
    repeated = evaluate(objective, Batch(case.X[twice], case.y[twice]), queries)
    torch.testing.assert_close(weighted.losses, repeated.losses)
    assert weighted.base_loss == pytest.approx(repeated.base_loss)


# --- Random numbers


def test_the_same_random_state_gives_the_same_losses_and_another_one_others():
    case = case_of("dropout_train")
    first, again, other = (
        evaluate(objective, Batch(case.X, case.y), all_queries(objective), state)
        for seed in (1, 1, 2)
        for objective in [Objective(case.module(), case.criterion)]
        for state in [RandomState.seeded(seed, CPU)]
    )
    assert torch.equal(first.losses, again.losses)
    assert first.base_loss != other.base_loss
    assert not torch.isclose(first.losses, other.losses).any()


def test_by_default_queries_see_what_a_forward_would_draw_now():
    case = case_of("dropout_train")
    objective = Objective(case.module(), case.criterion)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        found = evaluate(objective, Batch(case.X, case.y), all_queries(objective))
        again = evaluate(objective, Batch(case.X, case.y), all_queries(objective))
        expected = case.criterion(case.module()(case.X), case.y)
    assert found.base_loss == expected.item()
    assert torch.equal(found.losses, again.losses)


def test_a_random_state_is_equal_to_itself_restored_and_to_no_other():
    state = RandomState.seeded(3, CPU)
    with unchanged_generators(CPU):
        state.restore()
        assert RandomState.current(CPU) == state
        torch.rand(1)
        assert RandomState.current(CPU) != state
    assert RandomState.seeded(3, CPU) == state != RandomState.seeded(4, CPU)


def test_draws_from_numpy_inside_a_module_are_the_same_in_every_query():
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.as_tensor(np.random.randn(4))  # noqa: NPY002

    fc = case_of("dropout_eval").module()[2:4]
    objective = Objective(nn.Sequential(*fc, Noise()), nn.MSELoss())
    X, y = torch.ones(3, 5, dtype=torch.float64), torch.zeros(3, 4, dtype=torch.float64)
    with quietly():
        found = evaluate(objective, Batch(X, y), all_queries(objective))
    assert (found.losses - found.base_loss).abs().max() < 0.05


# --- Losses that are no numbers


class Root(nn.Module):
    """The root of its weights: a step back from zero is NaN."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.weight = nn.Parameter(weight.double())

    def forward(self, x: Tensor) -> Tensor:
        return (self.scale * x) @ self.weight.sqrt()


BATCH = Batch(torch.ones(4, 2).double(), torch.zeros(4, 3).double(), label="batch 7 of epoch 2")


def ask(module: nn.Module, estimator, batch: Batch = BATCH, criterion=None) -> None:
    objective = Objective(module, criterion or nn.MSELoss())
    parameters, flat = objective.parameters, torch.arange(objective.parameters.size)
    generator = torch.Generator().manual_seed(0)
    evaluate(objective, batch, estimator.queries(flat, parameters.segments(flat), generator))


@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 2)])
@pytest.mark.parametrize("fold_bytes", [1, 320, 2**23])
def test_a_query_that_is_nan_is_named_with_its_coordinate_step_and_batch(
    place: tuple[int, int], fold_bytes: int, monkeypatch
):
    monkeypatch.setattr(FOLD_BYTES, fold_bytes)
    weight = torch.ones(2, 3)
    weight[place] = 0.0
    text = (
        rf"^The query at coordinate weight\[{place[0]}, {place[1]}\] \(step -0\.005\) gave a loss "
        r"that is NaN or infinite: nan on batch 7 of epoch 2, asked 3 times by worker \S+; "
        "expected a finite number. Lower smoothing or lr, or clip the outputs.$"
    )
    with pytest.raises(QueryError, match=text):
        ask(Root(weight), CoordinateEstimator(scheme="central"))


def test_a_direction_that_is_nan_is_named_by_its_number():
    text = r"^The query at direction \d \(step 0\.005\) gave .* infinite: nan on batch 7 of epoch 2"
    with pytest.raises(QueryError, match=text):
        ask(Root(torch.zeros(2, 3)), RandomizedEstimator(n_directions=3))


@pytest.mark.parametrize(
    ("weight", "criterion", "cause"),
    [
        (-torch.ones(2, 3), nn.MSELoss(), "nan on batch 7 of epoch 2, and so are some of its outp"),
        (
            torch.full((2, 3), torch.inf),
            nn.MSELoss(),
            "inf on batch 7 of epoch 2, and so are some",
        ),
        (
            torch.ones(2, 3),
            lambda outputs, y: float("nan"),
            "nan on batch 7 of epoch 2, although its outputs are finite",
        ),
    ],
    ids=["nan outputs", "infinite outputs", "criterion"],
)
def test_a_base_loss_that_is_no_number_is_refused_with_its_cause(weight, criterion, cause: str):
    with pytest.raises(QueryError, match=f"^The loss at the current parameters is {cause}"):
        ask(Root(weight), CoordinateEstimator(), criterion=criterion)


def test_the_module_is_as_it_was_after_a_query_error():
    case = case_of("cnn_train")
    module, before = case.module(), case.module().state_dict()
    objective = Objective(module, case.criterion)
    with pytest.raises(QueryError):
        evaluate(objective, Batch(case.X * torch.nan, case.y), all_queries(objective))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


# --- Parameters that change no output


class Partly(nn.Module):
    """Reads only some of the features that its last layer makes."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)))[:, 1:]


def own_criterion(outputs: Tensor, y: Tensor) -> Tensor:
    return (outputs[:, 0] - y).square()


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), own_criterion], ids=["torch", "own"])
def test_outputs_that_do_not_change_are_folded_too(criterion):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, X = Partly().double(), torch.randn(6, 4).double()
    objective, y = Objective(module, criterion), torch.arange(6) % 2
    indices = objective.parameters.flatten({"head.weight": torch.arange(5)})
    found = evaluate(objective, Batch(X, y), CoordinateEstimator(5e-3).queries(indices))
    assert (found.losses == found.base_loss).all()
    evaluate(objective, Batch(X, y), all_queries(objective))
    assert not objective.reuse.unfolded
