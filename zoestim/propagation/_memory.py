"""Where changes lie, how much they take, and how those of several pieces are joined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
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


def joined(pieces: list[Any], sizes: Sequence[int]) -> Any:
    """Join the lanes of some pieces: trees of Values of one and the same unperturbed value.

    Parameters
    ----------
    pieces : list of tree
        What each piece gave.
    sizes : sequence of int
        How many lanes each has.
    """
    return pytree.tree_map(lambda *values: _join(values, sizes), *pieces)


def _join(values: tuple[Any, ...], sizes: Sequence[int]) -> Any:
    first = values[0]
    if not isinstance(first, Value) or all(value.change is None for value in values):
        return first
    changes = [value.change for value in values]
    if len({_form(change) for change in changes}) == 1:
        return first.changed(_cat(changes))
    if any(isinstance(change, Lanes) for change in changes):
        return first.changed(Lanes(torch.cat(list(map(_own_values, values, sizes)))))
    return first.changed(Dense(torch.cat(list(map(_all_changes, values, sizes)))))


def _form(change: Any) -> Any:
    """Return what changes have to agree in to be joined as what they are."""
    if isinstance(change, RankOne):
        return RankOne, id(change.table)
    if isinstance(change, Slab):
        return Slab, change.dim, change.width
    return Dense if isinstance(change, Dense) else type(change)


def _cat(changes: list[Any]) -> Change | Lanes:
    first = changes[0]
    if isinstance(first, RankOne):
        column = torch.cat([change.column for change in changes])
        return RankOne(column, torch.cat([change.features for change in changes]), first.table)
    if isinstance(first, Entry):
        indices = torch.cat([change.indices for change in changes])
        return Entry(indices, torch.cat([change.steps for change in changes]))
    values = torch.cat([change.values for change in changes])
    if isinstance(first, Slab):
        return Slab(values, torch.cat([change.starts for change in changes]), first.dim)
    return Lanes(values) if isinstance(first, Lanes) else Dense(values)


def _all_changes(value: Value, size: int) -> Tensor:
    if value.change is None:
        return torch.zeros_like(value.base).expand(size, *value.base.shape)
    return value.dense()


def _own_values(value: Value, size: int) -> Tensor:
    return (
        value.base.expand(size, *value.base.shape) if value.change is None else value.change.values
    )
