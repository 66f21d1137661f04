"""One batch and its queries, as every worker gets them."""

from __future__ import annotations

import contextlib
import copy
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from zoestim.evaluation._asker import Asker
from zoestim.evaluation._black_box import Spent, boxes_of
from zoestim.evaluation._elsewhere import Sent, arrived, sent
from zoestim.evaluation._journal import Journal
from zoestim.evaluation._losses import Losses, finite_rows
from zoestim.evaluation._objective import Batch, Objective
from zoestim.evaluation._patience import Patience
from zoestim.evaluation._plan import Chunk, FoldSize, Part, make_groups, make_parts
from zoestim.evaluation._program import Known
from zoestim.evaluation._query_error import Failure
from zoestim.evaluation._random import RandomState, unchanged_generators
from zoestim.evaluation._state_hash import hash_of
from zoestim.evaluation._threads import one_thread
from zoestim.gradients import Queries

# The global generators are one for all threads: queries that draw from them take turns.
_TURN = threading.Lock()


class Record(NamedTuple):
    """What some queries cost.

    Parameters
    ----------
    position : int
        The first of them.
    n_queries : int
        How many they are.
    started : float
        When they were asked, in seconds since 1970.
    seconds : float
        How long it took.
    attempts : int
        How often they were asked, at most.
    worker : str
        Who asked.
    """

    position: int
    n_queries: int
    started: float
    seconds: float
    attempts: int
    worker: str


class Answers(NamedTuple):
    """What a worker brings back.

    Parameters
    ----------
    positions : Tensor of shape (k,), int64
        Which queries were answered.
    changes : Tensor of shape (k,) or (k, n), float64
        By how much they change the loss, or that of each sample.
    records : tuple of Record
        What they cost.
    unfolded : dict from parameter names to str
        What was found not to fold, and why.
    slow : dict from name to str
        Which operations run one lane after the other, and why.
    failure : Failure or None
        The query that could not be answered, and with which the worker stopped.
    journalled : bool
        Whether the answers are in the journal already.
    lost : tuple of Failure
        The queries that could not be answered, and were forgiven.
    spent : tuple of Spent
        What black boxes took, one by one; empty where their own meters know.
    """

    positions: Tensor
    changes: Tensor
    records: tuple[Record, ...]
    unfolded: dict[tuple[str, ...], str]
    slow: dict[str, str]
    failure: Failure | None
    journalled: bool
    lost: tuple[Failure, ...] = ()
    spent: tuple[Spent, ...] = ()


@dataclass(eq=False)
class Round:
    """What workers need to answer the queries on one batch, sent once to each.

    Parameters
    ----------
    objective : Objective
        The module at its parameters, the criterion, and how the graph was cut.
    batch : Batch
        The data.
    queries : CoordinateQueries or DirectionQueries
        All of them.
    sizes : sequence of FoldSize
        How many of each group are folded: with them every worker has the same parts.
    known : dict from node name to Known
        What black boxes returned at the parameters: nobody asks them again.
    random : dict from node name to RandomState
        The generators' states before each node that draws.
    base_loss, draws, patience
        See :class:`Losses` and :class:`Asker`.
    journal : Journal, optional
        Keeps each answer as soon as it is there.
    graph : Sent, optional
        The graph, for who cannot have it from `here`.
    here : Asker, optional
        That of the process which asks; workers in other processes make their own.
    """

    objective: Objective
    batch: Batch
    queries: Queries
    sizes: Sequence[FoldSize]
    known: dict[str, Known]
    random: dict[str, RandomState]
    base_loss: Tensor
    draws: RandomState | None
    patience: Patience
    journal: Journal | None = None
    graph: Sent | None = None
    here: Asker | None = None

    def __post_init__(self) -> None:
        self.todo: Sequence[int] = ()  # which of the parts are the tasks
        self.answered: Tensor | None = None  # which queries need not be asked, if any
        self.arrived = False  # in another process than the one that asks
        self._given: Losses | None = None if self.here is None else self.here.given
        self._owner = threading.get_ident()
        self._lending = threading.Lock()
        self.stopped = threading.Event()  # nobody waits for the answers any more
        self._idle: list[Asker] = []
        self._numbers = count(1)

    def __getstate__(self) -> dict[str, Any]:
        state = {each.name: getattr(self, each.name) for each in fields(self)}
        state |= {"batch": self.batch.compact(), "graph": self._graph(), "here": None}
        return {"fields": state, "todo": self.todo, "answered": self.answered}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["fields"])  # type: ignore[misc]
        self.todo, self.answered = state["todo"], state["answered"]
        self.arrived = True

    @cached_property
    def parts(self) -> list[Part]:
        """The units of arithmetic, the same for every worker."""
        parameters, theta = self.objective.parameters, self.objective.theta()
        return make_parts(make_groups(self.queries, parameters, theta), self.sizes)

    def at(self, device: torch.device) -> Round:
        """Return the round on another device of this process."""
        if device == self.batch.X.device:
            return self
        objective = copy.deepcopy(self.objective)
        objective.module, objective.loss = objective.module.to(device), objective.loss.to(device)
        other = replace(
            self,
            objective=objective,
            batch=self.batch.to(device),
            known=pytree.tree_map_only(Tensor, lambda value: value.to(device), self.known),
            random={name: state.on(device) for name, state in self.random.items()},
            draws=self.draws and self.draws.on(device),
            graph=self._graph()._replace(traced=copy.deepcopy(self._graph().traced).to(device)),
            here=None,
        )
        other.todo, other.answered = self.todo, self.answered
        other._given = other._arrived_losses()
        return other

    def of(self, todo: Sequence[int], answered: Tensor | None) -> Round:
        """Return the round whose tasks are some of the parts, and the queries that are none."""
        other = Round.__new__(Round)
        vars(other).update(vars(self), todo=todo, answered=answered, stopped=threading.Event())
        return other

    def digest(self) -> str:
        """Return a text that is the same wherever the same is asked of the same."""
        module, batch = self.objective.module, self.batch
        tensors = [*module.parameters(), *module.buffers()]
        return hash_of(
            [tensors, batch.X, batch.y, batch.weight, vars(self.queries), self.base_loss]
        )

    def chunk(self, task: int, answered: Tensor | None) -> Chunk | None:
        """Return what is open of a task: of a box only the queries that it has not answered."""
        part = self.parts[self.todo[task]]
        if answered is None:
            return part.chunk()
        open_ = (~answered[torch.cat(part.pieces)]).nonzero().flatten().tolist()
        if not open_:
            return None
        chunk = part.chunk()
        return chunk.part(open_) if self.known and len(open_) < len(chunk) else chunk

    def turn(self) -> contextlib.AbstractContextManager[Any]:
        """Wait for the global generators if queries draw from them: all threads share them."""
        if not self.random and self.draws is None:
            return contextlib.nullcontext()
        # The process that asks has set them aside already.
        return unchanged_generators(self.batch.X.device) if self.arrived else _TURN

    @contextlib.contextmanager
    def asker(self) -> Iterator[Asker]:
        """Lend an asker that no other thread uses, on one torch thread and without autograd."""
        if self.here is not None and threading.get_ident() == self._owner:
            with self.turn():
                yield self.here  # who asks has arranged the rest
            return
        with one_thread(), torch.no_grad(), self.turn():
            with self._lending:
                if self._given is None:
                    self._given = self._arrived_losses()
                if not self._idle:
                    self._idle.append(Asker(self._given, self.patience, next(self._numbers)))
                asker = self._idle.pop()
            try:
                yield asker
            finally:
                self._idle.append(asker)

    def _arrived_losses(self) -> Losses:
        program = arrived(self._graph(), self.objective.module)
        done = program.run(self.batch.X.clone(), self.known, self.random)
        return Losses(self.objective, self.batch, program, done, self.base_loss, self.draws)

    def _graph(self) -> Sent:
        """Return the graph as it can be sent; only who was sent one has it already."""
        return self.graph if self.here is None else sent(self.here.given.program)  # type: ignore[return-value]


