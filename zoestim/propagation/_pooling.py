"""Pooling: averages move with the change, largest elements are looked for again."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoestim.propagation._change import Dense, Slab, Value
from zoestim.propagation._largest import block_of_planes, largest
from zoestim.propagation._table import Site, rule
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


# --- The largest element


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
        return largest(site, x, window)

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
        return NotImplemented if window is None else largest(site, x, window)

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
    change = block_of_planes(x, n_axes)
    values, shape = change.values, tuple(x.base.shape[-n_axes:])
    if window is not None and not any(window.edges(shape)):
        if window.kernel == shape:
            return change.with_values(_mean(values, n_axes))
        # Torch is slow on planes, and fast where channels are last in memory.
        if values.stride(-1) == 1 and math.prod(window.kernel) <= _SMALL:
            for axis in range(n_axes):
                taps = window.along(values, axis)
                values = sum(taps[1:], taps[0])
            return change.with_values(values / math.prod(window.kernel))
    n_folded = values.ndim - n_axes - 1
    pooled = pool(values.flatten(0, n_folded - 1))
    return change.with_values(pooled.unflatten(0, values.shape[:n_folded]))


def _mean(values: Tensor, n_axes: int) -> Tensor:
    """Return the mean over the trailing axes, summed in the order that they have in memory."""
    order = sorted(range(values.ndim), key=values.stride().__getitem__, reverse=True)
    summed = [order.index(axis) for axis in range(values.ndim - n_axes, values.ndim)]
    mean = values.permute(order).mean(summed, keepdim=True)
    return mean.permute([order.index(axis) for axis in range(values.ndim)])


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
