"""Batch normalisation: the batch's statistics move with the change, channel by channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoestim.propagation._change import Change, Dense, Entry, Slab, Value
from zoestim.propagation._convolution import Shifts, of_bias
from zoestim.propagation._made import Made, is_large
from zoestim.propagation._normalization import affine, moved_by, normalize
from zoestim.propagation._normalized import Normalized, NormalizedSlabs, Origin
from zoestim.propagation._pending import Pending
from zoestim.propagation._product import Product
from zoestim.propagation._statistics import moments, normal_planes, normalized_rows
from zoestim.propagation._table import Site, moves, rule
from zoestim.propagation._tiles import by_lane


@rule(F.batch_norm)
def batch_norm(
    site: Site,
    input: Value,
    running_mean: Value | None,
    running_var: Value | None,
    weight: Value | None = None,
    bias: Value | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Change of z w + b, with z normalised over the batch or by running statistics."""
    by_batch = training or running_mean is None
    if not by_batch and moves(running_mean, running_var):
        return NotImplemented
    given = () if by_batch else (running_mean.base, running_var.base)  # type: ignore[union-attr]
    if moves(input, weight, bias) == 1 and input.change is not None:
        return _of_input(site, input, given, eps, None if weight is None else weight.base)
    if by_batch and input.change is None and isinstance(getattr(weight, "change", None), Entry):
        return _of_weight(input, weight, eps)  # type: ignore[arg-type]
    if moves(input, weight) == 0 and isinstance(bias.change, Entry):  # type: ignore[union-attr]
        return of_bias(site, bias)  # type: ignore[arg-type]
    change = None if input.change is None else _of_input(site, input, given, eps, None)
    z = input.derived(_standardized, *given, eps) if given else input.derived(_by_batch, eps)
    return affine(z, change, weight, bias, 1)


def _of_weight(x: Value, weight: Value, eps: float) -> Slab:
    """Change of one channel's scale: dw z."""
    steps, channels = weight.change.steps, weight.change.indices
    rest = x.base.shape[:1] + x.base.shape[2:]

    def make(k: int, out: Tensor, onto: Tensor | None) -> None:
        torch.mul(z[k], steps[k], out=out)
        if onto is not None:
            out.add_(onto)

    if is_large(rest, steps):
        made = Made(channels, 1, rest, steps, make)
        z = made.beside(x.derived(normal_planes, made.order, eps).z)
        return made
    slab = Slab(steps.view(-1, 1, *[1] * len(rest)).expand(-1, 1, *rest), channels, 1)
    return slab.with_values(slab.of(x.derived(normal_planes, slab.order, eps).z) * slab.values)


def _of_input(site: Site, x: Value, given: Any, eps: float, gain: Tensor | None) -> Change:
    if given:
        scale = (given[1] + eps).rsqrt()
        return _scaled(x, scale if gain is None else scale * gain)
    if isinstance(x.change, Slab) and x.change.dim == 1:
        return _slab_by_batch(site, x, eps, gain)
    return _dense_by_batch(site, x, eps, gain)


def _standardized(x: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Value:
    along = (-1, *[1] * (x.ndim - 2))
    return Value((x - mean.view(along)) * (variance + eps).rsqrt().view(along))


def _scaled(x: Value, scale: Tensor) -> Change:
    """Multiply each channel's change by a number."""
    change = x.change
    if isinstance(change, Slab) and change.dim == 1:
        along = change.of(scale)
        values = change.values * along.view(*along.shape, *[1] * (change.values.ndim - 2))
        return Slab(values, change.starts, 1)
    return Dense(x.dense() * scale.view(-1, *[1] * (x.base.ndim - 2)))


# --- The batch's statistics


def _by_batch(x: Tensor, eps: float) -> Value:
    axes = tuple(axis for axis in range(x.ndim) if axis != 1)
    return Value(normalize(x.clone(), axes, eps).z)


def _slab_by_batch(site: Site, x: Value, eps: float, gain: Tensor | None) -> Slab:
    change: Slab = x.change
    normal = x.derived(normal_planes, change.order, eps)
    if isinstance(change, Made) and change.moments is not None:
        mean, cross, square = change.moments(normal.z)[..., None].unbind(1)
    else:
        mean, cross, square = moments(change.values, change.of(normal.z))
    moved = moved_by(mean, cross, square, change.of(normal.inverse.flatten()))
    moved = moved if gain is None else moved.mul_(change.of(gain))
    moved = moved.to(x.base.dtype).view(*moved.shape, *[1] * (x.base.ndim - 1))
    if isinstance(change, Made) and change.width == 1 and is_large(change.rest, change.like):
        made = _made(change, change.beside(normal.z), moved)
        return NormalizedSlabs(site.out.base, made, Origin(x, normal, gain, change, moved))
    z, d = change.of(normal.z), change.values
    scale, slope, shift = moved
    out = d.mul_(scale) if site.may_overwrite(d) else d * scale
    for lanes, beside, by, offset in by_lane(out, z, slope, shift):
        lanes.addcmul_(beside, by).add_(offset)
    return change.with_values(out)


def _made(change: Made, z: list[Tensor], moved: Tensor) -> Made:
    """Return what normalises a lane as it is made, while it is in the cache."""
    scale, slope, shift = moved
    offsets = shift if change.offsets is None else torch.addcmul(shift, change.offsets, scale)

    def make(k: int, out: Tensor, onto: Tensor | None) -> None:
        change.make(k, out, None)
        out.mul_(scale[k]).addcmul_(z[k], slope[k])
        if onto is not None:
            out.add_(onto)

    def make_shifted(k: int, out: Tensor, onto: Tensor | None) -> None:
        if onto is None:
            torch.mul(z[k], slope[k], out=out)
        else:
            torch.addcmul(onto, z[k], slope[k], out=out)
        out.add_(shifted(k), alpha=factors[k])

    if isinstance(change, Shifts):
        shifted, factors = change.shifted, (change.steps * scale.flatten()).tolist()
        return Made(change.starts, 1, change.rest, change.like, make_shifted, offsets)
    return Made(change.starts, 1, change.rest, change.like, make, offsets)


def _dense_by_batch(site: Site, x: Value, eps: float, gain: Tensor | None) -> Pending:
    """Normalise all that changes; of a product that is still to be taken, when it is asked."""
    if isinstance(x.change, Product) and not x.change.taken:
        return Normalized(site.out.base, x, eps, gain)
    values = x.dense()
    return normalized_rows(x, values, site.may_overwrite(values), eps, gain)