def answer(round_: Round, tasks: list[int]) -> Answers:
    """Answer some tasks of a round, each of them a part: what a worker does.

    It stops at the first query that fails for good, and brings back what it has.
    """
    positions, changes, failure = [], [], None
    journal, answered = round_.journal, round_.answered
    journalled = journal is not None and journal.is_here
    if journal is not None and journalled:
        known, how = _found_in_journal(round_, journal.answers(), tasks)
        if len(known):
            positions, changes = [known], [how]
            none = torch.zeros(len(round_.queries), dtype=torch.bool)
            answered = (none if answered is None else answered).index_fill(0, known, True)
    lost: list[Failure] = []
    boxes = boxes_of(round_.objective.module) if round_.arrived else []
    before = [box.meter.read() for box in boxes]
    with round_.asker() as asker:
        costs = _Costs(asker.worker, together=not round_.known)
        for task in tasks:
            if round_.stopped.is_set():
                break
            chunk = round_.chunk(task, answered)
            if chunk is None:
                continue
            found = asker.answer(chunk, round_.objective.foldable[chunk.names])
            costs.add(chunk, found.attempts)
            where, how, failure = chunk.positions, found.changes, found.failure
            lost += found.lost
            if failure is not None or found.lost:  # then some have no answer
                there = finite_rows(how)
                where, how = where[there], how[there]
            positions.append(where)
            changes.append(how)
            if journal is not None and journalled:
                journal.append(where, how)
            if failure is not None:
                break
    return Answers(
        torch.cat(positions) if positions else torch.zeros(0, dtype=torch.int64),
        torch.cat(changes) if changes else round_.base_loss.new_empty(0, *round_.base_loss.shape),
        tuple(costs.records),
        asker.unfolded,
        dict(asker.losses.ways.slow),
        failure,
        journalled,
        tuple(lost),
        tuple(box.meter.since(was) for box, was in zip(boxes, before, strict=True)),
    )


class _Costs:
    """The records of what one worker answers; of all of it `together` where nobody pays."""

    def __init__(self, worker: str, together: bool):
        self.worker = worker
        self.together = together
        self.records: list[Record] = []
        self._started, self._clock = time.time(), time.perf_counter()

    def add(self, chunk: Chunk, attempts: int) -> None:
        """Note what was asked since the last time."""
        now, n = time.perf_counter(), len(chunk)
        seconds = now - self._clock
        if self.together and self.records:
            last = self.records[-1]
            attempts = max(attempts, last.attempts)
            self.records[-1] = last._replace(
                n_queries=last.n_queries + n, seconds=last.seconds + seconds, attempts=attempts
            )
        else:
            first = int(chunk.positions[0])
            record = Record(first, n, self._started, seconds, attempts, self.worker)
            self.records.append(record)
        self._started, self._clock = self._started + seconds, now


def _found_in_journal(
    round_: Round, found: dict[int, float], tasks: list[int]
) -> tuple[Tensor, Tensor]:
    """Return which queries of some tasks were answered by who was lost with them, and how."""
    before = round_.answered
    pieces = [piece for task in tasks for piece in round_.parts[round_.todo[task]].pieces]
    asked = [position for piece in pieces for position in piece.tolist() if found]
    known = [p for p in asked if p in found and (before is None or not before[p])]
    changes = torch.tensor([found[position] for position in known], dtype=torch.float64)
    return torch.tensor(known, dtype=torch.int64), changes
