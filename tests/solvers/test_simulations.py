"""Initial states with conditions: scikit-learn splits them, and bad ones are named."""

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LeaveOneOut,
    cross_val_predict,
    cross_val_score,
    train_test_split,
)
from sklearn.utils import _safe_indexing

from zoestim.solvers import FunctionSolver, Simulations, simulate, split_trajectories

N = 6
STATES = np.arange(N * 2 * 4 * 3, dtype=np.float32).reshape(N, 2, 4, 3)
RE = np.linspace(100.0, 600.0, N)
FORCING = np.arange(N * 5.0).reshape(N, 5)


def make(**more) -> Simulations:
    return Simulations(STATES, {"Re": RE}, forcing=FORCING, **more)


def assert_rows(found: Simulations, rows) -> None:
    """Assert that these are the rows of STATES, RE and FORCING."""
    assert isinstance(found, Simulations)
    np.testing.assert_array_equal(found.states, STATES[rows])
    np.testing.assert_array_equal(found.conditions["Re"], RE[rows])
    np.testing.assert_array_equal(found.conditions["forcing"], FORCING[rows])


def test_it_looks_like_its_states():
    X = make(dt=0.5)
    assert (len(X), X.shape, X.ndim, X.dtype) == (N, (N, 2, 4, 3), 4, np.float32)
    assert X.states is STATES
    assert list(X.conditions) == ["Re", "forcing", "dt"]
    assert X.conditions["dt"].tolist() == [0.5] * N
    assert repr(X) == (
        "Simulations(6 states of shape (2, 4, 3), float32; conditions: Re, forcing, dt)"
    )
    assert repr(Simulations(STATES)).endswith("conditions: none)")


@pytest.mark.parametrize(
    "rows",
    [
        [0, 3, 3],
        np.array([5, -1]),
        slice(1, None, 2),
        RE > 250,
        (RE > 250).tolist(),
        [],
        np.array([], dtype=int),
        range(2),
    ],
    ids=repr,
)
def test_rows_are_taken_of_everything(rows):
    assert_rows(make()[rows], rows)
    assert_rows(make()[rows, ...], rows)
    if not isinstance(rows, range):
        assert_rows(_safe_indexing(make(), rows), rows)


@pytest.mark.parametrize("row", [2, np.int64(2), -4])
def test_an_integer_takes_one_simulation_as_a_dict(row):
    for one in (make()[row], make()[row, ...], _safe_indexing(make(), row)):
        assert one.keys() == {"state", "Re", "forcing"}
        np.testing.assert_array_equal(one["state"], STATES[2])
        assert one["Re"] == RE[2]
        np.testing.assert_array_equal(one["forcing"], FORCING[2])


@pytest.mark.parametrize(
    "key", [None, True, "Re", (0, 1), (slice(None), 0), [0.5], [[0, 1]], ...], ids=repr
)
def test_other_keys_are_refused(key):
    with pytest.raises(IndexError, match=r"taken by an integer, a slice, .* Index \.states for"):
        make()[key]


def test_rows_beyond_the_last_are_refused():
    with pytest.raises(IndexError, match="6 is out of bounds"):
        make()[N]
    with pytest.raises(IndexError, match="6 is out of bounds"):
        make()[[N]]
    with pytest.raises(IndexError, match="boolean index"):
        make()[[True, False]]


def test_going_through_it_gives_dicts_of_which_it_can_be_made_again():
    dicts = list(make())
    assert len(dicts) == N
    assert_rows(Simulations.of(dicts), slice(None))
    assert_rows(Simulations.of(np.array(dicts)), slice(None))
    assert Simulations.of(dicts).dtype == np.float32


def test_of_takes_what_fit_takes():
    X = make()
    assert Simulations.of(X) is X
    assert Simulations.of(STATES).states is STATES
    assert Simulations.of(list(STATES)).shape == STATES.shape
    assert Simulations.of(torch.from_numpy(STATES)).conditions == {}


def test_tensors_and_integers_become_arrays_of_floats():
    tensor = torch.ones(2, 1, 3, dtype=torch.float64, requires_grad=True)
    assert Simulations(tensor, nu=torch.tensor([1, 2])).dtype == np.float64
    assert Simulations([[[1, 2]], [[3, 4]]]).dtype == np.float32
    assert Simulations(np.ones((2, 1), dtype=bool)).dtype == np.float32
    assert Simulations(STATES.astype(np.float16)).dtype == np.float16


