"""Where a grid has values: components of different sizes, side by side in one array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Faces:
    """The components of a field, and how they are laid into the channels of a state.

    On a staggered grid each component of a velocity stands on the faces of its own direction,
    of which there may be one more or fewer than cells. A channel is as large as the largest
    component along each axis, and is 0 where a component has no face.

    Parameters
    ----------
    axes : tuple of str
        What the axes are called.
    resolution : tuple of int
        The number of cells along each.
    sizes : tuple of tuple of int
        The shape of each component.
    names : tuple of str
        What the components are called; none for a field of numbers.
    staggered : bool
        Whether they stand on faces.
    """

    axes: tuple[str, ...]
    resolution: tuple[int, ...]
    sizes: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    staggered: bool

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Return the shape of a state: (n_components, *grid)."""
        return (len(self.sizes), *(max(sizes) for sizes in zip(*self.sizes, strict=True)))

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Return the shape of a state without what lies beyond the cells."""
        pairs = zip(self.state_shape[1:], self.resolution, strict=True)
        return (len(self.sizes), *(min(pair) for pair in pairs))

    @property
    def mask(self) -> np.ndarray:
        """Return where a state has values, of its shape."""
        return self.join([np.ones((1, *size), dtype=bool) for size in self.sizes])[0]

    def split(self, states: np.ndarray) -> list[np.ndarray]:
        """Return each component of states, of shape (n_states, *size)."""
        parts = []
        for i, size in enumerate(self.sizes):
            place: tuple[Any, ...] = (slice(None), i, *(slice(n) for n in size))
            parts.append(states[place])
        return parts

    def join(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Return states of their components."""
        states = np.zeros((len(parts[0]), *self.state_shape), dtype=parts[0].dtype)
        for place, part in zip(self.split(states), parts, strict=True):
            place[...] = part
        return states
