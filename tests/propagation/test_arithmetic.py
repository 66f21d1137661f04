"""Arithmetic, sums, matrix products and softmax against themselves."""

import operator
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from propagation.lanes import check, dense, entry, slab
from propagation.strategies import changes, entries, moved, normal, quick, shapes
from zoestim.propagation import RULES, Dense, Site, Slab, Value

SUMS = operator.add, torch.add, operator.sub, torch.sub, "sub", torch.rsub
PRODUCTS = operator.mul, torch.mul, "mul"
QUOTIENTS = operator.truediv, torch.div, "div"


def away_from_zero(x: Value) -> Value:
    """Return a value that can be divided by, whatever changes of it."""
    return Value(x.base.sign() * (x.base.abs() + 8.0), x.change)


@st.composite
def partners(draw: st.DrawFn, shape: tuple[int, ...], n_lanes: int, change: object) -> Value:
    """A tensor that broadcasts with a shape: it changes in as many lanes, or not at all."""
    kept = [draw(st.sampled_from([size, size, 1])) for size in shape]
    base = normal(*kept[draw(st.integers(0, len(kept))) :], seed=3)
    kind = draw(st.sampled_from(["still", "dense", "slab", "alike"]))
    if kind == "alike" and isinstance(change, Slab):
        return Value(normal(*shape, seed=3), Slab(change.values + 1, change.starts, change.dim))
    if kind == "slab" and base.ndim:
        dim = draw(st.integers(0, base.ndim - 1))
        start = st.integers(0, base.shape[dim] - 1)
        starts = draw(st.lists(start, min_size=n_lanes, max_size=n_lanes))
        return slab(base, dim, starts, seed=4)
    return Value(base) if kind == "still" else dense(base, n_lanes, seed=5)


@st.composite
def operands(draw: st.DrawFn) -> tuple[Value, Value]:
    shape = draw(shapes())
    a = draw(moved(shape) | entries(normal(*shape)))
    return a, draw(partners(shape, len(a.dense()), a.change))


# --- Two operands


@given(operands())
@quick
def test_operands_that_broadcast(pair: tuple[Value, Value]):
    a, b = pair
    for operation in (*SUMS, *PRODUCTS):
        check(operation, a, b)
        check(operation, b, a)
    for operation in QUOTIENTS:
        check(operation, a, away_from_zero(b))
        check(operation, b, away_from_zero(a))
    check(torch.add, a, b, alpha=-0.5)
    check("sub", b, a, alpha=2)


@given(st.data(), shapes())
@quick
def test_numbers_on_either_side(data: st.DataObject, shape):
    x = data.draw(changes(normal(*shape)) | entries(normal(*shape)))
    for operation in (operator.add, operator.sub, operator.mul):
        check(operation, x, 3)
        check(operation, -0.5, x)
    check(operator.truediv, x, 3)
    check(operator.truediv, 0.5, away_from_zero(x))
    check(operator.pow, x, 2)
    check(operator.neg, x)


@pytest.mark.parametrize("operation", [operator.add, operator.mul])
def test_one_tensor_on_both_sides(operation: Callable):
    x = slab(normal(2, 3), 1, [0, 2])
    assert isinstance(check(operation, x, x), Slab)


@pytest.mark.parametrize("operation", [operator.add, operator.sub, operator.mul, operator.truediv])
def test_one_changed_channel_stays_one(operation: Callable):
    image = slab(normal(2, 3, 4, 4), 1, [0, 2])
    for other in (normal(2, 3, 4, 4), normal(3, 1, 1), normal(2, 1, 4, 4), normal(4)):
        assert isinstance(check(operation, image, Value(other.abs() + 1)), Slab)
    alike = Value(normal(2, 3, 4, 4).abs() + 1, image.change)
    assert isinstance(check(operation, image, alike), Slab)


