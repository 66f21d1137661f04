"""Turn queries into losses: one pass, then every query from the features it leaves alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from zoestim.evaluation._cost import FREE_SHARE, Cost, assumed, fold_size, free_memory, measure
from zoestim.evaluation._lanes import in_brief, out_of_memory
from zoestim.evaluation._objective import Batch, Objective
from zoestim.evaluation._plan import Chunk, FoldSize, Group, make_groups
from zoestim.evaluation._program import Pass, Program
from zoestim.evaluation._propagate import Propagation
from zoestim.evaluation._random import RandomState, unchanged_generators
from zoestim.gradients import CoordinateQueries, Queries
from zoestim.propagation import Value

ALONE = FoldSize(1, 1, 0)


class QueryError(RuntimeError):
    """A query gave no usable loss. The message names the coordinate and the batch.

    Examples
    --------
    >>> import torch
    >>> from zoestim import QueryError, estimate_gradient
    >>> try:
    ...     estimate_gradient(
    ...         torch.nn.Linear(1, 1), lambda outputs, y: outputs.mean() / 0, [[1.0]], [0.0]
    ...     )
    ... except QueryError as error:
    ...     print(str(error)[:37])
    The loss at the current parameters is
    """


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
    """

    base_loss: float
    losses: Tensor
    outputs: Any
    tensors: dict[str, Tensor]


