"""A solver as a black box of rows: many perturbed simulations in one call, each for itself."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoestim.evaluation import BlackBox, Patience
from zoestim.rollouts._rows import Rows

# By default; larger batches gain little and leave the cache.
SIMULATIONS_AT_ONCE = 128
# Where they are solved one by one, so that workers have calls to share.
ONE_BY_ONE = 24


class SolverStep:
    """One step of a solver, from rows to flat states.

    Parameters
    ----------
    solver : Solver
        What takes the step.
    rows : Rows
        What the rows hold.
    at_once : int
        The most simulations that the solver is asked about together.
    """

    def __init__(self, solver: Any, rows: Rows, at_once: int):
        self.solver = solver
        self.rows = rows
        self.at_once = at_once

    def __deepcopy__(self, memo: dict[int, Any]) -> SolverStep:
        # The solver is the user's: it may be a program that runs, of which there is one.
        return self

    def __call__(self, stacked: Any) -> Any:
        """Return the states after a step, (k, n, n_state), of k copies of n rows, (k, n, width).

        A copy in which the solver raises gets NaN, where others do not: one that is alone raises.
        """
        k, n = stacked.shape[:2]
        try:
            return self.after(stacked.reshape(k * n, -1)).reshape(k, n, -1)
        except Exception:
            if k == 1:
                raise
        found = []
        for rows in stacked:
            try:
                found.append(torch.as_tensor(self.after(rows)))
            except Exception:
                found.append(torch.as_tensor(rows[:, : self.rows.n_state] * np.nan))
        return torch.stack(found)

    def after(self, rows: Any) -> Any:
        """Return the states after a step, (n, n_state), of rows (n, width)."""
        states, conditions = self.rows.states(rows), self.rows.each_condition(rows)
        most = min(self.at_once, self.solver.max_batch or self.at_once)
        parts = [
            self._step(states[part], {name: values[part] for name, values in conditions.items()})
            for part in (slice(at, at + most) for at in range(0, len(rows), most))
        ]
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts) if isinstance(parts[0], Tensor) else np.concatenate(parts)

    def _step(self, states: Any, conditions: dict[str, Any]) -> Any:
        found = self.solver.step(states, conditions)
        if tuple(found.shape) != tuple(states.shape):
            raise ValueError(
                f"The solver's step returned shape {tuple(found.shape)} for states of shape "
                f"{tuple(states.shape)}; expected the same shape. check_solver tells what else "
                "a solver has to keep to."
            )
        return found.reshape(len(found), -1)


class SolverBox(BlackBox):
    """A solver as a black box, which takes rows (n, width) and gives flat states (n, n_state).

    Parameters
    ----------
    solver : Solver
        What takes the step.
    rows : Rows
        What the rows hold.
    batch_size : int
        Rows that are asked about at the same parameters.
    at_once : int or None
        The most simulations of a call; None is 128, or 24 where the solver takes one by one.
    """

    function: SolverStep

    def __init__(self, solver: Any, rows: Rows, batch_size: int, at_once: int | None = None):
        most = at_once or (SIMULATIONS_AT_ONCE if solver.batched else ONE_BY_ONE)
        super().__init__(SolverStep(solver, rows, most), vectorized=max(1, most // batch_size))
        self.at_once = most
        self._torch = solver.native == "torch"

    def insist(self, stacked: Tensor, patience: Patience) -> Tensor:
        """Return the states after a step, (k, n, n_state), of rows (k, n, width).

        What raises is asked again, and so is each row whose state is not finite.
        """
        found = patience.insist(lambda: self.call((), stacked, ()))
        for _ in range(patience.max_retries):
            broken = ~found.isfinite().all(-1)
            if not bool(broken.any()):
                break
            again = stacked[broken][:, None]
            with contextlib.suppress(Exception):  # then it stays as it is
                states = patience.insist(lambda: self.call((), again, ()))  # noqa: B023
                found = found.masked_scatter(broken[..., None], states)
        return found

    def hint(self) -> str:
        """Return what the solver itself notes of its last failure, as a sentence, or nothing."""
        noted = getattr(self.function.solver, "failures", ())
        return f" The solver's last failure: {noted[-1]}" if noted else ""


def is_finite(found: Any) -> bool:
    """Return whether numbers are all finite."""
    return bool(torch.as_tensor(found).isfinite().all())
