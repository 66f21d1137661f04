"""The step at which noise and bending err alike, for forward and central differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rule:
    """A scheme: how the derivative behind its error is seen, and what follows from it.

    Parameters
    ----------
    order : int
        The order of that derivative.
    points : tuple of float
        Where losses are taken to see it, in steps from the base.
    weights : tuple of float
        Their weights; that of the base makes the sum zero.
    factor : float
        The weighted sum is `factor` times the derivative times the step to the power `order`.
    step : callable
        ``(noise, derivative) -> step``: the one of the least mean square error.
    error : callable
        ``(step, noise, derivative) -> error``: the root mean square error of a difference.
    """

    order: int
    points: tuple[float, ...]
    weights: tuple[float, ...]
    factor: float
    step: Callable[[float, float], float]
    error: Callable[[float, float, float], float]

    def difference(self, base: float, losses: Tensor) -> Tensor:
        """Return the weighted sums of losses of shape (n, n_points)."""
        return (losses - base) @ torch.tensor(self.weights, dtype=torch.float64)

    def slope(self, losses: Tensor, step: float) -> Tensor:
        """Return the first derivative, from the two points beside the base."""
        ahead, behind = self.points.index(1.0), self.points.index(-1.0)
        return (losses[:, ahead] - losses[:, behind]) / (2 * step)

    @property
    def spread(self) -> float:
        """The standard deviation of a weighted sum, in that of one loss."""
        return math.hypot(sum(self.weights), *self.weights)


# (bend h / 2)² + 2 (noise / h)² is least where its two terms are equal; (bend h² / 6)² +
# (noise / h)² / 2 where the second is twice the first.
RULES = {
    "forward": Rule(
        order=2,
        points=(-1.0, 1.0),
        weights=(1.0, 1.0),
        factor=1.0,
        step=lambda noise, bend: 8**0.25 * math.sqrt(noise / bend),
        error=lambda h, noise, bend: math.hypot(bend * h / 2, math.sqrt(2) * noise / h),
    ),
    "central": Rule(
        order=3,
        points=(-2.0, -1.0, 1.0, 2.0),
        weights=(-1.0, 2.0, -2.0, 1.0),
        factor=2.0,
        step=lambda noise, bend: math.cbrt(3 * noise / bend),
        error=lambda h, noise, bend: math.hypot(bend * h**2 / 6, noise / (math.sqrt(2) * h)),
    ),
}