def evaluate(
    objective: Objective, batch: Batch, queries: Queries, random: RandomState | None = None
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

    Returns
    -------
    Evaluation

    Raises
    ------
    QueryError
        If a loss is NaN or infinite.
    """
    with torch.no_grad(), unchanged_generators(batch.X.device):
        if random is not None:
            random.restore()
        program, done = objective.base(batch)
        draws = None if objective.loss.draws_nothing else RandomState.current(batch.X.device)
        base_loss = float(objective.batch_loss(done.output, batch))
        if draws is not None and draws == RandomState.current(batch.X.device):
            draws = None
        _refuse_nonfinite_base(base_loss, done.output, batch)
        propagation = Propagation(program, done, objective.ways, objective.matrix_type)
        budget = objective.memory_budget or int(FREE_SHARE * free_memory(batch.X.device))
        run = _Run(objective, batch, program, done, base_loss, draws, propagation, budget)
        with unchanged_attributes(objective.module):
            losses = run.all_losses(queries)
        _refuse_nonfinite(losses, queries, objective, batch)
    return Evaluation(base_loss, losses, done.output, done.tensors)


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
class _Run:
    """One batch under evaluation."""

    objective: Objective
    batch: Batch
    program: Program
    done: Pass
    base_loss: float
    draws: RandomState | None  # what the criterion is to draw, if it draws at all
    propagation: Propagation
    memory_budget: int
    fitting: dict[tuple[str, ...], int] = field(default_factory=dict)  # the most lanes that fit

    def all_losses(self, queries: Queries) -> Tensor:
        """Return the loss of each query."""
        parameters, theta = self.objective.parameters, self.objective.theta()
        losses = torch.full((len(queries),), self.base_loss, dtype=torch.float64)
        for group in make_groups(queries, parameters, theta):
            try:
                for chunk in group.chunks(self.fold_size(group)):
                    losses[chunk.positions] += self.changes(chunk)
            except Exception as error:
                error.add_note(f"It came up while {group.names} were moved on {self.batch.label}.")
                raise
        return losses

    def fold_size(self, group: Group) -> FoldSize:
        """Return how many queries of a group are folded into one batch."""
        if not self.objective.foldable.setdefault(group.names, not self.program.in_place):
            return ALONE
        try:
            return fold_size(self.cost(group), self.memory_budget)
        except Exception as error:
            if not out_of_memory(error):
                self._unfold(group.names, error)
            return ALONE

    def cost(self, group: Group) -> Cost:
        """Return the cost of one query of a group, from its first one."""
        known, key = self.objective.costs, (group.names, self.batch.X.shape)
        if key not in known:
            nodes = self.program.dependents(group.names)
            if self.program.boxes(nodes):  # a query on trial would be paid for
                known[key] = assumed([self.done.values[node] for node in nodes])
            else:
                one = group.chunk(group.positions[:1])
                known[key] = measure(self.propagation, one.changes)
        return known[key]

    def changes(self, chunk: Chunk) -> Tensor:
        """Return by how much each query changes the loss: folded if that is proven."""
        if len(chunk) > self.fitting.get(chunk.names, len(chunk)):
            return self._by_halves(chunk)
        folded = self._try_fold(chunk) if self.objective.foldable[chunk.names] else None
        if folded is not None:
            return folded
        return self._one_by_one(chunk, range(len(chunk)))

    def _one_by_one(self, chunk: Chunk, lanes: Sequence[int]) -> Tensor:
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
        """Fold a chunk; refuse the fold for good if it fails or differs from the loop."""
        try:
            outputs = self.propagation.run(chunk.changes, chunk.fold)
            changes = self._loss_changes(outputs, len(chunk)).cpu()
        except Exception as error:
            if not out_of_memory(error):
                if self.program.boxes(self.program.dependents(chunk.names)):
                    raise  # asking again is paid for again
                self._unfold(chunk.names, error)
                return None
            changes = None
        if changes is None:  # the memory of the failed fold is free only here
            return self._by_halves(chunk) if len(chunk) > 1 else None
        if self._is_exact(chunk, changes):
            return changes
        self._unfold(chunk.names, "its operations do not fold exactly")
        return None

    def _by_halves(self, chunk: Chunk) -> Tensor:
        """Fold the halves of a chunk that did not fit, and no larger ones on this batch."""
        halves = chunk.halves()
        most = max(map(len, halves))
        self.fitting[chunk.names] = min(most, self.fitting.get(chunk.names, most))
        return torch.cat([self.changes(half) for half in halves])

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

        losses, _ = self.objective.ways.run(operation, leaves, "criterion")
        return losses[1:] - losses[0]

    def _is_exact(self, chunk: Chunk, changes: Tensor) -> bool:
        """Judge the first fold of some parameters by two queries on their own.

        A query is judged by its difference from the base, which is what the gradient is
        made of: the losses themselves differ so little that any would pass. The one that
        changes the loss most is least hidden by rounding. A black box may be paid for: it is
        asked the queries and nothing beside them.
        """
        proven, names = self.objective.proven, chunk.names
        if not names or names in proven or self.program.boxes(self.program.dependents(names)):
            return True
        precision = torch.finfo(chunk.theta[names[0]].dtype)
        rounding = 64 * precision.eps * max(1.0, abs(self.base_loss))
        lanes = sorted({0, 1 + int(changes[1:].abs().argmax()) if len(chunk) > 1 else 0})
        expected, found = self._one_by_one(chunk, lanes), changes[lanes]
        rtol = 1e-6 if precision.eps < 1e-12 else 1e-2
        rtol = 0.2 if self.objective.matrix_type is not None else rtol
        if not torch.allclose(found, expected, rtol=rtol, atol=rounding, equal_nan=True):
            return False
        proven.add(names)
        return True

    def _unfold(self, names: tuple[str, ...], reason: Exception | str) -> None:
        self.objective.foldable[names] = False
        self.objective.reuse.unfolded[", ".join(names)] = in_brief(reason)


def _refuse_nonfinite_base(loss: float, outputs: Any, batch: Batch) -> None:
    if loss == loss and abs(loss) != float("inf"):
        return
    leaves = [v for v in pytree.tree_leaves(outputs) if isinstance(v, Tensor)]
    finite = all(bool(torch.isfinite(leaf).all()) for leaf in leaves)
    cause = "although its outputs are finite" if finite else "and so are some of its outputs"
    raise QueryError(
        f"The loss at the current parameters is {loss} on {batch.label}, {cause}; expected a "
        "finite number. Check the data and the criterion, or lower lr."
    )


def _refuse_nonfinite(losses: Tensor, queries: Queries, objective: Objective, batch: Batch) -> None:
    bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
    if not bad:
        return
    first = bad[0]
    if isinstance(queries, CoordinateQueries):
        where = f"coordinate {objective.parameters.describe(int(queries.indices[first]))}"
    else:
        where = f"direction {first}"
    raise QueryError(
        f"{len(bad)} of {len(losses)} queries gave a loss that is NaN or infinite, the first at "
        f"{where} (step {float(queries.steps[first]):g}): {float(losses[first])} on "
        f"{batch.label}; expected finite numbers. Lower smoothing or lr, or clip the outputs."
    )
