"""Randomised smoothing: votes under Gaussian noise, and the radii that they certify."""

from zoestim.certification._accuracy import average_certified_radius, certified_accuracy
from zoestim.certification._bounds import (
    certify_counts,
    clopper_pearson_lower,
    max_certifiable_radius,
    min_draws,
    warn_unreachable,
)
from zoestim.certification._checks import check_alpha, check_integer
from zoestim.certification._votes import count_votes

__all__ = [
    "average_certified_radius",
    "certified_accuracy",
    "certify_counts",
    "check_alpha",
    "check_integer",
    "clopper_pearson_lower",
    "count_votes",
    "max_certifiable_radius",
    "min_draws",
    "warn_unreachable",
]
