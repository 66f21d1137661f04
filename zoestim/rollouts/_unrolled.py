"""A solver and its corrector, a step of one after a step of the other: Sec. 6.2, App. H."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from zoestim.rollouts._box import SolverBox, SolverStep
from zoestim.rollouts._rows import Rows


class _Features(nn.Module):
    """What the corrector sees of states; a module, so that one that hides its ops stays alone."""

    def __init__(self, step: SolverStep):
        super().__init__()
        self.step = step

    def forward(self, states: Tensor) -> Tensor:
        return self.step.solver.to_features(states)


class _Addition(nn.Module):
    """How a correction is added to states."""

    def __init__(self, step: SolverStep):
        super().__init__()
        self.step = step

    def forward(self, states: Tensor, correction: Tensor) -> Tensor:
        return self.step.solver.apply_correction(states, correction)


class Unrolled(nn.Module):
    """Some corrected steps in a row, from the rows behind a first step of the solver.

    That step does not depend on the corrector: whoever trains on the same simulations again and
    again takes it once.

    Parameters
    ----------
    corrector : nn.Module
        From features, with the conditions as channels behind them, to a correction of the
        features; all in units of their scales.
    box : SolverBox
        The solver.
    schedule : tuple of int
        How many corrections there are, in one part of a fit after the other; the solver takes a
        step between two. `n_unroll` is the number that is valid now.
    scale : Tensor of shape (n_features,)
        The unit of each channel of the features.
    state_scale : Tensor of shape (n_channels,)
        The unit of each channel of a state.
    condition_scale : dict of str to float
        The units of those conditions that the corrector sees.
    slope : {None, "queries", "zero", "identity", "autograd"}
        What stands for the derivative of the solver's step where autograd goes through the
        corrector; None where queries perturb the weights.

    Notes
    -----
    Outputs are corrected states in units of `state_scale`, (n, n_unroll, n_channels, *grid).
    """

    scale: Tensor
    state_scale: Tensor

    def __init__(
        self,
        corrector: nn.Module,
        box: SolverBox,
        schedule: tuple[int, ...],
        scale: Tensor,
        state_scale: Tensor,
        condition_scale: dict[str, float],
        slope: str | None = None,
    ):
        super().__init__()
        self.corrector = corrector
        self.box = box
        self.schedule = schedule
        self.n_unroll = self.longest = max(schedule)
        self.condition_scale = condition_scale
        self.slope = slope
        self.to_features = _Features(box.function)
        self.add = _Addition(box.function)
        shape = box.function.rows.state
        features = self.to_features(torch.zeros(1, *shape, dtype=scale.dtype))
        self.grid = tuple(features.shape[2:])
        self.register_buffer("scale", scale.reshape(-1, *[1] * len(self.grid)))
        self.register_buffer("state_scale", state_scale.reshape(-1, *[1] * (len(shape) - 1)))

    @property
    def rows(self) -> Rows:
        """What the rows hold."""
        return self.box.function.rows

    def forward(self, x: Tensor) -> Tensor:
        """Return the corrected states of `n_unroll` steps, from rows behind the first one."""
        states, channels, found = self.rows.states(x), self.channels(x), []
        for number in range(self.n_unroll):
            if number:
                states = self.solve(x, states)
            states = self.correct(states, channels)
            found.append(states / self.state_scale)
        return torch.stack(found, 1)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Evaluate for a while instead of training: dropout and batch statistics rest."""
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)

    def solve(self, x: Tensor, states: Tensor) -> Tensor:
        """Return states after a step of the solver; `x` are rows with their conditions."""
        return self.rows.states(self.box(self.rows.with_states(x, states)))

    def correct(self, states: Tensor, channels: Tensor | None) -> Tensor:
        """Return states with the correction that they call for."""
        return self.add(states, self.correction(states, channels))

    def correction(self, states: Tensor, channels: Tensor | None) -> Tensor:
        """Return the correction of states, of the shape of their features."""
        seen = self.to_features(states) / self.scale
        seen = seen if channels is None else torch.cat([seen, channels], 1)
        return self.corrector(seen) * self.scale

    def channels(self, x: Tensor) -> Tensor | None:
        """Return the conditions in rows as channels: fields as they are, other numbers constant."""
        each, shapes = self.rows.each_condition(x), dict(self.rows.conditions)
        found = []
        for name, unit in self.condition_scale.items():
            n, field = n_channels(shapes[name], self.grid)
            shape = self.grid if field else (1,) * len(self.grid)
            values = each[name].reshape(-1, n, *shape) / unit
            found.append(values if field else values.expand(-1, -1, *self.grid))
        return torch.cat(found, 1) if found else None


def n_channels(shape: tuple[int, ...], grid: tuple[int, ...]) -> tuple[int, bool]:
    """Return how many channels a condition fills, and whether they are fields on the grid."""
    if shape[-len(grid) :] == grid and len(shape) <= len(grid) + 1:
        return math.prod(shape[: -len(grid)]), True
    return math.prod(shape), False
