"""Transposed convolutions: a weight spreads one input channel over one output channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoestim.propagation._change import Change, Dense, Entry, Slab, Value
from zoestim.propagation._convolution import of_bias
from zoestim.propagation._table import Site, moves, rule
from zoestim.propagation._window import Window, each_axis

_FUNCTIONS = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}


def _transposed_convolution(
    site: Site,
    input: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Any:
    """Change the transposed convolution of `input` by the one of the three that changes."""
    if input.base.ndim != weight.base.ndim or moves(input, weight, bias) != 1:
        return NotImplemented
    settings = stride, padding, output_padding, groups, dilation
    if input.change is not None:
        return _of_input(site, input, weight, settings)
    if weight.change is not None:
        return _of_weight(site, input, weight, settings)
    return of_bias(site, bias)  # type: ignore[arg-type]


for _function in _FUNCTIONS.values():
    rule(_function)(_transposed_convolution)


def _of_weight(site: Site, x: Value, weight: Value, settings: Any) -> Any:
    """Spread the input's channel i, at the tap of W[i, o, tap], over channel o."""
    change, (stride, padding, _, groups, dilation) = weight.change, settings
    if not isinstance(change, Entry):
        return NotImplemented
    kernel, size = tuple(weight.base.shape[2:]), tuple(x.base.shape[2:])
    stride, dilation, padding = (
        each_axis(given, len(kernel)) for given in (stride, dilation, padding)
    )
    window = Window(kernel, stride, dilation, padding, size)
    n_out, n_taps = weight.base.shape[1], weight.base[0, 0].numel()
    channel, tap = change.indices // (n_out * n_taps), change.indices % n_taps
    o = change.indices // n_taps % n_out + channel // (x.base.shape[1] // groups) * n_out
    out = site.out.base.shape
    full = [n + before for n, before in zip(out[2:], padding, strict=True)]
    full = [max(n, reach) for n, reach in zip(full, window.reach, strict=True)]
    spread = x.base.new_zeros(len(o), out[0], *full)
    for k, (t, i) in enumerate(zip(tap.tolist(), channel.tolist(), strict=True)):
        torch.mul(x.base[:, i], change.steps[k], out=window.taps(spread[k])[t])
    inside = tuple(slice(b, b + n) for b, n in zip(padding, out[2:], strict=True))
    return Slab(spread[(Ellipsis, *inside)][:, None], o, 1)  # type: ignore[index]


def _of_input(site: Site, x: Value, weight: Value, settings: Any) -> Change:
    change, groups = x.change, settings[3]

    def spread(moved: Tensor, weights: Tensor, settings: Any) -> Tensor:
        function = _FUNCTIONS[weights.ndim]
        folded = site.multiply(
            lambda a, w: function(a, w, None, *settings), moved.flatten(0, 1), weights
        )
        return folded.unflatten(0, moved.shape[:2])

    if not isinstance(change, Slab) or change.dim != 1 or change.width != 1:
        return Dense(spread(x.dense(), weight.base, settings))
    # One input channel at a time: the lanes that change the same one go together.
    alone = (*settings[:3], 1, settings[4])
    starts, counts = change.starts.unique_consecutive(return_counts=True)
    parts = [
        spread(moved, weight.base.narrow(0, start, 1), alone)
        for start, moved in zip(
            starts.tolist(), change.values.movedim(1, 2).split(counts.tolist()), strict=True
        )
    ]
    values = torch.cat(parts)
    if groups == 1:
        return Dense(values)
    n_out = weight.base.shape[1]
    first = change.starts // (x.base.shape[1] // groups) * n_out
    return Slab(values.movedim(2, 1), first, 1)