def test_it_survives_a_pickle():
    assert_rows(pickle.loads(pickle.dumps(make())), slice(None))


def test_a_solver_takes_states_and_conditions():
    solver = FunctionSolver(lambda state, given: state + np.float32(given["Re"]))
    X = make()
    found = simulate(solver, X.states, {"Re": X.conditions["Re"]}, n_steps=2)
    np.testing.assert_allclose(found[:, 1], STATES + 2 * RE[:, None, None, None].astype("f4"))


# --- scikit-learn


class Recorder(RegressorMixin, BaseEstimator):
    """Remembers the simulations of a fit, and checks that rows of X and y belong together."""

    def __init__(self, n_unroll=1):
        self.n_unroll = n_unroll

    def fit(self, X, y):
        self.seen_ = Simulations.of(X).conditions["Re"]
        self._check(X, y)
        return self

    def predict(self, X):
        return Simulations.of(X).states[:, None] + 1

    def score(self, X, y):
        self._check(X, y)
        assert not set(Simulations.of(X).conditions["Re"]) & set(self.seen_)
        return -float(self.n_unroll)

    def _check(self, X, y):
        X = Simulations.of(X)
        assert len(X) == len(y)
        for one, frames in zip(X, y, strict=True):
            np.testing.assert_array_equal(one["state"], frames[0] - 1)


Y = np.stack([STATES + 1, STATES + 2], axis=1)
RAGGED = [frames[: 1 + i % 2] for i, frames in enumerate(Y)]


@pytest.mark.parametrize("y", [Y, RAGGED], ids=["array", "list"])
@pytest.mark.parametrize("X", [make(), list(make())], ids=["container", "dicts"])
@pytest.mark.parametrize(
    "cv", [3, KFold(2, shuffle=True, random_state=0), LeaveOneOut(), GroupKFold(3)], ids=repr
)
def test_cross_validation_splits_by_simulation(X, y, cv):
    groups = [0, 0, 1, 1, 2, 2] if isinstance(cv, GroupKFold) else None
    assert set(cross_val_score(Recorder(), X, y, cv=cv, groups=groups)) == {-1.0}


@pytest.mark.parametrize("y", [Y, RAGGED], ids=["array", "list"])
def test_a_grid_is_searched(y):
    search = GridSearchCV(Recorder(), {"n_unroll": [3, 2]}, cv=3, error_score="raise")
    search.fit(make(), y)
    assert search.best_params_ == {"n_unroll": 2}
    assert search.best_estimator_.seen_.tolist() == RE.tolist()


def test_predictions_of_all_folds_are_put_together():
    found = cross_val_predict(Recorder(), make(), Y, cv=3)
    np.testing.assert_array_equal(found, Y[:, :1])


