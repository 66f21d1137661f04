"""Roll-outs of a trained corrector, and of the bare solver."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from zoestim.evaluation import Patience
from zoestim.rollouts._unrolled import Unrolled


class RollOut(NamedTuple):
    """What came of some simulations.

    Parameters
    ----------
    states : ndarray of shape (n_simulations, n_steps, n_channels, *grid)
        The state after each step; NaN from where a simulation has failed.
    corrections : ndarray of shape (n_simulations, n_steps, n_features, *grid)
        What was added, in units of the features.
    errors : dict from int to str
        By simulation, why it failed.
    """

    states: np.ndarray
    corrections: np.ndarray
    errors: dict[int, str]


@torch.no_grad()
def roll_out(
    unrolled: Unrolled, rows: Tensor, n_steps: int, *, correct: bool, patience: Patience
) -> RollOut:
    """Return the states of simulations step by step; one that fails leaves the others alone.

    Parameters
    ----------
    unrolled : Unrolled
        Solver and corrector.
    rows : Tensor of shape (n_simulations, width)
        Where to begin, with the conditions.
    n_steps : int
        How many steps.
    correct : bool
        Whether states are corrected.
    patience : Patience
        How long a step may take, and how often it is tried.

    Raises
    ------
    Exception
        What the solver raises in the first step, if it does so for all simulations.
    """
    layout, channels = unrolled.rows, unrolled.channels(rows)
    states, errors = layout.states(rows), {}
    n, like = len(rows), unrolled.to_features(states)
    found = states.new_full((n, n_steps, *layout.state), torch.nan)
    added = like.new_zeros(n, n_steps, *like.shape[1:])
    alive = torch.arange(n, device=rows.device)
    for number in range(n_steps):
        given = layout.with_states(rows, states)[alive]
        behind, failed = _step(unrolled, given, patience, first=number == 0)
        correction = like.new_zeros(len(alive), *like.shape[1:])
        if correct:
            with unrolled.in_use():
                seen = None if channels is None else channels[alive]
                correction = unrolled.correction(behind, seen)
            behind = unrolled.add(behind, correction)
        for place in (~behind.flatten(1).isfinite().all(1)).nonzero().flatten().tolist():
            failed.setdefault(place, "the state is not finite")
        for place, why in failed.items():
            errors[int(alive[place])] = f"step {number + 1}: {why}"
        keep = [place for place in range(len(alive)) if place not in failed]
        alive, behind = alive[keep], behind[keep]
        if not len(alive):
            break
        added[alive, number] = correction[keep]
        states = states.index_copy(0, alive, behind)
        found[alive, number] = behind
    return RollOut(found.numpy(force=True), added.numpy(force=True), errors)


def _step(
    unrolled: Unrolled, rows: Tensor, patience: Patience, *, first: bool
) -> tuple[Tensor, dict[int, str]]:
    """Return the states after a step of the solver, and of some rows why it raises."""
    box, layout = unrolled.box, unrolled.rows
    failed: dict[int, str] = {}

    def ask(part: Tensor) -> Tensor:
        return box.insist(part[None], patience)[0]

    try:
        found = ask(rows)
    except Exception:  # of which simulation?
        found = rows.new_full((len(rows), layout.n_state), torch.nan)
        for place in range(len(rows)):
            try:
                found[place] = ask(rows[place : place + 1])[0]
            except Exception as error:
                failed[place] = f"{type(error).__name__}: {error}"
        if first and len(failed) == len(rows):
            raise
    return layout.states(found), failed
