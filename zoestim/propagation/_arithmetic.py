"""Arithmetic of several tensors, sums, matrix products and softmax."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoestim.propagation._change import Dense, Entry, Slab, Value
from zoestim.propagation._joining import alike, broadcast, converted_to, zeros
from zoestim.propagation._linear import linear
from zoestim.propagation._pending import Pending
from zoestim.propagation._pointwise import as_block, elementwise, neg
from zoestim.propagation._shape import permuted, whole
from zoestim.propagation._table import Site, moves, rule
from zoestim.propagation._tiles import may_hold

Operand = Value | float

# From there on, the divisor of a softmax is taken anew, as e^d may overflow.
_LARGE_GROWTH = 0.5
# Above it, p e^l asks for more digits than a p close to zero has.
_LARGE_EXPONENT = 60.0

# --- Two operands


@rule(operator.add, torch.add, "add")
def add(site: Site, a: Operand, b: Operand, *, alpha: float = 1) -> Any:
    """Change da + alpha db."""
    return _sum(site, a, b, alpha)


@rule(operator.sub, torch.sub, torch.subtract, "sub", "subtract")
def sub(site: Site, a: Operand, b: Operand, *, alpha: float = 1) -> Any:
    """Change da - alpha db."""
    return _sum(site, a, b, -alpha)


@rule(torch.rsub)
def rsub(site: Site, a: Operand, b: Operand, *, alpha: float = 1) -> Any:
    """Change db - alpha da."""
    return _sum(site, b, a, -alpha)


def _sum(site: Site, a: Operand, b: Operand, alpha: float) -> Any:
    if not site.out.base.is_floating_point():
        return NotImplemented
    blocks = [_block(site, x, scale) for x, scale in ((a, 1), (b, alpha)) if moves(x)]
    first, last = blocks[0], blocks[-1]
    if len(blocks) == 1:
        return first
    for block, other in ((first, last), (last, first)):
        if isinstance(block, Pending) and getattr(other, "strides", None) == block.strides:
            return block.plus(other.values)
    both_dense = isinstance(first, Dense) and isinstance(last, Dense)
    if both_dense or alike(blocks):
        for block, other in ((first, last), (last, first)):
            if site.may_overwrite(block.values):
                return first.with_values(block.values.add_(other.values))
        return first.with_values(first.values + last.values)
    if isinstance(first, Slab):
        first, last = last, first
    full = first.dense(site.out.base.shape)
    if isinstance(first, Dense) and not site.may_overwrite(full):
        full = full.clone()
    last.add_to(full)  # type: ignore[union-attr]
    return Dense(full)


def _block(site: Site, x: Operand, scale: float = 1) -> Slab | Dense:
    """Return the change of an operand, broadcast to the result."""
    out = site.out.base
    block = broadcast(_as_slab(x), out.shape)  # type: ignore[arg-type]
    if x.base.dtype != out.dtype:  # type: ignore[union-attr]
        block = converted_to(block, out.dtype)
    return block if scale == 1 else block.with_values(block.values * scale)


def _as_slab(x: Value) -> Value:
    """Return a value with one changed element of a parameter as a slab of its longest axis."""
    if not isinstance(x.change, Entry) or not x.base.ndim:
        return x
    shape, indices, steps = x.base.shape, x.change.indices, x.change.steps
    dim = max(range(len(shape)), key=shape.__getitem__)
    after = math.prod(shape[dim + 1 :])
    rest = torch.Size((*shape[:dim], *shape[dim + 1 :]))
    within = indices // (after * shape[dim]) * after + indices % after
    values = Entry(within, steps).dense(rest)
    return x.changed(Slab(values[:, None], indices // after % shape[dim], dim))


@rule(operator.mul, torch.mul, torch.multiply, "mul", "multiply")
def mul(site: Site, a: Operand, b: Operand) -> Any:
    """Change da b + a db + da db."""
    if not site.out.base.is_floating_point():
        return NotImplemented
    if moves(a, b) == 1:
        moved, other = (a, b) if moves(a) else (b, a)
        block = _block(site, moved)
        return block.with_values(block.values * _factor(site, other, block))
    da, db = _pair(site, a, b)
    grown = db.values + _factor(site, b, db)
    return da.with_values(grown.mul_(da.values).addcmul_(_factor(site, a, da), db.values))


@rule(operator.truediv, torch.div, torch.divide, torch.true_divide, "div", "divide", "true_divide")
def div(site: Site, a: Operand, b: Operand, *, rounding_mode: str | None = None) -> Any:
    """Change (da - (a / b) db) / (b + db)."""
    if rounding_mode is not None or not site.out.base.is_floating_point():
        return NotImplemented
    if not moves(b):
        da = _block(site, a)
        return da.with_values(da.values / _factor(site, b, da))
    if not moves(a):
        db = _block(site, b)
        above = -site.out.part(db) * db.values
    else:
        da, db = _pair(site, a, b)
        above = da.values - site.out.part(db) * db.values
    return db.with_values(above / (_factor(site, b, db) + db.values))


def _pair(site: Site, a: Operand, b: Operand) -> tuple[Slab | Dense, Slab | Dense]:
    """Return the changes of both operands: slabs of the same positions, or both dense."""
    blocks = [_block(site, a), _block(site, b)]
    return _matched(site, blocks)


def _matched(site: Site, blocks: list[Slab | Dense]) -> tuple[Slab | Dense, Slab | Dense]:
    """Return two changes of the result as slabs of the same positions, or as dense ones."""
    if not alike(blocks):
        layout = list(blocks)
        for i, block in enumerate(layout):
            if isinstance(block, Slab):
                full = zeros(layout, site.out.base.shape)
                block.add_to(full)
                blocks[i] = Dense(full)
    return blocks[0], blocks[1]


def _factor(site: Site, x: Operand, change: Slab | Dense, *, cast: bool = True) -> Any:
    """Return an operand where a change of the result is, so that the two broadcast."""
    if not isinstance(x, Value):
        return x
    out = site.out.base
    how = out.ndim, out.dtype if cast else x.base.dtype
    if isinstance(change, Slab):
        axis = change.dim - out.ndim + x.base.ndim
        if axis >= 0 and x.base.shape[axis] == out.shape[change.dim]:
            return x.part(change, _aligned, *how)
        return x.derived(_aligned, *how).movedim(change.dim, 0)[None]
    if x.base.shape == out.shape:
        return x.part(change, _aligned, *how)
    return x.derived(_aligned, *how)


def _aligned(base: Tensor, ndim: int, dtype: torch.dtype) -> Tensor:
    return base.to(dtype)[(None,) * (ndim - base.ndim)]


rule(operator.neg)(neg)


@rule(operator.pow, torch.pow, "pow")
def power(site: Site, x: Operand, exponent: Operand) -> Any:
    """Change of x^2: d (2 x + d)."""
    if not isinstance(x, Value) or isinstance(exponent, Value) or exponent != 2:
        return NotImplemented
    return elementwise(x, lambda d, change: d * (2 * x.part(change) + d))


# --- Sums over axes


def _reduction(is_mean: bool) -> Callable[..., Any]:
    def reduce(
        site: Site,
        x: Value,
        dim: Any = None,
        keepdim: bool = False,
        *,
        axis: Any = None,
        dtype: Any = None,
    ) -> Any:
        """Change by the sum or the mean of d."""
        if dtype is not None:
            return NotImplemented
        return _reduced(site, x, axis if dim is None else dim, keepdim, is_mean)

    return reduce


rule(torch.mean, "mean")(_reduction(True))
rule(torch.sum, "sum")(_reduction(False))


def _reduced(site: Site, x: Value, dim: Any, keepdim: bool, is_mean: bool) -> Any:
    ndim, shape = x.base.ndim, site.out.base.shape
    if dim is None or dim == () or dim == []:
        dim = range(ndim)
    axes = sorted(axis % ndim for axis in ([dim] if isinstance(dim, int) else dim))
    change = as_block(x)
    if not axes:
        return change
    if isinstance(change, Dense):
        over = [1 + axis for axis in axes]
        values = change.values.mean(over) if is_mean else change.values.sum(over)
        return Dense(values.reshape(len(values), *shape))
    over = [2 + axis - (axis > change.dim) for axis in axes if axis != change.dim]
    values = change.values
    if change.dim not in axes:
        values = values.mean(over) if is_mean else values.sum(over)
        new_dim = change.dim if keepdim else change.dim - sum(axis < change.dim for axis in axes)
        rest = (*shape[:new_dim], *shape[new_dim + 1 :])
        return Slab(values.reshape(*values.shape[:2], *rest), change.starts, new_dim)
    values = values.sum([1, *over]).reshape(len(values), *shape)
    return Dense(values / math.prod(x.base.shape[axis] for axis in axes) if is_mean else values)


# --- Matrix products


@rule(torch.matmul, operator.matmul, torch.bmm, torch.mm, "matmul", "bmm", "mm")
def matmul(site: Site, a: Value, b: Value) -> Any:
    """Change da b + a db + da db."""
    if a.base.ndim < 2 or b.base.ndim < 2:
        return NotImplemented
    if b.base.ndim == 2 and moves(a, b) == 1:
        turned: Value = b.derived(_turned)
        return linear(site, a, turned.changed(permuted(b, torch.empty((2, 1), device="meta"))))
    parts: list[Tensor] = []
    if moves(a):
        da = whole(a)
        parts.append(site.multiply(_moved_left, da, b.base))
    if moves(b):
        db = whole(b)
        parts.append(site.multiply(_moved_right, a.base, db))
    if len(parts) == 2:
        ndim = site.out.base.ndim
        left = da[(slice(None), *[None] * (ndim + 1 - da.ndim))]
        right = db[(slice(None), *[None] * (ndim + 1 - db.ndim))]
        parts.append(site.multiply(torch.matmul, left, right))
    return Dense(sum(parts[1:], parts[0]))


def _turned(matrix: Tensor) -> Value:
    return Value(matrix.t())


def _moved_left(da: Tensor, b: Tensor) -> Tensor:
    """All lanes see one right factor: their rows are stacked."""
    rows = da.movedim(0, -3).flatten(-3, -2)
    return torch.matmul(rows, b).unflatten(-2, da.shape[:1] + da.shape[-2:-1]).movedim(-3, 0)


def _moved_right(a: Tensor, db: Tensor) -> Tensor:
    """All lanes see one left factor: their columns are stacked."""
    columns = db.movedim(0, -2).flatten(-2)
    return torch.matmul(a, columns).unflatten(-1, db.shape[:1] + db.shape[-1:]).movedim(-2, 0)


# --- Softmax


@rule(torch.softmax, "softmax")
def softmax(site: Site, x: Value, dim: int, dtype: Any = None) -> Any:
    """Change p (e^l - 1), where l is the change of log p."""
    if dtype is not None:
        return NotImplemented
    change, moved = _log_softmax_step(x, dim)
    values = torch.expm1(moved).mul_(site.out.part(change))
    large = moved > _LARGE_EXPONENT
    if may_hold(large):
        values = torch.where(
            large, torch.exp(x.part(change, torch.log_softmax, dim) + moved), values
        )
    return change.with_values(values)


@rule(torch.log_softmax, "log_softmax")
def log_softmax(site: Site, x: Value, dim: int, dtype: Any = None) -> Any:
    """Change d_j - log(1 + s), where s = sum p (e^d - 1)."""
    if dtype is not None:
        return NotImplemented
    change, values = _log_softmax_step(x, dim)
    return change.with_values(values)


def _log_softmax_step(x: Value, dim: int) -> tuple[Slab | Dense, Tensor]:
    """Return a change that holds whole rows, and how log p changes there."""
    change, axis = _rows_of_softmax(x, dim)
    d = change.values
    growth = torch.expm1(d).mul_(x.part(change, torch.softmax, dim)).sum(axis, keepdim=True)
    moved, large = torch.log1p(growth), ~(growth.abs() < _LARGE_GROWTH)
    if may_hold(large):
        b = x.part(change).to(torch.float64)
        after, before = (torch.logsumexp(each, axis, keepdim=True) for each in (b + d, b))
        moved = torch.where(large, (after - before).to(d.dtype), moved)
    return change, d - moved


def _rows_of_softmax(x: Value, dim: int) -> tuple[Slab | Dense, int]:
    """Return a change that holds whole rows, and their axis in its values."""
    change, dim = as_block(x), dim % x.base.ndim
    if isinstance(change, Slab) and change.dim != dim:
        return change, 2 + dim - (dim > change.dim)
    return Dense(whole(x.changed(change))), 1 + dim


def _of_functional(function: Callable[..., Any]) -> Callable[..., Any]:
    def called(
        site: Site, x: Value, dim: int | None = None, _stacklevel: int = 3, dtype: Any = None
    ) -> Any:
        """Change as for the function of the same name in torch."""
        return NotImplemented if dim is None else function(site, x, dim, dtype)

    return called


rule(F.softmax)(_of_functional(softmax))
rule(F.log_softmax)(_of_functional(log_softmax))


# --- Choices between elements


@rule(torch.masked_fill, "masked_fill")
def masked_fill(site: Site, x: Value, mask: Value, value: Operand) -> Any:
    """Change d outside of the mask."""
    if moves(value, mask):
        return NotImplemented
    block = _block(site, x)
    return block.with_values(block.values.masked_fill(_factor(site, mask, block, cast=False), 0))


@rule(torch.where)
def where(site: Site, condition: Value, a: Operand, b: Operand) -> Any:
    """Change da where the condition holds, else db."""
    if moves(condition):
        return NotImplemented
    blocks = [_block(site, x) if moves(x) else None for x in (a, b)]
    moved: list[Any] = [block for block in blocks if block is not None]
    if len(moved) == 2:
        blocks = moved = list(_matched(site, moved))
    holds = _factor(site, condition, moved[0], cast=False)
    da, db = [0 if block is None else block.values for block in blocks]
    return moved[0].with_values(torch.where(holds, da, db))
