"""What is asked for and given back: values, lengths, and zeros elsewhere."""

from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone

from zoestim.gradients import (
    CoordinateEstimator,
    CoordinateQueries,
    DirectionQueries,
    GradientEstimator,
    RandomizedEstimator,
    SparseGradient,
)

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

deterministic = settings(derandomize=True, deadline=None, max_examples=25)

ESTIMATORS = [
    CoordinateEstimator(),
    CoordinateEstimator(scheme="central"),
    RandomizedEstimator(n_directions=5),
    RandomizedEstimator(n_directions=5, scheme="central"),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def directions(distribution: str = "gaussian", n: int = 4) -> DirectionQueries:
    estimator = RandomizedEstimator(n_directions=3, distribution=distribution)
    return estimator.queries(torch.arange(n), (n,), generator())


@given(st.data(), st.integers(1, 20))
@deterministic
def test_dense_holds_the_values_at_their_indices_and_exact_zeros_elsewhere(data, size: int):
    indices = data.draw(st.lists(st.integers(0, size - 1), unique=True))
    values = torch.arange(1.0, len(indices) + 1, dtype=torch.float64)
    dense = SparseGradient(torch.tensor(indices, dtype=torch.int64), values).dense(size)
    expected = torch.zeros(size, dtype=torch.float64)
    for index, value in zip(indices, values, strict=True):
        expected[index] = value
    assert torch.equal(dense, expected)


def test_a_direction_is_drawn_again_bit_for_bit_and_in_float64():
    asked = directions()
    assert torch.equal(asked.direction(1), asked.direction(1))
    assert asked.direction(1).dtype == torch.float64
    assert not torch.equal(asked.direction(1), asked.direction(2))


@pytest.mark.parametrize("distribution", ["gaussian", "sphere", "per-tensor"])
def test_a_direction_on_no_coordinate_is_empty(distribution: str):
    assert directions(distribution, n=0).direction(0).shape == (0,)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_n_queries_announces_how_many_losses_are_asked_for(estimator: GradientEstimator):
    asked = estimator.queries(torch.tensor([1, 4, 5]), (1, 2), generator())
    assert estimator.n_queries(3) == len(asked) == len(asked.steps)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_estimators_are_cloned_with_their_parameters(estimator: GradientEstimator):
    assert clone(estimator).get_params() == estimator.get_params()


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (CoordinateQueries(torch.arange(2), torch.ones(2)), "steps"),
        (directions(), "seeds"),
        (SparseGradient(torch.arange(2), torch.ones(2)), "values"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_travels_between_folders_is_frozen(value: object, name: str):
    with pytest.raises(FrozenInstanceError):
        setattr(value, name, None)


@pytest.mark.parametrize("kind", [CoordinateEstimator, RandomizedEstimator])
@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"scheme": "backward"}, r"scheme must be one of \['forward', 'central'\]; got 'backward'"),
        ({"smoothing": 0.0}, r"smoothing must be a positive number; got 0\.0"),
        ({"smoothing": -1e-3}, r"smoothing must be a positive number; got -0\.001"),
        ({"smoothing": float("nan")}, "smoothing must be a positive number; got nan"),
    ],
    ids=str,
)
def test_a_scheme_or_step_that_means_nothing_is_refused(kind: type, parameters: dict, text: str):
    with pytest.raises(ValueError, match=text):
        kind(**parameters).queries(torch.arange(3), (3,), generator())
