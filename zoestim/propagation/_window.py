"""How the window of a convolution or a pooling moves over the trailing axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Window:
    """How a window moves, a number for each trailing axis.

    Parameters
    ----------
    kernel, stride, dilation, padding : tuple of int
        As torch names them; the padding is that before the first element.
    size : tuple of int
        The size of the output.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]
    size: tuple[int, ...]

    @property
    def overlaps(self) -> bool:
        """Whether an element may be in several windows, or windows leave gaps."""
        return self.kernel != self.stride or any(d != 1 for d in self.dilation)

    @property
    def reach(self) -> tuple[int, ...]:
        """How many elements of the padded input are met along each axis."""
        numbers = zip(self.kernel, self.stride, self.dilation, self.size, strict=True)
        return tuple(s * (size - 1) + d * (k - 1) + 1 for k, s, d, size in numbers)

    def edges(self, shape: Sequence[int]) -> list[int]:
        """Return how much is to be added around some trailing axes, as F.pad takes it.

        What rounding up or 'same' asks for beyond the padding is at the end.
        """
        edges: list[int] = []
        for before, reach, length in zip(self.padding, self.reach, shape, strict=True):
            edges = [before, max(0, reach - before - length), *edges]
        return edges

    def pad(self, x: Tensor, value: float = 0.0) -> Tensor:
        """Pad the trailing axes."""
        edges = self.edges(x.shape[-len(self.size) :])
        return F.pad(x, edges, value=value) if any(edges) else x

    def along(self, padded: Tensor, axis: int) -> list[Tensor]:
        """Return, for each element of the kernel along one axis, the view that it meets."""
        return [padded[at] for at in self._indices[axis]]

    @cached_property
    def _indices(self) -> list[list[tuple[Any, ...]]]:
        """For each axis, the indices of the views."""
        found = []
        for axis, n_trailing in enumerate(range(len(self.size) - 1, -1, -1)):
            length = (self.size[axis] - 1) * self.stride[axis] + 1
            starts = range(0, self.kernel[axis] * self.dilation[axis], self.dilation[axis])
            slices = [slice(start, start + length, self.stride[axis]) for start in starts]
            found.append([(..., s, *[slice(None)] * n_trailing) for s in slices])
        return found

    def taps(self, padded: Tensor) -> list[Tensor]:
        """Return, for each element of the kernel, the view that it meets."""
        views = [padded]
        for axis in range(len(self.size)):
            views = [tap for view in views for tap in self.along(view, axis)]
        return views

    def patches(self, padded: Tensor) -> Tensor:
        """Return all of them of some planes, stacked: (n_planes, n_taps, n, *size)."""
        return torch.stack(self.taps(padded), 1)

    def shifts(self, padded: Tensor) -> Tensor:
        """Return them pixel by pixel, (n_planes, n_taps, n_pixels), of planes with the batch last.

        The pixels are in the order (*size, n), as they lie in memory.
        """
        return torch.stack([tap.movedim(1, -1) for tap in self.taps(padded)], 1).flatten(2)


def each_axis(given: Any, n_axes: int) -> tuple[int, ...]:
    """Return a setting as one number for each axis."""
    numbers = (given,) if isinstance(given, int) else tuple(given)
    return numbers * n_axes if len(numbers) == 1 else numbers