def test_a_split_keeps_rows_together():
    X_train, X_test, y_train, y_test = train_test_split(make(), Y, test_size=2, random_state=0)
    assert (len(X_train), len(X_test)) == (4, 2)
    for X, y in ((X_train, y_train), (X_test, y_test)):
        np.testing.assert_array_equal(X.states + 1, y[:, 0])
        np.testing.assert_array_equal(
            RE[(X.states[:, 0, 0, 0] // 24).astype(int)], X.conditions["Re"]
        )


# --- Trajectories


def test_trajectories_are_split_after_their_first_frame():
    trajectories = np.random.default_rng(0).normal(size=(3, 5, 2, 4))
    X, y = split_trajectories(trajectories, {"Re": [1, 2, 3]})
    np.testing.assert_array_equal(X.states, trajectories[:, 0])
    np.testing.assert_array_equal(y, trajectories[:, 1:])
    assert np.shares_memory(y, trajectories)
    assert X.conditions["Re"].tolist() == [1, 2, 3]


def test_equal_lengths_in_a_list_give_an_array_and_others_a_list():
    equal = [np.ones((4, 1, 3), dtype=np.float32)] * 2
    X, y = split_trajectories(equal)
    assert (X.shape, y.shape, y.dtype) == ((2, 1, 3), (2, 3, 1, 3), np.float32)
    X, y = split_trajectories([np.ones((4, 1, 3)), np.ones((2, 1, 3))])
    assert X.shape == (2, 1, 3)
    assert [frames.shape for frames in y] == [(3, 1, 3), (1, 1, 3)]


@pytest.mark.parametrize(
    "given", [torch.ones(2, 3, 1, 4), np.ones((2, 3, 1, 4), dtype=int), [torch.ones(3, 1, 4)] * 2]
)
def test_tensors_and_integers_are_trajectories_too(given):
    X, y = split_trajectories(given)
    assert (X.dtype, y.dtype, y.shape) == (np.float32, np.float32, (2, 2, 1, 4))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], r"at least one; got \[\]"),
        (None, "at least one; got None"),
        (np.ones((2, 1, 3)), r"a first frame and one or more after it; got \(1, 3\) for traj"),
        (np.ones((2, 5)), r"the shape \(n_steps \+ 1, n_channels, \*grid\).*got \(5,\)"),
        ([np.ones((3, 1, 4)), np.ones((3, 1, 5))], r"\(1, 4\) in trajectory 0 and \(1, 5\) in t"),
    ],
)
def test_bad_trajectories_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        split_trajectories(given)


def test_trajectories_of_words_are_refused():
    with pytest.raises(TypeError, match="frames of trajectory 0 must be real numbers; got"):
        split_trajectories([[["a"], ["b"]]])


# --- Bad input


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"Re": [1, 2]}, "'Re' must be one number, or have one value for each of 6 simul.*got 2"),
        ({"state": 1}, "cannot have a condition called 'state'"),
        ({"forcing": 1}, "got conditions twice: 'forcing'"),
        ({"f": [[1, 2], [3]]}, "values of the condition 'f' must all have the same shape"),
    ],
)
def test_bad_conditions_are_named(conditions, message):
    with pytest.raises(ValueError, match=message):
        Simulations(STATES, conditions, forcing=FORCING)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        (["Re"], r"a mapping from names to arrays, such as .*; got list"),
        ({"fluid": ["air"] * N}, "'fluid' must be real numbers; got list of <U3"),
        ({"Re": None}, "'Re' must be real numbers; got NoneType of object"),
        ({"Re": 1j}, "'Re' must be real numbers; got complex"),
        ({1: RE}, "names as keys of conditions; got 1"),
    ],
)
def test_conditions_of_another_kind_are_refused(conditions, message):
    with pytest.raises(TypeError, match=message):
        Simulations(STATES, conditions)


def test_bad_states_are_named():
    with pytest.raises(ValueError, match=r"\(n_simulations, n_channels, \*grid\); got shape \(4,"):
        Simulations(np.ones(4))
    with pytest.raises(TypeError, match="states must be real numbers; got list of <U1"):
        Simulations([["a"]])
    with pytest.raises(ValueError, match="states must all have the same shape"):
        Simulations([np.ones((1, 3)), np.ones((1, 4))])


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([{"Re": 1}], "Simulation 0 must be a dict with a 'state'.*; got the keys 'Re'"),
        ([{"state": [1]}, [1]], "Simulation 1 must be a dict .*; got list"),
        (
            [{"state": [1], "Re": 1}, {"state": [1], "nu": 1}],
            "the keys 'Re', 'state' in simulation 0 and 'nu', 'state' in simulation 1",
        ),
        ([{"state": [1]}, {"state": [1, 2]}], r"\(1,\) in simulation 0 and \(2,\) in simulation 1"),
        ([{"state": [1], "f": [1]}, {"state": [1], "f": 1}], "'f' must have the same shape"),
        ([{"state": [1], 0: 1, "a": 2}, {"state": [1]}], "'a', 'state', 0 in simulation 0"),
    ],
)
def test_bad_dicts_are_named(X, message):
    with pytest.raises(ValueError, match=message):
        Simulations.of(X)


def test_one_simulation_alone_is_no_x():
    with pytest.raises(TypeError, match=r"One simulation alone is no X; .* Put it in a list"):
        Simulations.of({"state": STATES[0], "Re": 1.0})
