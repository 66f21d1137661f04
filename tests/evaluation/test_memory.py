"""Memory: what is full is halved, and no fold takes more than it may."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import reference
from zoestim import QueryError, ZOClassifier, estimate_gradient
from zoestim.evaluation import Propagation, RandomState, Visit
from zoestim.evaluation import _lanes as lanes_module
from zoestim.evaluation._cost import PEAK_FACTOR
from zoestim.propagation import RULES, Dense, Slab

CPU = torch.device("cpu")
FULL = {
    "cuda": torch.OutOfMemoryError("CUDA out of memory."),
    "python": MemoryError("Unable to allocate 3 GiB"),
    "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
}
kinds = pytest.mark.parametrize("kind", FULL)


def mlp() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return module, nn.CrossEntropyLoss(), torch.randn(6, 4).double(), torch.arange(6) % 3


class Largest(nn.Module):
    """An operation without a rule."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cummax(x, 1)[0]


def ruleless() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    module, *rest = mlp()
    return nn.Sequential(module, Largest()), *rest


def cnn(size: int = 8) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 3, 3, padding=1)]
    module = nn.Sequential(
        *(convolutions[0], nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2)),
        *(convolutions[1], nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(3, 3)),
    ).double()
    X = torch.randn(5, 2, size, size).double()
    return module, nn.CrossEntropyLoss(), X, torch.arange(5) % 3


def gradient(given: tuple[nn.Module, nn.Module, Tensor, Tensor], **settings: Any) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        estimate = estimate_gradient(*given, **settings)
    return estimate.gradient.dense(sum(p.numel() for p in given[0].parameters()))


@cache
def loop(make: Callable) -> Tensor:
    """Return the gradient that a loop over all coordinates gives."""
    given = make()
    loss = reference.module_loss(*given, RandomState.seeded(0, CPU).cpu)
    theta = reference.flat_parameters(given[0])
    return reference.cge(loss, theta, range(len(theta)), 5e-3)


@pytest.fixture(autouse=True)
def _unseeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        yield


def n_lanes(changes: Any) -> int:
    (change,) = changes.values()
    return len(change.steps)


# --- Memory is full


def fill_at(monkeypatch, most: int, error: Exception, whole_folds: bool = False) -> list[int]:
    """Let folds of more than so many lanes fail; return the list of those that were tried."""
    run, tried = Propagation.run, []

    def limited(self: Propagation, changes: Any, fold: Any = None) -> Any:
        if self.visits is None and (fold is not None or not whole_folds):
            tried.append(n_lanes(changes))
            if tried[-1] > most:
                raise error
        return run(self, changes, fold)

    monkeypatch.setattr(Propagation, "run", limited)
    return tried


