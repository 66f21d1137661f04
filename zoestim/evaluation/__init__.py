"""From queries to losses, Sec. 5: feature reuse, folding, black boxes."""

from zoestim.evaluation._black_box import BlackBox, Meter, Spent
from zoestim.evaluation._cost import Cost, assumed, counted, measure
from zoestim.evaluation._cut import FeatureReuse, FeatureReuseWarning, has_boxes
from zoestim.evaluation._evaluate import Asking, Evaluation, evaluate, unchanged_attributes
from zoestim.evaluation._inputs import (
    MATRIX_TYPES,
    PRECISIONS,
    as_input,
    as_tensor,
    draw_seed,
    first_parameter,
    private_generator,
    shared_generator,
)
from zoestim.evaluation._journal import Journal
from zoestim.evaluation._lanes import in_brief, out_of_memory
from zoestim.evaluation._loss import BatchLoss
from zoestim.evaluation._objective import Batch, Objective
from zoestim.evaluation._parameters import ParameterMap
from zoestim.evaluation._patience import MAX_RETRIES, Patience
from zoestim.evaluation._propagate import Propagation, Visit
from zoestim.evaluation._query_error import QueryError
from zoestim.evaluation._random import RandomState, drawing_from, unchanged_generators
from zoestim.evaluation._repeat import evaluate_mean
from zoestim.evaluation._round import Record
from zoestim.evaluation._state_hash import hash_of, state_hash

__all__ = [
    "MATRIX_TYPES",
    "MAX_RETRIES",
    "PRECISIONS",
    "Asking",
    "Batch",
    "BatchLoss",
    "BlackBox",
    "Cost",
    "Evaluation",
    "FeatureReuse",
    "FeatureReuseWarning",
    "Journal",
    "Meter",
    "Objective",
    "ParameterMap",
    "Patience",
    "Propagation",
    "QueryError",
    "RandomState",
    "Record",
    "Spent",
    "Visit",
    "as_input",
    "as_tensor",
    "assumed",
    "counted",
    "draw_seed",
    "drawing_from",
    "evaluate",
    "evaluate_mean",
    "first_parameter",
    "has_boxes",
    "hash_of",
    "in_brief",
    "measure",
    "out_of_memory",
    "private_generator",
    "shared_generator",
    "state_hash",
    "unchanged_attributes",
    "unchanged_generators",
]
