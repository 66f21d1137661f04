"""The change of the largest element of each window: no element is subtracted from another."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoestim.propagation._change import Dense, Slab, Value
from zoestim.propagation._made import Made, blank
from zoestim.propagation._normalization import Normal
from zoestim.propagation._normalized import Normalized, NormalizedSlabs, Origin
from zoestim.propagation._pending import Pending
from zoestim.propagation._pointwise import as_block
from zoestim.propagation._shape import whole
from zoestim.propagation._table import Site
from zoestim.propagation._tiles import by_lane
from zoestim.propagation._window import Window, each_axis


def block_of_planes(x: Value, n_axes: int) -> Slab | Dense:
    """Return a change that holds whole planes: all of the trailing axes."""
    change = as_block(x)
    if isinstance(change, Slab) and change.dim >= x.base.ndim - n_axes:
        return Dense(whole(x))
    return change


def largest(site: Site, x: Value, window: Window) -> Slab | Dense:
    """Return the change of the largest element of each window, max(b + d) - max(b).

    The distance of an element from the largest one of its window takes the place of b: then
    there is nothing to subtract. It is kept where each element is in one window alone.
    """
    n_axes = len(window.size)
    edges = window.edges(x.base.shape[-n_axes:])
    normalized = isinstance(x.change, Normalized | NormalizedSlabs)
    # What passed an addition has the same change, but not the same elements.
    if normalized and x.change.out is x.base and not (window.overlaps or any(edges)):
        return _largest_of_normalized(x.change.origin, window)
    change = block_of_planes(x, n_axes)
    if any(edges):
        change = change.with_values(_padded(change.values, edges))
    if window.overlaps:
        return _largest_of_overlapping(site, x, change, window)
    if isinstance(change, Made):
        return _largest_of_made(change, change.beside(x.planes(change, _gap, window)), window)
    gap = x.elements(change, _gap, window)
    if isinstance(change, Pending):
        return Dense(_Slide(change.plus(gap).values, window)())
    lanes = [_slide(d, below, window) for d, below in by_lane(change.values, gap)]
    return change.with_values(torch.cat(lanes) if len(lanes) > 1 else lanes[0])


def _largest_of_made(change: Made, gap: list[Tensor], window: Window) -> Made:
    """Take each lane's largest elements while it is in the cache."""
    scratch = change.blank(1)
    slide = _Slide(scratch, window)

    def make(k: int, out: Tensor, onto: Tensor | None) -> None:
        change.make(k, scratch, gap[k])
        slide(out)
        if onto is not None:
            out.add_(onto)

    rest = *change.rest[: -len(window.size)], *window.size
    return Made(
        change.starts, change.dim, rest, change.like, make, change.offsets, width=change.width
    )


def _largest_of_normalized(origin: Origin, window: Window) -> Made:
    """Look for the largest elements first, and normalise them alone.

    A normalisation keeps the order of a channel's elements. Where its gain is negative, it
    turns it round: those of the largest -d are looked for.
    """
    gain, given = origin.gain, origin.made
    turned = None if gain is None or bool((gain > 0).all()) else tuple((gain < 0).tolist())
    top, away, turns = origin.x.derived(_extremes, origin.normal, window, turned)
    tops, aways, scratch = given.beside(top), given.beside(away), given.blank(1)
    scale, slope, shift = origin.moved
    if given.offsets is not None:
        shift = torch.addcmul(shift, given.offsets, scale)
    signs = None if turned is None else given.beside(turns)
    scale = scale if signs is None else scale * torch.cat(signs)
    slide, rest = _Slide(scratch, window), tuple(top.shape[1:])
    found = blank(top, (1, given.width), rest)

    def make(k: int, out: Tensor, onto: Tensor | None) -> None:
        given.make(k, scratch, aways[k])
        if signs is not None:
            scratch.mul_(signs[k])
        if onto is None:
            slide(out).mul_(scale[k]).addcmul_(tops[k], slope[k])
        else:
            torch.addcmul(onto, tops[k], slope[k], out=out).addcmul_(slide(found), scale[k])

    return Made(given.starts, 1, rest, given.like, make, shift, width=given.width)


