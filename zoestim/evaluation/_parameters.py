"""The flat coordinates of a module's trainable parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ParameterMap:
    """Flat int64 coordinates of the trainable parameters, in `named_parameters` order.

    A parameter that a module uses under several names (weight tying) has one place here.

    Parameters
    ----------
    names : tuple of str
        The first name of each trainable parameter.
    shapes : tuple of torch.Size
        Their shapes.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @classmethod
    def of(cls, module: nn.Module) -> ParameterMap:
        """Return the map of a module's parameters that require a gradient."""
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        return cls(tuple(named), tuple(p.shape for p in named.values()))

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The number of coordinates of each parameter."""
        return {name: shape.numel() for name, shape in zip(self.names, self.shapes, strict=True)}

    @cached_property
    def starts(self) -> dict[str, int]:
        """The first flat coordinate of each parameter."""
        ends = accumulate(self.sizes.values(), initial=0)
        return dict(zip(self.names, ends, strict=False))

    @cached_property
    def size(self) -> int:
        """The number of coordinates d."""
        return sum(self.sizes.values())

    def flatten(self, named: Mapping[str, Tensor]) -> Tensor:
        """Return the ascending flat coordinates of indices given parameter by parameter."""
        starts = self.starts
        parts = [starts[name] + named[name] for name in self.names if name in named]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

    def segments(self, coordinates: Tensor) -> tuple[int, ...]:
        """Return how many of some ascending flat coordinates each parameter holds."""
        ends = torch.tensor(list(accumulate(self.sizes.values())), dtype=torch.int64)
        bounds = torch.searchsorted(coordinates, ends)
        return tuple(bounds.diff(prepend=torch.zeros(1, dtype=torch.int64)).tolist())

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """Return a flat vector of size d as tensors of the parameters' shapes."""
        parts = vector.split(list(self.sizes.values()))
        return {n: p.view(s) for n, p, s in zip(self.names, parts, self.shapes, strict=True)}

    def write_gradient(self, module: nn.Module, flat: Tensor) -> None:
        """Write a flat gradient of size d to the ``.grad`` of a module's parameters."""
        named = dict(module.named_parameters())
        for name, value in self.split(flat).items():
            named[name].grad = value.to(named[name])

    def describe(self, coordinate: int) -> str:
        """Return a coordinate as a person would write it, such as ``conv1.weight[0, 2]``."""
        offset = coordinate
        for name, shape in zip(self.names, self.shapes, strict=True):
            if offset < shape.numel():
                place = [int(i) for i in torch.unravel_index(torch.tensor(offset), shape)]
                return f"{name}{place or ''}"
            offset -= shape.numel()
        raise IndexError(f"coordinate {coordinate} is beyond the last parameter")
