"""Pooling against itself."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from propagation.lanes import check, dense, slab
from propagation.strategies import changes, normal, quick
from zoestim.propagation import RULES, Dense, Site, Slab, Value

LARGEST = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
AVERAGES = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
EVEN_LARGEST = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}
EVEN_AVERAGES = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
dimensions = st.integers(1, 3)


@st.composite
def images(draw: st.DrawFn, n_axes: int) -> Value:
    """Images with or without a batch, of any layout; relu has made some elements equal."""
    batch = draw(st.sampled_from([(), (1,), (2,)]))
    sizes = [draw(st.integers(2, 6)) for _ in range(n_axes)]
    base = normal(*batch, draw(st.integers(1, 3)), *sizes, seed=draw(st.integers(0, 9)))
    x = draw(changes(base.relu()))
    if isinstance(x.change, Slab) or draw(st.booleans()):
        return x
    return x.changed(Dense(channels_last(x.dense(), n_axes)))


def channels_last(values: Tensor, n_axes: int) -> Tensor:
    return values.movedim(-n_axes - 1, -1).contiguous().movedim(-1, -n_axes - 1)


@st.composite
def windows(draw: st.DrawFn, n_axes: int) -> dict:
    kernel = draw(st.integers(1, 4) | st.tuples(*[st.integers(1, 4)] * n_axes))
    smallest = min(kernel) if isinstance(kernel, tuple) else kernel
    return {
        "kernel_size": kernel,
        "stride": draw(st.none() | st.integers(1, 3)),
        "padding": draw(st.integers(0, smallest // 2)),
        "ceil_mode": draw(st.booleans()),
    }


def fits(operation, x: Value, **window) -> bool:
    try:
        return operation(x.base, **window).numel() > 0
    except RuntimeError:  # the window is larger than the image
        return False


@given(st.data(), dimensions)
@quick
def test_largest_elements(data: st.DataObject, n_axes: int):
    x, window = data.draw(images(n_axes)), data.draw(windows(n_axes))
    window["dilation"] = data.draw(st.integers(1, 2))
    assume(fits(LARGEST[n_axes], x, **window))
    check(LARGEST[n_axes], x, **window)


@given(st.data(), dimensions)
@quick
def test_largest_elements_of_windows_side_by_side(data: st.DataObject, n_axes: int):
    x, kernel = data.draw(images(n_axes)), data.draw(st.integers(1, 3))
    window = {"padding": data.draw(st.integers(0, kernel // 2))}
    window["ceil_mode"] = data.draw(st.booleans())
    assume(fits(LARGEST[n_axes], x, kernel_size=kernel, **window))
    check(LARGEST[n_axes], x, kernel, **window)


@given(st.data(), dimensions)
@quick
def test_averages(data: st.DataObject, n_axes: int):
    x, window = data.draw(images(n_axes)), data.draw(windows(n_axes))
    window["count_include_pad"] = data.draw(st.booleans())
    if n_axes > 1:
        window["divisor_override"] = data.draw(st.none() | st.just(5))
    assume(fits(AVERAGES[n_axes], x, **window))
    check(AVERAGES[n_axes], x, **window)


@given(st.data(), dimensions)
@quick
def test_a_given_number_of_outputs(data: st.DataObject, n_axes: int):
    x = data.draw(images(n_axes))
    lengths = x.base.shape[-n_axes:]
    whole = data.draw(st.booleans())
    size = tuple(1 if whole else data.draw(st.integers(1, length)) for length in lengths)
    check(EVEN_AVERAGES[n_axes], x, size)
    if not any(length % each for length, each in zip(lengths, size, strict=True)):
        check(EVEN_LARGEST[n_axes], x, size)
    if n_axes > 1:
        check(EVEN_AVERAGES[n_axes], x, (None, *size[1:]))


@pytest.mark.parametrize("starts", [[1, 1], [0, 2]])
def test_one_changed_channel_stays_one(starts: list[int]):
    x = slab(normal(2, 3, 6, 6), 1, starts)
    for operation, *args in (
        *((F.max_pool2d, 2), (F.max_pool2d, 3, 2, 1), (torch.max_pool2d, 6)),
        *((F.avg_pool2d, 2), (F.avg_pool2d, 3, 2, 1), (F.avg_pool2d, 6)),
        *((F.adaptive_avg_pool2d, 1), (F.adaptive_avg_pool2d, 4), (F.adaptive_max_pool2d, 1)),
    ):
        found = check(operation, x, *args)
        assert isinstance(found, Slab)
        assert found.dim == 1
        assert found.width == 1


def test_images_keep_their_channels_last():
    x = dense(normal(2, 3, 6, 6), 2)
    x = x.changed(Dense(channels_last(x.change.values, 2)))
    for operation, *args in (
        *((F.max_pool2d, 2), (F.max_pool2d, 3, 2, 1)),
        *((F.avg_pool2d, 2), (F.avg_pool2d, 3, 2, 1), (F.adaptive_avg_pool2d, 4)),
    ):
        assert check(operation, x, *args).values.stride(2) == 1


def test_the_largest_element_is_found_again_without_cancellation():
    base = 1e6 + normal(2, 3, 4, 4)
    x = dense(base, 2, scale=1e-9)
    found = RULES[F.max_pool2d](Site(Value(F.max_pool2d(base, 2)), lambda f: f()), x, 2)
    gap = base - F.max_pool2d(base, 2).repeat_interleave(2, -1).repeat_interleave(2, -2)
    expected = F.max_pool2d((gap + x.change.values).flatten(0, 1), 2).unflatten(0, (2, 2))
    assert torch.equal(found.values, expected)


def test_overlapping_windows_keep_the_digits_of_short_types():
    base = normal(2, 3, 5, 5).float()
    x = dense(base, 2, scale=1e-5)
    site = Site(Value(F.max_pool2d(base, 3, 2)), lambda f: f())
    found = RULES[F.max_pool2d](site, x, 3, 2)
    assert found.values.dtype == torch.float32
    wide = (base.double() + x.change.values.double()).flatten(0, 1)
    expected = F.max_pool2d(wide, 3, 2).unflatten(0, (2, 2)) - F.max_pool2d(base.double(), 3, 2)
    torch.testing.assert_close(found.values.double(), expected, rtol=1e-6, atol=0)


def test_indices_and_uneven_windows_are_left_to_the_operation():
    site, x = Site(None, lambda f: f()), dense(normal(2, 3, 5, 5), 2)
    assert RULES[F.max_pool2d](site, x, 2, return_indices=True) is NotImplemented
    assert RULES[F.adaptive_max_pool2d](site, x, 5, return_indices=True) is NotImplemented
    site = Site(Value(normal(2, 3, 2, 2)), lambda f: f())
    assert RULES[F.adaptive_max_pool2d](site, x, 2) is NotImplemented
