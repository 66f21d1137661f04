"""Samples as their owner has them, and as a denoiser takes them."""

import numpy as np
import pytest

from zoestim.defense import Layout

FIRST, LAST = "channels_first", "channels_last"


@pytest.mark.parametrize(
    ("shape", "image_shape", "data_format", "item"),
    [
        ((6,), None, FIRST, (6,)),
        ((20,), (4, 5), FIRST, (1, 4, 5)),
        ((20,), [4, 5], LAST, (1, 4, 5)),
        ((60,), (3, 4, 5), FIRST, (3, 4, 5)),
        ((60,), (4, 5, 3), LAST, (3, 4, 5)),
        ((4, 5), None, FIRST, (1, 4, 5)),
        ((4, 5), (4, 5), LAST, (1, 4, 5)),
        ((4, 5), (1, 4, 5), FIRST, (1, 4, 5)),
        ((3, 4, 5), None, FIRST, (3, 4, 5)),
        ((4, 5, 3), None, LAST, (3, 4, 5)),
        ((1, 4, 5), (4, 5), FIRST, (1, 4, 5)),
    ],
)
def test_there_and_back(shape, image_shape, data_format, item):
    X = np.arange(2.0 * np.prod(shape)).reshape(2, *shape)
    layout = Layout.of(X, image_shape, data_format)
    inner = layout.to_denoiser(X)
    assert layout.item == item
    assert inner.shape == (2, *item)
    np.testing.assert_array_equal(layout.to_user(inner), X)


def test_channels_come_first_for_a_denoiser():
    X = np.arange(60.0).reshape(1, 4, 5, 3)
    inner = Layout.of(X, None, LAST).to_denoiser(X)
    np.testing.assert_array_equal(inner[0, 2], X[0, :, :, 2])
    rows = Layout.of(X.reshape(1, -1), (4, 5, 3), LAST).to_denoiser(X.reshape(1, -1))
    np.testing.assert_array_equal(rows, inner)


@pytest.mark.parametrize(
    ("shape", "image_shape"),
    [
        ((21,), (4, 5)),
        ((20,), (20,)),
        ((20,), (1, 4, 5, 1)),
        ((4, 5), (5, 4)),
        ((3, 4, 5), (4, 5)),
        ((2, 2, 2, 2), None),
    ],
)
def test_a_wrong_shape_is_refused(shape, image_shape):
    with pytest.raises(ValueError, match=r"image_shape is .*; expected rows of as many numbers"):
        Layout.of(np.ones((2, *shape)), image_shape, FIRST)


@pytest.mark.parametrize("image_shape", [(-4, -5), (0, 20), (4.0, 5.0), ("4", "5")])
def test_what_is_no_shape_is_refused(image_shape):
    with pytest.raises(ValueError, match="is no shape; expected two or three positive integers"):
        Layout.of(np.ones((2, 20)), image_shape, FIRST)
