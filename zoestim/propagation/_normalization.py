"""Normalisations: how statistics move with a change, without subtracting large numbers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from zoestim.propagation._change import Change, Dense, Entry, Slab, Value, rows_of
from zoestim.propagation._table import Site, moves, rule


class _Moved(NamedTuple):
    """How a normalised value z moves with d: by ``scale * d + slope * z + shift``."""

    scale: Tensor
    slope: Tensor
    shift: Tensor


def _moved(mean: Tensor, cross: Tensor, square: Tensor, variance: Tensor) -> _Moved:
    """Return how a normalised value moves, from the means of d, d z and d^2.

    The variance v (with eps, s^2 = v) grows by 2 s E[d z] + E[d^2] - E[d]^2, and 1 / s by the
    factor 1 + r, r = (v' / v)^(-1/2) - 1, so that z moves by r z + (d - E[d]) (1 + r) / s.
    """
    mean, cross, square = mean.double(), cross.double(), square.double()
    growth = 2 * cross * variance.rsqrt() + (square - mean.square()) / variance
    slope = torch.expm1(-0.5 * torch.log1p(growth))
    scale = (1 + slope) * variance.rsqrt()
    return _Moved(scale, slope, -mean * scale)


def _renormalized(d: Tensor, z: Tensor, axes: tuple[int, ...], variance: Tensor) -> Tensor:
    """Return the change of z, normalised over some axes, as d changes what it is made from."""
    mean, cross, square = (m.mean(axes, keepdim=True) for m in (d, d * z, d * d))
    moved = _Moved(*(c.to(d.dtype) for c in _moved(mean, cross, square, variance)))
    return torch.addcmul(d * moved.scale, z, moved.slope).add_(moved.shift)


def _variance(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    """Return variance + eps over some axes, kept, in float64."""
    centred = x - x.mean(axes, keepdim=True)
    return centred.square_().mean(axes, keepdim=True).double() + eps


def _normalized(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred.mul_(_variance(x, axes, eps).rsqrt().to(x.dtype))


# --- Batch normalisation


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
    x, axes = input, tuple(axis for axis in range(input.base.ndim) if axis != 1)
    by_batch = training or running_mean is None
    if not by_batch and moves(running_mean, running_var):
        return NotImplemented
    normalized = _normalized if by_batch else _standardized
    given = (axes, eps) if by_batch else (running_mean.base, running_var.base, eps)  # type: ignore[union-attr]
    z = x.derived(normalized, *given)
    if x.change is None:
        return _affine(z, None, weight, bias, 1)
    gain = weight.base if moves(x, weight, bias) == 1 and weight is not None else None
    if not by_batch:
        scale = (running_var.base + eps).rsqrt()  # type: ignore[union-attr]
        change = _scaled(x, scale if gain is None else scale * gain)
    elif isinstance(x.change, Slab) and x.change.dim == 1:
        change = _slab_by_batch(site, x, axes, eps, gain)
    else:
        change = _dense_by_batch(site, x, axes, eps, gain)
    return change if moves(x, weight, bias) == 1 else _affine(z, change, weight, bias, 1)


def _standardized(x: Tensor, mean: Tensor, variance: Tensor, eps: float) -> Tensor:
    along = (-1, *[1] * (x.ndim - 2))
    return (x - mean.view(along)) * (variance + eps).rsqrt().view(along)


def _scaled(x: Value, scale: Tensor) -> Change:
    """Multiply each channel's change by a number."""
    change = x.change
    if isinstance(change, Slab) and change.dim == 1:
        along = _of_slab(scale, change)
        values = change.values * along.view(*along.shape, *[1] * (change.values.ndim - 2))
        return Slab(values, change.starts, 1)
    return Dense(x.dense() * scale.view(-1, *[1] * (x.base.ndim - 2)))


def _of_slab(vector: Tensor, slab: Slab) -> Tensor:
    """Return what a slab covers of a vector along its axis, (1 or k, width)."""
    if slab.start is not None:
        return vector.narrow(0, slab.start, slab.width)[None]
    return rows_of(vector, slab.positions())


def _slab_by_batch(
    site: Site, x: Value, axes: tuple[int, ...], eps: float, gain: Tensor | None
) -> Slab:
    change = x.change
    d = change.values.flatten(2)  # type: ignore[union-attr]
    z = x.part(change, _normalized, axes, eps).flatten(2)  # type: ignore[arg-type]
    count = d.shape[-1]
    cross = d[:, 0] @ z[0, 0] if z.shape[:2] == (1, 1) else (d * z).sum(-1)
    square = torch.linalg.vector_norm(d, dim=-1).double().square()
    variance = _of_slab(x.derived(_variance, axes, eps).flatten(), change)  # type: ignore[arg-type]
    moved = _moved(d.mean(-1), cross.view(square.shape) / count, square / count, variance)
    factor = 1.0 if gain is None else _of_slab(gain, change)  # type: ignore[arg-type]
    scale, slope, shift = ((c * factor).to(d.dtype)[..., None] for c in moved)
    d = d.mul_(scale) if site.may_overwrite(d) else d * scale
    values = d.addcmul_(z, slope).add_(shift).view_as(change.values)  # type: ignore[union-attr]
    return Slab(values, change.starts, 1)  # type: ignore[union-attr]


# Rows of so many elements are worked on at once: they stay in the cache.
_TILE = 2**16
_ROW = 256


def _dense_by_batch(
    site: Site, x: Value, axes: tuple[int, ...], eps: float, gain: Tensor | None
) -> Dense:
    """Normalise channels-last lanes tile by tile, so that each is read from memory twice."""
    values = x.dense()
    if not values.movedim(2, -1).is_contiguous():
        values = values.movedim(2, -1).contiguous().movedim(-1, 2)
    n_channels = x.base.shape[1]
    n_pixels = x.base.numel() // n_channels
    repeats = math.gcd(n_pixels, max(1, _ROW // n_channels))
    d = values.movedim(2, -1).reshape(len(values), -1, repeats * n_channels)
    z = x.part(Dense(values), _normalized, axes, eps)[0].movedim(1, -1).reshape(d.shape[1:])
    tile = max(1, _TILE // z.shape[1]) if d.device.type == "cpu" else len(z)
    sums = _tiled_sums(d, z, tile).unflatten(-1, (repeats, -1)).sum(-2) / n_pixels
    moved = _moved(sums[0], sums[1], sums[2], x.derived(_variance, axes, eps).flatten())
    factor = 1.0 if gain is None else gain
    scale, slope, shift = ((c * factor).to(d.dtype).repeat(1, repeats)[:, None] for c in moved)
    out = d if site.may_overwrite(values) else torch.empty_like(d)
    for k in range(len(d)):
        for at in range(0, len(z), tile):
            rows = slice(at, at + tile)
            torch.mul(d[k, rows], scale[k], out=out[k, rows])
            out[k, rows].addcmul_(z[rows], slope[k]).add_(shift[k])
    return Dense(out.view_as(values.movedim(2, -1)).movedim(-1, 2))


def _tiled_sums(d: Tensor, z: Tensor, tile: int) -> Tensor:
    """Return the sums over rows of d, d z and d^2 of each lane, (3, k, columns), in float64."""
    sums = d.new_zeros(3, len(d), d.shape[-1], dtype=torch.float64)
    product = torch.empty_like(z[:tile])
    for k in range(len(d)):
        for at in range(0, len(z), tile):
            part, other = d[k, at : at + tile], z[at : at + tile]
            sums[0, k] += part.sum(0)
            sums[1, k] += torch.mul(part, other, out=product[: len(part)]).sum(0)
            sums[2, k] += torch.mul(part, part, out=product[: len(part)]).sum(0)
    return sums


# --- Normalisation of each sample


@rule(F.layer_norm)
def layer_norm(
    site: Site,
    input: Value,
    normalized_shape: Any,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
) -> Any:
    """Change of z w + b, with z normalised over the last axes."""
    x, n_axes = input, 1 if isinstance(normalized_shape, int) else len(normalized_shape)
    axes = tuple(range(-n_axes, 0))
    z = x.derived(_normalized, axes, eps)
    change: Change | None = None
    if x.change is not None:
        change = Dense(_renormalized(x.dense(), z, axes, x.derived(_variance, axes, eps)))
    if n_axes > 1:
        if moves(weight, bias):
            return NotImplemented
        return change if weight is None else Dense(change.values * weight.base)  # type: ignore[union-attr]
    return _affine(z, change, weight, bias, x.base.ndim - n_axes)


@rule(F.group_norm)
def group_norm(
    site: Site,
    input: Value,
    num_groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
) -> Any:
    """Change of z w + b, with z normalised over the channels of a group and the pixels."""
    x = input
    z = x.derived(_normalized_in_groups, num_groups, eps)
    change: Change | None = None
    if x.change is not None:
        change = _in_groups(x, num_groups, eps)
    return _affine(z, change, weight, bias, 1)


@rule(F.instance_norm)
def instance_norm(
    site: Site,
    input: Value,
    running_mean: Value | None = None,
    running_var: Value | None = None,
    weight: Value | None = None,
    bias: Value | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Change of z w + b, with z normalised over the pixels of a channel."""
    if running_mean is not None or not use_input_stats:
        return NotImplemented
    return group_norm(site, input, input.base.shape[1], weight, bias, eps)


def _grouped(x: Tensor, n_groups: int) -> Tensor:
    return x.reshape(x.shape[0], n_groups, -1)


def _normalized_in_groups(x: Tensor, n_groups: int, eps: float) -> Tensor:
    return _normalized(_grouped(x, n_groups), (2,), eps).view_as(x)


def _variance_in_groups(x: Tensor, n_groups: int, eps: float) -> Tensor:
    return _variance(_grouped(x, n_groups), (2,), eps)[..., 0]


def _in_groups(x: Value, n_groups: int, eps: float) -> Change:
    change, size = x.change, x.base.shape[1] // n_groups
    variance = x.derived(_variance_in_groups, n_groups, eps)  # (n, groups)
    if isinstance(change, Slab) and change.dim == 1 and change.width == 1:
        groups = change.starts // size
        rest = change.values.shape[2:]
        offsets = Slab(change.values, change.starts - groups * size, 0)
        slab = Slab(offsets.dense(torch.Size((size, *rest))), groups * size, 1)
        z = x.part(slab, _normalized_in_groups, n_groups, eps)
        own = rows_of(variance.t(), groups).view(len(groups), 1, -1, *[1] * (len(rest) - 1))
        axes = (1, *range(3, slab.values.ndim))
        return Slab(_renormalized(slab.values, z, axes, own), slab.starts, 1)
    d = x.dense()
    z = x.derived(_normalized_in_groups, n_groups, eps)
    grouped = d.reshape(len(d), len(z), n_groups, -1)
    moved = _renormalized(grouped, _grouped(z, n_groups), (-1,), variance[..., None])
    return Dense(moved.view(len(d), *z.shape))


# --- The scale and the offset behind a normalisation


def _affine(
    z: Tensor, change: Change | None, weight: Value | None, bias: Value | None, dim: int
) -> Change:
    """Change of z w + b along one axis: dz (w + dw) + z dw + db."""
    along = (*[1] * dim, -1, *[1] * (z.ndim - dim - 1))
    if change is None:
        if moves(weight, bias) == 1:
            return _of_affine(z, weight, bias, dim)
    elif not moves(weight, bias):
        if weight is None:
            return change
        if isinstance(change, Slab) and change.dim == dim:
            factor = _of_slab(weight.base, change)
            factor = factor.view(*factor.shape, *[1] * (change.values.ndim - 2))
            return Slab(change.values * factor, change.starts, dim)
        return Dense(change.dense(z.shape) * weight.base.view(along))
    parts = [] if change is None else [change.dense(z.shape)]
    if parts and weight is not None:
        parts = [parts[0] * (weight.base.view(along))]
    if weight is not None and weight.change is not None:
        moved = weight.dense().view(-1, *along[:dim], z.shape[dim], *along[dim + 1 :])
        parts.append(moved * (z if change is None else z + change.dense(z.shape)))
    if bias is not None and bias.change is not None:
        parts.append(bias.dense().view(-1, *along[:dim], z.shape[dim], *along[dim + 1 :]))
    return Dense(sum(parts[1:], parts[0]).expand(-1, *z.shape))


def _of_affine(z: Tensor, weight: Value | None, bias: Value | None, dim: int) -> Change:
    """Change of z w + b where only the one or the other moves."""
    is_weight = weight is not None and weight.change is not None
    moved, rest = weight if is_weight else bias, z.shape[:dim] + z.shape[dim + 1 :]
    if isinstance(moved.change, Entry):  # type: ignore[union-attr]
        entry = moved.change  # type: ignore[union-attr]
        steps = entry.steps.view(-1, 1, *[1] * len(rest)).expand(-1, 1, *rest)
        slab = Slab(steps, entry.indices, dim)
        return Slab(steps * Value(z).part(slab), entry.indices, dim) if is_weight else slab
    vectors = moved.dense().view(-1, *[1] * dim, z.shape[dim], *[1] * (z.ndim - dim - 1))  # type: ignore[union-attr]
    return Dense(vectors * z if is_weight else vectors.expand(-1, *z.shape))
