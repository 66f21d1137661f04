"""Linear layers and embeddings: a weight moves one feature, one feature is a rank-one update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoestim.propagation._change import Change, Dense, Entry, RankOne, Slab, Value, rows_of
from zoestim.propagation._table import Site, moves, rule


@rule(F.linear)
def linear(site: Site, x: Value, weight: Value, bias: Value | None = None) -> Any:
    """Change ``x @ weight.T + bias`` by the one of the three that changes."""
    if moves(x, weight, bias) != 1:
        return NotImplemented
    if bias is not None and bias.change is not None:
        return _of_bias(bias, x.base)
    if weight.change is not None:
        return _of_weight(site, x, weight)
    return _of_input(site, x, weight)


def _of_bias(bias: Value, x: Tensor) -> Change:
    rest, dim = x.shape[:-1], x.ndim - 1
    if isinstance(bias.change, Entry):
        steps = bias.change.steps.view(-1, 1, *[1] * len(rest))
        return Slab(steps.expand(-1, 1, *rest), bias.change.indices, dim)
    moved = bias.dense()
    return Dense(moved.view(len(moved), *[1] * len(rest), -1).expand(-1, *rest, -1))


def _of_weight(site: Site, x: Value, weight: Value) -> Change:
    change, n_inputs = weight.change, weight.base.shape[1]
    if isinstance(change, Entry):
        values = rows_of(x.derived(_features), change.indices % n_inputs)
        values *= change.steps.view(-1, *[1] * (values.ndim - 1))
        return Slab(values[:, None], change.indices // n_inputs, x.base.ndim - 1)
    moved = weight.dense()
    # All lanes see one input: their weights are stacked into one product.
    product = site.multiply(torch.matmul, x.base, moved.flatten(0, 1).t())
    return Dense(product.unflatten(-1, (len(moved), -1)).movedim(-2, 0))


def _features(x: Tensor) -> Tensor:
    return x.movedim(-1, 0).contiguous()


def _of_input(site: Site, x: Value, weight: Value) -> Change:
    change = x.change
    if not isinstance(change, Slab):
        return Dense(site.multiply(torch.matmul, x.dense(), weight.base.t()))
    if change.dim != x.base.ndim - 1:  # other axes only repeat the layer
        moved = site.multiply(torch.matmul, change.values, weight.base.t())
        return Slab(moved, change.starts, change.dim)
    columns = weight.derived(_features)  # (n_inputs, n_outputs)
    if change.width == 1:
        return RankOne(change.values[:, 0], change.starts, columns)
    values = change.values.flatten(2).transpose(1, 2)  # (k, rest, width)
    if change.start is not None:
        rows = columns.narrow(0, change.start, change.width)
        product = site.multiply(torch.matmul, values, rows)
    else:
        product = site.multiply(torch.bmm, values, rows_of(columns, change.positions()))
    return Dense(product.unflatten(1, change.values.shape[2:]))
