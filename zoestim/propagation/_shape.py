"""Operations that only move elements: their changes are moved likewise."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from zoestim.propagation._change import Change, Dense, Entry, Slab, Value
from zoestim.propagation._pointwise import as_block
from zoestim.propagation._table import Site, rule


def whole(x: Value) -> Tensor:
    """Return a change as (k, *shape); no copy where a slab is all of its axis."""
    change = x.change
    if isinstance(change, Slab) and change.width == x.base.shape[change.dim]:
        return change.values.movedim(1, change.dim + 1)
    return x.dense()


# --- The same elements in the same order


@rule("view", "reshape", torch.reshape, "view_as", "reshape_as", torch.flatten, "flatten")
@rule("unflatten", torch.unflatten, "squeeze", torch.squeeze, "unsqueeze", torch.unsqueeze)
def reshape(site: Site, x: Value, *args: Any, **kwargs: Any) -> Any:
    """Change d, with the elements of each lane in the order that they had."""
    if any(isinstance(arg, torch.dtype) for arg in (*args, *kwargs.values())):
        return NotImplemented
    return reshaped(x, site.out.base.shape)


def reshaped(x: Value, shape: torch.Size) -> Change | None:
    """Return the change of a value in another shape with as many elements."""
    change = x.change
    if change is None or isinstance(change, Entry) or shape == x.base.shape:
        return change
    if isinstance(change, Slab):
        slab = _reshaped_slab(change, x.base.shape, shape)
        if slab is not None:
            return slab
    values = whole(x)
    return Dense(values.reshape(len(values), *shape))


def _reshaped_slab(change: Slab, old: torch.Size, new: torch.Size) -> Slab | None:
    """Return a slab of the axis that holds the old one with some of the axes after it."""
    before, size = math.prod(old[: change.dim]), old[change.dim]
    for dim, length in enumerate(new):
        if math.prod(new[:dim]) != before or not size or length % size or not new.numel():
            continue
        within = length // size
        if math.prod(old[change.dim + 1 :]) != within * math.prod(new[dim + 1 :]):
            continue
        n_lanes, width = change.values.shape[:2]
        values = change.values.reshape(n_lanes, width, before, within, -1).movedim(3, 2)
        rest = (*new[:dim], *new[dim + 1 :])
        values = values.reshape(n_lanes, width * within, *rest)
        return Slab(values, change.starts * within, dim)
    return None


@rule("contiguous", "clone", torch.clone, "detach", torch.detach)
def same(site: Site, x: Value, *args: Any, **kwargs: Any) -> Any:
    """Change d."""
    return x.change


@rule("to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda")
def converted(site: Site, x: Value, *args: Any, **kwargs: Any) -> Any:
    """Change d, where neither type nor device change."""
    old, new = x.base, site.out.base
    return x.change if (new.dtype, new.device) == (old.dtype, old.device) else NotImplemented


@rule("size", "dim", "ndimension", "numel", "nelement")
def measured(site: Site, x: Value, *args: Any) -> Any:
    """No change."""
    return None


# --- The axes in another order


def _reordering(name: str) -> Callable[..., Any]:
    def reorder(site: Site, x: Value, *args: Any, **kwargs: Any) -> Any:
        """Change d, with the axes of each lane in another order."""
        return permuted(x, getattr(_probe(x.base.ndim), name)(*args, **kwargs))

    return reorder


for _name in ("transpose", "swapaxes", "permute", "movedim", "t"):
    rule(getattr(torch, _name), _name)(_reordering(_name))


@rule(getattr)
def attribute(site: Site, x: Value, name: str) -> Any:
    """Change d, transposed for T and mT; shapes, types and devices do not change."""
    if name in ("shape", "dtype", "device", "ndim"):
        return None
    if name in ("T", "mT"):
        return permuted(x, getattr(_probe(x.base.ndim), name))
    return NotImplemented


def _probe(ndim: int) -> Tensor:
    """Return a tensor without elements in memory whose axis i is i + 1 long."""
    return torch.empty(tuple(range(1, ndim + 1)), device="meta")


def permuted(x: Value, probe: Tensor) -> Change | None:
    """Return the change of a value with its axes in the order of a probe's."""
    order, change = [size - 1 for size in probe.shape], x.change
    if change is None:
        return None
    if isinstance(change, Entry):
        position = list(torch.unravel_index(change.indices, x.base.shape))
        indices = torch.zeros_like(change.indices)
        for axis in order:
            indices = indices * x.base.shape[axis] + position[axis]
        return Entry(indices, change.steps)
    if isinstance(change, Slab):
        rest = [2 + axis - (axis > change.dim) for axis in order if axis != change.dim]
        return Slab(change.values.permute(0, 1, *rest), change.starts, order.index(change.dim))
    return Dense(change.values.permute(0, *(1 + axis for axis in order)))


