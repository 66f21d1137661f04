"""What SolverInTheLoop says of a solver, data or settings with which nothing good will come."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from case_rollouts import CELLS, Counting, advect, data, loop_of, small_corrector
from zoestim import QueryError
from zoestim.solvers import FunctionSolver

# Fits of a few steps need not help.
pytestmark = pytest.mark.filterwarnings("ignore::zoestim.CorrectionWorseThanSolverWarning")


@pytest.fixture(scope="module")
def flows() -> tuple[Any, np.ndarray]:
    return data()


def test_what_fails_by_chance_is_asked_again(flows):
    chance = np.random.default_rng(0)

    def flaky(state: np.ndarray, conditions: Any) -> np.ndarray:
        return advect(state, conditions) * (np.nan if chance.random() < 0.05 else 1)

    found = loop_of(flaky, mode="nog", max_retries=9).fit(*flows)
    steady = loop_of(FunctionSolver(advect), mode="nog").fit(*flows)
    assert found.baseline_score_ == steady.baseline_score_
    assert found.corrected_score_ == steady.corrected_score_
    assert np.isfinite(found.predict(flows[0], n_steps=50)).all()


def test_a_row_that_raises_again_is_left_as_it_is(flows):
    X, y = flows

    def fussy(state: np.ndarray, conditions: Any) -> np.ndarray:
        if abs(state).max() > 1.5:
            raise FloatingPointError("too fast")
        return advect(state, conditions)

    fitted = loop_of(fussy).fit(X, y)
    loud = X[:3]
    loud.states[1] *= 4
    with pytest.warns(UserWarning, match="1 of 3 simulations failed .*simulation 1.*too fast"):
        found = fitted.predict(loud, n_steps=2)
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[0, 2]]).all()


@pytest.mark.filterwarnings("ignore:corrected_score_ is minus infinity")
def test_a_bare_solver_that_does_not_last_is_warned_of(flows):
    def explodes(state: np.ndarray, conditions: Any) -> np.ndarray:
        with np.errstate(over="ignore"):
            return state * np.float32(1e8)

    with pytest.warns(UserWarning, match="baseline_score_ is minus infinity: of the 6 .* 6 failed"):
        fitted = loop_of(explodes, mode="non", lr=1e-9).fit(*flows)
    assert fitted.baseline_score_ == -np.inf


def test_frames_that_begin_with_the_initial_states_are_warned_of(flows):
    X, y = flows
    late = np.concatenate([X.states[:, None], y[:, :-1]], axis=1)
    with pytest.warns(UserWarning, match=r"equals X in all simulations.*y\[:, 1:\]"):
        loop_of().fit(X, late)


def test_states_without_an_axis_of_channels_are_refused():
    states = np.ones((3, CELLS), dtype=np.float32)
    frames = np.ones((3, 5, CELLS), dtype=np.float32) * np.arange(5)[:, None]
    with pytest.raises(ValueError, match=r"without a grid.*X\[:, None\]"):
        loop_of(lambda state, conditions: state / 2, corrector=None).fit(states, frames)


class OfVectors(nn.Module):
    """A corrector of states that have no grid."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(CELLS, CELLS)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.linear(states)


def test_states_without_a_grid_can_have_a_corrector_of_their_own():
    frames = np.random.default_rng(0).normal(size=(3, 6, CELLS)).astype(np.float32)
    loop = loop_of(lambda state, conditions: state / 2, corrector=OfVectors)
    assert loop.fit(frames[:, 0], frames[:, 1:]).predict(frames[:, 0]).shape == (3, 5, CELLS)


def test_half_precision_is_refused(flows):
    with pytest.raises(ValueError, match=r"parameters of torch.float16; expected float32"):
        loop_of(corrector=small_corrector().half()).fit(*flows)


@pytest.mark.filterwarnings("ignore:No query changed the loss")
def test_a_step_that_reaches_no_loss_is_said_to_be_too_small(flows):
    with pytest.warns(UserWarning, match="vanishes with .* Take a larger smoothing"):
        loop = loop_of(smoothing=1e-20, check_gradient=True).fit(*flows)
    assert loop.gradient_check_.difference == np.inf


@pytest.mark.parametrize("gradient", ["cge", "solver-vjp"])
def test_a_budget_for_the_check_alone_is_refused_before_it_is_spent(flows, gradient):
    solver = Counting()
    loop = loop_of(solver, gradient=gradient, check_gradient=True, max_queries=50)
    with pytest.raises(ValueError, match=r"max_queries leaves .* it takes .* check_gradient=False"):
        loop.fit(*flows)
    assert solver.calls <= sum(len(frames) + 1 for frames in flows[1])  # the first steps


def test_the_remedy_for_a_small_budget_is_of_the_gradient(flows):
    with pytest.raises(ValueError, match=r"does not allow one training step.* lower n_unroll"):
        loop_of(gradient="solver-vjp", max_queries=5).fit(*flows)
    with pytest.raises(ValueError, match=r"does not allow one training step.* raise sparsity"):
        loop_of(gradient="cge", max_queries=5).fit(*flows)


@pytest.mark.parametrize("gradient", ["cge", "auto"])
def test_a_solver_that_misses_a_condition_is_quoted(flows, gradient):
    def needs_more(state: np.ndarray, conditions: Any) -> np.ndarray:
        return state * conditions["viscosity"]

    with pytest.raises(QueryError, match="The solver raises KeyError: 'viscosity' - one step"):
        loop_of(needs_more, gradient=gradient).fit(*flows)
