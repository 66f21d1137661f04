"""Turn queries into losses: one pass, then every query from the features it leaves alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from zoestim.backends import Backend, SerialBackend, Unsendable, worker_name
from zoestim.evaluation._asker import Asker
from zoestim.evaluation._black_box import boxes_of
from zoestim.evaluation._cut import has_boxes
from zoestim.evaluation._elsewhere import known_nodes
from zoestim.evaluation._journal import Journal
from zoestim.evaluation._losses import Losses, finite_rows
from zoestim.evaluation._objective import Batch, Objective
from zoestim.evaluation._patience import Patience
from zoestim.evaluation._plan import Part, make_groups, make_parts
from zoestim.evaluation._planner import Planner
from zoestim.evaluation._program import Known, Pass, Program
from zoestim.evaluation._query_error import Failure, QueryError, text_of
from zoestim.evaluation._random import RandomState, unchanged_generators
from zoestim.evaluation._round import Answers, Record, Round, answer
from zoestim.evaluation._threads import one_thread
from zoestim.gradients import CoordinateQueries, Queries


@dataclass(frozen=True)
class Asking:
    """Where queries are asked, and how patiently.

    Parameters
    ----------
    backend : Backend
        Who answers.
    patience : Patience
        How long a query may take and how often it is asked.
    journal : Journal, optional
        What was answered before, and where answers are kept.
    """

    backend: Backend = field(default_factory=SerialBackend)
    patience: Patience = field(default_factory=Patience)
    journal: Journal | None = None


@dataclass(frozen=True)
class Evaluation:
    """The losses of one batch.

    Attributes
    ----------
    base_losses : Tensor of shape () or (n,), float64
        The loss at the module's own parameters, or that of each sample.
    losses : Tensor of shape (n_queries,) or (n_queries, n), float64
        The loss of each query, or that of each sample.
    outputs : Any
        What the module returned at its own parameters.
    tensors : dict from name to Tensor
        Parameters and buffers as a training forward at the module's own parameters leaves
        them: what of BatchNorm's running statistics is to be kept.
    records : tuple of Record
        What the queries cost.
    lost : tuple of Failure
        The queries that failed and were forgiven; they count as if they changed nothing.
    """

    base_losses: Tensor
    losses: Tensor
    outputs: Any
    tensors: dict[str, Tensor]
    records: tuple[Record, ...] = ()
    lost: tuple[Failure, ...] = ()

    @property
    def base_loss(self) -> float:
        """The loss at the module's own parameters, or the mean of the samples'."""
        return float(self.base_losses.mean())


def evaluate(
    objective: Objective,
    batch: Batch,
    queries: Queries,
    random: RandomState | None = None,
    asking: Asking | None = None,
) -> Evaluation:
    """Return the loss of every query on one batch.

    Parameters
    ----------
    objective : Objective
        What to evaluate; its module comes back bitwise equal.
    batch : Batch
        The data.
    queries : CoordinateQueries or DirectionQueries
        Which parameters to move, and how far.
    random : RandomState, optional
        The random numbers that the base loss and every query see (dropout). By default
        those that a forward pass would see now.
    asking : Asking, optional
        Where and how patiently to ask; by default here.

    Returns
    -------
    Evaluation
        The same, to the last bit, whoever answers.

    Raises
    ------
    QueryError
        If a query fails, or its loss is NaN or infinite, as often as it is asked.
    """
    asking, device = asking or Asking(), batch.X.device
    with one_thread(), torch.no_grad(), unchanged_generators(device):
        if random is None and hasattr(asking.backend, "same"):  # of several processes, the first
            random = asking.backend.once(lambda: RandomState.current(device)).on(device)
        if random is not None:
            random.restore()
        base = _ask_base(objective, batch, asking)
        driver = _Driver(objective, batch, queries, asking, base)
        with unchanged_attributes(objective.module):
            losses = base.loss + driver.all_changes()
    done, records = base.done, tuple(driver.records)
    lost = tuple(driver.lost[position] for position in sorted(driver.lost))
    return Evaluation(base.loss, losses, done.output, done.tensors, records, lost)


@contextlib.contextmanager
def unchanged_attributes(module: nn.Module) -> Iterator[None]:
    """Forget what forwards store of queries: a lane of a fold cannot even be pickled."""
    attributes = [(part, dict(vars(part))) for part in module.modules()]
    try:
        yield
    finally:
        for part, before in attributes:
            part.__dict__.clear()
            part.__dict__.update(before)


@dataclass(frozen=True)
class _Base:
    """One pass at the module's own parameters."""

    program: Program
    done: Pass
    known: dict[str, Known]
    draws: RandomState | None  # what the criterion is to draw, if it draws at all
    loss: Tensor


