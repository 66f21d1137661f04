"""The contract of SolverInTheLoop: what goes in, what comes out, and what stays as it was."""

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from case_rollouts import (
    CELLS,
    IN_TORCH,
    N_STEPS,
    ONE_BY_ONE,
    advect,
    as_dicts,
    burgers,
    data,
    loop_of,
    parameters_of,
    small_corrector,
    wake,
)
from zoestim import CorrectionWorseThanSolverWarning, SolverInTheLoop
from zoestim.models import CorrectorCNN
from zoestim.solvers import Simulations, simulate, split_trajectories

# Fits of a few steps need not help.
pytestmark = pytest.mark.filterwarnings("ignore::zoestim.CorrectionWorseThanSolverWarning")


@pytest.fixture(scope="module")
def flows() -> tuple[Any, np.ndarray]:
    return data()


@pytest.fixture(scope="module")
def fitted(flows) -> SolverInTheLoop:
    return loop_of().fit(*flows)


# --- As scikit-learn wants it


def test_fit_returns_self_and_says_what_it_saw(flows):
    estimator = loop_of()
    assert estimator.fit(*flows) is estimator
    assert estimator.n_features_in_ == 1
    assert tuple(estimator.grid_shape_) == (CELLS,)
    assert estimator.gradient_ == "cge"
    assert estimator.n_iter_ == 1
    windows = 6 * (N_STEPS - 3 + 1)
    assert estimator.n_updates_ == -(-windows // 4)
    assert len(estimator.loss_curve_) >= 1
    assert estimator.n_failed_queries_ == 0
    assert estimator.n_queries_ > 0
    assert estimator.n_solver_steps_ > estimator.n_queries_
    for name in ("solver", "network", "other"):
        assert getattr(estimator, f"fit_time_{name}_") >= 0


def test_parameters_are_kept_as_given_and_cloned():
    corrector = small_corrector()
    estimator = SolverInTheLoop(advect, corrector, n_unroll=5, mode="nog")
    assert estimator.solver is advect
    assert estimator.corrector is corrector
    params = estimator.get_params(deep=False)
    assert (params["n_unroll"], params["mode"]) == (5, "nog")
    copied = clone(estimator.set_params(sparsity=0.5, lr=0.1))
    assert (copied.sparsity, copied.lr, copied.n_unroll) == (0.5, 0.1, 5)
    assert not [name for name in vars(copied) if name.endswith("_") and not name.startswith("_")]


def test_before_a_fit_there_is_nothing_to_predict(flows):
    X, y = flows
    for call in (lambda e: e.predict(X, n_steps=2), lambda e: e.score(X, y)):
        with pytest.raises(NotFittedError):
            call(loop_of())


@pytest.mark.parametrize("mode", ["sol", "non", "nog", "ste"])
def test_what_is_given_stays_as_it_was(flows, mode):
    X, y = flows
    corrector = small_corrector()
    before = copy.deepcopy((X.states, X.conditions, y, corrector.state_dict()))
    estimator = loop_of(IN_TORCH, corrector=corrector, mode=mode).fit(X, y)
    estimator.predict(X)
    states, conditions, frames, parameters = before
    assert np.array_equal(X.states, states)
    assert np.array_equal(y, frames)
    assert np.array_equal(X.conditions["speed"], conditions["speed"])
    assert all(torch.equal(corrector.state_dict()[k], v) for k, v in parameters.items())
    assert np.abs(parameters_of(estimator)).sum() > 0


@pytest.mark.usefixtures("global_rng_untouched")
def test_the_global_generators_are_left_alone(flows):
    loop_of(corrector=None, max_queries=200, sparsity=0.5).fit(*flows)


def test_a_second_fit_starts_anew(flows, fitted):
    X, y = flows
    again = loop_of().fit(X[:4], y[:4] * 0.5).fit(X, y)
    assert np.array_equal(parameters_of(again), parameters_of(fitted))
    assert (again.n_queries_, again.n_iter_) == (fitted.n_queries_, fitted.n_iter_)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"sparsity": 0.5},
        {"gradient": "rge", "n_directions": 5},
        {"mode": "non"},
        {"corrector": None},
    ],
    ids=str,
)
def test_the_same_seed_gives_the_same_bits(flows, given):
    first, second = (loop_of(IN_TORCH, **given).fit(*flows) for _ in range(2))
    assert np.array_equal(parameters_of(first), parameters_of(second))
    other = loop_of(IN_TORCH, **given, random_state=1).fit(*flows)
    assert not np.array_equal(parameters_of(first), parameters_of(other))


