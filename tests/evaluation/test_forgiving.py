"""Queries that fail and are forgiven: the others are answered, and the failures are told."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zoestim import BlackBox, QueryError
from zoestim.backends import JoblibBackend
from zoestim.evaluation import Asking, Batch, Evaluation, Objective, Patience, evaluate
from zoestim.gradients import CoordinateEstimator

X = torch.linspace(-1, 1, 12, dtype=torch.float64).view(4, 3)
Y = torch.zeros(4, 2, dtype=torch.float64)
BAD = 0.7  # an entry of the first column beyond it breaks the box


class Fragile:
    """Doubles its input, unless there is a large number in a column of a lane."""

    def __init__(self, breaks: Callable[[np.ndarray], np.ndarray], column: int | slice):
        self.breaks = breaks
        self.column = column

    def __call__(self, stacked: np.ndarray) -> np.ndarray:
        lanes = [self.breaks(2 * x) if (x[:, self.column] > BAD).any() else 2 * x for x in stacked]
        return np.stack(lanes)


def raises(x: np.ndarray) -> np.ndarray:
    raise ArithmeticError("the pressure diverged")


def gives_nan(x: np.ndarray) -> np.ndarray:
    return x * np.nan


def ask(breaks: Callable, *, forgiving: bool = True, column: int | slice = 0, **how) -> Evaluation:
    """Ask for all differences of a linear layer of six weights before a fragile box."""
    layer = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    nn.init.zeros_(layer.weight)
    box = BlackBox(Fragile(breaks, column), vectorized=True)
    objective = Objective(nn.Sequential(layer, box), nn.MSELoss())
    queries = CoordinateEstimator(1.0).queries(torch.arange(6))
    asking = Asking(patience=Patience(None, 1, forgiving), **how)
    return evaluate(objective, Batch(X, Y), queries, asking=asking)


@contextmanager
def workers(kind: str) -> Iterator[JoblibBackend]:
    backend = JoblibBackend(2, kind)
    try:
        yield backend
    finally:
        backend.close()


def expected() -> Tensor:
    """Return the losses where nothing breaks."""
    return (2 * X).square().sum(0).div(Y.numel()).repeat(2)


@pytest.mark.parametrize("breaks", [raises, gives_nan])
def test_others_are_answered_and_the_failed_change_nothing(breaks: Callable) -> None:
    found = ask(breaks)
    broken = X.max(0).values > BAD  # the first row of weights moves the first column
    failed = [int(k) for k in range(3) if broken[k]]
    assert [failure.position for failure in found.lost] == failed
    assert failed == [1, 2]
    whole = [k for k in range(6) if k not in failed]
    torch.testing.assert_close(found.losses[whole], expected()[whole])
    assert (found.losses[failed] == found.base_loss).all()


def test_cause_of_a_failure_is_kept() -> None:
    assert "pressure" in str(ask(raises).lost[0].cause)
    assert ask(gives_nan).lost[0].cause is None


def test_without_forgiveness_the_first_failure_is_raised() -> None:
    with pytest.raises(QueryError, match="the pressure diverged"):
        ask(raises, forgiving=False)


def test_more_than_half_are_too_many() -> None:
    with pytest.raises(QueryError, match=r"4 of 6 queries failed.*the pressure diverged"):
        ask(raises, column=slice(None))


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_workers_bring_failures_back(backend: str) -> None:
    with workers(backend) as other:
        found = ask(raises, backend=other)
    assert [failure.position for failure in found.lost] == [1, 2]
    assert torch.equal(found.losses, ask(raises).losses)


def test_meter_counts_rows_and_seconds_of_workers_too() -> None:
    box = BlackBox(np.sin, vectorized=1)
    layer = nn.Linear(3, 2, dtype=torch.float64)
    objective = Objective(nn.Sequential(layer, box), nn.MSELoss())
    queries = CoordinateEstimator(1e-3).queries(torch.arange(8))
    evaluate(objective, Batch(X, Y), queries)
    alone = objective.module[1].meter.read()
    assert alone.n_rows == 4 * (1 + 8)
    assert alone.seconds > 0
    with workers("loky") as backend:
        evaluate(objective, Batch(X, Y), queries, asking=Asking(backend))
    assert objective.module[1].meter.read().n_rows == 2 * 4 * (1 + 8)
