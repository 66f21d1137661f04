"""Training on a skorch net: Alg. 1 and 2 a step at a time, and what happens around them."""

from zoestim.training._asking import asking_of, main_device
from zoestim.training._build import PLAIN, make_net, same_setting
from zoestim.training._callbacks import Progress
from zoestim.training._chain import Chain, ChainStep, row_slopes
from zoestim.training._net import ArrayBatches, in_memory
from zoestim.training._query_log import QueryLog
from zoestim.training._session import prepare
from zoestim.training._sklearn_callbacks import CallbackSupportMixin
from zoestim.training._step import StepSettings, TrainingStep

__all__ = [
    "PLAIN",
    "ArrayBatches",
    "CallbackSupportMixin",
    "Chain",
    "ChainStep",
    "Progress",
    "QueryLog",
    "StepSettings",
    "TrainingStep",
    "asking_of",
    "in_memory",
    "main_device",
    "make_net",
    "prepare",
    "row_slopes",
    "same_setting",
]
