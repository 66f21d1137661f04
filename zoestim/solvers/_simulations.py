"""Initial states with the conditions of each, in a container that scikit-learn can split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

STATE = "state"  # the key of the state, where a simulation is a dict


class Simulations:
    """Initial states of simulations, with what distinguishes them beside the state.

    It has one row for each simulation, and so goes wherever scikit-learn splits an X:
    `GridSearchCV`, `cross_val_score`, `KFold`, `GroupKFold`, `train_test_split`.

    Parameters
    ----------
    states : array-like of shape (n_simulations, n_channels, *grid)
        Floating point numbers as they are; integers become float32.
    conditions : mapping from str to array-like, optional
        Numbers that a solver is told at each step, such as ``{"Re": [100, 200]}``: arrays with
        a first axis of simulations, and any further ones, or one number for all simulations.
    **more : array-like
        More conditions, by name.

    Attributes
    ----------
    states : ndarray of shape (n_simulations, n_channels, *grid)
        Not a copy, where an array was given.
    conditions : dict from str to ndarray of shape (n_simulations, ...)
    shape, ndim, dtype
        Those of the states.

    Raises
    ------
    TypeError
        If states or a condition hold something else than real numbers, or conditions are not a
        mapping with names as keys.
    ValueError
        If states have less than two axes, a condition has another number of values than there
        are states, is given twice, or is called ``"state"``.

    See Also
    --------
    split_trajectories : Makes one, and the y that belongs to it, of recorded trajectories.

    Examples
    --------
    >>> import numpy as np
    >>> from zoestim.solvers import Simulations
    >>> X = Simulations(np.zeros((3, 2, 8, 4)), Re=[100.0, 200.0, 400.0], dt=0.1)
    >>> X
    Simulations(3 states of shape (2, 8, 4), float64; conditions: Re, dt)
    >>> X[[0, 2]].conditions["Re"]
    array([100., 400.])

    A single one is a dict, and a list of such dicts is as good as a container:

    >>> sorted(X[0])
    ['Re', 'dt', 'state']
    >>> Simulations.of(list(X)).shape
    (3, 2, 8, 4)
    """

    states: np.ndarray
    conditions: dict[str, np.ndarray]

    def __init__(
        self, states: Any, conditions: Mapping[str, Any] | None = None, **more: Any
    ) -> None:
        self.states = _as_states(states)
        self.conditions = _as_conditions(conditions, more, len(self.states))

    @classmethod
    def of(cls, X: Any) -> Simulations:
        """Return X as simulations.

        Parameters
        ----------
        X : Simulations, array-like of shape (n_simulations, n_channels, *grid) or list of dict
            A dict is one simulation: its ``"state"``, of shape (n_channels, *grid), and its
            conditions by name. All have the same names.

        Returns
        -------
        Simulations
            X itself, if it is one.

        Raises
        ------
        TypeError, ValueError
            As the class does; also if dicts lack a ``"state"``, or differ in names or shapes.
        """
        if isinstance(X, cls):
            return X
        if isinstance(X, Mapping):
            raise TypeError(
                f"One simulation alone is no X; got a {type(X).__name__} with the keys "
                f"{_listed(X)}. Put it in a list: [{{'state': ..., ...}}]."
            )
        # An ndarray of dicts is what numpy makes of a list of them.
        listed = isinstance(X, Sequence) or (isinstance(X, np.ndarray) and X.dtype == object)
        if listed and any(isinstance(each, Mapping) for each in X):
            return _of_dicts(list(X))
        return cls(X)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the states."""
        return self.states.shape

    @property
    def ndim(self) -> int:
        """Return the number of axes of the states."""
        return self.states.ndim

    @property
    def dtype(self) -> np.dtype:
        """Return the type of the states' numbers."""
        return self.states.dtype

    def __len__(self) -> int:
        return len(self.states)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, key: Any) -> Any:
        """Return the simulations of a slice, of indices or of a mask; of an integer, a dict."""
        rows = _as_rows(key)
        conditions = {name: values[rows] for name, values in self.conditions.items()}
        if isinstance(rows, int):
            return {STATE: self.states[rows], **conditions}
        return Simulations(self.states[rows], conditions)

    def __repr__(self) -> str:
        names = ", ".join(self.conditions) or "none"
        return (
            f"Simulations({len(self)} states of shape {self.shape[1:]}, {self.dtype}; "
            f"conditions: {names})"
        )


def split_trajectories(
    trajectories: Any, conditions: Mapping[str, Any] | None = None
) -> tuple[Simulations, Any]:
    """Return the first frames of trajectories as X, and the frames after them as y.

    Parameters
    ----------
    trajectories : array-like of shape (n_simulations, n_steps + 1, n_channels, *grid)
        Frames one step apart. Where numbers of steps differ, a list of arrays of shape
        (n_steps + 1, n_channels, *grid).
    conditions : mapping from str to array-like, optional
        See `Simulations`.

    Returns
    -------
    X : Simulations
        With states of shape (n_simulations, n_channels, *grid).
    y : ndarray of shape (n_simulations, n_steps, n_channels, *grid) or list of ndarray
        A view of the trajectories, where they are one array; a list, where lengths differ.

    Raises
    ------
    TypeError, ValueError
        If trajectories are not such arrays of real numbers, or one has less than two frames;
        and as `Simulations`.

    Examples
    --------
    >>> import numpy as np
    >>> from zoestim.solvers import split_trajectories
    >>> X, y = split_trajectories(np.zeros((3, 11, 2, 8, 4)), {"Re": [100, 200, 400]})
    >>> X.shape, y.shape
    ((3, 2, 8, 4), (3, 10, 2, 8, 4))
    """
    if not hasattr(trajectories, "__len__") or not len(trajectories):
        raise ValueError(
            "split_trajectories needs an array of trajectories, or a list of arrays, at least one; "
            f"got {trajectories!r}."
        )
    each = [_as_trajectory(given, i) for i, given in enumerate(trajectories)]
    for i, frames in enumerate(each):
        if frames.shape[1:] != each[0].shape[1:]:
            raise ValueError(
                f"Trajectories must differ in their number of frames alone; got frames of shape "
                f"{each[0].shape[1:]} in trajectory 0 and {frames.shape[1:]} in trajectory {i}."
            )
    if len({len(frames) for frames in each}) > 1:
        return (
            Simulations(np.stack([frames[0] for frames in each]), conditions),
            [frames[1:] for frames in each],
        )
    one_array = isinstance(trajectories, np.ndarray) and trajectories.dtype.kind == "f"
    together = trajectories if one_array else np.stack(each)
    return Simulations(together[:, 0], conditions), together[:, 1:]


