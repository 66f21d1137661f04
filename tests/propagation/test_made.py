"""Slabs whose lanes are made one by one: the results are those of the operations themselves."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from propagation.chains import OPERATIONS, applied, differences, seeded, site, some_of, unchecked
from propagation.lanes import check, entry
from propagation.strategies import normal, quick
from zoestim.propagation import RULES, Slab, Value, joined, nbytes, settled
from zoestim.propagation._made import Made

LARGE = "zoestim.propagation._made._LARGE"
HUGE = 2**60

each_way = pytest.mark.parametrize("large", [1, HUGE], ids=["made", "gathered"])
each_parameter = pytest.mark.parametrize("name", ["0.weight", "0.bias", "1.weight", "1.bias"])


# --- Whole graphs

BEHIND = {
    "relu, average": lambda: [nn.ReLU(), nn.AvgPool2d(2)],
    "largest, relu, average": lambda: [nn.MaxPool2d(2), nn.ReLU(), nn.AvgPool2d(2)],
    "overlapping": lambda: [nn.MaxPool2d(3, 2, 1), nn.Hardtanh(-0.5, 0.7), nn.AvgPool2d(2, 1)],
    "padded": lambda: [nn.ReLU6(), nn.MaxPool2d(2, padding=1), nn.AvgPool2d(3, 2, 1)],
    "rounded up": lambda: [nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True), nn.AdaptiveAvgPool2d(1)],
    "twice": lambda: [nn.ReLU(), nn.ReLU6(), nn.MaxPool2d(2), nn.MaxPool2d((2, 1))],
    "not monotone": lambda: [nn.GELU(), nn.MaxPool2d(2), nn.Tanh()],
    "all": lambda: [nn.AvgPool2d(2), nn.Conv2d(3, 2, 2), nn.BatchNorm2d(2), nn.ReLU()],
}
CONVOLUTIONS = {
    "plain": (nn.Conv2d, {"kernel_size": 3, "padding": 1}, (2, 9, 8)),
    "strided": (nn.Conv2d, {"kernel_size": 3, "stride": 2, "padding": 1}, (2, 15, 17)),
    "uneven": (nn.Conv2d, {"kernel_size": (2, 3), "stride": (1, 2), "padding": (0, 2)}, (2, 9, 13)),
    "dilated": (nn.Conv2d, {"kernel_size": 2, "dilation": 3}, (2, 11, 10)),
    "same": (nn.Conv2d, {"kernel_size": 4, "padding": "same"}, (2, 8, 9)),
    "point": (nn.Conv2d, {"kernel_size": 1}, (2, 8, 8)),
}


@each_way
@each_parameter
@pytest.mark.parametrize("behind", BEHIND)
def test_what_follows_a_normalised_convolution(behind: str, name: str, large: int, monkeypatch):
    monkeypatch.setattr(LARGE, large)
    convolution = nn.Conv2d(2, 3, 3, padding=1)
    module = seeded(nn.Sequential(convolution, nn.BatchNorm2d(3), *BEHIND[behind]()))
    found, expected = differences(module, normal(3, 2, 9, 8, seed=7), name, some_of(module, name))
    torch.testing.assert_close(found.expand_as(expected), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@each_way
@each_parameter
@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_of_all_kinds(kind: str, name: str, large: int, monkeypatch):
    monkeypatch.setattr(LARGE, large)
    make, settings, shape = CONVOLUTIONS[kind]
    layers = make(2, 3, **settings), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.AvgPool2d(2)
    module = seeded(nn.Sequential(*layers))
    found, expected = differences(module, normal(3, *shape, seed=7), name, some_of(module, name))
    torch.testing.assert_close(found.expand_as(expected), expected, rtol=1e-9, atol=1e-12)


@each_way
@pytest.mark.parametrize("name", ["0.weight", "0.bias"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("normalised", [True, False], ids=["eval", "none"])
def test_without_statistics_of_the_batch(
    normalised: bool, groups: int, name: str, large: int, monkeypatch
):
    monkeypatch.setattr(LARGE, large)
    norm = [nn.BatchNorm2d(4).eval()] if normalised else []
    convolution = nn.Conv2d(2, 4, 3, groups=groups)
    module = seeded(nn.Sequential(convolution, *norm, nn.ReLU(), nn.MaxPool2d(2)))
    found, expected = differences(module, normal(3, 2, 9, 8, seed=7), name, some_of(module, name))
    torch.testing.assert_close(found.expand_as(expected), expected, rtol=1e-9, atol=1e-12)


LAYOUTS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "batch last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "one for all": lambda x: x[:1].expand(3, -1, -1, -1),
    "flipped axes": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "one image": lambda x: x[:1],
}


@each_way
@each_parameter
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_that_lie_otherwise_in_memory(layout: str, name: str, large: int, monkeypatch):
    monkeypatch.setattr(LARGE, large)
    layers = nn.Conv2d(2, 3, 3, 2, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2)
    module, X = seeded(nn.Sequential(*layers)), LAYOUTS[layout](normal(3, 2, 9, 8, seed=7))
    found, expected = differences(module, X, name, some_of(module, name))
    torch.testing.assert_close(found.expand_as(expected), expected, rtol=1e-9, atol=1e-12)


@each_way
@each_parameter
@pytest.mark.parametrize("n_axes", [1, 3])
def test_lines_and_volumes(n_axes: int, name: str, large: int, monkeypatch):
    monkeypatch.setattr(LARGE, large)
    make, norm, pool = {
        1: (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d),
        3: (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d),
    }[n_axes]
    module = seeded(nn.Sequential(make(2, 3, 2), norm(3), nn.ReLU(), pool(2)))
    X = normal(3, 2, *[5] * n_axes, seed=7)
    found, expected = differences(module, X, name, some_of(module, name))
    torch.testing.assert_close(found.expand_as(expected), expected, rtol=1e-9, atol=1e-12)


# --- Slabs, rule by rule


def made(kind: str, X: Tensor, indices: list[int]) -> Value:
    """Return what the coordinates of a layer change of its result."""
    weight, bias, gain = normal(4, 2, 3, 3, seed=1), normal(4, seed=2), normal(4, seed=3)
    out = F.conv2d(X, weight, bias, padding=1)
    if kind in ("weight", "bias"):
        given = [Value(X), Value(weight), Value(bias)]
        moved = 1 if kind == "weight" else 2
        given[moved] = entry(given[moved].base, indices)
        return Value(out, RULES[F.conv2d](site(out), *given, 1, 1))
    normed = F.batch_norm(out, None, None, gain, bias, True)
    given = [Value(out), None, None, Value(gain), Value(bias), True]
    moved = 3 if kind == "gain" else 4
    given[moved] = entry(given[moved].base, indices)
    return Value(normed, RULES[F.batch_norm](site(normed), *given))


KINDS = {"weight": [0, 50, 17, 71], "bias": [0, 3, 1, 3], "gain": [2, 0, 3, 2], "offset": [1, 0, 1]}
each_kind = pytest.mark.parametrize("kind", KINDS)
TWO = [(a, b) for a, b in itertools.product(OPERATIONS, repeat=2) if a != "convolve"]


@each_kind
@pytest.mark.parametrize("lanes", [1, 4], ids=["one", "several"])
@pytest.mark.parametrize(("first", "second"), TWO, ids=map("-".join, TWO))
def test_two_operations_one_after_the_other(
    first: str, second: str, lanes: int, kind: str, monkeypatch
):
    monkeypatch.setattr(LARGE, 1)
    x = made(kind, normal(3, 2, 8, 9, seed=7), KINDS[kind][:lanes])
    assert isinstance(x.change, Made)
    applied(applied(x, first), second)


@each_kind
def test_large_slabs_are_made_one_lane_at_a_time(kind: str, monkeypatch):
    X, counted = normal(3, 2, 8, 8, seed=7), []
    monkeypatch.setattr(LARGE, 1)
    x = made(kind, X, KINDS[kind])
    x = unchecked(unchecked(unchecked(x, "normalise"), "largest"), "relu")
    assert isinstance(x.change, Made)
    assert x.change.rest == (3, 4, 4)
    assert nbytes(x) == 3 * 4 * 4 * 8
    monkeypatch.setattr(Made, "write", lambda self, k, *_: counted.append(k))
    assert x.change.values.shape == (len(KINDS[kind]), 1, 3, 4, 4)
    assert counted == list(range(len(KINDS[kind])))


@each_kind
def test_small_slabs_are_made_at_once(kind: str, monkeypatch):
    monkeypatch.setattr(LARGE, HUGE)
    x = made(kind, normal(3, 2, 8, 8, seed=7), KINDS[kind])
    monkeypatch.setattr(Made, "write", lambda *_: pytest.fail("made one by one"))
    relu = check(F.relu, applied(x, "normalise"))
    assert type(relu) is Slab


@each_kind
def test_lanes_are_joined_and_settled_as_what_they_are(kind: str, monkeypatch):
    monkeypatch.setattr(LARGE, 1)
    X, indices = normal(3, 2, 8, 8, seed=7), KINDS[kind]
    whole, pieces = made(kind, X, indices), [made(kind, X, [index]) for index in indices]
    together = joined([Value(whole.base, piece.change) for piece in pieces], [1] * len(pieces))
    assert torch.equal(together.dense(), whole.dense())
    fixed = settled(made(kind, X, indices))
    assert type(fixed.change) is Slab
    assert torch.equal(fixed.dense(), whole.dense())


@given(st.data())
@quick
def test_convolutions_that_are_made_give_their_own_result(data: st.DataObject):
    sizes = [data.draw(st.integers(6, 9)) for _ in range(2)]
    batch, n_out = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    kernel = [data.draw(st.integers(1, 3)) for _ in range(2)]
    settings = {
        "stride": data.draw(st.integers(1, 3)),
        "padding": data.draw(st.integers(0, 2)),
        "dilation": data.draw(st.integers(1, 2)),
    }
    X, weight = normal(batch, 2, *sizes), normal(n_out, 2, *kernel, seed=1)
    out = F.conv2d(X, weight, **settings)
    assume(out.numel() // n_out > 1)
    moved = entry(weight, data.draw(st.lists(st.integers(0, weight.numel() - 1), min_size=1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LARGE, 1)
        x = Value(out, check(F.conv2d, Value(X), moved, **settings))
        x = Value(F.batch_norm(out, None, None, None, None, True), check_normalised(x))
        check(F.relu, x)
        if min(out.shape[2:]) > 1:
            check(F.max_pool2d, x, 2)


def check_normalised(x: Value) -> Any:
    return check(F.batch_norm, x, None, None, None, None, True)
