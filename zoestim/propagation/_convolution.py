"""Convolutions: a weight moves one channel by a shifted input, one channel is a rank-one update."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoestim.propagation._change import Change, Dense, Entry, Slab, Value, channels_last, rows_of
from zoestim.propagation._made import Made, constant, is_large
from zoestim.propagation._product import Product
from zoestim.propagation._shape import whole
from zoestim.propagation._table import Site, moves, rule
from zoestim.propagation._window import Window, each_axis

# Elements that are stacked at a time, to be multiplied at once.
_STACKED = 2**22
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _window(weight: Tensor, out: Tensor, stride: Any, padding: Any, dilation: Any) -> Window:
    kernel, n_axes = tuple(weight.shape[2:]), weight.ndim - 2
    stride, dilation = each_axis(stride, n_axes), each_axis(dilation, n_axes)
    if padding == "same":  # torch puts the odd element at the end
        padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    padding = each_axis(0 if padding == "valid" else padding, n_axes)
    return Window(kernel, stride, dilation, padding, tuple(out.shape[2:]))


def _convolution(
    site: Site,
    input: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """Change the convolution of `input` by the one of the three that changes."""
    if input.base.ndim != weight.base.ndim:
        return NotImplemented  # without a batch
    settings = stride, padding, dilation, groups
    window = _window(weight.base, site.out.base, stride, padding, dilation)
    if moves(input, weight, bias) > 1:
        return _of_several(site, input, weight, bias, window, settings)
    if input.change is not None:
        return _of_input(site, input, weight, window, settings)
    if weight.change is not None:
        return _of_weight(site, input, weight, window, settings)
    return of_bias(site, bias)  # type: ignore[arg-type]


for _function in (F.conv1d, F.conv2d, F.conv3d):
    rule(_function)(_convolution)


def of_bias(site: Site, bias: Value) -> Change:
    """Move one whole channel, or all of them in directions."""
    out, change = site.out.base, bias.change
    if isinstance(change, Entry):
        return constant(change.indices, 1, out.shape[:1] + out.shape[2:], change.steps)
    moved = bias.dense()
    return Dense(moved.view(len(moved), 1, -1, *[1] * (out.ndim - 2)).expand(-1, *out.shape))


def _of_weight(site: Site, x: Value, weight: Value, window: Window, settings: Any) -> Change:
    """Move channel o by the input's channel i, shifted by the tap, as W[o, i, tap] moves."""
    change, groups = weight.change, settings[-1]
    if not isinstance(change, Entry):
        return Dense(_by_moved_weights(site, x.base, weight.dense(), settings))
    return Shifts(x, window, _places(change.indices, weight.base, groups), change.steps, groups)


