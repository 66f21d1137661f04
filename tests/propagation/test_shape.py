"""Operations that only move elements, against themselves."""

import operator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from propagation.lanes import check, dense, entry, slab
from propagation.strategies import changes, entries, moved, normal, quick, shapes
from zoestim.propagation import RULES, Dense, Entry, Site, Slab, Value

SITE = Site(None, lambda function: function())


@st.composite
def pieces(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple:
    """An index of numbers, slices, None and at most one Ellipsis."""
    index: list = []
    for size in shape:
        if draw(st.booleans()):
            index.append(None)
        start = draw(st.none() | st.integers(-size, size))
        stop = draw(st.none() | st.integers(-size - 1, size + 1))
        piece = slice(start, stop, draw(st.sampled_from([None, 1, 2, 3])))
        index.append(draw(st.integers(-size, size - 1) | st.just(piece)))
    cut = draw(st.integers(0, len(shape)))
    kept = [i for i in index if i is not None]
    return draw(st.sampled_from([tuple(index), (*kept[:cut], ...), (..., *kept[cut:])]))


# --- The same elements in the same order


@given(st.data(), shapes(min_dims=2))
@quick
def test_flatten(data: st.DataObject, shape):
    x = data.draw(moved(shape))
    start = data.draw(st.integers(0, len(shape) - 1))
    end = data.draw(st.integers(start, len(shape) - 1))
    check(torch.flatten, x, start, end)
    check("flatten", x, start_dim=start - len(shape), end_dim=end)


@given(st.data())
@quick
def test_view_and_reshape_to_any_shape(data: st.DataObject):
    # Prime factors of one size, joined differently before and after.
    old, new = (data.draw(st.permutations([2, 3, 2, 1])) for _ in range(2))
    joined = data.draw(st.integers(0, 2))
    x = data.draw(moved((*old[:joined], old[joined] * old[joined + 1], *old[joined + 2 :])))
    check("view", x, *new)
    check("reshape", x, tuple(new))
    check(torch.reshape, x, (-1, *new[1:]))
    check("view_as", x, Value(torch.zeros(new)))
    check("unflatten", x, 0, (x.base.shape[0], 1))


@given(st.data(), shapes())
@quick
def test_squeeze_and_unsqueeze(data: st.DataObject, shape):
    x = data.draw(moved(shape))
    check("squeeze", x)
    check(torch.squeeze, x, data.draw(st.integers(-len(shape), len(shape) - 1)))
    check("unsqueeze", x, data.draw(st.integers(-len(shape) - 1, len(shape))))


def test_flattened_channels_are_features_side_by_side():
    found = check(torch.flatten, slab(normal(2, 3, 4, 5), 1, [0, 2], width=1), 1)
    assert isinstance(found, Slab)
    assert (found.dim, found.width, found.starts.tolist()) == (1, 20, [0, 40])
    wide = check("flatten", slab(normal(2, 3, 4, 5), 1, [1, 0], width=2), 1)
    assert (wide.dim, wide.width, wide.starts.tolist()) == (1, 40, [20, 0])


def test_one_channel_is_flattened_without_a_copy():
    x = slab(normal(2, 3, 4, 5), 1, [0, 2])
    found = check(torch.flatten, x, 1)
    assert found.values.data_ptr() == x.change.values.data_ptr()


def test_one_element_of_a_parameter_stays_one():
    parameter = normal(4, 3)
    for name, *args in (("view", 2, 6), ("t",), ("permute", 1, 0), ("contiguous",)):
        assert isinstance(check(name, entry(parameter, [0, 7, 11]), *args), Entry)


def test_bits_seen_as_another_type_are_left_to_the_operation():
    assert RULES["view"](SITE, dense(normal(2), 1), torch.int64) is NotImplemented


@given(st.data(), shapes())
@quick
def test_copies_change_alike(data: st.DataObject, shape):
    x = data.draw(changes(normal(*shape)))
    for name in ("contiguous", "clone", "detach", "double", torch.clone):
        assert check(name, x) is x.change
    assert check("to", x, torch.float64) is x.change


def test_another_type_is_left_to_the_operation():
    x = dense(normal(2), 1)
    assert RULES["float"](Site(Value(x.base.float()), SITE.replay), x) is NotImplemented


def test_shapes_and_types_do_not_change():
    x = dense(normal(2, 3), 2)
    assert RULES["size"](SITE, x, 0) is None
    assert RULES["dim"](SITE, x) is None
    assert [RULES[getattr](SITE, x, name) for name in ("shape", "dtype", "device")] == [None] * 3
    assert RULES[getattr](SITE, x, "grad") is NotImplemented


# --- The axes in another order


@given(st.data(), shapes(min_dims=2))
@quick
def test_axes_in_another_order(data: st.DataObject, shape):
    x = data.draw(moved(shape) | entries(normal(*shape)))
    order = data.draw(st.permutations(range(len(shape))))
    a, b = order[0], order[-1] - len(shape)
    kept = x.change
    found = [
        *(check("permute", x, *order), check(torch.permute, x, tuple(order))),
        *(check("transpose", x, a, b), check(torch.transpose, x, dim0=a, dim1=b)),
        *(check("movedim", x, a, b), check(getattr, x, "mT")),
    ]
    if isinstance(kept, Slab | Entry):
        assert all(type(each) is type(kept) for each in found)
    if len(shape) == 2:
        check("t", x)
        check(getattr, x, "T")


# --- Pieces


@given(st.data(), shapes())
@quick
def test_pieces(data: st.DataObject, shape):
    x = data.draw(moved(shape) | entries(normal(*shape)))
    check(operator.getitem, x, data.draw(pieces(shape)))
    check(operator.getitem, x, data.draw(pieces(shape[:1]))[0])


def test_a_strided_piece_of_an_image_has_one_changed_channel():
    found = check(
        operator.getitem,
        slab(normal(2, 3, 4, 5), 1, [0, 2]),
        (slice(None), slice(None), slice(None, None, 2), slice(None, None, 2)),
    )
    assert isinstance(found, Slab)
    assert (found.dim, found.starts.tolist()) == (1, [0, 2])


def test_a_piece_without_the_changed_channels_does_not_change():
    x = slab(normal(2, 6), 1, [0, 4])
    assert check(operator.getitem, x, (slice(None), slice(1, 4))) is None
    assert check(operator.getitem, x, (slice(None), slice(1, None, 2))) is None
    assert isinstance(check(operator.getitem, x, (slice(None), slice(3, None))), Slab)


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_every_position_of_a_slab_in_a_strided_piece(width: int, step: int):
    x = slab(normal(9), 0, list(range(9 - width + 1)), width)
    for start in range(3):
        check(operator.getitem, x, slice(start, 8, step))
        check(operator.getitem, x, slice(start, None, step))


def test_a_list_of_rows_is_picked_from_each_lane():
    x, rows = dense(normal(4, 3), 2), Value(torch.tensor([2, 0, 2]))
    check(operator.getitem, x, [2, 0])
    index = (slice(None), rows)
    found = RULES[operator.getitem](SITE, x, index)
    torch.testing.assert_close(found.values, x.change.values[:, :, [2, 0, 2]])
    assert RULES[operator.getitem](SITE, x, (rows, rows)) is NotImplemented


@given(st.data(), shapes(), st.integers(1, 3))
@quick
def test_tuples_of_pieces(data: st.DataObject, shape, size: int):
    x = data.draw(moved(shape))
    dim = data.draw(st.integers(-len(shape), len(shape) - 1))
    check(torch.chunk, x, size, dim)
    check("split", x, size, dim=dim)
    check(torch.split, x, [shape[dim] - 1, 1], dim)
    check("unbind", x, dim)
    check(torch.narrow, x, dim, shape[dim] - 1, 1)
    check("select", x, dim, -1)
    check("chunk", x, size)


def test_only_the_pieces_with_changed_channels_change():
    found = check(torch.chunk, slab(normal(2, 6), 1, [0, 1]), 3, 1)
    assert isinstance(found[0], Slab)
    assert found[1:] == (None, None)


# --- Several tensors in one


@st.composite
def joined(draw: st.DrawFn) -> tuple[list[Value], int]:
    """Tensors to be joined along an axis, one of which changes, or more in the same lanes."""
    shape = draw(shapes())
    dim = draw(st.integers(0, len(shape) - 1))
    kinds = draw(st.lists(st.sampled_from(["still", "dense", "alike", "slab"]), max_size=3))
    values = [draw(changes(normal(*shape)))]
    n_lanes = len(values[0].dense())
    start = st.lists(st.integers(0, shape[dim] - 1), min_size=n_lanes, max_size=n_lanes)
    for seed, kind in enumerate(kinds, 1):
        base = normal(*shape, seed=seed)
        if kind == "dense":
            values.append(dense(base, n_lanes, seed=seed))
        elif kind == "slab":
            values.append(slab(base, dim, draw(start), seed=seed))
        else:
            values.append(Value(base, values[0].change if kind == "alike" else None))
    return draw(st.permutations(values)), dim


@given(joined())
@quick
def test_join_along_an_axis_or_a_new_one(case):
    values, dim = case
    check(torch.cat, values, dim)
    check(torch.cat, values, dim=dim - values[0].base.ndim)
    check(torch.stack, values, dim)
    check(torch.stack, values, dim=-1)


def test_joined_channels_stay_a_slab():
    still, x = Value(normal(2, 3, 4)), slab(normal(2, 5, 4), 1, [4, 0])
    found = check(torch.cat, [still, x, still], 1)
    assert isinstance(found, Slab)
    assert found.starts.tolist() == [7, 3]
    assert found.values.data_ptr() == x.change.values.data_ptr()


def test_a_whole_piece_is_a_slab_of_the_joined_tensor():
    still, x = Value(normal(2, 3, 4)), dense(normal(2, 5, 4), 2)
    found = check(torch.cat, [still, x], 1)
    assert isinstance(found, Slab)
    assert (found.start, found.width) == (3, 5)
    both = check(torch.cat, [still, slab(normal(2, 5, 4), 1, [1, 3]), x, still], 1)
    assert (both.start, both.width) == (4, 9)


def test_slabs_of_one_axis_joined_along_another_stay_slabs():
    x = slab(normal(2, 5), 1, [4, 0])
    assert isinstance(check(torch.cat, [x, Value(normal(3, 5)), x], 0), Slab)
    assert isinstance(check(torch.stack, [x, x], 2), Slab)


# --- Larger tensors of the same elements


@given(st.data(), shapes())
@quick
def test_pad_with_a_constant(data: st.DataObject, shape):
    x = data.draw(moved(shape))
    n_sides = data.draw(st.integers(1, len(shape)))
    sides = st.lists(st.integers(-1, 2), min_size=2 * n_sides, max_size=2 * n_sides)
    amounts = data.draw(sides)
    sizes = zip(shape[::-1], amounts[::2], amounts[1::2], strict=False)
    if all(size + a + b > 0 for size, a, b in sizes):
        check(F.pad, x, amounts, value=2.0)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("dim", [1, 2])
def test_pad_with_the_border(mode: str, dim: int):
    base = normal(2, 3, 4, 5)
    check(F.pad, slab(base, dim, [0, 2]), (1, 2, 0, 1), mode)
    check(F.pad, dense(base, 2), (1, 2, 0, 1), mode=mode)


def test_channels_padded_with_zeros_stay_a_slab_without_a_copy():
    x = slab(normal(2, 3, 4, 5), 1, [0, 2])
    found = check(F.pad, x, (0, 0, 0, 0, 2, 2))
    assert isinstance(found, Slab)
    assert found.starts.tolist() == [2, 4]
    assert found.values.data_ptr() == x.change.values.data_ptr()


def test_padded_images_keep_their_channels_last():
    x = dense(normal(2, 3, 4, 5), 2)
    values = x.change.values.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    found = check(F.pad, x.changed(Dense(values)), (1, 1, 1, 1))
    assert found.values.stride(2) == 1
    channels = check(F.pad, x.changed(Dense(values)), (0, 0, 0, 0, 2, 1))
    assert isinstance(channels, Slab)
    assert channels.values.data_ptr() == values.data_ptr()


@given(st.data(), shapes())
@quick
def test_repeated_elements(data: st.DataObject, shape):
    shape = tuple(data.draw(st.sampled_from([1, size])) for size in shape)
    x = data.draw(changes(normal(*shape)))
    sizes = [3, *(2 if size == 1 else -1 for size in shape)]
    check("expand", x, *sizes)
    larger = torch.zeros([3, *(2 if size == 1 else size for size in shape)])
    check("expand_as", x, Value(larger))
    times = data.draw(st.lists(st.integers(1, 2), min_size=len(shape), max_size=len(shape) + 1))
    check("repeat", x, *times)
    check(torch.tile, x, (2,))
