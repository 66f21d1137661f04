"""Slabs whose lanes are made one after the other: each is used while it is in the cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from zoestim.propagation._change import Slab

# Lanes of at least so many elements are made one by one.
_LARGE = 2**14


class Made(Slab):
    """Slabs of one channel, made when asked.

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
        ``make(k, out)`` writes lane k to a tensor of shape (1, 1, *rest).
    moments : callable, optional
        ``moments(z)`` returns the means of d, d z and d^2 of each lane, (k, 3), in float64,
        for a z with channels first: where they are known without making any lane.
    """

    rest: tuple[int, ...]
    like: Tensor
    make: Callable[[int, Tensor], Any]
    moments: Callable[[Tensor], Tensor] | None
    width = 1

    def __init__(
        self,
        starts: Tensor,
        dim: int,
        rest: tuple[int, ...],
        like: Tensor,
        make: Callable[[int, Tensor], Any],
        moments: Callable[[Tensor], Tensor] | None = None,
    ):
        given = {"starts": starts, "dim": dim, "rest": rest, "like": like}
        for name, value in (given | {"make": make, "moments": moments}).items():
            object.__setattr__(self, name, value)

    @cached_property
    def values(self) -> Tensor:  # type: ignore[override]
        """What is added, (k, 1, *rest)."""
        made = self.blank(len(self.starts))
        for k in range(len(made)):
            self.make(k, made[k : k + 1])
        return made

    @property
    def nbytes(self) -> int:
        """How many bytes one lane takes: there is one at a time."""
        return math.prod(self.rest) * self.like.element_size()

    @property
    def order(self) -> tuple[int, ...]:
        """The axes of `rest` in the order in which they lie in memory."""
        return (*range(1, len(self.rest)), 0)

    def blank(self, n_lanes: int) -> Tensor:
        """Return memory for some lanes, (n_lanes, 1, *rest)."""
        batch, *size = self.rest
        return self.like.new_empty(n_lanes, 1, *size, batch).movedim(-1, 2)

    def then(self, change: Callable[[int, Tensor], Any]) -> Made:
        """Return the slabs that ``change(k, lane)`` makes of these, in place."""

        def make(k: int, out: Tensor) -> None:
            self.make(k, out)
            change(k, out)

        return Made(self.starts, self.dim, self.rest, self.like, make)

    def each(self) -> Iterator[Tensor]:
        """Give lane after lane, in one piece of memory that may be written to."""
        scratch = self.blank(1)
        for k in range(len(self.starts)):
            self.make(k, scratch)
            yield scratch


def is_large(rest: tuple[int, ...], like: Tensor) -> bool:
    """Return whether lanes are to be made one by one: large ones on a CPU."""
    return like.device.type == "cpu" and len(rest) > 1 and math.prod(rest) >= _LARGE


def constant(starts: Tensor, dim: int, rest: tuple[int, ...], steps: Tensor) -> Slab:
    """Return slabs each of which holds one number: what an offset adds to its channel."""

    def make(k: int, out: Tensor) -> None:
        out.copy_(steps[k])

    def moments(z: Tensor) -> Tensor:
        d = steps.double()
        means = z.flatten(1).mean(1).double()[starts.to(z.device)]
        return torch.stack([d, d * means, d.square()], 1)

    if is_large(rest, steps):
        return Made(starts, dim, rest, steps, make, moments)
    return Slab(steps.view(-1, 1, *[1] * len(rest)).expand(-1, 1, *rest), starts, dim)
