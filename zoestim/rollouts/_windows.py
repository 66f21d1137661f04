"""The frames of some simulations as training samples: a start, and what is to come of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from zoestim.evaluation import Patience, QueryError, as_input
from zoestim.rollouts._unrolled import Unrolled


class Windows(Dataset):
    """Every start of a simulation that has enough frames behind it.

    A sample is the row behind the solver's first step, and the states of the next frames in
    units of their scales. That step is taken once for each frame, when it is first needed.

    Parameters
    ----------
    frames : array of shape (n_frames, width)
        The rows of all frames, one simulation after the other.
    simulations : array of int of shape (n_frames,)
        Which simulation each is of.
    unrolled : Unrolled
        What takes the steps; its `longest` roll-out is what a start needs frames for.
    patience : Patience
        How long the solver may take.

    Attributes
    ----------
    groups : ndarray of int of shape (n_windows,)
        Which simulation each window is of.
    """

    def __init__(self, frames: Any, simulations: Any, unrolled: Unrolled, patience: Patience):
        self._frames = as_input(frames, unrolled)
        self._unrolled = unrolled
        longest = unrolled.longest
        self._scale = unrolled.state_scale.cpu()
        self._patience = patience
        self._simulations = simulations = np.asarray(simulations)
        starts = np.flatnonzero(simulations[longest:] == simulations[:-longest])
        self.groups = simulations[starts]
        self._starts = torch.as_tensor(starts)
        self._stepped = self._frames[:, : unrolled.rows.n_state].clone()
        self._is_stepped = torch.zeros(len(frames), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        starts, rows = self._starts[indices], self._unrolled.rows
        self._step(starts)
        X = torch.cat([self._stepped[starts], self._frames[starts, rows.n_state :]], 1)
        behind = starts[:, None] + torch.arange(1, self._unrolled.longest + 1)
        states = self._frames[behind.flatten(), : rows.n_state].reshape(-1, *rows.state)
        return X, (states / self._scale).reshape(len(starts), -1, *rows.state)

    def _step(self, starts: Tensor) -> None:
        """Take the first step of some frames, in blocks that are the same in every order."""
        box = self._unrolled.box
        for block in torch.unique(starts[~self._is_stepped[starts]] // box.at_once).tolist():
            part = slice(block * box.at_once, (block + 1) * box.at_once)
            self._stepped[part] = box.insist(self._frames[part, None], self._patience)[:, 0]
            self._is_stepped[part] = True
        broken = ~self._stepped[starts].isfinite().all(1)
        if bool(broken.any()):
            self._refuse(int(starts[broken][0]))

    def _refuse(self, start: int) -> None:
        """Say which frame has no next state, and why: alone, the solver raises what it raises."""
        owner, cause = self._simulations[start], None
        number = int((self._simulations[:start] == owner).sum())
        try:
            self._unrolled.box.call((), self._frames[None, start : start + 1], ())
        except Exception as error:
            cause = error
        what = "gives no finite state"
        if cause is not None:
            what = f"raises {type(cause).__name__}: {cause} -"
        raise QueryError(
            f"The solver {what} one step after frame {number} of simulation {owner}, without any "
            "correction; expected a finite state, since it is to be trained on. Leave that "
            f"simulation out, or mend the solver or what it is told.{self._unrolled.box.hint()}"
        ) from cause
