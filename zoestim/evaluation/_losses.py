"""One batch as one worker computes it: queries in a fold, or each on its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from zoestim.evaluation._black_box import BlackBox
from zoestim.evaluation._elsewhere import apart
from zoestim.evaluation._objective import Batch, Objective
from zoestim.evaluation._plan import Chunk
from zoestim.evaluation._program import Pass, Program
from zoestim.evaluation._propagate import Propagation
from zoestim.evaluation._random import RandomState
from zoestim.propagation import Value


class Losses:
    """By how much queries change the loss of one batch.

    Parameters
    ----------
    objective : Objective
        What is evaluated.
    batch : Batch
        The data.
    program, done : Program, Pass
        The graph and its features.
    base_loss : Tensor of shape () or (n,), float64
        The loss at the module's own parameters, or that of each sample.
    draws : RandomState or None
        What the criterion is to draw, if it draws at all.

    Attributes
    ----------
    propagation : Propagation
        Carries folds through the graph.
    """

    def __init__(
        self,
        objective: Objective,
        batch: Batch,
        program: Program,
        done: Pass,
        base_loss: Tensor,
        draws: RandomState | None,
    ):
        self.objective = objective
        self.batch = batch
        self.program = program
        self.done = done
        self.base_loss = base_loss
        self.draws = draws
        self.ways = objective.ways
        self.propagation = Propagation(program, done, self.ways, objective.matrix_type)

    def apart(self) -> Losses:
        """Return the same for another thread: it shares features and no place of a parameter."""
        own = copy.copy(self)
        own.program, own.ways = apart(self.program), copy.deepcopy(self.ways)
        own.propagation = Propagation(own.program, self.done, own.ways, self.objective.matrix_type)
        return own

    def asks_box(self, names: tuple[str, ...]) -> bool:
        """Return whether queries of some parameters ask a black box, which may be paid for."""
        return self.program.has_boxes and bool(self.boxes(names))

    def boxes(self, names: tuple[str, ...]) -> list[BlackBox]:
        """Return the black boxes that queries of some parameters ask."""
        return self.program.boxes(self.program.dependents(names))

    def alone(self, chunk: Chunk, lanes: Sequence[int]) -> Tensor:
        """Return by how much queries change the loss, each run on its own."""
        losses = []
        for lane in lanes:
            outputs = self.program.rerun(self.done, chunk.lane(lane))
            losses.append(self._criterion(outputs).cpu())
        changes = torch.stack(losses) - self.base_loss
        return changes * chunk.stretch()[lanes].view(-1, *[1] * self.base_loss.ndim)

    def folded(self, chunk: Chunk) -> Tensor:
        """Return by how much queries change the loss, all of them run together."""
        outputs = self.propagation.run(chunk.changes, chunk.fold)
        return self._changes(outputs, len(chunk)).cpu()

    def _criterion(self, outputs: Any, wide: bool = False) -> Tensor:
        if self.draws is not None:
            self.draws.restore()
        return self.objective.batch_loss(outputs, self.batch, wide)

    def _changes(self, outputs: Any, n_lanes: int) -> Tensor:
        """Return by how much changed outputs change the loss."""
        leaves, spec = pytree.tree_flatten(outputs)
        if not any(isinstance(leaf, Value) and leaf.change is not None for leaf in leaves):
            return torch.zeros(n_lanes, *self.base_loss.shape, dtype=torch.float64)
        if isinstance(outputs, Value) and self.draws is None:
            closed = self.objective.loss.changes(outputs, self.batch.target)
            if closed is not None:
                return closed

        def operation(lanes: list[Any], wide: bool) -> Tensor:
            return self._criterion(pytree.tree_unflatten(lanes, spec), wide)

        losses, _ = self.ways.run(operation, leaves, "criterion")
        return losses[1:] - losses[0]


def finite_rows(changes: Tensor) -> Tensor:
    """Return which rows hold finite numbers alone: answers, of one loss or one a sample."""
    return torch.isfinite(changes)[:, None].flatten(1).all(1)
