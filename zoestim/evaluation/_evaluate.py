"""Turn queries into losses: one pass, then every query from the features it leaves alone."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.utils import _pytree as pytree

from zoestim.evaluation._objective import Batch, Objective
from zoestim.evaluation._plan import Chunk, make_chunks
from zoestim.evaluation._program import Pass, Program
from zoestim.evaluation._random import RandomState, unchanged_generators
from zoestim.gradients import CoordinateQueries, Queries

# What the queries of one fold may compute together, in bytes: it should stay in the cache.
FOLD_BYTES = 2**23
MAX_FOLD = 256


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
        drawn = RandomState.current(batch.X.device)
        base_loss = float(objective.batch_loss(done.output, batch))
        criterion_draws = RandomState.current(batch.X.device) != drawn
        _refuse_nonfinite_base(base_loss, done.output, batch)
        run = _Run(objective, batch, program, done, base_loss, drawn if criterion_draws else None)
        with _unchanged_attributes(objective.module):
            losses = run.all_losses(queries)
        _refuse_nonfinite(losses, queries, objective, batch)
    return Evaluation(base_loss, losses, done.output, done.tensors)


@contextmanager
def _unchanged_attributes(module: nn.Module) -> Iterator[None]:
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

    def all_losses(self, queries: Queries) -> Tensor:
        """Return the loss of each query."""
        losses = torch.empty(len(queries), dtype=torch.float64)
        parameters, theta = self.objective.parameters, self.objective.theta()
        for chunk in make_chunks(queries, parameters, theta, self.fold_size):
            try:
                changes = self.losses(chunk) - self.base_loss
            except Exception as error:
                error.add_note(f"It came up while {chunk.names} were moved on {self.batch.label}.")
                raise
            if chunk.stretch is not None:
                changes *= chunk.stretch
            losses[chunk.positions] = self.base_loss + changes
        return losses

    def fold_size(self, names: tuple[str, ...]) -> int:
        """Return how many queries of these parameters are folded into one batch."""
        nodes = self.program.dependents(names)
        one_by_one = any(not box.vectorized for box in self.program.boxes(nodes))
        if one_by_one or not self.objective.foldable.get(names, True):
            return 1
        theta = self.objective.theta()
        computed = [theta[name] for name in names], [self.done.values[node] for node in nodes]
        return max(1, min(FOLD_BYTES // max(_nbytes(computed), 1), MAX_FOLD))

    def losses(self, chunk: Chunk) -> Tensor:
        """Return the losses of a chunk, folded if that gives what one by one gives."""
        if len(chunk) > 1 and self.objective.foldable.get(chunk.names, True):
            folded = self._try_fold(chunk)
            if folded is not None:
                return folded
        stacked = chunk.stack(False)
        return torch.stack([self._loss_of(stacked, lane) for lane in range(len(chunk))])

    def _loss_of(self, stacked: dict[str, Tensor], lane: int) -> Tensor:
        parameters = {name: values[lane] for name, values in stacked.items()}
        outputs = self.program.rerun(self.done, parameters)
        return self._criterion(outputs).cpu()

    def _criterion(self, outputs: Any) -> Tensor:
        if self.draws is not None:
            self.draws.restore()
        return self.objective.batch_loss(outputs, self.batch)

    def _try_fold(self, chunk: Chunk) -> Tensor | None:
        """Fold a chunk; refuse the fold for good if it fails or differs from the loop."""
        # A black box may be paid for: it is asked the queries and nothing beside them.
        boxed = bool(self.program.boxes(self.program.dependents(chunk.names)))
        stacked = chunk.stack(not boxed)
        try:
            losses = self._fold(stacked)
        except torch.OutOfMemoryError:
            return None  # for this chunk only
        except Exception as error:
            self._unfold(chunk, " ".join(str(error).split())[:160])
            return None
        if boxed:
            return losses
        if not self._folds_exactly(chunk, stacked, losses):
            self._unfold(chunk, "its operations do not fold exactly")
            return None
        self.objective.foldable[chunk.names] = True
        # The base loss in the same kernels as the queries: their rounding cancels.
        return self.base_loss + (losses[1:] - losses[0])

    def _folds_exactly(self, chunk: Chunk, stacked: dict[str, Tensor], losses: Tensor) -> bool:
        """Judge a fold by the base loss and, the first time, by two queries on their own.

        A query is judged by its difference from the base, which is what the gradient is
        made of: the losses themselves differ so little that any would pass.
        """
        precision = torch.finfo(stacked[chunk.names[0]].dtype)
        rounding = 64 * precision.eps * max(1.0, abs(self.base_loss))
        base = torch.tensor(self.base_loss, dtype=torch.float64)
        if not torch.isclose(losses[0], base, rtol=0, atol=rounding, equal_nan=True):
            return False
        if chunk.names in self.objective.foldable:
            return True
        rtol = 1e-6 if precision.eps < 1e-12 else 1e-2
        lanes = sorted({1, len(chunk)})
        expected = torch.stack([self._loss_of(stacked, lane) for lane in lanes]) - base
        found = losses[lanes] - losses[0]
        return torch.allclose(found, expected, rtol=rtol, atol=rounding, equal_nan=True)

    def _unfold(self, chunk: Chunk, reason: str) -> None:
        self.objective.foldable[chunk.names] = False
        self.objective.reuse.unfolded[", ".join(chunk.names)] = reason

    def _fold(self, stacked: dict[str, Tensor]) -> Tensor:
        with warnings.catch_warnings():
            _refuse_slow_folds()
            outputs = vmap(lambda lane: self.program.rerun(self.done, lane), randomness="same")(
                stacked
            )
        try:
            with warnings.catch_warnings():
                _refuse_slow_folds()
                losses = vmap(self._criterion)(outputs)
        except Exception:  # a criterion in numpy, with random numbers, or with branches
            lanes = range(len(next(iter(stacked.values()))))
            each = [pytree.tree_map(lambda v, k=k: v[k], outputs) for k in lanes]
            losses = torch.stack([self._criterion(lane) for lane in each])
        return losses.cpu()


def _refuse_slow_folds() -> None:
    """Torch warns where it would run a fold one by one: then so do we."""
    warnings.filterwarnings("error", message="There is a performance drop")


def _nbytes(value: Any) -> int:
    return sum(leaf.nbytes for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))


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
