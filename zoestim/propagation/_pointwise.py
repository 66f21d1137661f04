"""Functions of single elements: what did not change does not change."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoestim.propagation._change import Dense, Entry, Slab, Value
from zoestim.propagation._made import Made
from zoestim.propagation._pending import Pending
from zoestim.propagation._table import Site, rule
from zoestim.propagation._tiles import all_within, tiles

# What an activation is computed in for its difference: f(b + d) - f(b) cancels.
_EXACT = torch.float64
# Below it, what tanh of a step is, the addition theorem loses at most one bit.
_LARGE = 0.5


def as_block(x: Value) -> Slab | Dense:
    """Return the change of a value as a slab or as all of it."""
    return Dense(x.dense()) if isinstance(x.change, Entry) else x.change  # type: ignore[return-value]


def elementwise(x: Value, function: Callable[[Tensor, Slab | Dense], Tensor]) -> Any:
    """Return the change that has ``function(d, change)`` for values; none of complex numbers."""
    if x.base.is_complex():
        return NotImplemented
    change = as_block(x)
    values = function(change.values, change)
    return change.with_values(values)


@rule(torch.relu, F.relu, "relu")
def relu(site: Site, x: Value, inplace: bool = False) -> Any:
    """Change of ``max(x, 0)``, exactly."""
    return _clamped(site, x, 0.0, None)


@rule(F.relu6)
def relu6(site: Site, x: Value, inplace: bool = False) -> Any:
    """Change of ``min(max(x, 0), 6)``, exactly."""
    return _clamped(site, x, 0.0, 6.0)


@rule(F.hardtanh)
def hardtanh(
    site: Site, x: Value, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Any:
    """Change of ``min(max(x, min_val), max_val)``, exactly."""
    return _clamped(site, x, min_val, max_val)


@rule(torch.clamp, torch.clip, "clamp", "clip")
def clamp(site: Site, x: Value, min: Any = None, max: Any = None) -> Any:
    """Change of ``clamp(x, min, max)`` between numbers, exactly."""
    if isinstance(min, Value) or isinstance(max, Value):
        return NotImplemented
    return _clamped(site, x, min, max)


def _clamped(site: Site, x: Value, low: float | None, high: float | None) -> Any:
    def move(d: Tensor, change: Slab | Dense) -> Tensor:
        out = d if site.may_overwrite(d) else None
        return _clamp_step(x, d, change, low, high, out)

    if isinstance(x.change, Made):
        return _clamped_lanes(x, x.change, low, high)
    if isinstance(x.change, Pending):
        return x.change.then(partial(_clamp_tile, low, high), *_bounds(x, x.change, low, high))
    return elementwise(x, move)


def _clamped_lanes(x: Value, change: Made, low: float | None, high: float | None) -> Made:
    """Clamp each lane as it is made, while it is in the cache."""
    outside = change.beside(x.planes(change, _outside, low, high))
    rooms = [
        change.beside(x.planes(change, _room, low, high, bound))
        for bound in (low, high)
        if bound is not None
    ]

    def make(k: int, out: Tensor, onto: Tensor | None) -> None:
        change.write(k, out, outside[k])
        _clamp_to(low, high, out, *(room[k] for room in rooms))
        if onto is not None:
            out.add_(onto)

    return Made(change.starts, change.dim, change.rest, change.like, make, width=change.width)


def _clamp_step(
    x: Value,
    d: Tensor,
    change: Slab | Dense,
    low: float | None,
    high: float | None,
    out: Tensor | None = None,
) -> Tensor:
    """Shift the bounds by c = clamp(b): the change is clamp(d + b - c, low - c, high - c)."""
    moved = torch.empty_like(d) if out is None else out
    for tile, given, *beside in tiles(moved, d, *_bounds(x, change, low, high)):
        _clamp_tile(low, high, given, tile, *beside)
    return moved


def _bounds(x: Value, change: Slab | Dense, low: float | None, high: float | None) -> list[Tensor]:
    rooms = [x.elements(change, _room, low, high, b) for b in (low, high) if b is not None]
    return [x.elements(change, _outside, low, high), *rooms]


def _clamp_tile(
    low: float | None, high: float | None, d: Tensor, out: Tensor, outside: Tensor, *rooms: Tensor
) -> None:
    _clamp_to(low, high, torch.add(d, outside, out=out), *rooms)


def _clamp_to(low: float | None, high: float | None, out: Tensor, *rooms: Tensor) -> None:
    if low is not None:
        torch.maximum(out, rooms[0], out=out)
    if high is not None:
        torch.minimum(out, rooms[-1], out=out)


def _outside(b: Tensor, low: float | None, high: float | None) -> Tensor:
    return b.sub_(b.clamp(low, high))


def _room(b: Tensor, low: float | None, high: float | None, bound: float) -> Tensor:
    return b.clamp_(low, high).neg_().add_(bound)


@rule(F.hardsigmoid)
def hardsigmoid(site: Site, x: Value, inplace: bool = False) -> Any:
    """Change of ``clamp(x, -3, 3) / 6 + 1 / 2``."""
    return elementwise(x, lambda d, change: _clamp_step(x, d, change, -3.0, 3.0) / 6)


@rule(F.leaky_relu)
def leaky_relu(site: Site, x: Value, negative_slope: float = 0.01, inplace: bool = False) -> Any:
    """Change a d + (1 - a) p, where p is that of ``max(x, 0)``."""

    def move(d: Tensor, change: Slab | Dense) -> Tensor:
        positive = _clamp_step(x, d, change, 0.0, None)
        return positive.mul_(1 - negative_slope).add_(d, alpha=negative_slope)

    return elementwise(x, move)


@rule(F.prelu)
def prelu(site: Site, input: Value, weight: Value) -> Any:
    """Change p + a (d - p), with one slope a for all or for each channel; it stays."""
    if weight.change is not None or input.change is None:
        return NotImplemented

    def move(d: Tensor, change: Slab | Dense) -> Tensor:
        p = _clamp_step(input, d, change, 0.0, None)
        return torch.addcmul(p, input.part(change, _slopes, weight.base), d - p)

    return elementwise(input, move)


def _slopes(b: Tensor, weight: Tensor) -> Tensor:
    """Return the slope below zero of each element, in memory as b."""
    along = weight if weight.numel() == 1 else weight.view(-1, *[1] * (b.ndim - 2))
    return torch.empty_like(b).copy_(along)


@rule(torch.abs, "abs")
def absolute(site: Site, x: Value) -> Any:
    """Change 2 p - d, where p is that of ``max(x, 0)``."""
    return elementwise(x, lambda d, change: 2 * _clamp_step(x, d, change, 0.0, None) - d)


@rule(F.elu)
def elu(site: Site, x: Value, alpha: float = 1.0, inplace: bool = False) -> Any:
    """Change of ``max(x, 0) + alpha (e^min(x, 0) - 1)``."""
    return _exponential_unit(x, 1.0, alpha, 1.0)


@rule(F.celu)
def celu(site: Site, x: Value, alpha: float = 1.0, inplace: bool = False) -> Any:
    """Change of ``max(x, 0) + alpha (e^(min(x, 0) / alpha) - 1)``."""
    return _exponential_unit(x, 1.0, alpha, alpha)


@rule(F.selu)
def selu(site: Site, x: Value, inplace: bool = False) -> Any:
    """Change of ELU's, times a scale."""
    return _exponential_unit(x, 1.0507009873554804934, 1.6732632423543772848, 1.0)


