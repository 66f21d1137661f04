"""Budgets, checkpoints, workers and searches of SolverInTheLoop."""

import time
from typing import Any

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, cross_val_score
from skorch.callbacks import Callback
from torch import nn

from case_rollouts import (
    CELLS,
    IN_TORCH,
    N_PARAMETERS,
    Counting,
    advect,
    as_dicts,
    data,
    loop_of,
    parameters_of,
)
from zoestim import SolverInTheLoop
from zoestim.backends import SerialBackend
from zoestim.solvers import FunctionSolver, Simulations

# Fits of a few steps need not help.
pytestmark = pytest.mark.filterwarnings("ignore::zoestim.CorrectionWorseThanSolverWarning")


@pytest.fixture(scope="module")
def flows() -> tuple[Any, np.ndarray]:
    return data()


@pytest.fixture(scope="module")
def fitted(flows) -> SolverInTheLoop:
    return loop_of(IN_TORCH).fit(*flows)


# --- Budgets, checkpoints, workers


def test_no_query_more_than_the_budget(flows):
    # A step of all coordinates takes one query each, and one for where it is.
    step = N_PARAMETERS + 1
    for budget, n_updates in ((3 * step, 3), (4 * step - 1, 3), (4 * step, 4)):
        estimator = loop_of(max_queries=budget).fit(*flows)
        assert estimator.n_updates_ == n_updates
        assert estimator.n_queries_ == n_updates * step
        assert estimator.termination_condition_ == "max_queries"


def test_a_solver_counts_as_many_steps_as_it_made(flows):
    X, y = flows
    counted = Counting()
    estimator = loop_of(counted, max_queries=44).fit(X, y)
    assert 0 < estimator.n_solver_steps_ <= counted.calls


class StopAfter(Callback):
    """Raises after so many steps, as a power cut would."""

    def __init__(self, n_steps: int):
        self.n_steps = n_steps

    def on_batch_end(self, net: Any, training: bool = True, **kwargs: Any) -> None:
        self.n_steps -= training
        if not self.n_steps:
            raise OSError("the power is cut")


@pytest.mark.parametrize("mode", ["sol", "nog"])
def test_an_interrupted_fit_goes_on_to_the_same_bits(flows, mode, tmp_path):
    given = {"max_epochs": 3, "mode": mode, "sparsity": 0.5}
    whole = loop_of(IN_TORCH, **given).fit(*flows)
    path = tmp_path / "fit.ckpt"
    with pytest.raises(OSError, match="power"):
        loop_of(IN_TORCH, **given, checkpoint=path, callbacks=[StopAfter(11)]).fit(*flows)
    resumed = loop_of(IN_TORCH, **given, checkpoint=path).fit(*flows)
    assert np.array_equal(parameters_of(resumed), parameters_of(whole))
    assert resumed.n_queries_ == whole.n_queries_
    # Both runs took the first steps of some frames.
    assert resumed.n_solver_steps_ >= whole.n_solver_steps_


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_workers_change_no_bit(flows, fitted, backend):
    estimator = loop_of(n_jobs=2, backend=backend).fit(*flows)
    assert np.array_equal(parameters_of(estimator), parameters_of(fitted))


# --- Choosing between them


def test_folds_are_made_of_simulations(flows):
    X, y = flows
    scores = cross_val_score(loop_of(max_queries=60), X, y, cv=KFold(3))
    assert scores.shape == (3,)
    assert (scores < 0).all()
    groups = np.repeat([0, 1, 2], 2)
    grouped = cross_val_score(loop_of(max_queries=60), X, y, cv=GroupKFold(3), groups=groups)
    np.testing.assert_allclose(grouped.min(), scores.min())  # the same pairs, in some order
    again = cross_val_score(loop_of(max_queries=60), as_dicts(X), y, cv=KFold(3))
    np.testing.assert_array_equal(again, scores)


def test_a_grid_search_over_unrolled_steps_and_sparsity(flows):
    X, y = flows
    grid = {"n_unroll": [1, 3], "sparsity": [0.0, 0.5]}
    search = GridSearchCV(loop_of(max_queries=66), grid, cv=2).fit(X, y)
    assert len(search.cv_results_["params"]) == 4
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    best = search.best_estimator_
    assert best.predict(X).shape == y.shape
    assert search.score(X, y) == pytest.approx(best.score(X, y))


# --- What a corrector is used for


def test_dropout_rests_where_a_roll_out_is_predicted(flows):
    X, y = flows
    corrector = nn.Sequential(nn.Dropout(), nn.Conv1d(2, 1, 1))
    estimator = loop_of(corrector=corrector, gradient="solver-vjp").fit(X, y)
    np.testing.assert_array_equal(estimator.predict(X), estimator.predict(X))


