"""Normalisations: how statistics move with a change, without subtracting large numbers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from zoestim.propagation._change import Change, Dense, Entry, Slab, Value, rows_of
from zoestim.propagation._made import constant
from zoestim.propagation._table import Site, moves, rule


def moved_by(mean: Tensor, cross: Tensor, square: Tensor, inverse: Tensor) -> Tensor:
    """Return how a normalised value z moves: by ``scale * d + slope * z + shift``.

    The variance v = s^2 (eps in it) grows by 2 s E[d z] + E[d^2] - E[d]^2, and 1 / s by the
    factor 1 + r, r = (v' / v)^(-1/2) - 1, so that z moves by r z + (d - E[d]) (1 + r) / s.

    Parameters
    ----------
    mean, cross, square : Tensor
        The means of d, d z and d^2, in float64.
    inverse : Tensor
        1 / s, in float64.

    Returns
    -------
    Tensor of shape (3, ...)
        Scale, slope and shift.
    """
    growth = torch.addcmul(square, mean, mean, value=-1).mul_(inverse).add_(cross, alpha=2)
    slope = growth.mul_(inverse).log1p_().mul_(-0.5).expm1_()
    scale = torch.addcmul(inverse, slope, inverse)
    return torch.stack([scale, slope, -mean * scale])


def _renormalized(d: Tensor, z: Tensor, axes: tuple[int, ...], inverse: Tensor) -> Tensor:
    """Return the change of z, normalised over some axes, as d changes what it is made from."""
    mean, cross, square = (m.mean(axes, keepdim=True).double() for m in (d, d * z, d * d))
    scale, slope, shift = moved_by(mean, cross, square, inverse).to(d.dtype)
    return torch.addcmul(d * scale, z, slope).add_(shift)


class Normal(NamedTuple):
    """A normalised tensor, and 1 / sqrt(variance + eps) in float64, its axes kept."""

    z: Tensor
    inverse: Tensor


def normalize(x: Tensor, axes: tuple[int, ...], eps: float) -> Normal:
    """Normalise a tensor over some axes, in place."""
    x.sub_(x.mean(axes, keepdim=True))
    count = math.prod(x.shape[axis] for axis in axes)
    norm = torch.linalg.vector_norm(x, dim=axes, keepdim=True).double()
    inverse = (norm.square() / count + eps).rsqrt()
    return Normal(x.mul_(inverse.to(x.dtype)), inverse)


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
    z, inverse = x.derived(_normal, axes, eps)
    change: Change | None = None
    if x.change is not None:
        change = Dense(_renormalized(x.dense(), z.base, axes, inverse))
    if n_axes > 1:
        if moves(weight, bias):
            return NotImplemented
        return change if weight is None else Dense(change.values * weight.base)  # type: ignore[union-attr]
    return affine(z, change, weight, bias, x.base.ndim - n_axes)


def _normal(x: Tensor, axes: tuple[int, ...], eps: float) -> tuple[Value, Tensor]:
    z, inverse = normalize(x.clone(), axes, eps)
    return Value(z), inverse


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
    z, inverse = input.derived(_normal_in_groups, num_groups, eps)
    change: Change | None = None
    if input.change is not None:
        change = _in_groups(input, z, inverse)
    return affine(z, change, weight, bias, 1)


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


def _normal_in_groups(x: Tensor, n_groups: int, eps: float) -> tuple[Value, Tensor]:
    """Return the normalised value, and 1 / sqrt(variance + eps), (n, groups)."""
    z, inverse = normalize(x.reshape(x.shape[0], n_groups, -1).clone(), (2,), eps)
    return Value(z.view(x.shape)), inverse[..., 0]


def _in_groups(x: Value, z: Value, inverse: Tensor) -> Change:
    change, n_groups = x.change, inverse.shape[1]
    size = x.base.shape[1] // n_groups
    if isinstance(change, Slab) and change.dim == 1 and change.width == 1:
        groups = change.starts // size
        rest = change.values.shape[2:]
        offsets = Slab(change.values, change.starts - groups * size, 0)
        slab = Slab(offsets.dense(torch.Size((size, *rest))), groups * size, 1)
        own = rows_of(inverse.t(), groups).view(len(groups), 1, -1, *[1] * (len(rest) - 1))
        axes = (1, *range(3, slab.values.ndim))
        return Slab(_renormalized(slab.values, z.part(slab), axes, own), slab.starts, 1)
    d = x.dense()
    grouped = (*inverse.shape, -1)
    moved = _renormalized(
        d.reshape(len(d), *grouped), z.base.view(grouped), (-1,), inverse[..., None]
    )
    return Dense(moved.view(len(d), *z.base.shape))


# --- The scale and the offset behind a normalisation


def affine(
    z: Value, change: Change | None, weight: Value | None, bias: Value | None, dim: int
) -> Change:
    """Change of z w + b along one axis: dz (w + dw) + z dw + db."""
    shape = z.base.shape
    along = (*[1] * dim, -1, *[1] * (len(shape) - dim - 1))
    if change is None:
        if moves(weight, bias) == 1:
            return _of_affine(z, weight, bias, dim)
    elif not moves(weight, bias):
        if weight is None:
            return change
        if isinstance(change, Slab) and change.dim == dim:
            factor = of_vector(weight.base, change)
            factor = factor.view(*factor.shape, *[1] * (change.values.ndim - 2))
            return Slab(change.values * factor, change.starts, dim)
        return Dense(change.dense(shape) * weight.base.view(along))
    parts = [] if change is None else [change.dense(shape)]
    if parts and weight is not None:
        parts = [parts[0] * (weight.base.view(along))]
    if weight is not None and weight.change is not None:
        moved = weight.dense().view(-1, *along[:dim], shape[dim], *along[dim + 1 :])
        parts.append(moved * (z.base if change is None else z.base + change.dense(shape)))
    if bias is not None and bias.change is not None:
        parts.append(bias.dense().view(-1, *along[:dim], shape[dim], *along[dim + 1 :]))
    return Dense(sum(parts[1:], parts[0]).expand(-1, *shape))


def _of_affine(z: Value, weight: Value | None, bias: Value | None, dim: int) -> Change:
    """Change of z w + b where only the one or the other moves."""
    is_weight = weight is not None and weight.change is not None
    moved, shape = weight if is_weight else bias, z.base.shape
    rest = shape[:dim] + shape[dim + 1 :]
    if isinstance(moved.change, Entry):  # type: ignore[union-attr]
        entry = moved.change  # type: ignore[union-attr]
        if not is_weight:
            return constant(entry.indices, dim, rest, entry.steps)
        steps = entry.steps.view(-1, 1, *[1] * len(rest)).expand(-1, 1, *rest)
        slab = Slab(steps, entry.indices, dim)
        return slab.with_values(steps * z.part(slab))
    vectors = moved.dense().view(-1, *[1] * dim, shape[dim], *[1] * (len(shape) - dim - 1))  # type: ignore[union-attr]
    return Dense(vectors * z.base if is_weight else vectors.expand(-1, *shape))


def of_vector(vector: Tensor, slab: Slab) -> Tensor:
    """Return what a slab covers of a vector along its axis, (1 or k, width)."""
    return slab.of(vector)
