"""Turn queries into losses: one pass, then every query from the features it leaves alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from zoestim.backends import Backend, SerialBackend, Unsendable
from zoestim.evaluation._asker import Asker
from zoestim.evaluation._cost import FREE_SHARE, Cost, assumed, fold_size, free_memory, measure
from zoestim.evaluation._journal import Journal
from zoestim.evaluation._lanes import in_brief, out_of_memory
from zoestim.evaluation._objective import Batch, Objective
from zoestim.evaluation._patience import Patience
from zoestim.evaluation._plan import FoldSize, Group, Part, make_groups
from zoestim.evaluation._program import Known, Pass, Program
from zoestim.evaluation._query_error import Failure, QueryError
from zoestim.evaluation._random import RandomState, unchanged_generators
from zoestim.evaluation._round import Answers, Record, Round, answer
from zoestim.evaluation._threads import one_thread
from zoestim.gradients import CoordinateQueries, Queries

ALONE = FoldSize(1, 1, 0)


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
    base_loss : float
        The loss at the module's own parameters.
    losses : Tensor of shape (n_queries,), float64
        The loss of each query.
    outputs : Any
        What the module returned at its own parameters.
    tensors : dict from name to Tensor
        Parameters and buffers as a training forward at the module's own parameters leaves
        them: what of BatchNorm's running statistics is to be kept.
    records : tuple of Record
        What the queries cost.
    """

    base_loss: float
    losses: Tensor
    outputs: Any
    tensors: dict[str, Tensor]
    records: tuple[Record, ...] = ()


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
    asking = asking or Asking()
    with one_thread(), torch.no_grad(), unchanged_generators(batch.X.device):
        if random is not None:
            random.restore()
        base = _ask_base(objective, batch, asking)
        driver = _Driver(objective, batch, queries, asking, base)
        with unchanged_attributes(objective.module):
            losses = base.loss + driver.all_changes()
    return Evaluation(base.loss, losses, base.done.output, base.done.tensors, tuple(driver.records))


@contextmanager
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
    loss: float


def _ask_base(objective: Objective, batch: Batch, asking: Asking) -> _Base:
    """Run the pass that all queries start from; a black box is asked once, by one process."""
    if not objective.has_boxes:
        base = _base_pass(objective, batch)
        _refuse_nonfinite_base(base, batch)
        return base
    kept: list[_Base] = []
    journal = asking.journal

    def ask() -> tuple[float, dict[str, Known]]:
        reply = asking.patience.ask(
            lambda: _base_pass(objective, batch), lambda base: base.loss - base.loss == 0
        )
        if reply.cause is not None:
            raise reply.cause
        _refuse_nonfinite_base(reply.value, batch)
        kept.append(reply.value)
        if journal is not None:
            journal.append_base(reply.value.loss, reply.value.known)
        return reply.value.loss, reply.value.known

    loss, known = (journal and journal.base()) or asking.backend.once(ask)
    return kept[0] if kept else _base_pass(objective, batch, known, loss)


def _base_pass(
    objective: Objective,
    batch: Batch,
    known: dict[str, Known] | None = None,
    loss: float | None = None,
) -> _Base:
    program, done = objective.base(batch, known)
    draws = None if objective.loss.draws_nothing else RandomState.current(batch.X.device)
    if loss is None:
        loss = float(objective.batch_loss(done.output, batch))
        if draws is not None and draws == RandomState.current(batch.X.device):
            draws = None
    return _Base(program, done, program.known(done), draws, loss)


