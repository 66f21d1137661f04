"""Where changes lie, how much they take, and how those of several pieces are joined."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree

from zoestim.propagation._change import Change, Dense, Entry, Lanes, RankOne, Slab, Value
from zoestim.propagation._made import Made
from zoestim.propagation._normalized import Normalized
from zoestim.propagation._pending import Pending
from zoestim.propagation._product import Product


def nbytes(value: Any) -> int:
    """Return how many bytes the change of a value takes."""
    change = value.change if isinstance(value, Value) else None
    if isinstance(change, RankOne):
        return change.column.nbytes
    if isinstance(change, Made | Pending | Product):
        return change.nbytes
    return change.values.nbytes if isinstance(change, Slab | Dense | Lanes) else 0


def addresses(value: Any) -> Iterator[int]:
    """Give where the change of a value lies."""
    change = value.change if isinstance(value, Value) else None
    if isinstance(change, Made | Product | Normalized):
        return
    if isinstance(change, Pending):
        yield change.source.untyped_storage().data_ptr()
        return
    tensor = change.steps if isinstance(change, Entry) else getattr(change, "values", None)
    if tensor is not None:
        yield tensor.untyped_storage().data_ptr()


def settled(value: Value) -> Value:
    """Compute what is computed when asked, before two ask."""
    if isinstance(value.change, RankOne | Pending | Product):
        return value.changed(Dense(value.change.values))
    if isinstance(value.change, Made):
        return value.changed(value.change.with_values(value.change.values))
    return value


def joined(pieces: list[Any]) -> Any:
    """Join the lanes of some pieces: trees of Values of one and the same unperturbed value."""
    return pytree.tree_map(lambda *values: _join(values), *pieces)


def _join(values: tuple[Any, ...]) -> Any:
    first = values[0]
    if not isinstance(first, Value) or first.change is None:
        return first
    return first.changed(_cat([value.change for value in values], first))


def _cat(changes: list[Any], value: Value) -> Change | Lanes:
    first = changes[0]
    if isinstance(first, RankOne):
        column = torch.cat([change.column for change in changes])
        return RankOne(column, torch.cat([change.features for change in changes]), first.table)
    if isinstance(first, Slab):
        starts = torch.cat([change.starts for change in changes])
        return Slab(torch.cat([change.values for change in changes]), starts, first.dim)
    if isinstance(first, Lanes):
        return Lanes(torch.cat([change.values for change in changes]))
    return Dense(torch.cat([change.dense(value.base.shape) for change in changes]))
