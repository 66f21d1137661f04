"""One-channel propagation, Sec. 5: what becomes of a coordinate's change on its way to the loss."""

from zoestim.propagation import (  # noqa: F401  (they fill the table)
    _arithmetic,
    _batch_norm,
    _convolution,
    _dropout,
    _embedding,
    _joining,
    _linear,
    _normalization,
    _pointwise,
    _pooling,
    _shape,
    _transposed,
)
from zoestim.propagation._change import Change, Dense, Entry, Lanes, RankOne, Slab, Value
from zoestim.propagation._criterion import mean_divisor, sample_changes
from zoestim.propagation._largest import max_pool
from zoestim.propagation._lowering import Call, draws_nothing, lower
from zoestim.propagation._memory import addresses, joined, nbytes, settled
from zoestim.propagation._table import RULES, Site, rule, rule_of

__all__ = [
    "RULES",
    "Call",
    "Change",
    "Dense",
    "Entry",
    "Lanes",
    "RankOne",
    "Site",
    "Slab",
    "Value",
    "addresses",
    "draws_nothing",
    "joined",
    "lower",
    "max_pool",
    "mean_divisor",
    "nbytes",
    "rule",
    "rule_of",
    "sample_changes",
    "settled",
]
