"""States and what they come with, a row each: how simulations travel through a network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Rows:
    """What a row holds: the numbers of a state, then those of its conditions.

    Parameters
    ----------
    state : tuple of int
        The shape of a state, (n_channels, *grid).
    conditions : tuple of (str, tuple of int)
        Names of the conditions, and the shape of each for one simulation.
    """

    state: Shape
    conditions: tuple[tuple[str, Shape], ...] = ()

    @classmethod
    def of(cls, states: np.ndarray, conditions: Mapping[str, np.ndarray]) -> Rows:
        """Return the layout of states (n, n_channels, *grid) and conditions with an axis of n."""
        shapes = tuple((name, values.shape[1:]) for name, values in conditions.items())
        return cls(states.shape[1:], shapes)

    def in_order_of(self, other: Rows) -> Rows:
        """Return the layout with the conditions in the order that they have in another."""
        place = {name: number for number, (name, _) in enumerate(other.conditions)}
        return Rows(self.state, tuple(sorted(self.conditions, key=lambda c: place.get(c[0], -1))))

    @property
    def n_state(self) -> int:
        """How many numbers a state has."""
        return math.prod(self.state)

    def pack(self, states: np.ndarray, conditions: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the rows, (n, width), of the type of the states."""
        parts = [states, *(conditions[name] for name, _ in self.conditions)]
        flat = [np.asarray(part, dtype=states.dtype).reshape(len(states), -1) for part in parts]
        return np.concatenate(flat, axis=1)

    def states(self, rows: Any) -> Any:
        """Return the states in rows: arrays or tensors, (n, n_channels, *grid)."""
        return rows[:, : self.n_state].reshape(-1, *self.state)

    def with_states(self, rows: Tensor, states: Tensor) -> Tensor:
        """Return rows with other states, (n, width)."""
        return torch.cat([states.flatten(1), rows[:, self.n_state :]], 1)

    def each_condition(self, rows: Any) -> dict[str, Any]:
        """Return the conditions in rows, each with a first axis of n."""
        found, start = {}, self.n_state
        for name, shape in self.conditions:
            end = start + math.prod(shape)
            found[name] = rows[:, start:end].reshape(-1, *shape)
            start = end
        return found
