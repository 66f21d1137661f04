"""From queries to losses, Sec. 5: feature reuse, folding, black boxes."""

from zoestim.evaluation._black_box import BlackBox
from zoestim.evaluation._evaluate import Evaluation, QueryError, evaluate
from zoestim.evaluation._loss import BatchLoss
from zoestim.evaluation._objective import Batch, FeatureReuse, FeatureReuseWarning, Objective
from zoestim.evaluation._parameters import ParameterMap
from zoestim.evaluation._random import RandomState, unchanged_generators

__all__ = [
    "Batch",
    "BatchLoss",
    "BlackBox",
    "Evaluation",
    "FeatureReuse",
    "FeatureReuseWarning",
    "Objective",
    "ParameterMap",
    "QueryError",
    "RandomState",
    "evaluate",
    "unchanged_generators",
]
