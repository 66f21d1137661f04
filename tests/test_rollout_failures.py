"""What a fit does about queries of a solver that raises, hangs, diverges or dies."""

import os
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from case_rollouts import (
    CELLS,
    LIMIT,
    N_STEPS,
    Fussy,
    advect,
    data,
    loop_of,
    parameters_of,
    small_corrector,
)
from zoestim import QueryError
from zoestim.rollouts import Rows
from zoestim.rollouts._box import SolverStep
from zoestim.solvers import FunctionSolver

# Fits of a few steps need not help.
pytestmark = pytest.mark.filterwarnings("ignore::zoestim.CorrectionWorseThanSolverWarning")

# The last bias, moved so far, takes roll-outs beyond what a fussy solver bears.
FAR = {
    "smoothing": 3.0,
    "lr": 1e-4,
    "optimizer": torch.optim.SGD,
    "optimizer__momentum": 0.0,
    "max_epochs": 1,
    "max_queries": 44,
    "max_retries": 0,
}
HOWS = ["raises", "nan", "diverges", "hangs", "dies"]


def gentle() -> Any:
    """Return a corrector all of whose weights matter, and that corrects little."""
    corrector = small_corrector(zero_init=False)
    with torch.no_grad():
        *_, weight, bias = corrector.parameters()
        weight *= 0.1
        bias.zero_()
    return corrector


def fit(how: str, **given: Any) -> Any:
    solver = FunctionSolver(Fussy(how, os.getpid()))
    settings = {**FAR, **given}
    if how == "hangs":
        settings |= {"query_timeout": 0.2, "backend": "loky", "n_jobs": 2, "max_queries": 22}
    if how == "dies":
        settings |= {"n_jobs": 2, "backend": "loky"}
    return loop_of(solver, corrector=gentle(), **settings).fit(*data())


@pytest.fixture(scope="module")
def rejected() -> np.ndarray:
    return parameters_of(fit("raises", on_failure="reject"))


@pytest.mark.parametrize("how", HOWS)
def test_failed_queries_are_left_out_and_counted(how, rejected):
    estimator = fit(how, on_failure="reject")
    assert 0 < estimator.n_failed_queries_ < estimator.n_queries_
    found = parameters_of(estimator)
    assert np.isfinite(found).all()
    if how != "hangs":  # which took one step less
        assert np.array_equal(found, rejected)


@pytest.mark.filterwarnings("ignore:The gradient depends on the finite-difference step")
@pytest.mark.parametrize("how", ["raises", "nan"])
def test_failed_queries_of_the_gradient_check_are_forgiven(how, rejected):
    estimator = fit(how, on_failure="reject", check_gradient=True, max_queries=90)
    assert estimator.n_failed_queries_ > 0
    assert estimator.n_updates_ == 2


@pytest.mark.parametrize("how", ["raises", "nan", "diverges"])
def test_failed_queries_are_penalised(how, rejected):
    estimator = fit(how, on_failure="penalize")
    found = parameters_of(estimator)
    assert estimator.n_failed_queries_ > 0
    assert np.isfinite(found).all()
    assert found[-1] < rejected[-1]  # away from where it failed


@pytest.mark.parametrize("how", ["raises", "nan", "diverges", "dies"])
def test_failed_queries_are_raised(how):
    said = {"raises": "too fast", "dies": "died|worker|process"}.get(how, "finite|diverge|nan")
    with pytest.raises(RuntimeError, match=rf"(?is){said}"):
        fit(how, on_failure="raise")


def all_at_once(states: np.ndarray, conditions: Any) -> np.ndarray:
    """Advect many states; one that is too fast becomes NaN, and it alone."""
    later = np.stack(
        [advect(each, {"speed": v}) for each, v in zip(states, conditions["speed"], strict=True)]
    )
    return np.where(np.abs(states).max(axis=(1, 2), keepdims=True) > 2.5, np.nan, later)


def test_one_copy_of_a_batch_that_diverges_spoils_no_other(rejected):
    solver = FunctionSolver(all_at_once, batched=True)
    estimator = loop_of(solver, corrector=gentle(), **FAR, on_failure="reject")
    estimator.fit(*data())
    assert estimator.n_failed_queries_ > 0
    np.testing.assert_allclose(parameters_of(estimator), rejected, rtol=1e-3, atol=1e-7)


