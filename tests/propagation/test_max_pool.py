"""The largest element of windows side by side is torch's own, whatever the shape."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zoestim.propagation import max_pool

SIZES = st.integers(1, 4)


@given(SIZES, SIZES, SIZES, SIZES, st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=50, deadline=None)
def test_the_largest_elements_are_those_of_torch(high, wide, rows, columns, dtype):
    generator = torch.Generator().manual_seed(high + 5 * wide)
    x = torch.randn(3, 2, high * rows, wide * columns, generator=generator, dtype=dtype)
    x[0, 0, 0, 0], x[1, 1, -1, -1] = torch.nan, -torch.inf
    module = nn.MaxPool2d((high, wide))
    found = max_pool(module, x)
    torch.testing.assert_close(found, module(x), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.MaxPool2d(3, stride=2), (2, 3, 9, 9)),
        (nn.MaxPool2d(2, padding=1), (2, 3, 8, 8)),
        (nn.MaxPool2d(2, dilation=2), (2, 3, 8, 8)),
        (nn.MaxPool2d(2, return_indices=True), (2, 3, 8, 8)),
        (nn.MaxPool2d(2), (2, 3, 7, 8)),
        (nn.MaxPool2d(2), (3, 8, 8)),
    ],
)
def test_other_windows_are_left_to_torch(module: nn.MaxPool2d, shape: tuple):
    assert max_pool(module, torch.zeros(shape)) is None


def test_hooks_are_left_to_torch():
    module = nn.MaxPool2d(2)
    module.register_forward_hook(lambda *_: None)
    assert max_pool(module, torch.zeros(1, 1, 4, 4)) is None
