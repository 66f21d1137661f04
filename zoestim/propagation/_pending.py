"""Changes whose last steps are still to be taken: all of them at once, tile by tile.

Batch normalisation, the addition of a shortcut and ReLU each do little with an element. Large
lanes leave the cache between them; taken together they are read and written once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zoestim.propagation._change import Dense

# Elements of a tile: with three that lie beside it, it fits into the cache of one core.
_TILE = 2**17


class Step(NamedTuple):
    """An operation on single elements.

    Parameters
    ----------
    take : callable
        ``take(given, out, *beside)`` writes to `out`, a tensor of its own or `given`.
    beside : tuple of Tensor of shape (1 or k, 1 or n_rows, n_columns)
        What belongs to all lanes or rows, or to one each.
    """

    take: Callable[..., Any]
    beside: tuple[Tensor, ...]


class Pending(Dense):
    """Dense changes that steps make of others; they are taken when the values are asked.

    Parameters
    ----------
    source : Tensor of shape (k, *shape)
        What the first step is given; each lane is one piece of memory.
    n_columns : int
        A lane is worked on as rows of so many elements.
    owned : bool
        Whether the source may be overwritten.
    steps : tuple of Step
        What is left to do.
    """

    source: Tensor
    n_columns: int
    owned: bool
    steps: tuple[Step, ...]

    def __init__(self, source: Tensor, n_columns: int, owned: bool, steps: tuple[Step, ...] = ()):
        given = {"source": source, "n_columns": n_columns, "owned": owned, "steps": steps}
        for name, value in given.items():
            object.__setattr__(self, name, value)

    @property
    def strides(self) -> tuple[int, ...]:
        """How the elements of a lane lie in memory."""
        return self.source.stride()[1:]

    @property
    def nbytes(self) -> int:
        """How many bytes the source takes."""
        return self.source.nbytes

    def then(self, take: Callable[..., Any], *beside: Tensor) -> Pending:
        """Return what one more step makes of these, and leave these behind.

        Parameters
        ----------
        take : callable
            As in :class:`Step`.
        *beside : Tensor
            Of shape (1 or k, *shape), in memory as the source is, or as :class:`Step` has them.
        """
        step = Step(take, tuple(map(self._as_rows, beside)))
        if "values" in vars(self):  # another operand of the same operation asked for them
            return Pending(self.values, self.n_columns, False, (step,))
        return Pending(self.source, self.n_columns, self.owned, (*self.steps, step))

    def plus(self, other: Tensor) -> Pending:
        """Return the sum with a tensor that lies in memory as the source does."""
        return self.then(_add, other)

    def _as_rows(self, tensor: Tensor) -> Tensor:
        if tensor.shape[1:] != self.source.shape[1:]:
            return tensor
        n_rows = self.source[0].numel() // self.n_columns
        strides = tensor.stride(0), self.n_columns, 1
        return tensor.as_strided((len(tensor), n_rows, self.n_columns), strides)

    @cached_property
    def values(self) -> Tensor:  # type: ignore[override]
        """What is added, (k, *shape)."""
        result = self.source if self.owned else torch.empty_like(self.source)
        scratch = None
        rows = self._as_rows(self.source), self._as_rows(result)
        beside = [tensor for step in self.steps for tensor in step.beside]
        for given, out, *others in self._pieces([*rows, *beside]):
            if scratch is None:
                scratch = torch.empty_like(given)
            part = scratch[: len(given), : given.shape[1]]
            for number, (take, tensors) in enumerate(self.steps):
                last = number == len(self.steps) - 1
                take(given, out if last and number else part, *others[: len(tensors)])
                given, others = part, others[len(tensors) :]
            if len(self.steps) == 1:
                out.copy_(part)
        return result

    def _pieces(self, tensors: list[Tensor]) -> Iterator[list[Tensor]]:
        """Give tile after tile, of each its lanes: what belongs to all lanes is still warm."""
        n_lanes, n_rows, n_columns = tensors[0].shape
        if self.source.device.type != "cpu" or n_lanes * n_rows * n_columns <= _TILE:
            yield tensors
            return
        height = max(1, _TILE // n_columns)
        n_tiles = -(-n_rows // height)
        tiles = (t.split(height, 1) if t.shape[1] > 1 else (t,) * n_tiles for t in tensors)
        for tile in zip(*tiles, strict=True):
            lanes = (t.split(1) if len(t) > 1 else (t,) * n_lanes for t in tile)
            yield from map(list, zip(*lanes, strict=True))


def _add(d: Tensor, out: Tensor, other: Tensor) -> None:
    torch.add(d, other, out=out)