def _ask_base(objective: Objective, batch: Batch, asking: Asking) -> _Base:
    """Run the pass that all queries start from; a black box is asked once, by one process."""
    if not has_boxes(objective.module):
        base = _base_pass(objective, batch)
        _refuse_nonfinite_base(base, batch)
        return base
    kept: list[_Base] = []
    journal = asking.journal

    def ask() -> tuple[Tensor, dict[str, Known]]:
        before = None if journal is None else journal.base()
        if before is not None:
            return before
        # Not in the thread of a timed call: it would wait for the generators, which are set aside
        # here, as long as here the call is waited for.
        objective.prepare(batch)
        draws = RandomState.current(batch.X.device)

        def attempt() -> _Base:
            draws.restore()  # the same each time
            return _base_pass(objective, batch)

        reply = asking.patience.ask(attempt, lambda base: bool(base.loss.isfinite().all()))
        if isinstance(reply.cause, ValueError | TypeError):
            raise reply.cause  # of outputs or targets that cannot be used, which says what to do
        if reply.cause is not None:
            failure = Failure(-1, None, reply.cause, reply.attempts, worker_name())
            text = failure.describe("the current parameters", batch.label)
            raise QueryError(text) from reply.cause
        _refuse_nonfinite_base(reply.value, batch)
        kept.append(reply.value)
        if journal is not None:
            journal.append_base(reply.value.loss, reply.value.known)
        return reply.value.loss, reply.value.known

    loss, known = asking.backend.once(ask)
    if kept:
        return kept[0]
    known = pytree.tree_map_only(Tensor, lambda value: value.to(batch.X.device), known)
    return _base_pass(objective, batch, known, loss)


def _base_pass(
    objective: Objective,
    batch: Batch,
    known: dict[str, Known] | None = None,
    loss: Tensor | None = None,
) -> _Base:
    program, done = objective.base(batch, known)
    draws = None if objective.loss.draws_nothing else RandomState.current(batch.X.device)
    if loss is None:
        loss = objective.batch_loss(done.output, batch).cpu()
        if draws is not None and draws == RandomState.current(batch.X.device):
            draws = None
    return _Base(program, done, known_nodes(program, done), draws, loss)