def test_an_element_of_a_parameter_changes_one_channel():
    images = Value(normal(2, 3, 4, 5))
    for shape, indices in (((3, 1, 1), [0, 2]), ((1, 3, 4, 5), [7, 59]), ((5,), [4, 1])):
        found = check(operator.add, images, entry(normal(*shape), indices))
        assert isinstance(found, Slab)
        assert found.width == 1
    check(operator.mul, images, entry(normal(), [0]))


def test_operands_are_not_written_into():
    a, b = dense(normal(2, 3), 2), slab(normal(2, 3), 1, [0, 2])
    before = a.change.values.clone(), b.change.values.clone()
    for operation in (operator.add, operator.mul):
        check(operation, a, b)
        check(operation, a, a)
    assert torch.equal(a.change.values, before[0])
    assert torch.equal(b.change.values, before[1])


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("other", [dense(normal(2, 3), 2), slab(normal(2, 3), 1, [0, 2])])
def test_a_sum_is_written_where_nobody_else_reads(other: Value, swapped: bool):
    a = dense(normal(2, 3), 2, seed=1)
    memory, expected = a.change.values, a.dense() + other.dense()
    only_a = {other.change.values.untyped_storage().data_ptr()}
    site = Site(Value(a.base + other.base), lambda f: f(), shared=only_a)
    found = RULES[operator.add](site, *((other, a) if swapped else (a, other)))
    torch.testing.assert_close(found.values, expected)
    assert found.values.data_ptr() == memory.data_ptr()


def test_images_added_up_keep_their_channels_last():
    values = normal(2, 2, 4, 5, 3).permute(0, 1, 4, 2, 3)
    images = Value(normal(2, 3, 4, 5), Dense(values))
    for other in (slab(normal(2, 3, 4, 5), 1, [0, 2]), images, Value(normal(2, 3, 4, 5))):
        assert check(operator.add, images, other).values.stride(2) == 1


def test_types_are_those_of_the_result():
    x, steps = dense(normal(2, 3), 2), Value(torch.tensor([1, 2, 3]))
    check(operator.mul, x, steps)
    check(operator.truediv, x, steps)
    short = Value(normal(2, 3).float(), Dense(normal(2, 2, 3).float()))
    long = RULES[operator.add](Site(Value(x.base), lambda f: f()), short, x)
    assert long.values.dtype == torch.float64


def test_rounded_quotients_are_left_to_the_operation():
    site, x = Site(Value(normal(2)), lambda f: f()), dense(normal(2), 1)
    assert RULES[torch.div](site, x, 2, rounding_mode="floor") is NotImplemented
    assert RULES[operator.pow](site, x, 3) is NotImplemented


def test_small_steps_keep_their_digits():
    x = dense(normal(3, 4), 2, scale=1e-14)
    site = Site(Value(4.0 / x.base), lambda f: f())
    found = RULES[operator.truediv](site, 4.0, x)
    torch.testing.assert_close(found.values, -4.0 * x.change.values / x.base**2)


# --- Sums over axes


@given(st.data(), shapes())
@quick
def test_sums_and_means(data: st.DataObject, shape):
    x = data.draw(changes(normal(*shape)) | entries(normal(*shape)))
    axes = data.draw(st.sets(st.integers(0, len(shape) - 1), min_size=1))
    dims = [axis - data.draw(st.sampled_from([0, len(shape)])) for axis in axes]
    for operation in (torch.mean, torch.sum, "mean", "sum"):
        check(operation, x)
        check(operation, x, dims)
        check(operation, x, dims[0])
        check(operation, x, dim=tuple(dims), keepdim=True)
    check(torch.sum, x, axis=0)


def test_a_mean_over_other_axes_keeps_the_slab():
    x = slab(normal(2, 3, 4, 4), 1, [0, 2])
    found = check(torch.mean, x, (2, 3))
    assert isinstance(found, Slab)
    assert found.dim == 1
    assert check("sum", x, 0).dim == 0
    assert check("sum", x, 0, keepdim=True).dim == 1


# --- Matrix products


