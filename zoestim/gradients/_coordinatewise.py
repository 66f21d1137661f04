"""Coordinate-wise gradient estimates: CGE, Eq. (1), and Sparse-CGE."""

from __future__ import annotations

import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from zoestim.gradients._types import (
    CoordinateQueries,
    SparseGradient,
    differences,
    signed_steps,
)

SMOOTHING = 5e-3  # mu, Sec. 6.1


class CoordinateEstimator(BaseEstimator):
    """Coordinate-wise gradient estimate (CGE): one finite difference per coordinate.

    With fewer coordinates than parameters this is the paper's Sparse-CGE: the others
    are estimated as zero and cost nothing.

    Parameters
    ----------
    smoothing : float, default=5e-3
        The step mu, in units of the parameter.
    scheme : {"forward", "central"}, default="forward"
        One query per coordinate and an error of order mu, or two and of order mu squared.

    References
    ----------
    Chen et al., DeepZero, ICLR 2024, Eq. (1) and Eq. (Sparse-CGE).

    Examples
    --------
    >>> import torch
    >>> from zoestim.gradients import CoordinateEstimator
    >>> theta = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    >>> estimator = CoordinateEstimator(smoothing=1e-3, scheme="central")
    >>> asked = estimator.queries(torch.tensor([0, 2]))
    >>> def loss(index, step):
    ...     moved = theta.clone()
    ...     moved[index] += step
    ...     return float((moved**2).sum())
    >>> losses = torch.tensor(
    ...     [loss(i, s) for i, s in zip(asked.indices, asked.steps)], dtype=torch.float64
    ... )
    >>> estimator.combine(asked, 14.0, losses).dense(3).round(decimals=6)
    tensor([2., 0., 6.], dtype=torch.float64)
    """

    def __init__(self, smoothing: float = SMOOTHING, scheme: str = "forward"):
        self.smoothing = smoothing
        self.scheme = scheme

    def n_queries(self, n_coordinates: int) -> int:
        """Return how many perturbed losses one estimate needs (the base loss apart)."""
        return n_coordinates if self.scheme == "forward" else 2 * n_coordinates

    def queries(
        self,
        coordinates: Tensor,
        segments: tuple[int, ...] = (),
        generator: torch.Generator | None = None,
    ) -> CoordinateQueries:
        """Ask for the loss one step along each coordinate; nothing here is random."""
        steps = signed_steps(len(coordinates), self.smoothing, self.scheme)
        return CoordinateQueries(coordinates.repeat(len(steps) // max(len(coordinates), 1)), steps)

    def combine(
        self, queries: CoordinateQueries, base_loss: float, losses: Tensor
    ) -> SparseGradient:
        """Return the differences over mu; coordinates that were not asked for are zero."""
        values = differences(losses, base_loss, self.smoothing, self.scheme)
        return SparseGradient(queries.indices[: len(values)], values)
