"""What suits the processor: pieces that stay in its cache, and no waiting for a device."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Elements of a tile: with those that lie beside it, they fit into the cache of one core.
TILE = 2**16


def may_hold(mask: Tensor) -> bool:
    """Return whether a mask holds somewhere; on a device, where asking would wait, True."""
    return mask.device.type != "cpu" or bool(mask.any())


def all_within(values: Tensor, bound: float) -> bool:
    """Return whether all absolute values are below a bound; on a device, False without asking."""
    if values.device.type != "cpu" or values.numel() == 0:
        return False
    least, most = torch.aminmax(values)
    return bool(-bound < least) and bool(most < bound)


def by_lane(values: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Give large lanes one by one, small ones and those on a device all together.

    Parameters
    ----------
    values : Tensor of shape (k, ...)
        Lanes.
    *others : Tensor of shape (1 or k, ...)
        What belongs to all lanes, or to one each.
    """
    n_lanes = values.shape[0]
    if values.device.type != "cpu" or values.numel() < TILE * n_lanes:
        yield values, *others
        return
    given = values, *others
    for k in range(n_lanes):
        yield tuple(t.narrow(0, k, 1) if t.shape[0] > 1 else t for t in given)


def tiles(values: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Give tiles of large lanes, for operations on single elements.

    Tensors that do not lie in memory alike are given whole, and so are those on a device.

    Parameters
    ----------
    values : Tensor of shape (k, ...)
        Lanes.
    *others : Tensor of shape (1 or k, ...)
        What lies beside all lanes, or beside one each.
    """
    given = values, *others
    large = values.device.type == "cpu" and values.numel() >= 4 * TILE
    if not large or not all(_lies_as(t, values) for t in given):
        yield given
        return
    n_elements = values[0].numel()
    flat = [t.as_strided((len(t), n_elements), (t.stride(0), 1)) for t in given]
    for lanes in by_lane(*flat):
        if len(lanes[0]) > 1:
            yield lanes
        else:
            pieces = -(-n_elements // TILE)
            yield from zip(*(lane.chunk(pieces, 1) for lane in lanes), strict=True)


def _lies_as(tensor: Tensor, values: Tensor) -> bool:
    """Return whether lanes lie in one piece of memory, in the same order."""
    if tensor.shape[1:] != values.shape[1:]:
        return False
    axes = [axis for axis in range(1, values.ndim) if values.shape[axis] > 1]
    reach = 1 + sum((values.shape[axis] - 1) * values.stride(axis) for axis in axes)
    alike = all(tensor.stride(axis) == values.stride(axis) > 0 for axis in axes)
    return alike and reach == values[0].numel()