class _Driver:
    """Plans the queries of one batch, has them answered and puts the answers together."""

    def __init__(
        self, objective: Objective, batch: Batch, queries: Queries, asking: Asking, base: _Base
    ):
        self.objective, self.batch, self.queries = objective, batch, queries
        self.asking, self.base = asking, base
        device = batch.X.device
        self.memory_budget = objective.memory_budget or int(FREE_SHARE * free_memory(device))
        self.asker = Asker(
            objective, batch, base.program, base.done, base.loss, base.draws, asking.patience
        )
        self.records: list[Record] = []
        self.changes = torch.full((len(queries),), torch.nan, dtype=torch.float64)

    def all_changes(self) -> Tensor:
        """Return by how much each query changes the loss."""
        objective, base, asking = self.objective, self.base, self.asking
        self._read_journal()
        groups = make_groups(self.queries, objective.parameters, objective.theta())
        sizes = [self._size(group) for group in groups]
        random = {node.name: state for node, state in base.done.random.items()}
        round_ = Round(
            objective, self.batch, self.queries, sizes, base.known, random, base.loss, base.draws,
            asking.patience, asking.journal, self.asker,
        )  # fmt: skip
        self._collect(round_)
        return self.changes

    def _read_journal(self) -> None:
        if self.asking.journal is not None:
            for position, change in self.asking.journal.answers().items():
                self.changes[position] = change

    def _size(self, group: Group) -> FoldSize:
        """Return how many queries of a group go together: one where that is not proven."""
        objective, names = self.objective, group.names
        boxes = self.base.program.boxes(self.base.program.dependents(names))
        foldable = not self.base.program.in_place and all(box.vectorized for box in boxes)
        if not objective.foldable.setdefault(names, foldable):
            return ALONE
        try:
            size = fold_size(self._cost(group), self.memory_budget)
            most = [int(box.vectorized) for box in boxes if box.vectorized is not True]
            size = size.at_most(min(most)) if most else size
            if boxes or names in objective.proven or self._proves(group, size):
                return size
            reason: Exception | str = self.asker.unfolded.get(
                names, "its operations do not fold exactly"
            )
        except Exception as error:
            if out_of_memory(error):
                return ALONE
            reason = error
        self._unfold(names, reason)
        return ALONE

    def _cost(self, group: Group) -> Cost:
        """Return the cost of one query of a group, from its first one."""
        known, key = self.objective.costs, (group.names, self.batch.X.shape)
        if key not in known:
            if self.asker.asks_box(group.names):  # a query on trial would be paid for
                known[key] = self._assumed(group)
            else:
                one = group.chunk(group.positions[:1])
                known[key] = measure(self.asker.propagation, one.changes)
        return known[key]

    def _assumed(self, group: Group) -> Cost:
        nodes = self.base.program.dependents(group.names)
        return assumed([self.base.done.values[node] for node in nodes])

    def _proves(self, group: Group, size: FoldSize) -> bool:
        """Judge the first fold of some parameters by two queries on their own.

        A query is judged by its difference from the base, which is what the gradient is
        made of: the losses themselves differ so little that any would pass. The one that
        changes the loss most is least hidden by rounding.
        """
        chunk = Part(group, next(group.folds(size)), size.cut).chunk()
        found = self.asker.answer(chunk, folded=True)
        if chunk.names in self.asker.unfolded:
            return False
        if found.failure is not None or not chunk.names:
            return True  # it is no worse than on its own
        precision = torch.finfo(chunk.theta[chunk.names[0]].dtype)
        rounding = 64 * precision.eps * max(1.0, abs(self.base.loss))
        changes = found.changes
        lanes = sorted({0, 1 + int(changes[1:].abs().argmax()) if len(chunk) > 1 else 0})
        rtol = 1e-6 if precision.eps < 1e-12 else 1e-2
        rtol = 0.2 if self.objective.matrix_type is not None else rtol
        expected = self.asker.alone(chunk, lanes)
        if not torch.allclose(changes[lanes], expected, rtol=rtol, atol=rounding):
            return False
        self.objective.proven.add(chunk.names)
        self.changes[chunk.positions] = changes
        return True

    def _unfold(self, names: tuple[str, ...], reason: Exception | str) -> None:
        self.objective.foldable[names] = False
        self.objective.reuse.unfolded[", ".join(names)] = in_brief(reason)

    def _collect(self, round_: Round) -> None:
        """Have answered what is not, and again what a worker had that was lost."""
        backend, lost = self.asking.backend, None
        for _ in range(self.asking.patience.max_retries + 1):
            todo = [k for k, part in enumerate(round_.parts) if self._is_open(part)]
            if not todo:
                return
            answered = torch.isfinite(self.changes)
            work = [self._work(round_.parts[k]) for k in todo]
            try:
                for _, answers in backend.map(answer, round_.of(todo, answered), work):
                    self._take(answers)
            except (QueryError, Unsendable):
                raise
            except Exception as error:
                if backend.own_memory:
                    raise
                lost = error
                self._read_journal()
        part = next(part for part in round_.parts if self._is_open(part))
        raise QueryError(
            f"The workers that asked queries on {self.batch.label}, the one at "
            f"{self._where(int(part.pieces[0][0]))} among them, were lost "
            f"{self.asking.patience.max_retries + 1} times: {type(lost).__name__}: {lost}. Look at "
            "what kills them (memory, a crash in the black box), or raise max_retries."
        ) from lost

    def _is_open(self, part: Part) -> bool:
        return any(bool(self.changes[piece].isnan().any()) for piece in part.pieces)

    def _work(self, part: Part) -> float:
        group = part.group
        cost = self.objective.costs.get((group.names, self.batch.X.shape)) or self._assumed(group)
        return len(part) * float(max(1, cost.work))

    def _take(self, answers: Answers) -> None:
        self.changes[answers.positions] = answers.changes
        self.records += answers.records
        for names, reason in answers.unfolded.items():
            self._unfold(names, reason)
        for name, reason in answers.slow.items():
            self.objective.reuse.unfolded.setdefault(name, reason)
        if answers.failure is not None:
            self._raise(answers.failure)

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
    if base.loss == base.loss and abs(base.loss) != float("inf"):
        return
    leaves = [v for v in pytree.tree_leaves(base.done.output) if isinstance(v, Tensor)]
    finite = all(bool(torch.isfinite(leaf).all()) for leaf in leaves)
    cause = "although its outputs are finite" if finite else "and so are some of its outputs"
    raise QueryError(
        f"The loss at the current parameters is {base.loss} on {batch.label}, {cause}; expected a "
        "finite number. Check the data and the criterion, or lower lr."
    )
