"""From the name of a gradient strategy to the strategy."""

from __future__ import annotations

from zoestim.gradients._coordinatewise import CoordinateEstimator
from zoestim.gradients._randomized import RandomizedEstimator
from zoestim.gradients._types import GradientEstimator


def resolve_estimator(
    gradient: str | GradientEstimator,
    smoothing: float,
    scheme: str,
    n_directions: int,
    parameter: str = "gradient",
) -> GradientEstimator:
    """Return the strategy that ``"cge"`` or ``"rge"`` names; an object is its own.

    An object brings its own step and scheme: the other arguments are for the names.
    """
    if gradient == "cge":
        return CoordinateEstimator(smoothing, scheme)
    if gradient == "rge":
        return RandomizedEstimator(n_directions, smoothing, scheme)
    if not (hasattr(gradient, "queries") and hasattr(gradient, "combine")):
        raise ValueError(
            f"{parameter} must be 'cge', 'rge' or an object with queries and combine such as "
            f"CoordinateEstimator(); got {gradient!r}."
        )
    return gradient  # type: ignore[return-value]