def _places(indices: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Return input channel, tap and output channel of some weights, (3, k)."""
    n_out, n_in = weight.shape[:2]
    n_taps = weight[0, 0].numel()
    o, tap = indices // (n_in * n_taps), indices % n_taps
    return torch.stack([o // (n_out // groups) * n_in + indices // n_taps % n_in, tap, o])


def _add_shifts(total: Tensor, x: Value, weight: Value, window: Window, groups: int) -> None:
    """Add what one moved weight a lane makes of its own input, to one channel of the lane."""
    change: Entry = weight.change  # type: ignore[assignment]
    places = _places(change.indices, weight.base, groups)
    there = places[0].to(total.device)
    lanes = torch.arange(len(there), device=there.device)
    seen = x.base.movedim(1, 0)[there] + x.dense()[lanes, :, there]
    taps = window.taps(window.pad(seen))
    for lane, (_, tap, o) in enumerate(places.t().tolist()):
        total[lane, :, o].addcmul_(taps[tap][lane], change.steps[lane])


class Shifts(Made):
    """Channels of the input, shifted and scaled by a step; multiplied when asked.

    Parameters
    ----------
    x : Value
        The input.
    window : Window
        How the convolution moves over it.
    lanes : Tensor of shape (3, k), int64
        Which input channel, tap and output channel, on the host.
    steps : Tensor of shape (k,)
        What they are multiplied by.
    groups : int
        In how many groups the channels are.
    """

    def __init__(self, x: Value, window: Window, lanes: Tensor, steps: Tensor, groups: int):
        given = {"starts": lanes[2], "dim": 1, "like": steps, "steps": steps, "groups": groups}
        given |= {"rest": (x.base.shape[0], *window.size), "offsets": None}
        for name, value in (given | {"x": x, "window": window, "lanes": lanes}).items():
            object.__setattr__(self, name, value)

    x: Value
    window: Window
    lanes: Tensor
    steps: Tensor
    groups: int

    @property
    def large(self) -> bool:
        """Whether lanes are made one by one, rather than gathered from all that there are."""
        return is_large(self.rest, self.like)

    @property
    def order(self) -> tuple[int, ...]:
        """The axes of `rest` in the order in which they lie in memory."""
        return super().order if self.large else tuple(range(len(self.rest)))

    @cached_property
    def values(self) -> Tensor:  # type: ignore[override]
        """What is added, (k, 1, n, *size)."""
        if self.large:
            return super().values
        patches, n_taps = self.x.derived(_patches, self.window), math.prod(self.window.kernel)
        rows = rows_of(patches, self.lanes[0] * n_taps + self.lanes[1])
        return rows.mul_(self.steps.view(-1, *[1] * (rows.ndim - 1)))[:, None]

    def make(self, k: int, out: Tensor, onto: Tensor | None) -> None:  # type: ignore[override]
        """Write a shifted channel times its step."""
        channel = self.shifted(k)
        if onto is None:
            torch.mul(channel, self.steps[k], out=out)
        else:
            torch.addcmul(onto, channel, self.steps[k], out=out)

    def shifted(self, k: int) -> Tensor:
        """Return the shifted channel of lane k, (1, 1, n, *size)."""
        channel, tap, _ = self._places[k]
        return self._taps[tap][channel][None, None]

    @cached_property
    def _places(self) -> list[list[int]]:
        return self.lanes.t().tolist()

    @cached_property
    def _taps(self) -> list[Tensor]:
        return self.window.taps(self.x.derived(_padded_planes, self.window))

    def moments(self, z: Tensor) -> Tensor:  # type: ignore[override]
        """Return the means of d, d z and d^2 for each lane, (k, 3), z with channels first.

        They are known for all inputs, shifts and outputs at once.
        """
        key = (Shifts, self.window, id(z))
        if key not in self.x.memo:
            self.x.memo[key] = z, self._of_all(z)  # z is held, so that its address stays its own
        channel, tap, o = self.lanes.to(z.device, non_blocking=True)
        mean, cross, square = self.x.memo[key][1]
        steps = self.steps.double()
        products = cross[channel, tap, o % cross.shape[2]] * steps
        moments = mean[channel, tap] * steps, products, square[channel, tap] * steps.square()
        return torch.stack(moments, 1)

    def _of_all(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return them for a step of 1: of d and d^2, (n_in, n_taps), of d z, (..., n_out).

        An input channel meets the outputs of its own group alone.
        """
        planes, n_taps = self.x.derived(_padded_planes, self.window), math.prod(self.window.kernel)
        n_pixels = math.prod(self.rest)
        at_once = max(1, _STACKED // (n_taps * n_pixels))
        found = []
        for inputs, outputs in zip(planes.chunk(self.groups), z.chunk(self.groups), strict=True):
            pixels = outputs.movedim(1, -1).flatten(1).t()
            for channels in inputs.split(at_once):
                shifted = self.window.shifts(channels)
                norm = torch.linalg.vector_norm(shifted, dim=2)
                found.append((shifted.sum(2), shifted @ pixels, norm))
        total, cross, norm = (torch.cat(each) for each in zip(*found, strict=True))
        return total.double() / n_pixels, cross / n_pixels, norm.double().square() / n_pixels


def _padded_planes(x: Tensor, window: Window) -> Tensor:
    """Return the padded input, (n_channels, n, *padded), in memory with the batch last."""
    return window.pad(x).movedim(0, -1).contiguous().movedim(-1, 1)


def _patches(x: Tensor, window: Window) -> Tensor:
    """Return what each element of the kernel meets, (n_channels * n_taps, n, *size)."""
    return window.patches(_padded_planes(x, window)).flatten(0, 1)


def _of_input(site: Site, x: Value, weight: Value, window: Window, settings: Any) -> Change:
    change, groups = x.change, settings[-1]
    if not isinstance(change, Slab) or change.dim != 1 or change.width != 1:
        return Dense(_folded(site, whole(x), weight, settings))
    # One input channel, its group's outputs: (k, taps, pixels) against (taps, outputs).
    table = weight.derived(_by_channel, groups)
    same = change.start is not None
    rows = table[change.start][None] if same else rows_of(table, change.starts)
    if groups == 1:
        product = Product(change.values[:, 0], window, rows, site.multiply)
        lazy = site.matrix_type is None and is_large(product.rest, rows)
        return product if lazy else Dense(product.values)
    taps = window.patches(window.pad(change.values[:, 0].contiguous())).flatten(2)
    moved = site.multiply(torch.matmul, rows.mT, taps)
    starts = change.starts // weight.base.shape[1] * table.shape[-1]
    return Slab(moved.unflatten(2, (change.values.shape[2], *window.size)), starts, 1)


def _by_channel(weight: Tensor, groups: int) -> Tensor:
    """Return what each input channel is multiplied by, (n_channels, n_taps, n_outputs)."""
    grouped = weight.flatten(2).unflatten(0, (groups, -1))  # (groups, outputs, inputs, taps)
    return grouped.permute(0, 2, 3, 1).flatten(0, 1).contiguous()


def _folded(site: Site, moved: Tensor, weight: Value, settings: Any) -> Tensor:
    """Convolve all lanes as one batch, channels last."""
    kernels = weight.base
    if kernels.ndim in _CHANNELS_LAST:
        moved = channels_last(moved)
        kernels = weight.derived(_channels_last)

    def convolve(x: Tensor, w: Tensor) -> Tensor:
        return _FUNCTIONS[x.ndim](x, w, None, *settings)

    return site.multiply(convolve, moved.flatten(0, 1), kernels).unflatten(0, moved.shape[:2])


def _channels_last(weight: Tensor) -> Tensor:
    return weight.contiguous(memory_format=_CHANNELS_LAST[weight.ndim])


def _by_moved_weights(site: Site, x: Tensor, moved: Tensor, settings: Any) -> Tensor:
    """Convolve one input with the weights of every lane, (k, n, n_out, *size)."""

    def convolve(x: Tensor, w: Tensor) -> Tensor:
        return _FUNCTIONS[x.ndim](x, w, None, *settings)

    if settings[-1] > 1:
        return torch.stack([site.multiply(convolve, x, weights) for weights in moved])
    product = site.multiply(convolve, x, moved.flatten(0, 1))
    return product.unflatten(1, (len(moved), -1)).movedim(1, 0)


def _of_several(
    site: Site, x: Value, weight: Value, bias: Value | None, window: Window, settings: Any
) -> Change:
    """Dx * (W + dW) + x * dW + db, as for a layer that is used twice and for directions."""
    moved = [each for each in (weight, bias) if each is not None and each.change is not None]
    if x.change is not None and len(moved) == 1 and isinstance(moved[0].change, Entry):
        total = _folded(site, x.dense(), weight, settings)
        if moved[0] is weight:
            _add_shifts(total, x, weight, window, settings[-1])
        else:
            channels, steps = moved[0].change.indices, moved[0].change.steps
            total[range(len(total)), :, channels] += steps.view(-1, *[1] * (total.ndim - 2))
        return Dense(total)
    parts = []
    if x.change is not None:
        parts.append(_folded(site, x.dense(), weight, settings))
    if weight.change is not None:
        weights = weight.dense()
        parts.append(_by_moved_weights(site, x.base, weights, settings))
        if x.change is not None:
            lanes = zip(x.dense(), weights, strict=True)
            parts.append(
                torch.stack([_by_moved_weights(site, d, w[None], settings)[0] for d, w in lanes])
            )
    if bias is not None and bias.change is not None:
        parts.append(of_bias(site, bias).dense(site.out.base.shape))
    return Dense(sum(parts[1:], parts[0]))


_FUNCTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
