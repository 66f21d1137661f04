"""Answer some queries: many in one fold where that is exact, else each on its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoestim.backends import worker_name
from zoestim.evaluation._lanes import in_brief, out_of_memory
from zoestim.evaluation._losses import Losses, finite_rows
from zoestim.evaluation._patience import Patience, Reply
from zoestim.evaluation._plan import Chunk
from zoestim.evaluation._query_error import Failure, QueryTimeout


class Answer(NamedTuple):
    """By how much some queries change the loss.

    Parameters
    ----------
    changes : Tensor of shape (k,) or (k, n), float64
        Of the loss, or of that of each sample. NaN for queries that were not answered.
    attempts : int
        How often the one that was asked most often was asked.
    failure : Failure or None
        The query after which no other was asked.
    lost : tuple of Failure
        The queries that failed while others were asked all the same.
    """

    changes: Tensor
    attempts: int = 1
    failure: Failure | None = None
    lost: tuple[Failure, ...] = ()


class Asker:
    """Answers queries as long as its patience lasts.

    Parameters
    ----------
    given : Losses
        The batch.
    patience : Patience
        How long and how often a query is asked.
    number : int, default=0
        Which of the askers of this process it is: but for the first, each has a module of its
        own, since a query swaps parameters in it.

    Attributes
    ----------
    unfolded : dict from parameter names to str
        What was found not to fold, and why.
    worker : str
        What reports call it.
    """

    def __init__(self, given: Losses, patience: Patience, number: int = 0):
        self.given = given
        # A query that hangs stays in its module, too.
        self.losses = given if not number and patience.timeout is None else given.apart()
        self.patience = patience
        self.worker = worker_name(number)
        self.unfolded: dict[tuple[str, ...], str] = {}
        self._fitting: dict[tuple[str, ...], int] = {}  # the most lanes that fit

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
        if not self.losses.asks_box(chunk.names):
            changes = self._try_fold(chunk)
            return self._lane_by_lane(chunk) if changes is None else self._mend(chunk, changes, 1)
        found = self._patiently(lambda: self.losses.folded(chunk))
        if found.cause is not None and self.patience.forgiving:  # which of them was it?
            return self._lane_by_lane(chunk, asked=self.patience.max_retries)
        if found.cause is not None:
            return self._failed(chunk, 0, found)
        return self._mend(chunk, found.value, found.attempts)

    def _mend(self, chunk: Chunk, changes: Tensor, attempts: int) -> Answer:
        """Ask again, each on its own, what gave no finite loss in a fold."""
        if math.isfinite(float(changes.sum())):  # the cheapest look at all of them
            return Answer(changes, attempts)
        bad = (~finite_rows(changes)).nonzero().flatten().tolist()
        if not bad:
            return Answer(changes, attempts)
        if attempts > self.patience.max_retries and not self.patience.forgiving:
            lost = Reply(changes[bad[0]], None, attempts)
            return self._failed(chunk, bad[0], lost, changes)
        again = self._lane_by_lane(chunk, bad, min(attempts, self.patience.max_retries))
        changes = changes.index_copy(0, torch.tensor(bad), again.changes[bad])
        return again._replace(changes=changes)

    def _lane_by_lane(
        self, chunk: Chunk, lanes: Sequence[int] | None = None, asked: int = 0
    ) -> Answer:
        """Ask queries one by one, until one fails for good that is not forgiven."""
        changes, most, lost = self._unknown(chunk), 1, []
        for lane in range(len(chunk)) if lanes is None else lanes:
            found = self._patiently(
                lambda: self.losses.alone(chunk, [lane])[0],  # noqa: B023
                usable=lambda change: bool(finite_rows(change[None])),
                asked=asked,
            )
            most = max(most, found.attempts)
            if found.cause is None and finite_rows(found.value[None]):
                changes[lane] = found.value
                continue
            failed = self._failed(chunk, lane, found, changes)
            if not self.patience.forgiving:
                return failed
            lost.append(failed.failure)
        return Answer(changes, most, lost=tuple(lost))  # type: ignore[arg-type]

    def _unknown(self, chunk: Chunk) -> Tensor:
        shape = (len(chunk), *self.losses.base_loss.shape)
        return torch.full(shape, math.nan, dtype=torch.float64)

    def _patiently(self, function: Any, **how: Any) -> Reply:
        def call() -> Any:
            try:
                return self.patience.within_time(function)
            except QueryTimeout:
                self.losses = self.given.apart()
                raise

        return Patience(None, self.patience.max_retries).ask(call, **how)

    def _failed(
        self, chunk: Chunk, lane: int, found: Reply, changes: Tensor | None = None
    ) -> Answer:
        lost = None if found.value is None else self.losses.base_loss + found.value
        loss = None if lost is None else float(lost.mean())
        position = int(chunk.positions[lane])
        failure = Failure(position, loss, found.cause, found.attempts, self.worker)
        if changes is None:
            changes = self._unknown(chunk)
        return Answer(changes, found.attempts, failure)

    def _try_fold(self, chunk: Chunk) -> Tensor | None:
        """Fold a chunk, in halves if it does not fit; None where it cannot be folded."""
        if len(chunk) <= self._fitting.get(chunk.names, len(chunk)):
            try:
                return self.losses.folded(chunk)
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
