"""Gradients from function values, Sec. 3: strategies that ask for losses and combine them."""

from zoestim.gradients._coordinatewise import SMOOTHING, CoordinateEstimator
from zoestim.gradients._randomized import DISTRIBUTIONS, N_DIRECTIONS, RandomizedEstimator
from zoestim.gradients._resolve import resolve_estimator
from zoestim.gradients._types import (
    SCHEMES,
    CoordinateQueries,
    DirectionQueries,
    GradientEstimator,
    Queries,
    RowQueries,
    SparseGradient,
)

__all__ = [
    "DISTRIBUTIONS",
    "N_DIRECTIONS",
    "SCHEMES",
    "SMOOTHING",
    "CoordinateEstimator",
    "CoordinateQueries",
    "DirectionQueries",
    "GradientEstimator",
    "Queries",
    "RandomizedEstimator",
    "RowQueries",
    "SparseGradient",
    "resolve_estimator",
]