@kinds
def test_a_fold_for_which_memory_is_full_is_halved(kind: str, monkeypatch):
    given = mlp()
    tried = fill_at(monkeypatch, 10, FULL[kind])
    found = gradient(given, coordinates={"0.weight": range(32)})
    # One lane to measure, then the fold and its halves, each as far as it has to be. What did
    # not fit is not tried again.
    assert tried == [1, 32, 16, 8, 8, 8, 8]
    torch.testing.assert_close(found[:32], loop(mlp)[:32], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("most", [1, 3, 31])
@pytest.mark.parametrize("make", [mlp, cnn])
def test_halved_folds_give_the_gradient_of_the_loop(make: Callable, most: int, monkeypatch):
    given = make()
    tried = fill_at(monkeypatch, most, FULL["cuda"])
    torch.testing.assert_close(gradient(given), loop(make), rtol=1e-9, atol=1e-11)
    assert max(tried) > most
    assert sum(size for size in tried if size <= most) >= len(reference.flat_parameters(given[0]))


def test_queries_run_one_by_one_where_not_even_one_lane_fits(monkeypatch):
    given = mlp()
    tried = fill_at(monkeypatch, 0, FULL["cuda"])
    torch.testing.assert_close(gradient(given), loop(mlp), rtol=1e-9, atol=1e-11)
    assert set(tried) == {1}


def test_folds_that_fit_when_measured_but_never_after_end_one_by_one(monkeypatch):
    given, queried = mlp(), {"0.bias": range(8)}
    run, tried = Propagation.run, []

    def full_after_measuring(self: Propagation, changes: Any, fold: Any = None) -> Any:
        if len(tried) > 0 or self.visits is not None:
            tried.append(n_lanes(changes))
        if len(tried) > 1:
            raise FULL["cuda"]
        return run(self, changes, fold)

    monkeypatch.setattr(Propagation, "run", full_after_measuring)
    found = gradient(given, coordinates=queried)
    assert tried == [1, 8, 4, 2, *[1] * 8]
    torch.testing.assert_close(found[32:40], loop(mlp)[32:40], rtol=1e-9, atol=1e-12)


@kinds
def test_a_rule_for_which_memory_is_full_is_not_given_up(kind: str, monkeypatch):
    given, rule, seen = cnn(), RULES[F.relu], []

    def limited(site: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(x.change.dense(x.base.shape)))
        if seen[-1] > 20:
            raise FULL[kind]
        return rule(site, x, *args, **kwargs)

    monkeypatch.setitem(RULES, F.relu, limited)
    torch.testing.assert_close(gradient(given), loop(cnn), rtol=1e-9, atol=1e-11)
    assert max(seen) > 20
    assert {size for size in seen if 10 < size <= 20}  # halves still go together


def test_full_memory_does_not_make_an_operation_without_a_rule_slow(monkeypatch):
    given, at_once, one_by_one = ruleless(), lanes_module._at_once, []

    def limited(operation: Any, leaves: list[Any]) -> Any:
        stacks = [leaf.lanes for leaf in leaves if hasattr(leaf, "lanes")]
        if len(stacks[0]) > 10:
            raise FULL["cuda"]
        return at_once(operation, leaves)

    monkeypatch.setattr(lanes_module, "_at_once", limited)
    monkeypatch.setattr(lanes_module, "_one_by_one", lambda *_: one_by_one.append(1))
    torch.testing.assert_close(gradient(given), loop(ruleless), rtol=1e-8, atol=1e-11)
    assert one_by_one == []


def test_halves_of_a_chunk_take_no_more_than_the_chunk_itself(monkeypatch):
    given = cnn()
    monkeypatch.setattr("zoestim.evaluation._cost.FOLD_BYTES", 2**16)
    with recorded(monkeypatch) as folds:
        gradient(given, coordinates={"0.weight": range(90)})
        largest = max(fold.alive for fold in folds)
        folds.clear()
        # Patched within the context that `recorded` undoes: in the other order its wrapper stays.
        with monkeypatch.context() as patch:
            fill_at(patch, 60, FULL["cuda"])
            gradient(given, coordinates={"0.weight": range(90)})
    assert max(fold.alive for fold in folds) <= largest


def test_another_error_is_not_taken_for_full_memory(monkeypatch):
    tried = fill_at(monkeypatch, 10, RuntimeError("expected scalar type Double"))
    found = gradient(mlp(), coordinates={"0.weight": range(32)})
    assert tried == [1, 32]  # the parameter is never folded again
    torch.testing.assert_close(found[:32], loop(mlp)[:32], rtol=1e-9, atol=1e-12)


def test_a_loss_that_is_no_number_is_named_in_halves_too(monkeypatch):
    module, _, X, y = mlp()
    fill_at(monkeypatch, 10, FULL["cuda"])
    with torch.no_grad():
        module[2].weight.zero_()

    def root(outputs: Tensor, y: Tensor) -> Tensor:
        return outputs.sub(module[2].bias.detach()).sum().sqrt()

    with pytest.raises(QueryError, match=r"coordinate 2\.weight\["):
        estimate_gradient(module, root, X, y, coordinates={"2.weight": range(24)})


# --- The budget


class Ran:
    """One run of a fold: its lanes, and the most that was alive at a time."""

    def __init__(self, lanes: int, visits: list[Visit]):
        self.lanes = lanes
        self.alive = max((visit.alive for visit in visits), default=0)


@contextmanager
def recorded(monkeypatch) -> Iterator[list[Ran]]:
    """Give what each fold took; the lanes that were run to be measured are left out."""
    run, folds = Propagation.run, []

    def recording(self: Propagation, changes: Any, fold: Any = None) -> Any:
        if self.visits is not None or (fold is None and n_lanes(changes) == 1):
            return run(self, changes, fold)
        self.visits = []
        try:
            return run(self, changes, fold)
        finally:
            folds.append(Ran(n_lanes(changes), self.visits))
            self.visits = None

    with monkeypatch.context() as patch:
        patch.setattr(Propagation, "run", recording)
        yield folds


@pytest.mark.parametrize("budget", [1, 50_000, 200_000, 10**6])
@pytest.mark.parametrize("make", [mlp, cnn])
def test_no_fold_of_several_lanes_takes_more_than_the_budget(
    make: Callable, budget: int, monkeypatch
):
    with recorded(monkeypatch) as folds:
        gradient(make(), memory_budget=budget)
    several = [fold for fold in folds if fold.lanes > 1]
    assert all(PEAK_FACTOR * fold.alive <= budget for fold in several)
    assert bool(several) == (budget > 1)


def test_a_larger_budget_makes_larger_folds(monkeypatch):
    largest = []
    for budget in (1, 50_000, 200_000, 10**6):
        with recorded(monkeypatch) as folds:
            gradient(cnn(), memory_budget=budget, coordinates={"0.weight": range(90)})
        largest.append(max(fold.lanes for fold in folds))
    assert largest[0] == 1
    assert largest == sorted(set(largest))


def test_memory_does_not_grow_with_the_number_of_coordinates(monkeypatch):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(50, 10), nn.ReLU(), nn.Linear(10, 3)).double()
    given = module, nn.CrossEntropyLoss(), torch.randn(6, 50).double(), torch.arange(6) % 3
    alive, sizes, counts = [], [], []
    for n_coordinates in (50, 500):
        with recorded(monkeypatch) as folds:
            queried = {"0.weight": range(n_coordinates)}
            gradient(given, coordinates=queried, memory_budget=10_000)
        alive.append(max(fold.alive for fold in folds))
        sizes.append(max(fold.lanes for fold in folds))
        counts.append(len(folds))
    assert alive[0] == alive[1] > 0
    assert sizes[0] == sizes[1] > 1
    assert counts[1] == 10 * counts[0]


