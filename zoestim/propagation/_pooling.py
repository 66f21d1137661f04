"""Pooling: averages move with the change, largest elements are looked for again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoestim.propagation._change import Dense, Slab, Value
from zoestim.propagation._made import Made
from zoestim.propagation._pending import Pending
from zoestim.propagation._pointwise import as_block
from zoestim.propagation._shape import whole
from zoestim.propagation._table import Site, rule
from zoestim.propagation._tiles import by_lane
from zoestim.propagation._window import Window, each_axis

# Elements of a kernel up to which sums of shifted planes are faster than torch's own average.
_SMALL = 9


def _window(
    out: Tensor, n_axes: int, kernel: Any, stride: Any, padding: Any, dilation: Any = 1
) -> Window:
    stride = kernel if stride in (None, (), []) else stride
    kernel, stride, padding, dilation = (
        each_axis(numbers, n_axes) for numbers in (kernel, stride, padding, dilation)
    )
    return Window(kernel, stride, dilation, padding, tuple(out.shape[-n_axes:]))


def _block(x: Value, n_axes: int) -> Slab | Dense:
    """Return a change that holds whole planes: all of the trailing axes."""
    change = as_block(x)
    if isinstance(change, Slab) and change.dim >= x.base.ndim - n_axes:
        return Dense(whole(x))
    return change


def _with_values(block: Slab | Dense, values: Tensor) -> Slab | Dense:
    return block.with_values(values) if isinstance(block, Slab) else Dense(values)


# --- The largest element


def _largest(site: Site, x: Value, window: Window) -> Slab | Dense:
    """Return the change of the largest element of each window, max(b + d) - max(b).

    The distance of an element from the largest one of its window takes the place of b: then
    there is nothing to subtract. It is kept where each element is in one window alone.
    """
    n_axes = len(window.size)
    change = _block(x, n_axes)
    edges = window.edges(x.base.shape[-n_axes:])
    if any(edges):
        change = _with_values(change, _padded(change.values, edges))
    if window.overlaps:
        return _largest_of_overlapping(site, x, change, window)
    if isinstance(change, Made):
        return _largest_of_made(change, change.beside(x.planes(change, _gap, window)), window)
    gap = x.elements(change, _gap, window)
    if isinstance(change, Pending):
        return Dense(_slide_one(change.plus(gap).values, window))
    lanes = [_slide(d, below, window) for d, below in by_lane(change.values, gap)]
    return _with_values(change, torch.cat(lanes) if len(lanes) > 1 else lanes[0])


def _largest_of_made(change: Made, gap: list[Tensor], window: Window) -> Made:
    """Take each lane's largest elements while it is in the cache."""
    scratch = change.blank(1)

    def make(k: int, out: Tensor, onto: Tensor | None) -> None:
        change.make(k, scratch, gap[k])
        _slide_one(scratch, window, out=out)
        if onto is not None:
            out.add_(onto)

    rest = *change.rest[: -len(window.size)], *window.size
    return Made(change.starts, change.dim, rest, change.like, make, change.offsets)


def _padded(values: Tensor, edges: Sequence[int]) -> Tensor:
    """Pad planes with zeros; as images of one batch they keep their layout in memory."""
    return F.pad(values.flatten(0, 1), edges).unflatten(0, values.shape[:2])


def _padded_base(b: Tensor, window: Window) -> Tensor:
    return window.pad(b, -math.inf)


def _gap(b: Tensor, window: Window) -> Tensor:
    """Return by how much each element is below the largest one of its window."""
    padded = _padded_base(b, window)
    largest = _slide(b.new_zeros(()).expand(padded.shape), padded, window)
    for tap in window.taps(padded):
        tap -= largest
    return padded


def _slide(d: Tensor, base: Tensor, window: Window) -> Tensor:
    """Return the largest element of base + d in each window: along one axis, then the next.

    Much faster than torch's own maximum over one plane after the other.
    """
    found = _largest_sum(window.along(d, 0), window.along(base, 0))
    return _slide_one(found, window, 1)


def _slide_one(found: Tensor, window: Window, first: int = 0, out: Tensor | None = None) -> Tensor:
    """Return the largest element in each window, from one axis on; `found` is written to."""
    n_axes = len(window.size)
    for axis in range(first, n_axes):
        found, *taps = window.along(found, axis)
        for k, tap in enumerate(taps):
            last = axis == n_axes - 1 and k == len(taps) - 1
            found = torch.maximum(found, tap, out=out if last else found)
    return found if out is None or found is out else out.copy_(found)


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
    largest = site.out.part(_with_values(padded, torch.empty_like(moved[0])))
    bases = window.taps(x.part(padded, _padded_base, window))
    return _with_values(padded, _largest_sum(moved, (base - largest for base in bases)))


