"""Gradients of the unrolled loss, beside those of a plain loop through a differentiable solver."""

from typing import Any

import numpy as np
import pytest
import torch

from case_rollouts import (
    IN_TORCH,
    ONE_BY_ONE,
    advect_all,
    burgers,
    data,
    exact_gradient,
    loop_of,
    parameters_of,
    small_corrector,
    wake,
)
from zoestim.models import CorrectorCNN
from zoestim.solvers import FunctionSolver

# Fits of a few steps need not help.
pytestmark = pytest.mark.filterwarnings("ignore::zoestim.CorrectionWorseThanSolverWarning")

# One batch of one window a simulation, one step of plain descent: what moved is the gradient.
ONE_STEP = {
    "optimizer": torch.optim.SGD,
    "optimizer__momentum": 0.0,
    "lr": 1e-4,
    "lr_schedule": "constant",
    "update": "all",
    "max_epochs": 1,
    "batch_size": 3,
    "zero_init": False,
}
N_UNROLL = 4


def small() -> tuple[Any, Any, Any, Any]:
    X, y = data(3, N_UNROLL)
    return IN_TORCH, X, y, small_corrector(zero_init=False)


def on_burgers() -> tuple[Any, Any, Any, Any]:
    solver, X, y = burgers()
    return solver, X, y, small_corrector(zero_init=False)


def on_wake() -> tuple[Any, Any, Any, Any]:
    solver, X, y = wake()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        corrector = CorrectorCNN(2, 1, hidden=(2,), kernel_size=3, zero_init=False)
    return solver, X, y, corrector


FLOWS = {"advection": small, "burgers": on_burgers, "wake": on_wake}


def moved(flow: Any, solver: Any = None, **given: Any) -> tuple[np.ndarray, Any]:
    """Return the gradient that a step went along, and the estimator."""
    own, X, y, corrector = flow
    before = np.concatenate([each.detach().numpy().ravel() for each in corrector.parameters()])
    estimator = loop_of(solver or own, corrector=corrector, n_unroll=N_UNROLL, precision="float64")
    estimator.set_params(**{**ONE_STEP, **given}).fit(X, y)
    assert estimator.n_updates_ == 1
    return (before - parameters_of(estimator)) / ONE_STEP["lr"], estimator


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize(
    ("gradient", "least"), [("cge", 0.9999), ("solver-vjp", 0.999), ("autograd", 0.9999999)]
)
def test_the_gradient_is_that_of_the_unrolled_loss(name, gradient, least):
    flow = FLOWS[name]()
    solver, X, y, corrector = flow
    found, estimator = moved(flow, gradient=gradient)
    exact = exact_gradient(estimator, solver, corrector, X, y, "sol")
    assert cosine(found, exact) > least
    assert estimator.gradient_ == gradient


@pytest.mark.parametrize("name", FLOWS)
def test_all_gradients_are_of_one_length(name):
    flow = FLOWS[name]()
    lengths = [
        np.linalg.norm(moved(flow, gradient=gradient)[0])
        for gradient in ("autograd", "cge", "solver-vjp")
    ]
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-2)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("mode", ["nog", "ste"])
def test_modes_see_of_the_solver_what_they_say(name, mode):
    flow = FLOWS[name]()
    solver, X, y, corrector = flow
    found, estimator = moved(flow, mode=mode)
    exact = exact_gradient(estimator, solver, corrector, X, y, mode)
    assert cosine(found, exact) > 0.9999999
    whole = exact_gradient(estimator, solver, corrector, X, y, "sol")
    assert np.linalg.norm(found - whole) > 1e-4 * np.linalg.norm(whole)


@pytest.mark.parametrize("mode", ["nog", "ste", "non"])
def test_modes_ask_a_solver_without_gradient_too(mode):
    flow = small()
    by_torch, _ = moved(flow, mode=mode, batch_size=12)
    by_numpy, _ = moved(flow, ONE_BY_ONE, mode=mode, batch_size=12)
    np.testing.assert_allclose(by_numpy, by_torch, rtol=1e-4, atol=1e-8)


def test_a_solver_in_numpy_gives_the_same_estimates():
    for gradient in ("cge", "solver-vjp"):
        by_torch, _ = moved(small(), gradient=gradient)
        by_numpy, _ = moved(small(), ONE_BY_ONE, gradient=gradient)
        assert cosine(by_numpy, by_torch) > 0.99999


def test_one_step_is_fitted_to_pairs_of_frames():
    solver, X, y, corrector = small()
    found, estimator = moved((solver, X, y, corrector), mode="non", batch_size=12)
    states = np.concatenate([X.states[:, None], y[:, :-1]], axis=1).reshape(12, 1, -1)
    pairs = type(X)(states, {"speed": np.repeat(X.conditions["speed"], N_UNROLL)})
    exact = exact_gradient(estimator, solver, corrector, pairs, y.reshape(12, 1, 1, -1), "sol")
    assert cosine(found, exact) > 0.9999999


def test_random_directions_point_downhill():
    found, estimator = moved(small(), gradient="rge", n_directions=400)
    exact = exact_gradient(estimator, *[small()[i] for i in (0, 3, 1, 2)], "sol")
    assert cosine(found, exact) > 0.8


def test_coordinates_left_out_do_not_move():
    found, _ = moved(small(), sparsity=0.5, update="active")
    full, _ = moved(small())
    chosen = found != 0
    assert 0 < chosen.sum() < len(found)
    np.testing.assert_allclose(found[chosen], full[chosen], rtol=1e-3, atol=1e-6)


def test_auto_says_what_it_picked():
    _, estimator = moved(small(), gradient="auto")
    assert estimator.gradient_ in ("cge", "rge", "solver-vjp", "autograd")


def test_autograd_needs_a_solver_in_torch():
    with pytest.raises((ValueError, TypeError), match="autograd"):
        moved(small(), ONE_BY_ONE, gradient="autograd")


def test_two_steps_are_compared():
    for gradient in ("cge", "solver-vjp"):
        found = moved(small(), gradient=gradient, check_gradient=True)[1].gradient_check_
        assert found.cosine > 0.999
    assert moved(small())[1].gradient_check_ is None


def test_steps_that_disagree_are_warned_of():
    with pytest.warns(UserWarning, match="finite-difference step"):
        moved(small(), smoothing=3.0, check_gradient=True)


@pytest.mark.parametrize("n_bits", [14, 18])
def test_a_solver_that_rounds_is_warned_of(n_bits):
    def jumpy(states: Any, conditions: Any) -> Any:
        return (advect_all(states, conditions) * 2**n_bits).round() / 2**n_bits

    solver = FunctionSolver(jumpy, batched=True, native="torch")
    with pytest.warns(UserWarning, match="finite-difference step"):
        moved(small(), solver, gradient="solver-vjp", check_gradient=True)