@pytest.mark.parametrize("method", ["cge", "rge"])
@pytest.mark.parametrize("make", [mlp, cnn])
def test_estimates_do_not_depend_on_the_budget(make: Callable, method: str):
    settings = {"method": method, "n_directions": 9, "random_state": 0}
    first, *others = (
        gradient(make(), memory_budget=budget, **settings)
        for budget in (None, 1, 30_000, 10**6, 2**40)
    )
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-9, atol=1e-11)


class _Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [] if func.is_view else pytree.tree_leaves(result)
        sizes = [leaf.untyped_storage().nbytes() for leaf in made if isinstance(leaf, Tensor)]
        self.nbytes = max([self.nbytes, *sizes])
        return result


def largest_tensor(given: tuple, **settings: Any) -> int:
    with _Largest() as largest:
        gradient(given, **settings)
    return largest.nbytes


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), nn.MSELoss()], ids=["ce", "mse"])
def test_no_single_tensor_is_larger_than_the_budget(criterion: nn.Module):
    module, _, X, y = cnn(12)
    y = F.one_hot(y, 3).double() if isinstance(criterion, nn.MSELoss) else y
    assert largest_tensor((module, criterion, X, y), memory_budget=300_000) <= 300_000
    assert largest_tensor((module, criterion, X, y)) > 300_000


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), nn.MSELoss()], ids=["ce", "mse"])
def test_wide_outputs_of_one_changed_feature_fit_into_the_budget(criterion: nn.Module):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 30), nn.Tanh(), nn.Linear(30, 400)).double()
    y = torch.randn(16, 400).double() if isinstance(criterion, nn.MSELoss) else torch.arange(16)
    given, queried = (module, criterion, torch.randn(16, 4).double(), y), {"0.weight": range(120)}
    one = largest_tensor(given, coordinates={"0.weight": range(1)})
    budget = 4 * one
    assert largest_tensor(given, coordinates=queried, memory_budget=budget) <= budget


# --- What a budget may be

WRONG = {"zero": 0, "negative": -5, "text": "1GB", "part": 0.5}


@pytest.mark.parametrize("budget", WRONG.values(), ids=WRONG)
def test_a_budget_that_is_no_number_of_bytes_is_refused(budget: Any):
    with pytest.raises((TypeError, ValueError), match="memory_budget must be a number of bytes"):
        gradient(mlp(), memory_budget=budget)


@pytest.mark.parametrize("budget", WRONG.values(), ids=WRONG)
def test_estimators_refuse_a_budget_that_is_no_number_of_bytes(budget: Any):
    module, _, X, y = mlp()
    estimator = ZOClassifier(module.float(), memory_budget=budget, max_epochs=1)
    with pytest.raises(ValueError, match=r"memory_budget"):
        estimator.fit(X.float().numpy(), y.numpy())


def n_changes() -> int:
    """Return how many changes there are in this process."""
    return sum(issubclass(type(each), Slab | Dense) for each in gc.get_objects())


@pytest.mark.parametrize("make", [mlp, cnn], ids=["mlp", "cnn"])
def test_no_change_waits_for_the_garbage_collector(make: Callable[[], tuple]):
    given = make()
    gradient(given)
    gc.collect()
    gc.disable()
    try:
        before = n_changes()
        gradient(given)
        assert n_changes() == before
    finally:
        gc.enable()
