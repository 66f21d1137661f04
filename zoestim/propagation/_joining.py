"""Operations that make larger tensors of the same elements: what is new does not change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoestim.propagation._change import Dense, Slab, Value
from zoestim.propagation._pointwise import as_block
from zoestim.propagation._shape import reshaped, whole
from zoestim.propagation._table import Site, rule

# --- Several tensors in one


@rule(torch.cat, torch.concat, torch.concatenate)
def cat(site: Site, tensors: Sequence[Value], dim: int = 0) -> Any:
    """Change of each piece at its place, zeros elsewhere."""
    if any(piece.base.ndim != site.out.base.ndim for piece in tensors):
        return NotImplemented
    return _joined(tensors, dim % site.out.base.ndim, site.out.base)


@rule(torch.stack)
def stack(site: Site, tensors: Sequence[Value], dim: int = 0) -> Any:
    """Change of each layer at its place, zeros elsewhere."""
    dim %= site.out.base.ndim
    layers = []
    for layer in tensors:
        base = layer.base.unsqueeze(dim)
        layers.append(Value(base, reshaped(layer, base.shape)))
    return _joined(layers, dim, site.out.base)


def _joined(pieces: Sequence[Value], dim: int, out: Tensor) -> Slab | Dense | None:
    """Return the change of pieces along an axis: a slab from the first that changes to the last."""
    offset, placed = 0, []
    for piece in pieces:
        if piece.change is not None:
            placed.append((offset, converted_to(as_block(piece), out.dtype), piece.base.shape[dim]))
        offset += piece.base.shape[dim]
    blocks = [block for _, block, _ in placed]
    if len(placed) == 1:
        start, block, _ = placed[0]
        if isinstance(block, Slab) and block.dim == dim:
            return Slab(block.values, block.starts + start, block.dim)
        if isinstance(block, Dense):
            starts = torch.full((len(block.values),), start)
            return Slab(block.values.movedim(dim + 1, 1), starts, dim)
    if blocks[0].__class__ is Slab and blocks[0].dim != dim and alike(blocks):
        return _beside(pieces, dim, out, blocks[0])
    extents = [_extent(*each, dim) for each in placed]
    low, high = min(low for low, _ in extents), max(high for _, high in extents)
    shape = (*out.shape[:dim], high - low, *out.shape[dim + 1 :])
    full = zeros(blocks, shape)
    for (start, stop), block in zip(extents, blocks, strict=True):
        region = full.narrow(dim + 1, start - low, stop - start)
        if isinstance(block, Dense):
            region.copy_(block.values)
            continue
        own = block.dim == dim
        starts = block.starts - block.starts.min() if own else block.starts
        Slab(block.values, starts, block.dim).add_to(region)
    if high - low == out.shape[dim]:
        return Dense(full)
    return Slab(full.movedim(dim + 1, 1), torch.full((len(full),), low), dim)


def alike(blocks: Sequence[Slab | Dense]) -> bool:
    """Return whether all blocks are slabs that cover the same positions of one axis."""
    first = blocks[0]
    return isinstance(first, Slab) and all(
        isinstance(block, Slab)
        and (block.dim, block.width) == (first.dim, first.width)
        and (block.starts is first.starts or torch.equal(block.starts, first.starts))
        for block in blocks
    )


def _beside(pieces: Sequence[Value], dim: int, out: Tensor, like: Slab) -> Slab:
    """Join slabs of one axis along another one."""
    axis = 2 + dim - (dim > like.dim)
    parts = []
    for piece in pieces:
        if piece.change is not None:
            parts.append(converted_to(as_block(piece), out.dtype).values)
        else:
            shape = list(like.values.shape)
            shape[axis] = piece.base.shape[dim]
            parts.append(like.values.new_zeros(()).expand(shape))
    return like.with_values(torch.cat(parts, axis))


def _extent(offset: int, block: Slab | Dense, size: int, dim: int) -> tuple[int, int]:
    """Return from where to where some lane of a piece changes, along an axis of the whole."""
    if isinstance(block, Slab) and block.dim == dim:
        first, last = int(block.starts.min()), int(block.starts.max())
        return offset + first, offset + last + block.width
    return offset, offset + size


def zeros(blocks: Sequence[Slab | Dense], shape: Sequence[int]) -> Tensor:
    """Return zeros for the lanes of some blocks, laid out in memory as a dense one of them is."""
    values = next((block.values for block in blocks if isinstance(block, Dense)), None)
    if values is None:
        return blocks[0].values.new_zeros(len(blocks[0].values), *shape)
    order = sorted(range(values.ndim), key=values.stride().__getitem__, reverse=True)
    full = (len(values), *shape)
    zeros = values.new_zeros([full[axis] for axis in order])
    return zeros.permute([order.index(axis) for axis in range(values.ndim)])


def converted_to(block: Slab | Dense, dtype: torch.dtype) -> Slab | Dense:
    if block.values.dtype == dtype:
        return block
    values = block.values.to(dtype)
    return block.with_values(values)


# --- Larger tensors of the same elements


@rule(F.pad)
def pad(
    site: Site, x: Value, pad: Sequence[int], mode: str = "constant", value: float | None = None
) -> Any:
    """Change d, with zeros around it (or d itself, where a border repeats x)."""
    sides = [(0, 0)] * (x.base.ndim - len(pad) // 2)
    sides += [(pad[i], pad[i + 1]) for i in range(len(pad) - 2, -1, -2)]
    change = as_block(x)
    if isinstance(change, Slab):
        own = sides[change.dim]
        rest = [*sides[: change.dim], *sides[change.dim + 1 :]]
        moving = mode == "constant" and min(own) >= 0
        if moving or own == (0, 0):
            values = _padded(change.values, rest, mode)
            return Slab(values, change.starts + own[0], change.dim)
    padded = [axis for axis, side in enumerate(sides) if side != (0, 0)]
    if mode == "constant" and len(padded) == 1 and min(sides[padded[0]]) >= 0:
        values, (dim,) = whole(x).movedim(1 + padded[0], 1), padded
        return Slab(values, torch.full((len(values),), sides[dim][0]), dim)
    return Dense(_padded(whole(x), sides, mode))


def _padded(values: Tensor, sides: Sequence[tuple[int, int]], mode: str) -> Tensor:
    """Pad each lane; lanes are images of one batch, whose layout in memory torch keeps."""
    changing = [axis for axis, side in enumerate(sides) if side != (0, 0)]
    if not changing:
        return values
    amounts = [amount for side in reversed(sides[changing[0] :]) for amount in side]
    n_leading = values.ndim - len(sides)  # the lanes, and the width of a slab
    n_folded = n_leading + (len(sides) > 1 and changing[0] > 0)
    return F.pad(values.flatten(0, n_folded - 1), amounts, mode).unflatten(
        0, values.shape[:n_folded]
    )


def _aligned(values: Tensor, n_leading: int, ndim: int) -> Tensor:
    """Give each lane ``ndim`` axes: new ones come first."""
    new = ndim + n_leading - values.ndim
    return values[(*[slice(None)] * n_leading, *[None] * new)]


def broadcast(x: Value, shape: torch.Size) -> Slab | Dense:
    """Return the change of a value that is broadcast to a shape."""
    change, ndim = as_block(x), len(shape)
    if x.base.shape == shape:
        return change
    if isinstance(change, Slab):
        dim = change.dim + ndim - x.base.ndim
        if x.base.shape[change.dim] == shape[dim]:
            rest = (*shape[:dim], *shape[dim + 1 :])
            values = _aligned(change.values, 2, ndim - 1).expand(-1, -1, *rest)
            return Slab(values, change.starts, dim)
    return Dense(_aligned(whole(x), 1, ndim).expand(-1, *shape))


@rule("expand", "expand_as", torch.broadcast_to, "broadcast_to")
def expand(site: Site, x: Value, *args: Any, **kwargs: Any) -> Any:
    """Change d, repeated."""
    return None if x.change is None else broadcast(x, site.out.base.shape)


@rule("repeat", "tile", torch.tile)
def repeat(site: Site, x: Value, *args: Any, **kwargs: Any) -> Any:
    """Change d, repeated."""
    change, shape = as_block(x), site.out.base.shape
    ndim = len(shape)
    sizes = [1] * (ndim - x.base.ndim) + list(x.base.shape)
    times = [new // max(old, 1) for new, old in zip(shape, sizes, strict=True)]
    if isinstance(change, Slab):
        dim = change.dim + ndim - x.base.ndim
        if times.pop(dim) == 1:
            values = _aligned(change.values, 2, ndim - 1).repeat(1, 1, *times)
            return Slab(values, change.starts, dim)
        times.insert(dim, shape[dim] // sizes[dim])
    return Dense(_aligned(whole(x), 1, ndim).repeat(1, *times))
