"""zoestim: train models from function values alone, as scikit-learn estimators."""

from zoestim._classifier import ZOClassifier
from zoestim._denoiser_defense import ZODenoiserDefense
from zoestim._display import CertifiedAccuracyDisplay
from zoestim._error_curve_display import ErrorCurveDisplay
from zoestim._estimate import GradientEstimate, estimate_gradient
from zoestim._explain import Explanation, explain
from zoestim._gradient_error_display import GradientErrorDisplay
from zoestim._layer_ratios_display import LayerRatiosDisplay
from zoestim._load import load
from zoestim._loop_score import CorrectionWorseThanSolverWarning
from zoestim._regressor import ZORegressor
from zoestim._rollout_display import RolloutDisplay
from zoestim._smoothing import SmoothingSuggestion, suggest_smoothing
from zoestim._solver_in_the_loop import SolverInTheLoop
from zoestim._training_display import TrainingDisplay
from zoestim.certification import certify_counts, clopper_pearson_lower, max_certifiable_radius
from zoestim.evaluation import BlackBox, FeatureReuseWarning, QueryError

__version__ = "0.1.0.dev0"

__all__ = [
    "BlackBox",
    "CertifiedAccuracyDisplay",
    "CorrectionWorseThanSolverWarning",
    "ErrorCurveDisplay",
    "Explanation",
    "FeatureReuseWarning",
    "GradientErrorDisplay",
    "GradientEstimate",
    "LayerRatiosDisplay",
    "QueryError",
    "RolloutDisplay",
    "SmoothingSuggestion",
    "SolverInTheLoop",
    "TrainingDisplay",
    "ZOClassifier",
    "ZODenoiserDefense",
    "ZORegressor",
    "certify_counts",
    "clopper_pearson_lower",
    "estimate_gradient",
    "explain",
    "load",
    "max_certifiable_radius",
    "suggest_smoothing",
]