def broken(state: np.ndarray, conditions: Any) -> np.ndarray:
    raise FloatingPointError("out of memory on the cluster")


def blank(state: np.ndarray, conditions: Any) -> np.ndarray:
    return np.full_like(state, np.nan)


def other_shape(state: np.ndarray, conditions: Any) -> np.ndarray:
    return state[:, :-1]


@pytest.mark.parametrize("on_failure", ["reject", "penalize", "raise"])
@pytest.mark.parametrize(
    ("solver", "match"),
    [(broken, "out of memory"), (blank, "(?i)finite|nan"), (other_shape, "shape")],
)
def test_a_solver_that_never_works_ends_the_fit(solver, match, on_failure):
    with pytest.raises((RuntimeError, ValueError, FloatingPointError), match=match):
        loop_of(solver, on_failure=on_failure).fit(*data())


@pytest.mark.parametrize("gradient", ["rge", "solver-vjp"])
def test_other_gradients_bear_failures_too(gradient):
    solver = FunctionSolver(Fussy("nan"))
    given = {**FAR, "max_queries": 200, "gradient": gradient, "n_directions": 20}
    estimator = loop_of(solver, corrector=gentle(), **given)
    try:
        estimator.fit(*data())
    except RuntimeError as error:  # most of them failed
        said = str(error)
        assert "fail" in said
    else:
        assert np.isfinite(parameters_of(estimator)).all()


def test_a_roll_out_that_raises_at_the_current_weights_is_a_query_error():
    steps = iter(range(6 * (N_STEPS + 1)))  # what the bare solver takes, for each frame

    def tired(state: np.ndarray, conditions: Any) -> np.ndarray:
        if next(steps, None) is None:
            raise FloatingPointError("too many")
        return advect(state, conditions)

    estimator = loop_of(FunctionSolver(tired), mode="nog", batch_size=40, max_retries=0)
    with pytest.raises(QueryError, match=r"current weights.*too many"):
        estimator.fit(*data())


def test_a_prediction_that_diverges_is_nan_from_there_on():
    X, y = data()
    estimator = loop_of(FunctionSolver(Fussy("nan")), max_queries=22).fit(X, y)
    fast = type(X)(X.states.copy(), X.conditions)
    fast.states[2] *= 5  # beyond the limit
    with pytest.warns(UserWarning, match="failed and are NaN"):
        found = estimator.predict(fast)
    assert np.isnan(found[2]).all()
    assert np.isfinite(np.delete(found, 2, axis=0)).all()


def test_a_fit_of_a_fussy_solver_can_be_pickled():
    estimator = fit("raises", on_failure="reject")
    assert pickle.loads(pickle.dumps(estimator)).n_failed_queries_ == estimator.n_failed_queries_


@pytest.mark.parametrize("native", ["torch", "numpy"])
def test_of_many_copies_only_that_which_raises_is_lost(native):
    def fussy(states: Any, conditions: Any) -> Any:
        if float(states.max()) > LIMIT:
            raise FloatingPointError("too fast")
        return states + 1

    solver = FunctionSolver(fussy, batched=True, native=native)
    step = SolverStep(solver, Rows((1, CELLS)), at_once=4)
    rows = torch.zeros(3, 2, CELLS)
    rows[1, 1, 0] = 2 * LIMIT
    found = torch.as_tensor(step(rows if native == "torch" else rows.numpy()))
    assert found[1].isnan().all()
    assert (found[[0, 2]] == 1).all()


def test_a_solver_is_asked_about_no_more_simulations_at_once_than_it_may():
    sizes = []

    def noting(states: np.ndarray, conditions: Any) -> np.ndarray:
        sizes.append(len(states))
        return states * np.float32(0.9)

    solver = FunctionSolver(noting, batched=True)
    X, y = data()
    loop_of(solver, solver_batch=5, max_queries=44).fit(X, y).predict(X)
    assert max(sizes) == 5


def test_a_prediction_that_a_correction_breaks_is_nan_with_a_warning():
    X, y = data()
    estimator = loop_of(mode="nog").fit(X, y)
    with torch.no_grad():
        estimator.corrector_.net[-1].bias.fill_(torch.inf)
    with pytest.warns(UserWarning, match="failed and are NaN"):
        assert np.isnan(estimator.predict(X, n_steps=1)).all()
