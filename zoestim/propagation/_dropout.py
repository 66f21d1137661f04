"""Dropout: every query draws the mask that the unperturbed pass drew."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoestim.propagation._change import Value
from zoestim.propagation._pointwise import elementwise
from zoestim.propagation._table import Site, rule


def _dropout(function: Callable[..., Tensor]) -> Callable[..., Any]:
    """Return the rule d m, where m is what the draws make of ones."""

    def dropout(
        site: Site, input: Value, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Any:
        if not training:
            return input.change
        if dropout not in site.out.memo:
            mask = site.replay(lambda: function(torch.ones_like(input.base), p))
            site.out.memo[dropout] = Value(mask)
        mask = site.out.memo[dropout]
        return elementwise(input, lambda d, change: d * mask.part(change))

    return dropout


for _function in (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d):
    rule(_function)(_dropout(_function))


@rule(F.alpha_dropout, F.feature_alpha_dropout)
def alpha_dropout(
    site: Site, input: Value, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Any:
    """Change nothing but in training, where the mask also shifts."""
    return NotImplemented if training else input.change