def _max_pool(n_axes: int) -> Callable[..., Any]:
    def max_pool(
        site: Site,
        x: Value,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> Any:
        """Change max(b + d) - max(b), window by window."""
        if return_indices:
            return NotImplemented
        window = _window(site.out.base, n_axes, kernel_size, stride, padding, dilation)
        return _largest(site, x, window)

    return max_pool


rule(F.max_pool1d, torch.max_pool1d)(_max_pool(1))
rule(F.max_pool2d, torch.max_pool2d)(_max_pool(2))
rule(F.max_pool3d, torch.max_pool3d)(_max_pool(3))


def _adaptive_max_pool(n_axes: int) -> Callable[..., Any]:
    def adaptive_max_pool(
        site: Site, x: Value, output_size: Any, return_indices: bool = False
    ) -> Any:
        """Change max(b + d) - max(b), where all windows are alike."""
        if return_indices:
            return NotImplemented
        window = _even_window(x.base, site.out.base, n_axes)
        return NotImplemented if window is None else _largest(site, x, window)

    return adaptive_max_pool


def _even_window(x: Tensor, out: Tensor, n_axes: int) -> Window | None:
    """Return the window of adaptive pooling, where the input is a multiple of the output."""
    old, new = x.shape[-n_axes:], out.shape[-n_axes:]
    if any(length % size for length, size in zip(old, new, strict=True)):
        return None
    kernel = tuple(length // size for length, size in zip(old, new, strict=True))
    return _window(out, n_axes, kernel, None, 0)


rule(F.adaptive_max_pool1d)(_adaptive_max_pool(1))
rule(F.adaptive_max_pool2d)(_adaptive_max_pool(2))
rule(F.adaptive_max_pool3d)(_adaptive_max_pool(3))


# --- The average


def _averaged(x: Value, window: Window | None, n_axes: int, pool: Any) -> Slab | Dense:
    """Return the average of d by the fastest way.

    ``pool`` is torch's own, and the only way without a window: with padding, torch pools what
    a window has of the input.
    """
    change = _block(x, n_axes)
    values, shape = change.values, tuple(x.base.shape[-n_axes:])
    if window is not None and not any(window.edges(shape)):
        if window.kernel == shape:
            return _with_values(change, values.mean(tuple(range(-n_axes, 0)), keepdim=True))
        # Torch is slow on planes, and fast where channels are last in memory.
        if values.stride(-1) == 1 and math.prod(window.kernel) <= _SMALL:
            for axis in range(n_axes):
                taps = window.along(values, axis)
                values = sum(taps[1:], taps[0])
            return _with_values(change, values / math.prod(window.kernel))
    n_folded = values.ndim - n_axes - 1
    pooled = pool(values.flatten(0, n_folded - 1))
    return _with_values(change, pooled.unflatten(0, values.shape[:n_folded]))


def _avg_pool(function: Callable[..., Tensor], n_axes: int) -> Callable[..., Any]:
    def avg_pool(
        site: Site,
        x: Value,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Any:
        """Change by the average of d."""
        window = _window(site.out.base, n_axes, kernel_size, stride, padding)
        settings: list[Any] = [window.kernel, window.stride, window.padding]
        settings += [ceil_mode, count_include_pad]
        if divisor_override is not None:
            return _averaged(x, None, n_axes, lambda d: function(d, *settings, divisor_override))
        return _averaged(x, window, n_axes, lambda d: function(d, *settings))

    return avg_pool


rule(F.avg_pool1d)(_avg_pool(F.avg_pool1d, 1))
rule(F.avg_pool2d)(_avg_pool(F.avg_pool2d, 2))
rule(F.avg_pool3d)(_avg_pool(F.avg_pool3d, 3))


def _adaptive_avg_pool(function: Callable[..., Tensor], n_axes: int) -> Callable[..., Any]:
    def adaptive_avg_pool(site: Site, x: Value, output_size: Any) -> Any:
        """Change by the average of d."""
        window, size = _even_window(x.base, site.out.base, n_axes), site.out.base.shape[-n_axes:]
        return _averaged(x, window, n_axes, lambda d: function(d, size))

    return adaptive_avg_pool


rule(F.adaptive_avg_pool1d)(_adaptive_avg_pool(F.adaptive_avg_pool1d, 1))
rule(F.adaptive_avg_pool2d)(_adaptive_avg_pool(F.adaptive_avg_pool2d, 2))
rule(F.adaptive_avg_pool3d)(_adaptive_avg_pool(F.adaptive_avg_pool3d, 3))
