"""CGE and Sparse-CGE against the loop of Eq. (1), in plain tensors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import reference
from zoestim.gradients import CoordinateEstimator, CoordinateQueries

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

deterministic = settings(derandomize=True, deadline=None, max_examples=25)
schemes = pytest.mark.parametrize("scheme", ["forward", "central"])


def smooth(theta: Tensor) -> float:
    """No two partial derivatives are alike, and all are coupled."""
    weight = torch.arange(1, len(theta) + 1, dtype=theta.dtype)
    return float((weight * theta.sin()).sum() + theta.prod() + (theta.sum() / 3).exp())


def point(size: int) -> Tensor:
    return torch.linspace(-1, 1.5, size, dtype=torch.float64)


def ask(theta: Tensor, queries: CoordinateQueries) -> Tensor:
    """Return the loss of each query, one after the other."""
    losses = []
    for index, step in zip(queries.indices, queries.steps, strict=True):
        moved = theta.clone()
        moved[index] += step
        losses.append(smooth(moved))
    return torch.tensor(losses, dtype=torch.float64)


def estimate(estimator: CoordinateEstimator, theta: Tensor, coordinates: Tensor) -> Tensor:
    queries = estimator.queries(coordinates)
    gradient = estimator.combine(queries, smooth(theta), ask(theta, queries))
    return gradient.dense(len(theta))


@given(
    size=st.integers(1, 9),
    data=st.data(),
    smoothing=st.sampled_from([1e-1, 5e-3, 1e-5]),
    scheme=st.sampled_from(["forward", "central"]),
)
@deterministic
def test_estimate_is_the_loop_of_equation_1(size: int, data, smoothing: float, scheme: str):
    asked = data.draw(st.lists(st.integers(0, size - 1), unique=True))
    coordinates = torch.tensor(asked, dtype=torch.int64)
    theta = point(size)
    found = estimate(CoordinateEstimator(smoothing, scheme), theta, coordinates)
    expected = reference.cge(smooth, theta, asked, smoothing, scheme)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15 / smoothing)


@schemes
def test_coordinates_not_asked_for_are_exactly_zero(scheme: str):
    found = estimate(CoordinateEstimator(scheme=scheme), point(6), torch.tensor([4, 1]))
    assert found.nonzero().flatten().tolist() == [1, 4]


@pytest.mark.parametrize(("scheme", "each"), [("forward", 1), ("central", 2)])
@pytest.mark.parametrize("n", [0, 1, 7])
def test_each_coordinate_costs_one_query_and_two_if_central(scheme: str, each: int, n: int):
    estimator = CoordinateEstimator(scheme=scheme)
    assert len(estimator.queries(torch.arange(n))) == estimator.n_queries(n) == each * n


def test_forward_queries_step_ahead_by_mu():
    queries = CoordinateEstimator(smoothing=0.25).queries(torch.tensor([3, 0]))
    assert queries.indices.tolist() == [3, 0]
    assert queries.steps.tolist() == [0.25, 0.25]


def test_central_queries_step_ahead_and_back_along_the_same_coordinates():
    queries = CoordinateEstimator(smoothing=0.25, scheme="central").queries(torch.tensor([3, 0]))
    assert queries.indices.tolist() == [3, 0, 3, 0]
    assert queries.steps.tolist() == [0.25, 0.25, -0.25, -0.25]


def test_error_falls_with_mu_if_forward_and_with_its_square_if_central():
    theta, errors = point(4), {}
    variable = theta.clone().requires_grad_()
    weight = torch.arange(1, 5, dtype=torch.float64)
    total = (weight * variable.sin()).sum() + variable.prod() + (variable.sum() / 3).exp()
    exact = torch.autograd.grad(total, variable)[0]
    for scheme in ("forward", "central"):
        for mu in (1e-2, 1e-3):
            found = estimate(CoordinateEstimator(mu, scheme), theta, torch.arange(4))
            errors[scheme, mu] = float((found - exact).norm())
    assert errors["forward", 1e-2] / errors["forward", 1e-3] == pytest.approx(10, rel=0.05)
    assert errors["central", 1e-2] / errors["central", 1e-3] == pytest.approx(100, rel=0.05)


@schemes
def test_coordinates_beyond_what_float32_can_count_are_kept(scheme: str):
    asked = torch.tensor([2**24 + 1, 2**40 + 1])
    estimator = CoordinateEstimator(scheme=scheme)
    queries = estimator.queries(asked)
    gradient = estimator.combine(queries, 0.0, torch.zeros(len(queries), dtype=torch.float64))
    assert torch.equal(gradient.indices, asked)


def test_asking_does_not_touch_the_coordinates():
    asked = torch.tensor([4, 1])
    CoordinateEstimator(scheme="central").queries(asked)
    assert asked.tolist() == [4, 1]