class _Driver:
    """Plans the queries of one batch, has them answered and puts the answers together."""

    def __init__(
        self, objective: Objective, batch: Batch, queries: Queries, asking: Asking, base: _Base
    ):
        self.objective, self.batch, self.queries = objective, batch, queries
        self.asking, self.base = asking, base
        losses = Losses(objective, batch, base.program, base.done, base.loss, base.draws)
        self.asker = Asker(losses, asking.patience)
        self.planner = Planner(self.asker)
        self.records: list[Record] = []
        self.lost: dict[int, Failure] = {}
        shape = (len(queries), *base.loss.shape)
        self.changes = torch.full(shape, torch.nan, dtype=torch.float64)

    def all_changes(self) -> Tensor:
        """Return by how much each query changes the loss."""
        objective, base, asking = self.objective, self.base, self.asking
        self._read_journal()
        groups = make_groups(self.queries, objective.parameters, objective.theta())
        planned = [self.planner.size(group) for group in groups], self.planner.answered
        # What fits may differ where processes have memory of their own.
        sizes, answered = asking.backend.once(lambda: planned)
        for positions, changes in answered:
            self.changes[positions] = changes
        random = {node.name: state for node, state in base.done.random.items()}
        round_ = Round(
            objective, self.batch, self.queries, sizes, base.known, random, base.loss, base.draws,
            asking.patience, asking.journal, here=self.asker,
        )  # fmt: skip
        round_.parts = make_parts(groups, sizes)
        self._collect(round_)
        self._forgive()
        return self.changes

    def _read_journal(self) -> None:
        if self.asking.journal is not None:
            answers = self.asking.backend.once(self.asking.journal.answers)
            for position, change in answers.items():
                self.changes[position] = torch.tensor(change, dtype=torch.float64)

    def _collect(self, round_: Round) -> None:
        """Have answered what is not, and again what a worker had that was lost."""
        backend, retries = self.asking.backend, self.asking.patience.max_retries
        alone = not hasattr(backend, "same")  # ranks find out in any case if they ask the same
        for lost in range(retries + 1):
            open_ = ~finite_rows(self.changes)
            open_[list(self.lost)] = False
            answered = None if bool(open_.all()) else ~open_
            todo = [k for k, p in enumerate(round_.parts) if answered is None or self._is_open(p)]
            if not todo and alone:
                return
            own = round_.of(todo, answered)
            shares = backend.map(answer, own, [self.planner.work(round_.parts[k]) for k in todo])
            try:
                with contextlib.closing(shares), contextlib.ExitStack() as stack:
                    stack.callback(own.stopped.set)  # whatever happens
                    for _, answers in shares:
                        self._take(answers)
                return
            except (QueryError, Unsendable):
                raise
            except Exception as error:
                if backend.own_memory:
                    raise
                self._read_journal()
                if lost == retries and self.asking.patience.forgiving:
                    self._one_by_one(round_)
                elif lost == retries:
                    raise QueryError(self._lost(round_, error)) from error

    def _one_by_one(self, round_: Round) -> None:
        """Ask what is open query by query, to forgive those with which a worker is lost."""
        nothing_open = torch.ones(len(self.queries), dtype=torch.bool)
        for number, part in enumerate(round_.parts):
            for position in [p for piece in part.pieces for p in self._unanswered(piece)]:
                answered = nothing_open.index_fill(0, torch.tensor(position), False)
                own = round_.of([number], answered)
                try:
                    with contextlib.closing(self.asking.backend.map(answer, own, [1.0])) as shares:
                        for _, answers in shares:
                            self._take(answers)
                except (QueryError, Unsendable):
                    raise
                except Exception as error:
                    self.lost[position] = Failure(position, None, error, 1, "that was lost")

    def _lost(self, round_: Round, error: Exception) -> str:
        open_ = [part for part in round_.parts if self._is_open(part)]
        first = self._where(int(open_[0].pieces[0][0])) if open_ else "none"
        return (
            f"Workers were lost {self.asking.patience.max_retries + 1} times on "
            f"{self.batch.label} while {sum(map(len, open_))} queries were open, the first at "
            f"{first}: {text_of(error).rstrip('.')}. Look at what kills them (memory, a crash "
            "in the black box, the end of a cluster), or raise max_retries; what was learned is "
            "kept."
        )

    def _is_open(self, part: Part) -> bool:
        positions = (p for piece in part.pieces for p in self._unanswered(piece))
        return any(position not in self.lost for position in positions)

    def _unanswered(self, piece: Tensor) -> list[int]:
        return piece[~finite_rows(self.changes[piece])].tolist()

    def _take(self, answers: Answers) -> None:
        self.changes.index_copy_(0, answers.positions, answers.changes)
        journal, rank = self.asking.journal, getattr(self.asking.backend, "rank", 0)
        if journal is not None and rank == 0 and not answers.journalled:  # of another host
            journal.append(answers.positions, answers.changes)
        self.records += answers.records
        for names, reason in answers.unfolded.items():
            self.planner.unfold(names, reason)
        for name, reason in answers.slow.items():
            self.objective.reuse.unfolded.setdefault(name, reason)
        self.lost.update({failure.position: failure for failure in answers.lost})
        for box, spent in zip(boxes_of(self.objective.module), answers.spent, strict=False):
            box.meter.add(spent)
        if answers.failure is not None:
            self._raise(answers.failure)

    def _forgive(self) -> None:
        """Let queries that failed change nothing; more than half of them are too many."""
        if 2 * len(self.lost) > len(self.queries):
            first = self.lost[min(self.lost)]
            text = first.describe(self._where(first.position), self.batch.label)
            raise QueryError(
                f"{len(self.lost)} of {len(self.queries)} queries failed, more than half. {text}"
            ) from first.cause
        self.changes[list(self.lost)] = 0.0

    def _raise(self, failure: Failure) -> None:
        where = self._where(failure.position)
        raise QueryError(failure.describe(where, self.batch.label)) from failure.cause

    def _where(self, position: int) -> str:
        step = float(self.queries.steps[position])
        if not isinstance(self.queries, CoordinateQueries):
            return f"direction {position} (step {step:g})"
        coordinate = self.objective.parameters.describe(int(self.queries.indices[position]))
        return f"coordinate {coordinate} (step {step:g})"


def _refuse_nonfinite_base(base: _Base, batch: Batch) -> None:
    if bool(base.loss.isfinite().all()):
        return
    leaves = [v for v in pytree.tree_leaves(base.done.output) if isinstance(v, Tensor)]
    finite = all(bool(torch.isfinite(leaf).all()) for leaf in leaves)
    cause = "although its outputs are finite" if finite else "and so are some of its outputs"
    raise QueryError(
        f"The loss at the current parameters is {float(base.loss.mean())} on {batch.label}, "
        f"{cause}; expected a finite number. Check the data and the criterion, or lower lr."
    )
