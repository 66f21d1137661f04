"""Linear layers against themselves: input, weight and bias, changed in every form."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from propagation.lanes import check, dense, entry, slab
from propagation.strategies import changes, denses, entries, normal, quick, shapes
from zoestim.propagation import RULES, RankOne, Site, Slab, Value

biases = st.booleans()


def layer(n_inputs: int, n_outputs: int, bias: bool) -> tuple[Value, Value | None]:
    weight = Value(normal(n_outputs, n_inputs, seed=7))
    return weight, Value(normal(n_outputs, seed=8)) if bias else None


@given(st.data(), shapes(2), st.integers(1, 4), biases)
@quick
def test_any_change_of_the_input(data: st.DataObject, shape, n_outputs: int, bias: bool):
    x = data.draw(changes(normal(*shape)))
    check(F.linear, x, *layer(shape[-1], n_outputs, bias))


@given(st.data(), shapes(), st.integers(1, 4), biases)
@quick
def test_entries_and_whole_changes_of_the_weight(data: st.DataObject, shape, n_outputs, bias):
    x = Value(normal(*shape))
    weight, offset = layer(shape[-1], n_outputs, bias)
    found = check(F.linear, x, data.draw(entries(weight.base)), offset)
    assert isinstance(found, Slab)
    assert found.width == 1
    check(F.linear, x, data.draw(denses(weight.base)), offset)


@given(st.data(), shapes(), st.integers(1, 4))
@quick
def test_entries_and_whole_changes_of_the_bias(data: st.DataObject, shape, n_outputs: int):
    x = Value(normal(*shape))
    weight, offset = layer(shape[-1], n_outputs, True)
    check(F.linear, x, weight, data.draw(entries(offset.base)))
    check(F.linear, x, weight, data.draw(denses(offset.base)))


def test_one_changed_feature_stays_a_product_of_two_vectors():
    weight, bias = layer(4, 3, True)
    found = check(F.linear, slab(normal(5, 4), 1, [0, 3, 3]), weight, bias)
    assert isinstance(found, RankOne)
    assert found.column.shape == (3, 5)


def test_arguments_may_be_named():
    weight, bias = layer(4, 3, True)
    check(F.linear, Value(normal(5, 4)), entry(weight.base, [2, 11]), bias=bias)
    check(F.linear, slab(normal(5, 4), 1, [0, 3]), weight=weight, bias=None)


def test_two_arguments_that_change_at_once_are_left_to_the_operation():
    weight, bias = layer(4, 3, True)
    site = Site(Value(torch.zeros(5, 3)), lambda function: function())
    both = dense(normal(5, 4), 2), dense(weight.base, 2), bias
    assert RULES[F.linear](site, *both) is NotImplemented
