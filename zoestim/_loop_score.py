"""What a fit of a SolverInTheLoop is worth, and what it took."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from zoestim._loop_data import rows_of
from zoestim.evaluation import Patience
from zoestim.rollouts import roll_out
from zoestim.solvers import Simulations

JUDGED_STEPS = 100  # of the roll-outs by which a fit is judged


class CorrectionWorseThanSolverWarning(UserWarning):
    """A corrected roll-out is further from the truth than that of the bare solver.

    Examples
    --------
    To end a script where it would go unnoticed:

    >>> import warnings
    >>> from zoestim import CorrectionWorseThanSolverWarning
    >>> warnings.simplefilter("error", CorrectionWorseThanSolverWarning)  # doctest: +SKIP
    """


def tell_times(loop: Any, started: float) -> None:
    """Say where the time of the fits has gone: seconds, summed over workers."""
    loop._seconds = time.perf_counter() - started
    step, log = loop.net_.zo_step, loop.query_log_.rows
    solver = loop.trainer_.module_.box.meter.read()
    busy = max(step.seconds, float(log["seconds"].sum()))
    elsewhere = solver.seconds - step.solver_seconds
    loop.n_solver_steps_ = solver.n_rows
    loop.fit_time_solver_ = solver.seconds
    loop.fit_time_network_ = max(0.0, busy - step.solver_seconds)
    loop.fit_time_other_ = max(0.0, loop._seconds - step.seconds - elsewhere)


def judge(loop: Any, simulations: Simulations, trajectories: Sequence[np.ndarray]) -> None:
    """Compare roll-outs with and without correction, on what was held out if there is any."""
    held = loop.trainer_._held_out
    chosen = range(len(trajectories)) if held is None else held.tolist()
    short = [trajectories[i][:JUDGED_STEPS] for i in chosen]
    rows = rows_of(loop.trainer_.module_, simulations[list(chosen)])
    loop.baseline_score_ = _score(loop, rows, short, correct=False)
    loop.corrected_score_ = _score(loop, rows, short, correct=True)
    if not loop.corrected_score_ >= loop.baseline_score_:
        warnings.warn(
            f"The correction makes roll-outs of {max(map(len, short))} steps worse: a score of "
            f"{loop.corrected_score_:.4g}, where the bare solver has {loop.baseline_score_:.4g}. "
            "Lower lr, train longer, unroll more steps, or predict with correct=False.",
            CorrectionWorseThanSolverWarning,
            stacklevel=5,
        )


def _score(loop: Any, rows: Tensor, frames: Sequence[np.ndarray], *, correct: bool) -> float:
    """Return the score of roll-outs, with a warning if there is none."""
    unrolled, n_steps = loop.trainer_.module_, max(map(len, frames))
    patience = Patience(loop.query_timeout, loop.max_retries)
    found = roll_out(unrolled, rows, n_steps, correct=correct, patience=patience)
    score = mean_error_score(found.states, frames)
    if math.isinf(score):
        name = "corrected_score_" if correct else "baseline_score_"
        first = min(found.errors)
        warnings.warn(
            f"{name} is minus infinity: of the {len(rows)} roll-outs that judge the fit, "
            f"{len(found.errors)} failed; the first, number {first}, at "
            f"{found.errors[first]}.{unrolled.box.hint()}",
            stacklevel=6,
        )
    return score


def mean_error_score(found: np.ndarray, frames: Sequence[np.ndarray]) -> float:
    """Return minus the mean absolute error over all numbers; minus infinity if one is no number."""
    errors = [np.abs(mine[: len(own)] - own) for mine, own in zip(found, frames, strict=True)]
    total = sum(float(each.sum(dtype=np.float64)) for each in errors)
    mean = total / sum(each.size for each in errors)
    return -mean if math.isfinite(mean) else -math.inf
