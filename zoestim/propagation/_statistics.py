"""The statistics of a batch, channel by channel: of what is normalised, and of its changes."""

from __future__ import annotations

import torch
from torch import Tensor

from zoestim.propagation._change import Value, channels_last, planes_of
from zoestim.propagation._normalization import Normal, moved_by, normalize
from zoestim.propagation._pending import Pending
from zoestim.propagation._tiles import TILE

# Columns of a tile: channels are repeated up to so many, since short rows are slow.
_COLUMNS = 1024


def normal_planes(x: Tensor, order: tuple[int, ...], eps: float) -> Normal:
    """Normalise a copy with channels first, (n_channels, n, *size)."""
    return normalize(planes_of(x, 1, order), tuple(range(1, x.ndim)), eps)


def normal_pixels(x: Tensor, eps: float) -> Normal:
    """Normalise a copy with channels last, (n_pixels, n_channels)."""
    return _normal_rows(x.movedim(1, -1), eps)


def normal_places(x: Tensor, eps: float) -> Normal:
    """Normalise a copy with channels last, and the batch before them, (n_pixels, n_channels)."""
    return _normal_rows(x.movedim((0, 1), (-2, -1)), eps)


def _normal_rows(x: Tensor, eps: float) -> Normal:
    copy = x.clone(memory_format=torch.contiguous_format)
    return normalize(copy.view(-1, x.shape[-1]), (0,), eps)


def moments(d: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the means of d, d z and d^2 of each slab's channels, (k, width), in float64."""
    d, z = d.flatten(2), z.flatten(2)
    one = z.shape[:2] == (1, 1)
    cross = (d[:, 0] @ z[0, 0])[:, None] if one else (d * z).sum(-1)
    square = torch.linalg.vector_norm(d, dim=-1).double().square()
    return d.mean(-1).double(), cross.double() / d.shape[-1], square / d.shape[-1]


def normalized_rows(
    x: Value, values: Tensor, owned: bool, eps: float, gain: Tensor | None
) -> Pending:
    """Normalise lanes that lie with their channels last, in rows of several pixels.

    Parameters
    ----------
    x : Value
        What is normalised.
    values : Tensor of shape (k, n, n_channels, *size)
        Its change.
    owned : bool
        Whether the change may be overwritten.
    eps : float
        What is added to the variance.
    gain : Tensor of shape (n_channels,) or None
        What the normalised value is multiplied by.
    """
    values = channels_last(values)
    normal = x.derived(normal_pixels, eps)
    n_pixels, n_channels = normal.z.shape
    most = max(1, _COLUMNS // n_channels)
    repeats = max(r for r in range(1, most + 1) if n_pixels % r == 0)
    z = normal.z.view(-1, repeats * n_channels)
    d = values.movedim(2, -1).reshape(len(values), *z.shape)
    sums = _sums(d, z).unflatten(-1, (repeats, -1)).sum(-2) / n_pixels
    moved = moved_by(sums[0], sums[1], sums[2], normal.inverse[0])
    moved = moved if gain is None else moved.mul_(gain)
    moved = moved.to(d.dtype).repeat(1, 1, repeats)[:, :, None]
    return Pending(values, z.shape[1], owned).then(_move, z[None], *moved)


def _move(d: Tensor, out: Tensor, z: Tensor, scale: Tensor, slope: Tensor, shift: Tensor) -> None:
    torch.addcmul(shift, z, slope, out=out).addcmul_(d, scale)


def _sums(d: Tensor, z: Tensor) -> Tensor:
    """Return the sums over rows of d, d z and d^2 of each lane, (3, k, columns), in float64."""
    if d.device.type != "cpu" or d.numel() <= TILE:
        return torch.stack([each.sum(1).double() for each in (d, d * z, d * d)])
    products = [(*_products(lane, z), _products(lane, lane)[0]) for lane in d]
    cross, mean, square = (torch.stack(each) for each in zip(*products, strict=True))
    return torch.stack([mean, cross, square]).double()


def _products(d: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums over rows of d z and of d, in one pass.

    They are what the gradient of batch normalisation takes for the scale and the offset.
    """
    zeros, ones = z.new_zeros(z.shape[1]), z.new_ones(z.shape[1])
    wanted = [False, True, True]
    return torch.ops.aten.native_batch_norm_backward(
        d, z, None, None, None, zeros, ones, True, 0.0, wanted
    )[1:]