def _extremes(
    x: Tensor, normal: Normal, window: Window, turned: tuple[bool, ...] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the z that is largest in each window, how far away from it x is, and the signs.

    Where a channel is turned round, that is the smallest z.
    """
    z, inverse = normal.z, normal.inverse.to(x.dtype)
    turns = torch.ones_like(inverse)
    if turned is not None:
        turns[list(turned)] = -1
    away = z * (turns / inverse)
    top = _take_largest(away, window)
    return top.mul_(turns * inverse), away if turned is None else away.mul_(turns), turns


def max_pool(module: nn.MaxPool2d, x: Tensor) -> Tensor | None:
    """Return what a module returns whose windows are side by side, or None for others.

    Much faster than torch's own on a CPU, which also finds out where the largest elements are.
    """
    size = each_axis(module.kernel_size, 2)
    plain = size == each_axis(module.stride, 2) and not any(each_axis(module.padding, 2))
    plain = plain and set(each_axis(module.dilation, 2)) == {1} and not module.return_indices
    own = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    fits = x.ndim == 4 and not any(n % k for n, k in zip(x.shape[2:], size, strict=True))
    if own or not (plain and fits) or x.device.type != "cpu" or not x.is_floating_point():
        return None
    shape = x.shape[2] // size[0], x.shape[3] // size[1]
    window = Window(size, size, (1, 1), (0, 0), shape)
    found = functools.reduce(torch.maximum, window.along(x, 0))
    return functools.reduce(torch.maximum, window.along(found, 1))


def _padded(values: Tensor, edges: Sequence[int]) -> Tensor:
    """Pad planes with zeros; as images of one batch they keep their layout in memory."""
    return F.pad(values.flatten(0, 1), edges).unflatten(0, values.shape[:2])


def _padded_base(b: Tensor, window: Window) -> Tensor:
    return window.pad(b, -math.inf)


def _gap(b: Tensor, window: Window) -> Tensor:
    """Return by how much each element is below the largest one of its window."""
    padded = _padded_base(b, window)
    _take_largest(padded, window)
    return padded


def _take_largest(padded: Tensor, window: Window) -> Tensor:
    """Return the largest element of each window, and subtract it there."""
    largest = _slide(padded.new_zeros(()).expand(padded.shape), padded, window)
    for tap in window.taps(padded):
        tap -= largest
    return largest


def _slide(d: Tensor, base: Tensor, window: Window) -> Tensor:
    """Return the largest element of base + d in each window: along one axis, then the next.

    Much faster than torch's own maximum over one plane after the other.
    """
    found = _largest_sum(window.along(d, 0), window.along(base, 0))
    return _Slide(found, window, 1)()


class _Slide:
    """Looks for the largest element in each window, along one axis, then the next.

    Parameters
    ----------
    planes : Tensor of shape (..., *size)
        What the windows share without overlap; it is written to.
    window : Window
        How they lie.
    first : int, default=0
        The axis to begin with.
    """

    def __init__(self, planes: Tensor, window: Window, first: int = 0):
        self.pairs: list[tuple[Tensor, Tensor]] = []
        for axis, length in enumerate(window.kernel[first:], first):
            if length > 1:
                planes, *taps = window.along(planes, axis)
                self.pairs += [(planes, tap) for tap in taps]
        self.planes = planes

    def __call__(self, out: Tensor | None = None) -> Tensor:
        """Return the largest elements, of what is now in the planes."""
        if not self.pairs:
            return self.planes if out is None else out.copy_(self.planes)
        *others, last = self.pairs
        for found, tap in others:
            torch.maximum(found, tap, out=found)
        return torch.maximum(*last, out=out)


def _largest_sum(moved: Iterable[Tensor], bases: Iterable[Tensor]) -> Tensor:
    """Return the largest of some sums; one at a time, since fresh memory costs more than they."""
    found = scratch = None
    for d, base in zip(moved, bases, strict=True):
        if found is None:
            found = d + base
        else:
            scratch = torch.add(d, base, out=scratch)
            torch.maximum(found, scratch, out=found)
    return found  # type: ignore[return-value]


def _largest_of_overlapping(
    site: Site, x: Value, padded: Slab | Dense, window: Window
) -> Slab | Dense:
    moved = window.taps(padded.values)
    largest = site.out.part(padded.with_values(torch.empty_like(moved[0])))
    bases = window.taps(x.part(padded, _padded_base, window))
    return padded.with_values(_largest_sum(moved, (base - largest for base in bases)))
