"""What a change says, in its own form and as a whole tensor."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from propagation.strategies import changes, denses, entries, normal, quick, shapes, slabs
from zoestim.propagation import Dense, Entry, RankOne, Slab, Value


@given(st.data(), shapes())
@quick
def test_a_slab_is_zero_but_for_its_own_positions(data: st.DataObject, shape: tuple[int, ...]):
    value = data.draw(slabs(normal(*shape)))
    change, found = value.change, value.dense()
    assert found.shape == (len(change.values), *shape)
    for k, lane in enumerate(found):
        planes, start = lane.movedim(change.dim, 0), int(change.starts[k])
        assert torch.equal(planes[start : start + change.width], change.values[k])
        assert torch.count_nonzero(found[k]) == torch.count_nonzero(change.values[k])


@given(st.data(), shapes())
@quick
def test_slabs_are_added_to_what_is_there(data: st.DataObject, shape: tuple[int, ...]):
    value = data.draw(slabs(normal(*shape)))
    there = normal(len(value.change.values), *shape, seed=5)
    full = there.clone()
    value.change.add_to(full)
    torch.testing.assert_close(full, there + value.dense())


@given(st.data(), shapes())
@quick
def test_an_entry_moves_one_element(data: st.DataObject, shape: tuple[int, ...]):
    value = data.draw(entries(normal(*shape)))
    found = value.dense().flatten(1)
    assert found.sum(1).tolist() == value.change.steps.tolist()
    lanes = torch.arange(len(found))
    assert torch.equal(found[lanes, value.change.indices], value.change.steps)


def test_a_stretch_says_how_much_of_a_step_is_rounded_away():
    parameter = torch.tensor([1.0, 1000.0, 0.0])
    change = Entry(torch.tensor([0, 1, 2]), torch.full((3,), 1e-3))
    arrived = torch.tensor([(1 + 1e-3) - 1, (1000 + 1e-3) - 1000, 1e-3], dtype=torch.float64)
    found = change.stretch(parameter)
    assert found[2] == 1
    assert (found[:2].double() * arrived[:2]).tolist() == pytest.approx([1e-3, 1e-3], rel=1e-1)
    assert abs(found[1] - 1) > 1e-3


def test_rank_one_is_the_outer_product_of_feature_and_row():
    column, table = normal(3, 2), normal(4, 5)
    features = torch.tensor([1, 3, 1])
    change = RankOne(column, features, table)
    expected = torch.stack([torch.outer(column[k], table[f]) for k, f in enumerate(features)])
    torch.testing.assert_close(change.values, expected)


# --- Parts


def double(b: Tensor) -> Tensor:
    return 2 * b


def shifted(b: Tensor, by: float) -> Tensor:
    return b + by


@given(st.data(), shapes())
@quick
def test_a_part_is_what_the_change_covers(data: st.DataObject, shape: tuple[int, ...]):
    base = normal(*shape)
    value = data.draw(changes(base))
    for part, whole in [
        (value.part(value.change), base),
        (value.part(value.change, double), 2 * base),
        (value.part(value.change, shifted, 3.0), base + 3.0),
    ]:
        if isinstance(value.change, Slab):
            planes = whole.movedim(value.change.dim, 0)
            expected = planes[value.change.positions()]
        else:
            expected = whole.expand_as(value.change.values)
        assert torch.equal(part.expand_as(value.change.values), expected)


@given(st.data())
@quick
def test_a_part_of_an_image_lies_in_memory_as_its_change(data: st.DataObject):
    base = normal(2, 3, 4, 5)
    values = data.draw(denses(base)).change.values
    channels_last = values.movedim(2, -1).contiguous().movedim(-1, 2)
    value = Value(base, Dense(channels_last))
    part = value.part(value.change)
    assert part.stride()[1:] == channels_last.stride()[1:]
    assert torch.equal(part[0], base)


def test_what_is_derived_is_computed_once_a_pass_for_all_changes():
    called = []

    def derive(b: Tensor, factor: int) -> Tensor:
        called.append(factor)
        return factor * b

    value = Value(normal(2, 3))
    for factor in (2, 2, 3, 2):
        other = value.changed(Dense(normal(1, 2, 3)))
        assert torch.equal(other.derived(derive, factor), factor * value.base)
    assert called == [2, 3]
