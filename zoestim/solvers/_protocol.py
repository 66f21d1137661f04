"""What a solver is: a step from states to states, and a few facts about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from zoestim.solvers._batch import conditions_of_each, other_kind


class Solver(Protocol):
    """What is asked of a solver: an object with a method `step`.

    Attributes
    ----------
    batched : bool
        Whether `step` works on many states at once rather than on one after the other. Either
        way it is given, and returns, a leading axis of simulations.
    deterministic : bool
        Whether equal questions get equal answers, bit by bit.
    max_batch : int or None
        The most states that it can be given at once.
    native : {"numpy", "torch"}
        What states it likes best. With ``"torch"``, gradients go through a step.
    """

    batched: bool
    deterministic: bool
    max_batch: int | None
    native: str

    def step(self, states: Any, conditions: Mapping[str, Any]) -> Any:
        """Return the states one step later.

        Parameters
        ----------
        states : ndarray or Tensor of shape (n_simulations, n_channels, *grid)
            Neither written to nor kept.
        conditions : mapping from str to array-like
            What distinguishes simulations, such as a Reynolds number: one value for all, or a
            first axis of simulations.
        """
        ...

    def to_features(self, states: Any) -> Any:
        """Return what a corrector sees of the states, of shape (n_simulations, *feature)."""
        ...

    def apply_correction(self, states: Any, correction: Any) -> Any:
        """Return the states plus a correction, which has the shape of the features."""
        ...


@dataclass(frozen=True)
class FunctionSolver:
    """Make a solver of a function of a state and its conditions.

    Parameters
    ----------
    function : callable
        ``(state, conditions) -> state``: for one state, of shape (n_channels, ...), with a
        dict of the conditions of this simulation. With ``batched=True``, for states of shape
        (n_simulations, n_channels, ...), with a dict of what each simulation has.
    batched : bool, default=False
        Whether the function takes many states at once.
    native : {"numpy", "torch"}, default="numpy"
        What the function is given, and gives: arrays, or tensors.
    deterministic : bool, default=True
        Whether equal questions get equal answers.
    max_batch : int, optional
        The most states that a batched function can take; more are asked in several calls.

    Examples
    --------
    >>> import numpy as np
    >>> from zoestim.solvers import FunctionSolver
    >>> def decay(state, conditions):
    ...     return state * np.float32(1 - conditions["rate"])
    >>> solver = FunctionSolver(decay)
    >>> states = np.ones((2, 1, 3), dtype=np.float32)
    >>> solver.step(states, {"rate": [0.5, 0.25]})[:, 0, 0]
    array([0.5 , 0.75], dtype=float32)
    """

    function: Callable[[Any, Mapping[str, Any]], Any]
    batched: bool = False
    native: Literal["numpy", "torch"] = "numpy"
    deterministic: bool = True
    max_batch: int | None = None

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(
                "FunctionSolver needs a function (state, conditions) -> state; got "
                f"{self.function!r}."
            )
        if self.native not in ("numpy", "torch"):
            raise ValueError(f"native must be 'numpy' or 'torch'; got {self.native!r}.")
        if self.max_batch is not None and (
            not isinstance(self.max_batch, Integral) or self.max_batch < 1
        ):
            raise ValueError(f"max_batch must be an integer above 0; got {self.max_batch!r}.")

    def step(self, states: Any, conditions: Mapping[str, Any] | None = None) -> Any:
        """Return the states one step later, as arrays or tensors like those given.

        Raises
        ------
        ValueError
            If there is no state, or a condition has another number of values than there are
            states.
        """
        as_tensor = isinstance(states, Tensor)
        given = states if as_tensor == (self.native == "torch") else other_kind(states)
        if not len(given):
            raise ValueError("FunctionSolver needs at least one state; got none.")
        each = conditions_of_each(conditions or {}, len(given))
        if self.batched:
            size = self.max_batch or max(len(given), 1)
            if len(given) <= size:
                found = self.function(given, each)
            else:
                parts = (slice(at, at + size) for at in range(0, len(given), size))
                found = _together((self._ask(given, each, part) for part in parts), joined=True)
        else:
            rows = range(len(given))
            found = _together((self._ask(given, each, i) for i in rows), joined=False)
        return found if isinstance(found, Tensor) == as_tensor else other_kind(found)

    def to_features(self, states: Any) -> Any:
        """Return what a corrector sees: the states."""
        return states

    def apply_correction(self, states: Any, correction: Any) -> Any:
        """Return the states plus a correction of the same shape."""
        return states + correction

    def _ask(self, states: Any, each: Mapping[str, Any], rows: int | slice) -> Any:
        return self.function(states[rows], {name: values[rows] for name, values in each.items()})


def _together(answers: Iterable[Any], *, joined: bool) -> Any:
    """Return answers as one batch, each copied before the next call can write to its memory."""
    kept: list[Any] = [a.clone() if isinstance(a, Tensor) else np.array(a) for a in answers]
    if isinstance(kept[0], Tensor):
        return torch.cat(kept) if joined else torch.stack(kept)
    return np.concatenate(kept) if joined else np.stack(kept)


def as_solver(solver: Any) -> Any:
    """Return a solver as it is, and a function of one state as a `FunctionSolver`.

    Raises
    ------
    TypeError
        If it has no method `step` and cannot be called.

    Examples
    --------
    >>> from zoestim.solvers import as_solver
    >>> as_solver(lambda state, conditions: state).batched
    False
    """
    if isinstance(solver, type):
        raise TypeError(f"A solver is an object; got the class {solver.__name__}. Call it.")
    if hasattr(solver, "step"):
        return solver
    if callable(solver):
        return FunctionSolver(solver)
    raise TypeError(
        "A solver is an object with a method step(states, conditions), or a function "
        f"(state, conditions) -> state; got {type(solver).__name__}."
    )


def simulate(
    solver: Any,
    states: Any,
    conditions: Mapping[str, Any] | None = None,
    *,
    n_steps: int,
    skip: int = 0,
) -> Any:
    """Return the states after each of some steps.

    Parameters
    ----------
    solver : solver or callable
        See `Solver`, and `FunctionSolver` for functions.
    states : ndarray or Tensor of shape (n_simulations, n_channels, *grid)
        Where to begin; they are not among what is returned.
    conditions : mapping, optional
        The same at every step.
    n_steps : int
        How many steps to return.
    skip : int, default=0
        How many steps to go before.

    Returns
    -------
    ndarray or Tensor of shape (n_simulations, n_steps, n_channels, *grid)

    Raises
    ------
    ValueError
        If `n_steps` is less than 1, or `skip` less than 0.

    Examples
    --------
    >>> import numpy as np
    >>> from zoestim.solvers import simulate
    >>> halve = lambda state, conditions: state / 2
    >>> simulate(halve, np.ones((1, 1, 1)), n_steps=3, skip=1).ravel()
    array([0.25  , 0.125 , 0.0625])
    """
    for name, value, least in (("n_steps", n_steps, 1), ("skip", skip, 0)):
        if not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}.")
    solver, given = as_solver(solver), {} if conditions is None else conditions
    frames = []
    for number in range(skip + n_steps):
        states = solver.step(states, given)
        if number >= skip:
            frames.append(states)
    return torch.stack(frames, 1) if isinstance(states, Tensor) else np.stack(frames, 1)
