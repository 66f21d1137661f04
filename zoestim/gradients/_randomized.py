"""Randomised gradient estimates: RGE, Eq. (1)."""

from __future__ import annotations

from numbers import Integral

import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from zoestim.gradients._coordinatewise import SMOOTHING
from zoestim.gradients._types import (
    DirectionQueries,
    SparseGradient,
    differences,
    signed_steps,
)

N_DIRECTIONS = 192  # q, Sec. 6.1
DISTRIBUTIONS = ("gaussian", "sphere", "per-tensor")
_SEED_LIMIT = 2**63 - 1


class RandomizedEstimator(BaseEstimator):
    """Randomised gradient estimate (RGE): the mean of differences along random directions.

    Parameters
    ----------
    n_directions : int, default=192
        The number q of directions; the variance falls as d / q.
    smoothing : float, default=5e-3
        The step mu along a direction.
    scheme : {"forward", "central"}, default="forward"
        One query per direction, or two, at ``theta + mu u`` and ``theta - mu u``.
    distribution : {"gaussian", "sphere", "per-tensor"}, default="gaussian"
        - ``"gaussian"``: u ~ N(0, I), Eq. (1).
        - ``"sphere"``: uniform on the sphere of radius sqrt(d), so that E[u u'] = I too,
          without the spread of the length.
        - ``"per-tensor"``: Gaussian, each parameter tensor's part divided by its norm, as
          the authors' code does. The expected estimate is then the gradient of each
          tensor divided by its size: scale the learning rate up accordingly.

    References
    ----------
    Chen et al., DeepZero, ICLR 2024, Eq. (1); Nesterov and Spokoiny, Found. Comput.
    Math. 17 (2017), Sec. 2.

    Examples
    --------
    >>> import torch
    >>> from zoestim.gradients import RandomizedEstimator
    >>> theta = torch.tensor([1.0, 2.0], dtype=torch.float64)
    >>> estimator = RandomizedEstimator(n_directions=20_000, smoothing=1e-6)
    >>> asked = estimator.queries(torch.arange(2), (2,), torch.Generator().manual_seed(0))
    >>> losses = torch.stack(
    ...     [((theta + asked.steps[k] * asked.direction(k)) ** 2).sum() for k in range(len(asked))]
    ... )
    >>> estimator.combine(asked, 5.0, losses).values.round(decimals=1)
    tensor([2., 4.], dtype=torch.float64)
    """

    def __init__(
        self,
        n_directions: int = N_DIRECTIONS,
        smoothing: float = SMOOTHING,
        scheme: str = "forward",
        distribution: str = "gaussian",
    ):
        self.n_directions = n_directions
        self.smoothing = smoothing
        self.scheme = scheme
        self.distribution = distribution

    def n_queries(self, n_coordinates: int) -> int:
        """Return how many perturbed losses one estimate needs (the base loss apart)."""
        return self.n_directions if self.scheme == "forward" else 2 * self.n_directions

    def queries(
        self, coordinates: Tensor, segments: tuple[int, ...], generator: torch.Generator
    ) -> DirectionQueries:
        """Ask for the loss one step along each of q directions drawn on the coordinates."""
        if not isinstance(self.n_directions, Integral) or self.n_directions < 1:
            raise ValueError(
                f"n_directions must be an integer of at least 1; got {self.n_directions!r}."
            )
        if self.distribution not in DISTRIBUTIONS:
            expected = list(DISTRIBUTIONS)
            raise ValueError(f"distribution must be one of {expected}; got {self.distribution!r}.")
        seeds = torch.randint(_SEED_LIMIT, (self.n_directions,), generator=generator)
        steps = signed_steps(self.n_directions, self.smoothing, self.scheme)
        return DirectionQueries(
            coordinates,
            seeds.repeat(len(steps) // len(seeds)),
            steps,
            self.distribution,
            tuple(segments),
        )

    def combine(
        self, queries: DirectionQueries, base_loss: float, losses: Tensor
    ) -> SparseGradient:
        """Return the mean of difference times direction."""
        slopes = differences(losses, base_loss, self.smoothing, self.scheme)
        total = torch.zeros(len(queries.coordinates), dtype=torch.float64)
        for query, slope in enumerate(slopes):
            total += slope * queries.direction(query)
        return SparseGradient(queries.coordinates, total / len(slopes))
