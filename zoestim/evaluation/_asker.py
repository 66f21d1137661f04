"""Answer some queries: many in one fold where that is exact, else each on its own."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from zoestim.backends import worker_name
from zoestim.evaluation._lanes import in_brief, out_of_memory
from zoestim.evaluation._objective import Batch, Objective
from zoestim.evaluation._patience import Patience, Reply
from zoestim.evaluation._plan import Chunk
from zoestim.evaluation._program import Pass, Program
from zoestim.evaluation._propagate import Propagation
from zoestim.evaluation._query_error import Failure, QueryTimeout
from zoestim.evaluation._random import RandomState
from zoestim.propagation import Value


class Answer(NamedTuple):
    """By how much some queries change the loss.

    Parameters
    ----------
    changes : Tensor of shape (k,), float64
        NaN for queries that were not answered.
    attempts : int
        How often the one that was asked most often was asked.
    failure : Failure or None
        The query after which no other was asked.
    """

    changes: Tensor
    attempts: int = 1
    failure: Failure | None = None


class Asker:
    """One batch as one worker sees it: a graph, its features, and what remains of patience.

    Parameters
    ----------
    objective : Objective
        What is evaluated.
    batch : Batch
        The data.
    program, done : Program, Pass
        The graph and its features.
    base_loss : float
        The loss at the module's own parameters.
    draws : RandomState or None
        What the criterion is to draw, if it draws at all.
    patience : Patience
        How long and how often a query is asked.

    Attributes
    ----------
    propagation : Propagation
        Carries folds through the graph.
    unfolded : dict from parameter names to str
        What was found not to fold, and why.
    """

    def __init__(
        self,
        objective: Objective,
        batch: Batch,
        program: Program,
        done: Pass,
        base_loss: float,
        draws: RandomState | None,
        patience: Patience,
    ):
        self.objective = objective
        self.batch = batch
        self.program = program
        self.done = done
        self.base_loss = base_loss
        self.draws = draws
        self.patience = patience
        self.ways = objective.ways
        self.unfolded: dict[tuple[str, ...], str] = {}
        self._fitting: dict[tuple[str, ...], int] = {}  # the most lanes that fit
        self._renew()

    def _renew(self) -> None:
        """Leave the module to a query that still runs in it, and go on with another."""
        if self.patience.timeout is not None:
            self.program = self.program.apart()
        matrix_type = self.objective.matrix_type
        self.propagation = Propagation(self.program, self.done, self.ways, matrix_type)

    def apart(self) -> Asker:
        """Return one for another thread: it shares the features and no place of a parameter."""
        own = copy.copy(self)
        own.program, own.ways = self.program.apart(), copy.deepcopy(self.ways)
        own.unfolded, own._fitting = {}, {}
        own._renew()
        return own

    def asks_box(self, names: tuple[str, ...]) -> bool:
        """Return whether queries of some parameters ask a black box, which may be paid for."""
        return bool(self.program.boxes(self.program.dependents(names)))

    def answer(self, chunk: Chunk, folded: bool) -> Answer:
        """Return by how much each query changes the loss.

        Parameters
        ----------
        chunk : Chunk
            The queries.
        folded : bool
            Whether they may be asked together.
        """
        if not folded:
            return self._lane_by_lane(chunk)
        if not self.asks_box(chunk.names):
            changes = self._try_fold(chunk)
            return self._lane_by_lane(chunk) if changes is None else self._mend(chunk, changes, 1)
        found = self._patiently(lambda: self._fold(chunk), usable=lambda changes: True)
        if found.cause is not None:
            return self._failed(chunk, 0, found)
        return self._mend(chunk, found.value, found.attempts)

    def _mend(self, chunk: Chunk, changes: Tensor, attempts: int) -> Answer:
        """Ask again, each on its own, what gave no finite loss in a fold."""
        bad = (~torch.isfinite(changes)).nonzero().flatten().tolist()
        if not bad:
            return Answer(changes, attempts)
        if attempts > self.patience.max_retries:
            lost = Reply(self.base_loss + float(changes[bad[0]]), None, attempts)
            return self._failed(chunk, bad[0], lost, changes)
        again = self._lane_by_lane(chunk, bad, attempts)
        changes = changes.index_copy(0, torch.tensor(bad), again.changes[bad])
        return Answer(changes, again.attempts, again.failure)

    def _lane_by_lane(
        self, chunk: Chunk, lanes: Sequence[int] | None = None, asked: int = 0
    ) -> Answer:
        """Ask queries one by one, until one fails for good."""
        changes, most = torch.full((len(chunk),), math.nan, dtype=torch.float64), 1
        for lane in range(len(chunk)) if lanes is None else lanes:
            found = self._patiently(lambda: float(self.alone(chunk, [lane])), asked=asked)  # noqa: B023
            most = max(most, found.attempts)
            if found.cause is not None or not math.isfinite(found.value):
                return self._failed(chunk, lane, found, changes)
            changes[lane] = found.value
        return Answer(changes, most)

    def _patiently(self, function: Any, **how: Any) -> Reply:
        def call() -> Any:
            try:
                return self.patience.within_time(function)
            except QueryTimeout:
                self._renew()
                raise

        return Patience(None, self.patience.max_retries).ask(call, **how)

    def _failed(
        self, chunk: Chunk, lane: int, found: Reply, changes: Tensor | None = None
    ) -> Answer:
        loss = None if found.value is None else self.base_loss + found.value
        position = int(chunk.positions[lane])
        failure = Failure(position, loss, found.cause, found.attempts, worker_name())
        if changes is None:
            changes = torch.full((len(chunk),), math.nan, dtype=torch.float64)
        return Answer(changes, found.attempts, failure)

    def alone(self, chunk: Chunk, lanes: Sequence[int]) -> Tensor:
        """Return by how much queries change the loss, each run on its own."""
        losses = []
        for lane in lanes:
            outputs = self.program.rerun(self.done, chunk.lane(lane))
            losses.append(self._criterion(outputs).cpu())
        return (torch.stack(losses) - self.base_loss) * chunk.stretch()[lanes]

    def _criterion(self, outputs: Any, wide: bool = False) -> Tensor:
        if self.draws is not None:
            self.draws.restore()
        return self.objective.batch_loss(outputs, self.batch, wide)

    def _try_fold(self, chunk: Chunk) -> Tensor | None:
        """Fold a chunk, in halves if it does not fit; None where it cannot be folded."""
        if len(chunk) <= self._fitting.get(chunk.names, len(chunk)):
            try:
                return self._fold(chunk)
            except Exception as error:
                if not out_of_memory(error):
                    self.unfolded[chunk.names] = in_brief(error)
                    return None
        if len(chunk) == 1:  # the memory of the failed fold is free only here
            return None
        halves = chunk.halves()
        most = max(map(len, halves))
        self._fitting[chunk.names] = min(most, self._fitting.get(chunk.names, most))
        parts = [self._try_fold(half) for half in halves]
        return None if any(part is None for part in parts) else torch.cat(parts)  # type: ignore[arg-type]

    def _fold(self, chunk: Chunk) -> Tensor:
        outputs = self.propagation.run(chunk.changes, chunk.fold)
        return self._loss_changes(outputs, len(chunk)).cpu()

    def _loss_changes(self, outputs: Any, n_lanes: int) -> Tensor:
        """Return by how much changed outputs change the loss."""
        leaves, spec = pytree.tree_flatten(outputs)
        if not any(isinstance(leaf, Value) and leaf.change is not None for leaf in leaves):
            return torch.zeros(n_lanes, dtype=torch.float64)
        if isinstance(outputs, Value) and self.draws is None:
            closed = self.objective.loss.changes(outputs, self.batch.target)
            if closed is not None:
                return closed

        def operation(lanes: list[Any], wide: bool) -> Tensor:
            return self._criterion(pytree.tree_unflatten(lanes, spec), wide)

        losses, _ = self.ways.run(operation, leaves, "criterion")
        return losses[1:] - losses[0]
