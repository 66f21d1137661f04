"""From queries to losses, Sec. 5: feature reuse, folding, black boxes."""

from zoestim.evaluation._black_box import BlackBox
from zoestim.evaluation._cut import FeatureReuse, FeatureReuseWarning
from zoestim.evaluation._evaluate import Evaluation, QueryError, evaluate
from zoestim.evaluation._inputs import (
    PRECISIONS,
    as_input,
    as_tensor,
    draw_seed,
    first_parameter,
    private_generator,
)
from zoestim.evaluation._loss import BatchLoss
from zoestim.evaluation._objective import Batch, Objective
from zoestim.evaluation._parameters import ParameterMap
from zoestim.evaluation._random import RandomState, unchanged_generators

__all__ = [
    "PRECISIONS",
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
    "as_input",
    "as_tensor",
    "draw_seed",
    "evaluate",
    "first_parameter",
    "private_generator",
    "unchanged_generators",
]
