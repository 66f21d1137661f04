"""Whether a solver keeps to what is asked of it, and how large a difference through it must be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from zoestim.solvers._protocol import as_solver

POINTS = 9  # equally spaced, of whose differences the noise is read
SPACING = 1e-3  # of these points, relative to the states; the other is the root of rounding's
ORDERS = (4, 5, 6)  # of differences: a smooth function has left these
N_ENTRIES = 12  # of a state, which are changed one by one
WIDE = 1e-2  # the change, relative to the states, that shows how the step bends
FEW_ROUNDINGS = 100  # in which a batch may differ from its states alone
FORWARD_WILL_DO = 0.01  # a relative error of forward differences, below which central are a waste


@dataclass(frozen=True)
class SolverReport:
    """What `check_solver` found.

    Attributes
    ----------
    problems : tuple of str
        What the solver does not keep to, a sentence each. Empty if all is well.
    noise : float
        The standard deviation of the noise of an entry of the result, in its units: of rounding,
        of an iteration that stops early, of anything random. NaN where a problem hides it.
    batch_difference : float
        By how much at most an entry differs between a state in a batch and the same one alone.
    scheme : {"forward", "central"}
        The finite differences that are proposed: central ones where forward ones would be off
        by more than 1 %, and these by less.
    step : float
        By how much to change an entry of a state for them, in its units. The `smoothing` of
        ``gradient="solver-vjp"`` is in units of the fit's `scale_`: divide by that.
    expected_error : float
        The error that is then to be expected of the derivatives by an entry, relative to them.
    n_steps : int
        How many steps of one simulation the check asked for.
    """

    problems: tuple[str, ...]
    noise: float
    batch_difference: float
    scheme: Literal["forward", "central"]
    step: float
    expected_error: float
    n_steps: int


def check_solver(
    solver: Any,
    states: Any,
    conditions: Mapping[str, Any] | None = None,
    *,
    random_state: int = 0,
    raise_problems: bool = True,
) -> SolverReport:
    """Check that a solver can be learned through, and propose a finite-difference step.

    A step must give a new array of the shape, kind and dtype of its states, all finite; it may
    neither write to what it is given nor give memory that it uses again; equal questions must
    get equal answers, whatever was asked in between, unless the solver says that it is not
    `deterministic`; and a state's answer may not depend on the states beside it.

    Parameters
    ----------
    solver : solver or callable
        See `Solver`, and `FunctionSolver` for functions of one state.
    states : ndarray or Tensor of shape (n_simulations, n_channels, *grid)
        Typical states, such as after some steps; not zeros. A few are enough. Of the type in which
        the solver will be asked, since noise and step depend on it: float32 for a fit with a
        corrector of float32, as by default.
    conditions : mapping, optional
        The conditions of these simulations.
    random_state : int, default=0
        Which entries are changed, and in which direction noise is looked for.
    raise_problems : bool, default=True
        Whether problems are raised; otherwise they are in the report.

    Returns
    -------
    SolverReport

    Raises
    ------
    ValueError
        If there is no state, all are zero, or there is a problem.

    Notes
    -----
    Noise is read off the differences of order 4 to 6 of nine states in a row, entry by entry,
    the median of those that vary. Rows with two spacings are asked for, and the quieter one
    counts: kinks, as interpolation has them, look like noise unless the spacing is small. With
    noise e, a forward difference of step h has an error of about ``h |f''| / 2 + e sqrt(2) / h``,
    a central one of ``h² |f'''| / 6 + e / (h sqrt(2))``. Proposed is the h for which it is
    smallest, for norms over the result, averaged over random entries of the state.

    References
    ----------
    Moré and Wild, Estimating computational noise, SIAM J. Sci. Comput. 33 (2011).

    Examples
    --------
    >>> from zoestim.solvers import Burgers1D, check_solver
    >>> burgers = Burgers1D(n_cells=32)
    >>> states = burgers.initial_states(3, random_state=0)
    >>> report = check_solver(burgers, states, {"viscosity": 0.05})
    >>> report.problems, report.scheme
    ((), 'forward')
    >>> 1e-9 < report.noise < 1e-6 and 1e-5 < report.step < 1e-2
    True

    A solver that writes to its input:

    >>> def careless(state, conditions):
    ...     state *= 0.5
    ...     return state
    >>> for problem in check_solver(careless, states, raise_problems=False).problems:
    ...     print(problem)
    It writes to the states that it is given. Work on a copy.
    """
    asked = _Asked(as_solver(solver), states, {} if conditions is None else conditions)
    rng = np.random.default_rng(random_state)
    problems = tuple(_problems_of_a_call(asked))
    noise = difference = step = error = float("nan")
    scheme: Literal["forward", "central"] = "forward"
    if not problems:
        noise = _noise(asked, rng)
        difference = _batch_difference(asked)
        problems = tuple(_problems_of_several(asked, noise, difference))
        scheme, step, error = _proposal(asked, noise, rng)
    if problems and raise_problems:
        listed = "\n".join(f"- {problem}" for problem in problems)
        raise ValueError(f"{type(asked.solver).__name__} cannot be learned through:\n{listed}")
    return SolverReport(problems, noise, difference, scheme, step, error, asked.n_steps)


class _Asked:
    """A solver, the states that it is asked about, and how many steps it was asked for."""

    def __init__(self, solver: Any, states: Any, conditions: Mapping[str, Any]) -> None:
        self.solver, self.states, self.conditions = solver, _copied(states), dict(conditions)
        self.exact = _as_array(states)
        self.n_steps = 0
        if not len(self.exact) or not np.any(self.exact):
            raise ValueError(
                "check_solver needs at least one state that is not zero everywhere; got shape "
                f"{self.exact.shape}. Pass typical states, such as after some steps."
            )
        self.scale = float(np.sqrt(np.mean(self.exact**2)))
        self.eps = float(torch.finfo(_torch_dtype(states)).eps)

    def raw(self, states: Any, conditions: Mapping[str, Any]) -> Any:
        """Return the solver's answer, and count."""
        self.n_steps += len(states)
        return self.solver.step(states, conditions)

    def answer(self, states: np.ndarray, rows: Any) -> np.ndarray:
        """Return the answer to states as float64, with the conditions of these simulations.

        States are rounded to the dtype of those that were given.
        """
        answers, size = [], getattr(self.solver, "max_batch", None) or len(rows)
        for at in range(0, len(rows), size):
            some = rows[at : at + size]
            answers.append(self.raw(self.rounded(states[at : at + size]), self.of(some)))
        return np.concatenate([_as_array(answer) for answer in answers])

    def rounded(self, states: np.ndarray) -> Any:
        """Return float64 states as what the user's are."""
        if isinstance(self.states, Tensor):
            return torch.tensor(np.ascontiguousarray(states)).to(self.states)
        return states.astype(self.states.dtype)

    def of(self, rows: Any) -> dict[str, Any]:
        """Return the conditions of some simulations, in this order."""
        n, found = len(self.exact), {}
        for name, values in self.conditions.items():
            per_simulation = np.ndim(values) > 0 and len(values) == n
            array = values if isinstance(values, Tensor) else np.asarray(values)
            found[name] = array[list(rows)] if per_simulation else values
        return found


def _problems_of_a_call(asked: _Asked) -> Iterator[str]:
    """Give what is wrong with the answer to one question."""
    states, conditions = _copied(asked.states), _copied_conditions(asked.conditions)
    answer = asked.raw(states, conditions)
    if not _same(states, asked.states):
        yield "It writes to the states that it is given. Work on a copy."
    if not _same_conditions(conditions, asked.conditions):
        yield "It writes to the conditions that it is given. Work on a copy."
    kind = Tensor if isinstance(states, Tensor) else np.ndarray
    if not isinstance(answer, kind):
        yield (
            f"Asked about {kind.__name__}, it must answer with the same; got "
            f"{type(answer).__name__}."
        )
        return
    if answer.shape != states.shape:
        yield (
            f"Its answer must have the shape of its states, {tuple(states.shape)}; got "
            f"{tuple(answer.shape)}. What is not a state, such as a pressure, stays inside."
        )
        return
    if answer.dtype != states.dtype:
        yield f"Its answer must have the dtype of its states, {states.dtype}; got {answer.dtype}."
    if not np.isfinite(_as_array(answer)).all():
        yield "Its answer is not finite. Pass states for which it is stable, or take shorter steps."
        return
    if _shares(answer, states) and _same(states, asked.states):
        yield "Its answer shares memory with the states that it is given. Return a copy."
    kept = _copied(answer)
    asked.raw(asked.rounded(1.01 * asked.exact), _copied_conditions(asked.conditions))
    if not _same(answer, kept) and _same(states, asked.states):
        yield "Its next call writes to the answer that it gave. Return a copy."


def _problems_of_several(asked: _Asked, noise: float, difference: float) -> Iterator[str]:
    """Give what is wrong between the answers to several questions."""
    rows = range(len(asked.exact))
    first = asked.answer(asked.exact, rows)
    asked.answer(1.01 * asked.exact, rows)
    off = float(np.abs(asked.answer(asked.exact, rows) - first).max())
    if off > 0 and getattr(asked.solver, "deterministic", True):
        yield (
            f"Asked twice, it gives different answers, by up to {off:.3g}: something is kept "
            "from call to call, such as a first guess, or is random. Reset it, fix its seed in "
            "each call, or set deterministic=False."
        )
    allowed = max(FEW_ROUNDINGS * asked.eps * asked.scale, 10 * noise, 10 * off)
    if difference > allowed:
        yield (
            f"A state's answer depends on the states beside it: in a batch it differs by up to "
            f"{difference:.3g} from that alone, where rounding and noise explain {allowed:.3g}. "
            "Do not reduce over the batch, and solve to a tolerance that holds for each state; "
            "or set batched=False."
        )


def _batch_difference(asked: _Asked) -> float:
    """Return how far answers differ between three states at once, in two orders, and alone."""
    n = len(asked.exact)
    rows = [i % n for i in range(max(n, 3))]
    factors = np.linspace(0.99, 1.01, len(rows)).reshape(-1, *[1] * (asked.exact.ndim - 1))
    states = asked.exact[rows] * factors
    together = asked.answer(states, rows)
    backwards = asked.answer(states[::-1], rows[::-1])[::-1]
    alone = np.concatenate([asked.answer(states[i : i + 1], [row]) for i, row in enumerate(rows)])
    return float(max(np.abs(together - alone).max(), np.abs(together - backwards).max()))


def _noise(asked: _Asked, rng: np.random.Generator) -> float:
    """Return the noise of an entry of the answer, at least that of its own rounding."""
    direction = rng.normal(size=asked.exact.shape[1:])
    steps = np.arange(POINTS).reshape(-1, *[1] * direction.ndim) * asked.scale
    tables = [
        asked.answer(asked.exact[0] + spacing * steps * direction, [0] * POINTS)
        for spacing in (SPACING, asked.eps**0.5)
    ]
    floor = asked.eps / 4 * float(np.abs(tables[0]).max())
    return max(min(_level(table.reshape(POINTS, -1)) for table in tables), floor)


def _level(table: np.ndarray) -> float:
    """Return the noise of equally spaced rows, the median over the columns that vary."""
    table = table[:, np.ptp(table, axis=0) > 0]
    if not table.size:
        return 0.0
    levels, ratio = [], 1.0
    for order in range(1, max(ORDERS) + 1):
        table = np.diff(table, axis=0)
        ratio *= order / (2 * (2 * order - 1))  # (k!)² / (2k)!
        if order in ORDERS:
            levels.append(float(np.sqrt(ratio * np.median(np.mean(table**2, axis=0)))))
    return min(levels)


def _proposal(
    asked: _Asked, noise: float, rng: np.random.Generator
) -> tuple[Literal["forward", "central"], float, float]:
    """Return scheme, step and expected relative error of derivatives by an entry of a state."""
    n, size = len(asked.exact), asked.exact[0].size
    rows, entries = rng.integers(n, size=N_ENTRIES), rng.integers(size, size=N_ENTRIES)
    h = WIDE * asked.scale
    found = {0: asked.answer(asked.exact[rows], rows).reshape(N_ENTRIES, -1)}
    for times in (-2, -1, 1, 2):
        changed = asked.exact[rows].reshape(N_ENTRIES, -1)
        changed[np.arange(N_ENTRIES), entries] += times * h
        answer = asked.answer(changed.reshape(N_ENTRIES, *asked.exact.shape[1:]), rows)
        found[times] = answer.reshape(N_ENTRIES, -1)

    def norm(values: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.sum(values**2, axis=1))))

    first = norm((found[1] - found[-1]) / (2 * h))
    second = norm((found[1] - 2 * found[0] + found[-1]) / h**2)
    third = norm((found[2] - 2 * found[1] + 2 * found[-1] - found[-2]) / (2 * h**3))
    n_moved = float(np.mean(np.sum(found[1] != found[0], axis=1)))
    if first == 0 or n_moved == 0:
        return "forward", h, float("inf")
    loud, widest = noise * np.sqrt(n_moved), 10 * h
    forward = min(float(np.sqrt(2 * np.sqrt(2) * loud / second)) if second else widest, widest)
    central = min(float(np.cbrt(3 / np.sqrt(2) * loud / third)) if third else widest, widest)
    error = float(forward * second / 2 + np.sqrt(2) * loud / forward) / first
    error_central = float(central**2 * third / 6 + loud / np.sqrt(2) / central) / first
    if error > FORWARD_WILL_DO and error_central < error:
        return "central", central, error_central
    return "forward", forward, error


# --- Arrays and tensors alike


def _torch_dtype(states: Any) -> torch.dtype:
    dtype = states.dtype if isinstance(states, Tensor) else torch.as_tensor(states[:0]).dtype
    if not dtype.is_floating_point:
        raise TypeError(f"States must be of a floating type, such as float32; got {dtype}.")
    return dtype


def _as_array(states: Any) -> np.ndarray:
    """Return a float64 copy."""
    array = states.detach().cpu().numpy() if isinstance(states, Tensor) else states
    return np.array(array, dtype=np.float64)


def _copied(values: Any) -> Any:
    return values.detach().clone() if isinstance(values, Tensor) else np.array(values)


def _copied_conditions(conditions: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: values if np.ndim(values) == 0 else _copied(values)
        for name, values in conditions.items()
    }


def _same(one: Any, other: Any) -> bool:
    return np.array_equal(_as_array(one), _as_array(other), equal_nan=True)


def _same_conditions(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(_same(one[name], other[name]) for name in one)


def _shares(answer: Any, states: Any) -> bool:
    if isinstance(answer, Tensor):
        return answer.untyped_storage().data_ptr() == states.untyped_storage().data_ptr()
    return np.shares_memory(answer, states)