def _exponential_unit(x: Value, scale: float, alpha: float, width: float) -> Any:
    """Move the positive part by p, and the negative part m by n = d - p."""

    def move(d: Tensor, change: Slab | Dense) -> Tensor:
        p = _clamp_step(x, d, change, 0.0, None)
        m = x.part(change, torch.clamp, None, 0.0)
        return scale * (p + alpha * _exp_step(m / width, (d - p) / width))

    return elementwise(x, move)


def _exp_step(b: Tensor, d: Tensor) -> Tensor:
    """e^(b + d) - e^b = +-e^max(b, b + d) (1 - e^-|d|), of which neither factor overflows."""
    return torch.exp(b + d.clamp(min=0)) * torch.copysign(torch.expm1(-d.abs()), d)


@rule(torch.exp, "exp")
def exp(site: Site, x: Value) -> Any:
    """Change e^(b + d) - e^b, without cancellation."""
    return elementwise(x, lambda d, change: _exp_step(x.part(change), d))


@rule(torch.tanh, F.tanh, "tanh")
def tanh(site: Site, x: Value) -> Any:
    """Change of tanh."""

    def move(d: Tensor, change: Slab | Dense) -> Tensor:
        t, slope = site.out.part(change), x.part(change, _slope_of_tanh)
        return _tanh_step(d, t, slope, lambda: x.part(change))

    return elementwise(x, move)