def test_a_pickle_predicts_and_goes_on_alike(flows, fitted):
    X, y = flows
    one, other = pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)
    assert np.array_equal(one.predict(X), fitted.predict(X))
    for each in (one, other):
        each.partial_fit(X, y)
    assert np.array_equal(parameters_of(one), parameters_of(other))


def test_partial_fit_goes_on(flows, fitted):
    estimator = loop_of().partial_fit(*flows)
    first = parameters_of(estimator)
    n_updates, n_queries = estimator.n_updates_, estimator.n_queries_
    estimator.partial_fit(*flows)
    assert not np.array_equal(parameters_of(estimator), first)
    assert estimator.n_updates_ == 2 * n_updates
    assert estimator.n_queries_ > n_queries


# --- What goes in


def test_arrays_dicts_and_simulations_are_the_same(flows, fitted):
    X, y = flows
    by_dicts = loop_of().fit(as_dicts(X), y)
    assert np.array_equal(parameters_of(by_dicts), parameters_of(fitted))
    assert np.array_equal(by_dicts.predict(as_dicts(X)), fitted.predict(X))
    by_lists = loop_of().fit(X, list(y))
    assert np.array_equal(parameters_of(by_lists), parameters_of(fitted))


def same_speed(state: np.ndarray, conditions: Any) -> np.ndarray:
    return advect(state, {"speed": np.float32(0.3)})


def test_states_alone_will_do_where_the_solver_wants_no_conditions(flows):
    X, y = flows
    corrector = CorrectorCNN(1, 0, hidden=(2,), kernel_size=3, n_dims=1, padding="circular")
    first = loop_of(same_speed, corrector=corrector).fit(X.states, y)
    second = loop_of(same_speed, corrector=corrector).fit(Simulations(X.states), y)
    assert np.array_equal(parameters_of(first), parameters_of(second))
    assert first.predict(X.states).shape == y.shape


def test_split_trajectories_gives_what_is_fitted(flows, fitted):
    X, y = flows
    whole = np.concatenate([X.states[:, None], y], axis=1)
    first, rest = split_trajectories(whole, X.conditions)
    assert np.array_equal(first.states, X.states)
    assert np.array_equal(parameters_of(loop_of().fit(first, rest)), parameters_of(fitted))


def test_trajectories_may_be_of_different_lengths(flows):
    X, y = flows
    ragged = [frames[: 3 + i] for i, frames in enumerate(y[:5])]
    estimator = loop_of(batch_size=5).fit(X[:5], ragged)
    assert estimator.n_updates_ == 3  # 1 + 2 + 3 + 4 + 5 windows
    apart = [np.abs(estimator.predict(X[[i]], n_steps=3 + i)[0] - ragged[i]) for i in range(5)]
    expected = -np.mean([each.mean() for each in apart]), -np.concatenate(apart).mean()
    assert any(estimator.score(X[:5], ragged) == pytest.approx(value) for value in expected)


def test_windows_too_short_to_unroll_are_refused(flows):
    X, y = flows
    with pytest.raises(ValueError, match="n_unroll"):
        loop_of(n_unroll=N_STEPS + 1).fit(X, y)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda X, y: (X[:4], y), r"4|6"),
        (lambda X, y: (X, y[:, :, :, :-1]), r"8.*7|7.*8|shape|grid"),
        (lambda X, y: (X, y[:, :, 0]), "dimension|axes|shape"),
        (lambda X, y: (X, np.where(y == y.max(), np.nan, y)), "NaN|finite"),
        (lambda X, y: (X.states, y), "condition"),
        (lambda X, y: (X[:0], y[:0]), "least|no simulation|0|empty"),
    ],
    ids=["lengths", "grids", "axes", "nan", "condition", "empty"],
)
def test_what_does_not_fit_together_is_said(flows, change, match):
    with pytest.raises((ValueError, KeyError, RuntimeError), match=match):
        loop_of().fit(*change(*flows))