def test_a_constant_is_its_own_unit(flows):
    X, y = flows
    same = Simulations(X.states.astype(float), speed=np.full(6, 0.1))  # whose std is 1e-17
    assert loop_of(mode="nog").fit(same, y).condition_scale_ == {"speed": 1.0}


def test_single_steps_have_no_schedule(flows):
    single = loop_of(mode="non").fit(*flows)
    scheduled = loop_of(mode="non", unroll_schedule=(2, 3)).fit(*flows)
    assert np.array_equal(parameters_of(scheduled), parameters_of(single))


def test_a_fit_that_goes_on_counts_no_step_of_a_prediction(flows):
    X, y = flows
    plain, used = (loop_of(mode="nog").fit(X, y) for _ in range(2))
    used.predict(X, n_steps=50)
    assert used.partial_fit(X, y).n_solver_steps_ == plain.partial_fit(X, y).n_solver_steps_


def test_a_fit_goes_on_whatever_the_order_of_the_conditions(flows):
    X, y = flows
    names = {"speed": X.conditions["speed"], "height": np.arange(6, dtype=np.float32)}
    X = Simulations(X.states, names)
    turned = Simulations(X.states, dict(reversed(names.items())))
    first, other = (loop_of(corrector=None, mode="nog").fit(X, y) for _ in range(2))
    assert np.array_equal(
        parameters_of(first.partial_fit(X, y)), parameters_of(other.partial_fit(turned, y))
    )


def test_each_second_of_a_fit_is_told_once(flows):
    def slow(state: np.ndarray, conditions: Any) -> np.ndarray:
        time.sleep(1e-3)
        return advect(state, conditions)

    # All of the solver's time is beside the training steps.
    estimator = loop_of(FunctionSolver(slow), mode="non").fit(*flows)
    assert estimator.fit_time_solver_ > 0.1
    assert estimator.fit_time_network_ > 0
    told = estimator.fit_time_solver_ + estimator.fit_time_network_ + estimator.fit_time_other_
    assert told == pytest.approx(estimator._seconds, rel=1e-6)


def test_repeats_of_queries_are_no_repeats_of_roll_outs(flows):
    assert loop_of(mode="non", n_repeats=5, max_queries=3).fit(*flows).n_queries_ == 3
    asked = 1 + 2 * 5 * (1 + CELLS)  # queries of the solver's input, between three corrections
    estimator = loop_of(gradient="solver-vjp", n_repeats=5, max_queries=asked).fit(*flows)
    assert (estimator.n_updates_, estimator.n_queries_) == (1, asked)


def test_a_checkpoint_of_another_schedule_is_refused(flows, tmp_path):
    given = {"mode": "nog", "checkpoint": tmp_path / "fit.ckpt"}
    loop_of(unroll_schedule=(1, 3), **given).fit(*flows)
    with pytest.raises(ValueError, match="another fit"):
        loop_of(unroll_schedule=(2, 3), **given).fit(*flows)


def test_an_interrupted_schedule_goes_on_to_the_same_bits(flows, tmp_path):
    given = {"max_epochs": 3, "mode": "nog", "unroll_schedule": (1, 2, 3)}
    whole = loop_of(**given).fit(*flows)
    path = tmp_path / "fit.ckpt"
    with pytest.raises(OSError, match="power"):
        loop_of(**given, checkpoint=path, callbacks=[StopAfter(7)]).fit(*flows)
    resumed = loop_of(**given, checkpoint=path).fit(*flows)
    assert np.array_equal(parameters_of(resumed), parameters_of(whole))


def test_early_stopping_needs_two_simulations_that_are_long_enough(flows):
    X, y = flows
    ragged = [frames[:n] for frames, n in zip(y, (7, 2, 2, 2, 2, 2), strict=True)]
    with pytest.raises(ValueError, match="there is one of 3 frames or more"):
        loop_of(early_stopping=True, mode="nog").fit(X, ragged)


class FirstRank(SerialBackend):
    """Tells what the first of several processes, with a clock of its own, has found."""

    def once(self, function: Any) -> Any:
        found = function()
        is_choice = isinstance(found, tuple) and isinstance(found[0], str)
        return ("cge", "there") if is_choice else found


def test_who_asks_once_decides_which_gradient_is_faster(flows):
    assert loop_of(gradient="auto").fit(*flows).gradient_ == "solver-vjp"
    estimator = loop_of(gradient="auto", backend=FirstRank()).fit(*flows)
    assert (estimator.gradient_, estimator.gradient_reason_) == ("cge", "there")