def _as_rows(key: Any) -> Any:
    """Return an index of the first axis: an int, a slice, or an array of integers or bools."""
    # scikit-learn writes X[rows, ...].
    if isinstance(key, tuple) and len(key) == 2 and key[1] is Ellipsis:
        key = key[0]
    if isinstance(key, slice):
        return key
    if isinstance(key, Integral) and not isinstance(key, bool):
        return int(key)
    rows = None if key is None or isinstance(key, tuple) else np.asarray(key)
    if rows is None or rows.ndim != 1 or (len(rows) and rows.dtype.kind not in "iub"):
        raise IndexError(
            "Simulations are taken by an integer, a slice, a list or an array of integers, or a "
            f"mask; got {key!r}. Index .states for channels and places."
        )
    return rows if len(rows) else rows.astype(int)


def _as_numbers(given: Any, what: str) -> np.ndarray:
    """Return an array of real numbers, or say what is none."""
    try:
        array = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    except ValueError as error:
        raise ValueError(f"Simulations: {what} must all have the same shape ({error}).") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"Simulations: {what} must be real numbers; got {type(given).__name__} of "
            f"{array.dtype}."
        )
    return array


def _as_floats(given: Any, what: str) -> np.ndarray:
    array = _as_numbers(given, what)
    return array if array.dtype.kind == "f" else array.astype(np.float32)


def _as_states(given: Any) -> np.ndarray:
    states = _as_floats(given, "states")
    if states.ndim < 2:
        raise ValueError(
            "Simulations need states of shape (n_simulations, n_channels, *grid); got shape "
            f"{states.shape}. For one simulation, or one channel, add an axis of length 1."
        )
    return states


def _as_conditions(
    conditions: Mapping[str, Any] | None, more: Mapping[str, Any], n: int
) -> dict[str, np.ndarray]:
    """Return all conditions as arrays with a first axis of n simulations."""
    if not isinstance(conditions, Mapping | None):
        raise TypeError(
            "Simulations need conditions as a mapping from names to arrays, such as "
            f"{{'Re': [100, 200]}}; got {type(conditions).__name__}."
        )
    if both := (conditions or {}).keys() & more.keys():
        raise ValueError(f"Simulations got conditions twice: {_listed(both)}.")
    found = {}
    for name, given in {**(conditions or {}), **more}.items():
        if not isinstance(name, str):
            raise TypeError(f"Simulations need names as keys of conditions; got {name!r}.")
        if name == STATE:
            raise ValueError("Simulations cannot have a condition called 'state': rename it.")
        values = _as_numbers(given, f"values of the condition {name!r}")
        values = np.repeat(values, n) if values.ndim == 0 else values
        if len(values) != n:
            raise ValueError(
                f"The condition {name!r} must be one number, or have one value for each of {n} "
                f"simulations; got {len(values)}."
            )
        found[name] = values
    return found


def _of_dicts(dicts: list[Any]) -> Simulations:
    """Return simulations of dicts, one of each."""
    columns: dict[str, list[ArrayLike]] = {}
    for i, each in enumerate(dicts):
        if not isinstance(each, Mapping) or STATE not in each:
            got = f"the keys {_listed(each)}" if isinstance(each, Mapping) else type(each).__name__
            raise ValueError(
                f"Simulation {i} must be a dict with a 'state' and its conditions, as the others "
                f"are; got {got}."
            )
        if each.keys() != dicts[0].keys():
            raise ValueError(
                f"All simulations must have the same conditions; got the keys "
                f"{_listed(dicts[0])} in simulation 0 and {_listed(each)} in simulation {i}."
            )
        for name, given in each.items():
            column = columns.setdefault(name, [])
            column.append(_as_numbers(given, f"values of {name!r}"))
            if np.shape(column[-1]) != np.shape(column[0]):
                raise ValueError(
                    f"{name!r} must have the same shape in all simulations; got "
                    f"{np.shape(column[0])} in simulation 0 and {np.shape(column[-1])} in "
                    f"simulation {i}."
                )
    states = np.stack(columns.pop(STATE))
    return Simulations(states, {name: np.stack(values) for name, values in columns.items()})


def _as_trajectory(given: Any, number: int) -> np.ndarray:
    frames = _as_floats(given, f"frames of trajectory {number}")
    if frames.ndim < 2 or len(frames) < 2:
        raise ValueError(
            "A trajectory must have the shape (n_steps + 1, n_channels, *grid), with a first "
            f"frame and one or more after it; got {frames.shape} for trajectory {number}."
        )
    return frames


def _listed(names: Any) -> str:
    return ", ".join(sorted(map(repr, names))) or "none"
