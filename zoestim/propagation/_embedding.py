"""Embeddings: one element of the table moves one feature of the tokens that look its row up."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoestim.propagation._change import Dense, Entry, Slab, Value
from zoestim.propagation._table import Site, rule


@rule(F.embedding)
def embedding(
    site: Site,
    input: Value,
    weight: Value,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    """Change ``weight[input]``; an entry (r, j) moves feature j where the token is r."""
    if max_norm is not None or input.change is not None:
        return NotImplemented
    tokens, change = input.base, weight.change
    if isinstance(change, Entry):
        values = _where_token(tokens, change, weight.base.shape[1])
        return _feature(values, change, weight.base.shape[1], tokens.ndim)
    return Dense(weight.dense()[:, tokens])


@rule(F.embedding_bag)
def embedding_bag(
    site: Site,
    input: Value,
    weight: Value,
    offsets: Value | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Value | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    """Change the sum or mean of ``weight[input]`` over bags of shape (n, length)."""
    ragged = offsets is not None or per_sample_weights is not None or input.base.ndim != 2
    if ragged or max_norm is not None or input.change is not None or mode not in ("mean", "sum"):
        return NotImplemented
    tokens, change = input.base, weight.change
    if padding_idx is not None:
        padding_idx %= len(weight.base)
    shares = input.derived(_shares, mode, padding_idx, weight.base.dtype)
    if isinstance(change, Entry):
        values = _where_token(tokens, change, weight.base.shape[1])
        return _feature((values * shares).sum(-1), change, weight.base.shape[1], 1)
    return Dense((weight.dense()[:, tokens] * shares[..., None]).sum(-2))


def _where_token(tokens: Tensor, change: Entry, n_features: int) -> Tensor:
    """Return each lane's step where the token is the row that it moves, (k, *tokens)."""
    along = (-1, *[1] * tokens.ndim)
    rows = (change.indices // n_features).to(tokens.device).view(along)
    return (tokens == rows) * change.steps.view(along)


def _feature(values: Tensor, change: Entry, n_features: int, dim: int) -> Slab:
    return Slab(values[:, None], change.indices % n_features, dim)


def _shares(tokens: Tensor, mode: str, padding_idx: int | None, kind: torch.dtype) -> Tensor:
    """Return what each token counts in its bag."""
    counts = torch.ones_like(tokens) if padding_idx is None else (tokens != padding_idx).long()
    if mode == "mean":
        return counts / counts.sum(1, keepdim=True).clamp(min=1).to(kind)
    return counts.to(kind)
