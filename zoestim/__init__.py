"""zoestim: train models from function values alone, as scikit-learn estimators."""

from zoestim._estimate import GradientEstimate, estimate_gradient
from zoestim.evaluation import BlackBox, FeatureReuseWarning, QueryError

__version__ = "0.1.0.dev0"

__all__ = [
    "BlackBox",
    "FeatureReuseWarning",
    "GradientEstimate",
    "QueryError",
    "estimate_gradient",
]
