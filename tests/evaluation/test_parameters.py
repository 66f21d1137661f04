"""Flat coordinates of trainable parameters, there and back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import reference
from cases import CASES, Case, ids
from zoestim.evaluation import ParameterMap

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

deterministic = settings(derandomize=True, deadline=None, max_examples=40)
shapes = st.lists(st.lists(st.integers(0, 4), max_size=3).map(torch.Size), min_size=1, max_size=5)
maps = shapes.map(lambda s: ParameterMap(tuple(f"p{i}" for i in range(len(s))), tuple(s)))


def module_of(name: str) -> nn.Module:
    return next(case for case in CASES if case.name == name).module()


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_coordinates_are_in_the_order_of_named_parameters_row_by_row(case: Case):
    module = case.module()
    theta, parameters = reference.flat_parameters(module), ParameterMap.of(module)
    assert parameters.size == len(theta)
    named = dict(module.named_parameters())
    for name, value in parameters.split(theta).items():
        assert torch.equal(value, named[name])


@given(maps, st.data())
@deterministic
def test_flatten_finds_the_places_that_split_gives(parameters: ParameterMap, data):
    places = {
        name: torch.tensor(sorted(data.draw(st.sets(st.integers(0, size - 1)))), dtype=torch.int64)
        for name, size in parameters.sizes.items()
        if size
    }
    flat, numbers = parameters.flatten(places), torch.arange(parameters.size)
    split = {name: part.flatten() for name, part in parameters.split(numbers).items()}
    found = [int(i) for name in places for i in split[name][places[name]]]
    assert flat.tolist() == found == sorted(found)
    counts = tuple(len(places.get(name, ())) for name in parameters.names)
    assert parameters.segments(flat) == counts


def test_names_given_in_another_order_are_flattened_in_their_own():
    parameters = ParameterMap(("a", "b"), (torch.Size([3]), torch.Size([2])))
    assert parameters.flatten({"b": torch.tensor([0]), "a": torch.tensor([2])}).tolist() == [2, 3]


@given(maps)
@deterministic
def test_every_coordinate_is_described_by_its_own_place(parameters: ParameterMap):
    described = [parameters.describe(i) for i in range(parameters.size)]
    assert len(set(described)) == len(described)
    assert all(text.startswith("p") for text in described)


def test_a_coordinate_is_described_as_a_person_would_write_it():
    shapes = torch.Size([3, 2, 1, 2]), torch.Size([3]), torch.Size([1])
    parameters = ParameterMap(("0.weight", "0.bias", "1.weight"), shapes)
    assert parameters.describe(0) == "0.weight[0, 0, 0, 0]"
    assert parameters.describe(7) == "0.weight[1, 1, 0, 1]"
    assert parameters.describe(12) == "0.bias[0]"
    assert parameters.describe(15) == "1.weight[0]"


def test_a_parameter_of_no_axis_is_described_by_its_name_alone():
    assert ParameterMap.of(module_of("polynomial")).describe(3) == "coefficients.2"


def test_a_coordinate_beyond_the_last_is_refused():
    with pytest.raises(IndexError, match="coordinate 15 is beyond the last parameter"):
        ParameterMap.of(module_of("linear")).describe(15)


def test_a_tied_parameter_has_one_place_under_its_first_name():
    parameters = ParameterMap.of(module_of("tied"))
    assert parameters.names == ("embed.weight", "mix.weight", "mix.bias")
    assert parameters.starts == {"embed.weight": 0, "mix.weight": 15, "mix.bias": 24}


def test_frozen_parameters_have_no_place():
    assert ParameterMap.of(module_of("frozen")).names == ("2.bias", "4.weight", "4.bias")


def test_no_coordinates_flatten_to_an_empty_int64_tensor():
    parameters = ParameterMap.of(module_of("linear"))
    flat = parameters.flatten({})
    assert flat.dtype == torch.int64
    assert len(flat) == 0
    assert parameters.segments(flat) == (0, 0)