@rule(torch.sigmoid, F.sigmoid, "sigmoid")
def sigmoid(site: Site, x: Value) -> Any:
    """Change by tanh, since sigmoid(b) = (1 + tanh(b / 2)) / 2."""

    def move(d: Tensor, change: Slab | Dense) -> Tensor:
        t, slope = x.part(change, _tanh_of, 0.5), x.part(change, _slope_of_tanh, 0.5)
        return _tanh_step(d / 2, t, slope, lambda: x.part(change) / 2) / 2

    return elementwise(x, move)


def _tanh_step(d: Tensor, t: Tensor, slope: Tensor, base: Callable[[], Tensor]) -> Tensor:
    """Addition theorem: s (1 - t^2) / (1 + t s), with t = tanh(b), s = tanh(d).

    Its divisor cancels where a large step undoes a large value.
    """
    s = torch.tanh(d)
    moved = (s * slope).div_((t * s).add_(1))
    if all_within(s, _LARGE):
        return moved
    exact = _large_tanh_step(base().to(_EXACT), d.to(_EXACT)).to(d.dtype)
    return torch.where(s.abs() < _LARGE, moved, exact)


def _large_tanh_step(b: Tensor, d: Tensor) -> Tensor:
    """sinh(d) / (cosh(b) cosh(b + d)), by powers of e that are at most 1."""
    after = b + d
    common = torch.exp(d.abs() - b.abs() - after.abs())
    divisor = (1 + torch.exp(-2 * b.abs())) * (1 + torch.exp(-2 * after.abs()))
    return 2 * common * torch.copysign(torch.expm1(-2 * d.abs()), d) / divisor


def _tanh_of(b: Tensor, factor: float) -> Tensor:
    return torch.tanh(factor * b)


def _slope_of_tanh(b: Tensor, factor: float = 1.0) -> Tensor:
    return torch.cosh(factor * b.to(_EXACT)).pow(-2).to(b.dtype)


@rule(torch.neg, "neg")
def neg(site: Site, x: Value) -> Any:
    """Change -d."""
    return elementwise(x, lambda d, change: -d)


def _difference_of(function: Callable[..., Tensor]) -> Callable[..., Any]:
    """Return the rule of a function that has no form of its own: f(b + d) - f(b) in float64."""

    def difference(site: Site, x: Value, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(value, Value) for value in (*args, *kwargs.values())):
            return NotImplemented

        def move(d: Tensor, change: Slab | Dense) -> Tensor:
            moved = function(x.part(change, _exactly) + d, *args, **kwargs)
            before = x.part(change, _exactly, function, args, tuple(kwargs.items()))
            return (moved - before).to(d.dtype)

        return elementwise(x, move)

    return difference


def _exactly(
    b: Tensor, function: Callable[..., Tensor] | None = None, args: Any = (), kwargs: Any = ()
) -> Tensor:
    wide = b.to(_EXACT)
    return wide if function is None else function(wide, *args, **dict(kwargs))


for _function in (
    *(F.gelu, F.hardshrink, F.hardswish, F.logsigmoid, F.mish, F.silu, F.softplus, F.softshrink),
    *(F.softsign, F.tanhshrink, F.threshold),
):
    rule(_function)(_difference_of(_function))
for _name in (
    *("ceil", "cos", "erf", "expm1", "floor", "log", "log1p", "reciprocal", "round"),
    *("rsqrt", "sign", "sin", "sqrt", "square"),
):
    rule(getattr(torch, _name), _name)(_difference_of(getattr(torch, _name)))