@st.composite
def matrices(draw: st.DrawFn) -> tuple[Value, Value]:
    n, m, p = (draw(st.integers(1, 4)) for _ in range(3))
    batch = draw(shapes(min_dims=0, max_dims=2))
    left = batch[draw(st.integers(0, len(batch))) :]
    right = tuple(draw(st.sampled_from([size, 1])) for size in batch)
    right = right[draw(st.integers(0, len(batch))) :]
    a, b = draw(moved((*left, n, m))), Value(normal(*right, m, p, seed=2))
    if draw(st.booleans()):
        n_lanes, dim = len(a.dense()), draw(st.integers(0, b.base.ndim - 1))
        whole, part = dense(b.base, n_lanes), slab(b.base, dim, [0] * n_lanes)
        b = draw(st.sampled_from([whole, part]))
    return draw(st.sampled_from([(a, b), (Value(a.base), b if b.change else dense(b.base, 2))]))


@given(matrices())
@quick
def test_products_of_matrices(pair: tuple[Value, Value]):
    a, b = pair
    for operation in (torch.matmul, operator.matmul, "matmul"):
        check(operation, a, b)


@given(st.data())
@quick
def test_products_of_batches(data: st.DataObject):
    a, b = data.draw(moved((2, 3, 4))), normal(2, 4, 3)
    check(torch.bmm, a, Value(b))
    check(torch.bmm, a, dense(b, len(a.dense())))
    check(torch.bmm, Value(b), a)


def test_one_element_of_a_matrix_changes_one_column():
    weight = entry(normal(4, 3), [0, 5, 11])
    found = check(operator.matmul, Value(normal(2, 5, 4)), weight)
    assert isinstance(found, Slab)
    assert (found.dim, found.width, found.starts.tolist()) == (2, 1, [0, 2, 2])


def test_a_product_with_a_vector_is_left_to_the_operation():
    site = Site(Value(normal(2)), lambda f: f())
    assert RULES[torch.matmul](site, dense(normal(2, 3), 1), Value(normal(3))) is NotImplemented


# --- Softmax


@given(st.data(), shapes())
@quick
def test_softmax(data: st.DataObject, shape):
    x = data.draw(changes(normal(*shape)))
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    for operation in (torch.softmax, F.softmax, "softmax"):
        check(operation, x, dim)
    for operation in (torch.log_softmax, F.log_softmax, "log_softmax"):
        check(operation, x, dim=dim)


def test_softmax_of_small_steps_keeps_its_digits():
    x = dense(normal(3, 4), 2, scale=1e-14)
    p, d = x.base.softmax(-1), x.change.values
    linear = p * (d - (p * d).sum(-1, keepdim=True))
    found = RULES[torch.softmax](Site(Value(p), lambda f: f()), x, -1)
    torch.testing.assert_close(found.values, linear, rtol=1e-12, atol=1e-26)


@pytest.mark.parametrize("scale", [30.0, 1000.0])
def test_softmax_of_steps_that_overflow_the_exponential(scale: float):
    base = torch.tensor([[0.0, -800.0, 3.0], [0.1, 0.2, 0.3]], dtype=torch.float64)
    for operation in (torch.softmax, torch.log_softmax):
        check(operation, dense(base, 3, scale=scale), -1)
        check(operation, slab(base, 1, [1], scale=scale), -1)


def test_softmax_over_another_axis_keeps_the_slab():
    x = slab(normal(2, 3, 4), 1, [0, 2])
    assert isinstance(check(torch.softmax, x, -1), Slab)
    assert isinstance(check(torch.log_softmax, x, 0), Slab)


# --- Choices between elements


def masks(x: Tensor) -> Value:
    return Value(normal(*x.shape, seed=9) > 0)


@given(operands())
@quick
def test_choices(pair: tuple[Value, Value]):
    a, b = pair
    check(torch.masked_fill, a, masks(a.base), 7.0)
    check("masked_fill", a, masks(a.base[0]), 7.0)
    check(torch.where, masks(a.base), a, b)
    check(torch.where, masks(a.base), b, a)
    check(torch.where, masks(a.base), a, 0.0)