# --- Pieces


@rule(operator.getitem)
def getitem(site: Site, x: Value, index: Any) -> Any:
    """Change d[index], lane by lane."""
    items = list(index) if isinstance(index, tuple) else [index]
    if any(isinstance(item, Value) and item.change is not None for item in items):
        return NotImplemented
    items = [item.base if isinstance(item, Value) else item for item in items]
    lists = [item for item in items if isinstance(item, Tensor | list)]
    if lists:
        # Two lists, or a list and a number, may move their axis before that of the lanes.
        if len(lists) > 1 or any(isinstance(item, int) for item in items):
            return NotImplemented
        return Dense(whole(x)[(slice(None), *items)])
    if not all(item is None or type(item) in (int, slice, type(...)) for item in items):
        return NotImplemented
    return _item(x, items)


def _item(x: Value, items: list[Any]) -> Change | None:
    """Return the change of a piece along each axis; ``items`` are as in ``x[*items]``."""
    change = as_block(x)
    n_axes = sum(item is not None and item is not Ellipsis for item in items)
    rest = [slice(None)] * (x.base.ndim - n_axes)
    at = items.index(Ellipsis) if Ellipsis in items else len(items)
    items = [*items[:at], *rest, *items[at + 1 :]]
    if isinstance(change, Dense):
        return Dense(change.values[(slice(None), *items)])
    axes = [position for position, item in enumerate(items) if item is not None]
    own = axes[change.dim]
    picked, size = items[own], x.base.shape[change.dim]
    if isinstance(picked, int):
        found = _cropped(change, range(size)[picked : picked % size + 1])
    else:
        found = _cropped(change, range(size)[picked])
    if found is None:
        return None
    values = found.values[(slice(None), slice(None), *items[:own], *items[own + 1 :])]
    dim = sum(not isinstance(item, int) for item in items[:own])
    if isinstance(picked, int):
        return Dense(values[:, 0])
    return Slab(values, found.starts, dim)


def _cropped(change: Slab, kept: range) -> Slab | None:
    """Return a slab where only some positions of its axis are kept, or None if it misses them."""
    width = min(-(-change.width // kept.step), len(kept))
    if kept == range(kept.stop) and len(kept) >= int(change.starts.max()) + change.width:
        return change
    first = -((kept.start - change.starts) // kept.step)  # the first kept one inside, from below
    starts = first.clamp(0, len(kept) - width)
    offsets = (kept.start + starts * kept.step - change.starts)[:, None]
    offsets = offsets + torch.arange(width) * kept.step
    inside = (offsets >= 0) & (offsets < change.width)
    if not inside.any():
        return None
    values = change.values
    if width < change.width or (offsets[:, 0] != 0).any():
        lanes = torch.arange(len(values))[:, None]
        flat = (lanes * change.width + offsets.clamp(0, change.width - 1)).flatten()
        rows = values.flatten(0, 1).index_select(0, flat.to(values.device, non_blocking=True))
        values = rows.unflatten(0, (-1, width))
    if not inside.all():
        mask = inside.view(*inside.shape, *[1] * (values.ndim - 2))
        values = values * mask.to(values.device, non_blocking=True)
    return Slab(values, starts, change.dim)


@rule(torch.chunk, "chunk", torch.split, "split", torch.tensor_split, "tensor_split")
def split(site: Site, x: Value, _sizes: Any = None, *args: Any, **kwargs: Any) -> Any:
    """Change of each piece: the piece of d."""
    dim = kwargs.get("dim", args[0] if args else 0)
    before = [slice(None)] * (dim % x.base.ndim)
    changes, start = [], 0
    for piece in site.out:
        stop = start + piece.base.shape[dim]
        changes.append(_item(x, [*before, slice(start, stop)]))
        start = stop
    return tuple(changes)


@rule(torch.unbind, "unbind")
def unbind(site: Site, x: Value, dim: int = 0) -> Any:
    """Change of each piece: the piece of d."""
    before = [slice(None)] * (dim % x.base.ndim)
    return tuple(_item(x, [*before, i]) for i in range(len(site.out)))


@rule(torch.narrow, "narrow")
def narrow(site: Site, x: Value, dim: int, start: int, length: int) -> Any:
    """Change of the piece: the piece of d."""
    start %= max(x.base.shape[dim], 1)
    return _item(x, [*[slice(None)] * (dim % x.base.ndim), slice(start, start + length)])


@rule(torch.select, "select")
def select(site: Site, x: Value, dim: int, index: int) -> Any:
    """Change of the piece: the piece of d."""
    return _item(x, [*[slice(None)] * (dim % x.base.ndim), index])
