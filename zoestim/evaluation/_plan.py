"""Queries grouped into chunks that share what they change and fit into one fold."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from zoestim.evaluation._parameters import ParameterMap
from zoestim.evaluation._propagate import Fold
from zoestim.gradients import CoordinateQueries, DirectionQueries, Queries, RowQueries
from zoestim.propagation import Dense, Entry


class FoldSize(NamedTuple):
    """How many lanes go through the graph together.

    Parameters
    ----------
    lanes : int
        How many make a fold.
    piece : int
        How many of them go together through the first `cut` nodes, where changes are large.
    cut : int
        How many nodes that is.
    """

    lanes: int
    piece: int
    cut: int

    def at_most(self, lanes: int) -> FoldSize:
        """Return the size with no more lanes."""
        return FoldSize(min(self.lanes, lanes), min(self.piece, lanes), self.cut)


@dataclass(frozen=True)
class Chunk:
    """Some queries that perturb the same parameters: the lanes of one fold.

    Parameters
    ----------
    positions : Tensor of shape (k,), int64
        Which of the queries these are.
    changes : dict from parameter name to Entry or Dense
        What each lane adds to the parameters.
    theta : dict from parameter name to Tensor
        The unperturbed values.
    fold : Fold, optional
        In which pieces the lanes go through the first nodes.
    """

    positions: Tensor
    changes: dict[str, Entry | Dense]
    theta: dict[str, Tensor]
    fold: Fold | None = None

    def __len__(self) -> int:
        return self.positions.shape[0]  # which is ten times faster than len

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that are perturbed."""
        return tuple(self.changes)

    def lane(self, k: int) -> dict[str, Tensor]:
        """Return the parameters as query k has them."""
        moved = {}
        for name, change in self.changes.items():
            value = self.theta[name].clone(memory_format=torch.contiguous_format)
            if isinstance(change, Entry):
                value.view(-1)[int(change.indices[k])] += change.steps[k]
            else:
                value += change.values[k]
            moved[name] = value
        return moved

    def halves(self) -> tuple[Chunk, Chunk]:
        """Return two chunks of half the size, in pieces of half the size."""
        middle = len(self) // 2
        return self.part(slice(0, middle)), self.part(slice(middle, len(self)))

    def part(self, lanes: slice | list[int]) -> Chunk:
        """Return the chunk of some of the lanes, in pieces of half the size."""
        changes = {name: change.lanes(lanes) for name, change in self.changes.items()}
        positions, fold = self.positions[lanes], self.fold
        if fold is not None:
            pieces = positions.split(max(1, max(fold.pieces) // 2))
            fold = Fold(tuple(map(len, pieces)), fold.cut)
        return Chunk(positions, changes, self.theta, fold)

    def stretch(self) -> Tensor:
        """Return by how much each step is longer than what a lane moves its parameter by.

        Directions are not rounded alone.
        """
        for name, change in self.changes.items():
            if isinstance(change, Entry):
                return change.stretch(self.theta[name]).double().cpu()
        return torch.ones(len(self), dtype=torch.float64)


@dataclass(frozen=True)
class Group:
    """All queries that perturb the same parameters; of one cost, since they run the same nodes.

    Parameters
    ----------
    names : tuple of str
        The parameters.
    positions : Tensor of shape (n,), int64
        Which of the queries these are, in the order of what they change.
    rows : Tensor of shape (n,), int64, or None
        Which row of the parameter each changes.
    chunk : callable
        Returns the chunk of some of the positions.
    """

    names: tuple[str, ...]
    positions: Tensor
    rows: Tensor | None
    chunk: Callable[[Tensor], Chunk]

    def folds(self, size: FoldSize) -> Iterator[tuple[Tensor, ...]]:
        """Cut the queries into folds, each of which is some pieces.

        They depend on the queries, the model, the batch and the size alone, so that with a
        memory budget of one's own the arithmetic, and with it every bit of the result, is the
        same wherever they run.
        """
        pieces: list[Tensor] = list(self.positions.split(size.piece))
        if self.rows is not None:
            counts = self.rows.unique_consecutive(return_counts=True)[1]
            if len(self.positions) >= size.piece * len(counts):
                # The lanes of a row change one channel, which is then read without copying.
                rows = self.positions.split(counts.tolist())
                pieces = [p for row in rows for p in row.tensor_split(-(-len(row) // size.piece))]
        fold: list[Tensor] = []
        for piece in pieces:
            if fold and sum(map(len, fold)) + len(piece) > size.lanes:
                yield tuple(fold)
                fold = []
            fold.append(piece)
        yield tuple(fold)


class Part(NamedTuple):
    """The unit of arithmetic: queries that are answered together, wherever that is.

    Parameters
    ----------
    group : Group
        What they perturb.
    pieces : tuple of Tensor of int64
        Which queries go together through the first nodes.
    cut : int
        How many nodes that is.
    """

    group: Group
    pieces: tuple[Tensor, ...]
    cut: int

    def __len__(self) -> int:
        return sum(map(len, self.pieces))

    def chunk(self) -> Chunk:
        """Return the queries with what they change."""
        fold = Fold(tuple(map(len, self.pieces)), self.cut)
        return replace(self.group.chunk(torch.cat(self.pieces)), fold=fold)


def make_parts(groups: Sequence[Group], sizes: Sequence[FoldSize]) -> list[Part]:
    """Cut each group into folds of its size."""
    return [
        Part(group, pieces, size.cut)
        for group, size in zip(groups, sizes, strict=True)
        for pieces in group.folds(size)
    ]


def make_groups(
    queries: Queries, parameters: ParameterMap, theta: dict[str, Tensor]
) -> list[Group]:
    """Group queries by the parameters that they perturb."""
    if not isinstance(queries, CoordinateQueries):
        return [_directions(queries, parameters, theta)]
    order = queries.indices.argsort(stable=True)
    starts = torch.tensor([parameters.starts[name] for name in parameters.names])
    counts = torch.searchsorted(queries.indices[order], starts).diff(
        append=torch.tensor([len(order)])
    )
    held = zip(parameters.names, order.split(counts.tolist()), strict=True)
    return [
        _coordinates(queries, name, positions, parameters.starts[name], theta)
        for name, positions in held
        if len(positions)
    ]


def _coordinates(
    queries: CoordinateQueries,
    name: str,
    positions: Tensor,
    start: int,
    theta: dict[str, Tensor],
) -> Group:
    value = theta[name]
    row_size = value.numel() // len(value) if value.ndim else 1
    rows = (queries.indices[positions] - start) // row_size

    def chunk(part: Tensor) -> Chunk:
        entry = Entry(queries.indices[part] - start, queries.steps[part].to(value))
        return Chunk(part, {name: entry}, theta)

    return Group((name,), positions, rows, chunk)


def _directions(
    queries: DirectionQueries | RowQueries, parameters: ParameterMap, theta: dict[str, Tensor]
) -> Group:
    held = zip(parameters.names, queries.segments, strict=True)
    names = tuple(name for name, count in held if count)

    def chunk(part: Tensor) -> Chunk:
        moves = queries.moves(part, parameters.size)
        changes: dict[str, Entry | Dense] = {}
        for name in names:
            start, size = parameters.starts[name], parameters.sizes[name]
            move = moves[:, start : start + size].to(theta[name])
            changes[name] = Dense(move.view(-1, *theta[name].shape))
        return Chunk(part, changes, theta)

    return Group(names, torch.arange(len(queries)), None, chunk)