def test_another_grid_or_a_missing_condition_is_refused_later(flows, fitted):
    X, _ = flows
    wide = Simulations(np.zeros((2, 1, CELLS + 1), dtype=np.float32), {"speed": [0.2, 0.3]})
    with pytest.raises(ValueError, match=r"grid|shape"):
        fitted.predict(wide)
    with pytest.raises(ValueError, match="speed"):
        fitted.predict(X.states)
    with pytest.raises(ValueError, match="n_steps"):
        fitted.predict(X, n_steps=0)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"n_unroll": 0}, "n_unroll"),
        ({"mode": "sole"}, "mode"),
        ({"gradient": "spsa"}, "gradient"),
        ({"on_failure": "ignore"}, "on_failure"),
        ({"scaler": "minmax"}, "scaler"),
        ({"sparsity": 1.0}, "sparsity"),
        ({"batch_size": 0}, "batch_size"),
        ({"solver": 3}, "solver"),
        ({"corrector": CorrectorCNN(2, 1, n_dims=1)}, "corrector|channels"),
    ],
    ids=lambda given: str(given)[:30],
)
def test_wrong_parameters_are_named(flows, given, match):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=match):
        loop_of().set_params(**given).fit(*flows)


# --- What comes out


def test_predictions_come_in_the_order_of_the_simulations(flows, fitted):
    X, y = flows
    found = fitted.predict(X)
    assert isinstance(found, np.ndarray)
    assert (found.shape, found.dtype) == (y.shape, y.dtype)
    order = np.array([3, 0, 5])
    np.testing.assert_allclose(fitted.predict(X[order]), found[order], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(fitted.predict(X, n_steps=2), found[:, :2])
    assert fitted.predict(X, n_steps=N_STEPS + 5).shape[1] == N_STEPS + 5


@pytest.mark.parametrize("make", [burgers, wake, lambda: (ONE_BY_ONE, *data())])
def test_without_correction_it_is_the_solver(make):
    solver, X, y = make()
    name = next(iter(X.conditions))
    estimator = SolverInTheLoop(solver, n_unroll=2, mode="non", random_state=0).fit(X, y)
    bare = simulate(solver, X.states, {name: X.conditions[name]}, n_steps=y.shape[1])
    np.testing.assert_array_equal(estimator.predict(X, correct=False), bare)
    assert not np.array_equal(estimator.predict(X), bare)


@pytest.mark.parametrize("make", [burgers, wake, lambda: (ONE_BY_ONE, *data())])
def test_what_has_learnt_nothing_is_the_solver(make):
    solver, X, y = make()
    estimator = SolverInTheLoop(solver, n_unroll=2, mode="non", lr=1e-30, random_state=0).fit(X, y)
    bare = simulate(solver, X.states, X.conditions, n_steps=y.shape[1])
    np.testing.assert_allclose(estimator.predict(X), bare, rtol=0, atol=1e-25)


def test_corrections_are_what_is_added_to_the_steps_of_the_solver(flows, fitted):
    X, _ = flows
    found, corrections = fitted.predict(X, return_correction=True)
    before = np.concatenate([X.states[:, None], found[:, :-1]], axis=1)
    for t in range(N_STEPS):
        stepped = ONE_BY_ONE.step(before[:, t], X.conditions)
        np.testing.assert_allclose(found[:, t], stepped + corrections[:, t], atol=1e-6)
    np.testing.assert_array_equal(fitted.predict(X), found)


def test_score_is_the_mean_absolute_error_below_zero(flows, fitted):
    X, y = flows
    assert fitted.score(X, y) == pytest.approx(-np.abs(fitted.predict(X) - y).mean(), rel=1e-5)


def test_learning_helps(flows):
    X, y = flows
    estimator = loop_of(IN_TORCH, max_epochs=10, lr=3e-2).fit(X, y)
    bare = -np.abs(estimator.predict(X, correct=False) - y).mean()
    assert estimator.score(X, y) > 0.5 * bare
    assert estimator.corrected_score_ > estimator.baseline_score_


def test_a_corrector_that_makes_it_worse_is_warned_of(flows):
    with pytest.warns(CorrectionWorseThanSolverWarning):
        loop_of(IN_TORCH, lr=1.0).fit(*flows)
    with warnings.catch_warnings():
        warnings.simplefilter("error", CorrectionWorseThanSolverWarning)
        loop_of(IN_TORCH, max_epochs=10, lr=3e-2).fit(*flows)


def test_the_corrector_can_be_saved(flows, tmp_path):
    corrector = small_corrector(hidden=(2, 2, 2))
    layers = [each for each in corrector.modules() if isinstance(each, torch.nn.Conv1d)]
    layers[2].weight = layers[1].weight  # tied
    fitted = loop_of(corrector=corrector, mode="nog").fit(*flows)
    fitted.save_corrector(tmp_path / "corrector.safetensors")
    found = load_file(tmp_path / "corrector.safetensors")
    expected = fitted.corrector_.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
