"""Slabs whose lanes are made one after the other: each is used while it is in the cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from zoestim.propagation._change import Slab

Make = Callable[[int, Tensor, Tensor | None], Any]

# Lanes of at least so many elements are made one by one.
_LARGE = 2**14


class Made(Slab):
    """Slabs made when asked, lane by lane.

    They lie in memory with the batch last, so that to shift, to stride and to pool images is
    to work on long rows.

    Parameters
    ----------
    starts : Tensor of shape (k,), int64
        Where each slab starts, on the host.
    dim : int
        The axis of the unperturbed value.
    rest : tuple of int
        The shape of the unperturbed value without that axis, the batch first.
    like : Tensor
        A tensor of their type and device.
    make : callable
        ``make(k, out, onto)`` writes lane k less its offset to a tensor of shape
        (1, width, *rest), and adds `onto` where that is not None.
    offsets : Tensor of shape (k, width, 1, ..., 1), optional
        What is to be added to all elements of each lane: to fewer where the largest are taken.
    moments : callable, optional
        ``moments(z)`` returns the means of d, d z and d^2 of each lane, (k, 3), in float64,
        for a z of mean zero with channels first: where they are known without making any lane.
    width : int, default=1
        How many positions along the axis change.
    """

    rest: tuple[int, ...]
    like: Tensor
    make: Make
    offsets: Tensor | None
    moments: Callable[[Tensor], Tensor] | None
    width: int = 1

    def __init__(
        self,
        starts: Tensor,
        dim: int,
        rest: tuple[int, ...],
        like: Tensor,
        make: Make,
        offsets: Tensor | None = None,
        moments: Callable[[Tensor], Tensor] | None = None,
        width: int = 1,
    ):
        given = {"starts": starts, "dim": dim, "rest": rest, "like": like, "make": make}
        given |= {"offsets": offsets, "moments": moments, "width": width}
        for name, value in given.items():
            object.__setattr__(self, name, value)

    def beside(self, planes: Tensor) -> list[Tensor]:
        """Return the slab that each lane changes of a tensor with the changed axis first."""
        found = planes.unfold(0, self.width, 1).movedim(-1, 1)[:, None].unbind()
        return [found[start] for start in self.starts.tolist()]

    def write(self, k: int, out: Tensor, onto: Tensor | None = None) -> None:
        """Write lane k to a tensor of shape (1, width, *rest), and add `onto`."""
        self.make(k, out, onto)
        if self.offsets is not None:
            out.add_(self.offsets[k])

    @cached_property
    def values(self) -> Tensor:  # type: ignore[override]
        """What is added, (k, width, *rest)."""
        made = self.blank(len(self.starts))
        for k in range(len(made)):
            self.write(k, made[k : k + 1])
        return made

    @property
    def nbytes(self) -> int:
        """How many bytes one lane takes: there is one at a time."""
        return self.width * math.prod(self.rest) * self.like.element_size()

    @property
    def order(self) -> tuple[int, ...]:
        """The axes of `rest` in the order in which they lie in memory."""
        return (*range(1, len(self.rest)), 0)

    def blank(self, n_lanes: int) -> Tensor:
        """Return memory for some lanes, (n_lanes, width, *rest)."""
        return blank(self.like, (n_lanes, self.width), self.rest)


def blank(like: Tensor, leading: tuple[int, ...], rest: tuple[int, ...]) -> Tensor:
    """Return memory of shape (*leading, *rest), the first axis of `rest`, the batch, last."""
    batch, *size = rest
    return like.new_empty(*leading, *size, batch).movedim(-1, len(leading))


def is_large(rest: tuple[int, ...], like: Tensor) -> bool:
    """Return whether lanes are to be made one by one: large ones on a CPU."""
    return like.device.type == "cpu" and len(rest) > 1 and math.prod(rest) >= _LARGE


def constant(starts: Tensor, dim: int, rest: tuple[int, ...], steps: Tensor) -> Slab:
    """Return slabs each of which holds one number: what an offset adds to its channel."""

    def make(k: int, out: Tensor, onto: Tensor | None) -> None:
        out.copy_(zero if onto is None else onto)

    def moments(z: Tensor) -> Tensor:
        d = steps.double()
        return torch.stack([d, torch.zeros_like(d), d.square()], 1)

    zero, offsets = steps.new_zeros(()), steps.view(-1, 1, *[1] * len(rest))
    if is_large(rest, steps):
        return Made(starts, dim, rest, steps, make, offsets, moments)
    return Slab(offsets.expand(-1, 1, *rest), starts, dim)
