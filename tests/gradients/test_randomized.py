"""RGE against the loop of Eq. (1), in plain tensors, and the law of its directions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import reference
from zoestim.gradients import DISTRIBUTIONS, DirectionQueries, RandomizedEstimator

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

deterministic = settings(derandomize=True, deadline=None, max_examples=20)
distributions = pytest.mark.parametrize("distribution", DISTRIBUTIONS)

SEGMENTS = (2, 0, 3)
THETA = torch.linspace(-1, 1.5, 5, dtype=torch.float64)
MANY = 4_000


def smooth(theta: Tensor) -> float:
    weight = torch.arange(1, len(theta) + 1, dtype=theta.dtype)
    return float((weight * theta.sin()).sum() + theta.prod() + (theta.sum() / 3).exp())


def draw(n: int, distribution: str = "gaussian", seed: int = 0, **parameters) -> DirectionQueries:
    estimator = RandomizedEstimator(n, distribution=distribution, **parameters)
    return estimator.queries(torch.arange(5), SEGMENTS, torch.Generator().manual_seed(seed))


def stack(queries: DirectionQueries, size: int = 5) -> Tensor:
    """Return the directions as rows over all coordinates, one a query."""
    rows = torch.zeros(len(queries), size, dtype=torch.float64)
    for k in range(len(queries)):
        rows[k, queries.coordinates] = queries.direction(k)
    return rows


def ask(loss: reference.Loss, theta: Tensor, queries: DirectionQueries) -> Tensor:
    moved = theta + queries.steps[:, None] * stack(queries, len(theta))
    return torch.tensor([loss(row) for row in moved], dtype=torch.float64)


@given(
    asked=st.lists(st.integers(0, 4), unique=True, min_size=1).map(sorted),
    n=st.integers(1, 6),
    smoothing=st.sampled_from([1e-1, 5e-3, 1e-5]),
    scheme=st.sampled_from(["forward", "central"]),
    distribution=st.sampled_from(DISTRIBUTIONS),
    seed=st.integers(0, 2**32),
)
@deterministic
def test_estimate_is_the_loop_of_equation_1(asked, n, smoothing, scheme, distribution, seed):
    estimator = RandomizedEstimator(n, smoothing, scheme, distribution)
    segments = (sum(i < 2 for i in asked), sum(i >= 2 for i in asked))
    generator = torch.Generator().manual_seed(seed)
    queries = estimator.queries(torch.tensor(asked), segments, generator)
    gradient = estimator.combine(queries, smooth(THETA), ask(smooth, THETA, queries))
    expected = reference.rge(smooth, THETA, stack(queries)[:n], smoothing, scheme)
    torch.testing.assert_close(gradient.dense(5), expected, rtol=1e-11, atol=1e-14 / smoothing)


def test_estimate_is_exactly_zero_off_the_coordinates():
    estimator = RandomizedEstimator(n_directions=4)
    queries = estimator.queries(torch.tensor([1, 3]), (1, 1), torch.Generator())
    found = estimator.combine(queries, smooth(THETA), ask(smooth, THETA, queries)).dense(5)
    assert found.nonzero().flatten().tolist() == [1, 3]


@pytest.mark.parametrize(("scheme", "each"), [("forward", 1), ("central", 2)])
@pytest.mark.parametrize("n_coordinates", [1, 1_000])
def test_cost_is_the_number_of_directions_whatever_the_coordinates(scheme, each, n_coordinates):
    estimator = RandomizedEstimator(n_directions=7, scheme=scheme)
    assert estimator.n_queries(n_coordinates) == 7 * each
    assert len(draw(7, scheme=scheme)) == 7 * each


def test_central_pairs_share_their_direction_and_step_both_ways():
    queries = draw(3, smoothing=0.25, scheme="central")
    rows = stack(queries)
    assert torch.equal(rows[:3], rows[3:])
    assert queries.steps.tolist() == [0.25] * 3 + [-0.25] * 3


# --- The law of the directions


@distributions
def test_same_seed_gives_the_same_directions_and_another_seed_others(distribution: str):
    first, again, other = (stack(draw(3, distribution, seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not (first == other).any()


def test_a_second_draw_from_one_generator_gives_other_directions():
    estimator, generator = RandomizedEstimator(3), torch.Generator().manual_seed(0)
    first, second = (
        stack(estimator.queries(torch.arange(5), SEGMENTS, generator)) for _ in range(2)
    )
    assert not (first == second).any()


@pytest.mark.parametrize("distribution", ["gaussian", "sphere"])
def test_directions_have_mean_zero_and_covariance_one(distribution: str):
    rows = stack(draw(MANY, distribution))
    error = 5 / MANY**0.5  # five standard errors; a product of normals has variance 1, a square 2
    torch.testing.assert_close(
        rows.mean(0), torch.zeros(5, dtype=torch.float64), atol=error, rtol=0
    )
    covariance = rows.T @ rows / MANY
    expected = torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(covariance, expected, atol=2**0.5 * error, rtol=0)


def test_gaussian_directions_have_the_fourth_moment_of_a_normal():
    assert float((stack(draw(MANY)) ** 4).mean()) == pytest.approx(3, abs=0.35)


def test_sphere_directions_all_have_norm_root_d():
    norms = stack(draw(50, "sphere")).norm(dim=1)
    torch.testing.assert_close(norms, torch.full((50,), 5**0.5, dtype=torch.float64))


def test_per_tensor_directions_have_norm_one_in_each_tensor():
    parts = stack(draw(50, "per-tensor")).split(SEGMENTS, dim=1)
    ones = torch.ones(50, dtype=torch.float64)
    torch.testing.assert_close(parts[0].norm(dim=1), ones)
    torch.testing.assert_close(parts[2].norm(dim=1), ones)


@pytest.mark.parametrize("scheme", ["forward", "central"])
@pytest.mark.parametrize(
    ("distribution", "scale"),
    [("gaussian", 1.0), ("sphere", 1.0), ("per-tensor", [1 / 2] * 2 + [1 / 3] * 3)],
)
def test_mean_estimate_of_a_linear_function_is_its_scaled_slope(scheme, distribution, scale):
    slope = torch.tensor([1.0, -2.0, 0.5, 0.0, 1.5], dtype=torch.float64)
    queries = draw(MANY, distribution, smoothing=0.1, scheme=scheme)
    losses = ask(lambda theta: float(theta @ slope), THETA, queries)
    estimator = RandomizedEstimator(MANY, 0.1, scheme, distribution)
    found = estimator.combine(queries, float(THETA @ slope), losses).values
    error = 5 * float(slope.norm()) * 2**0.5 / MANY**0.5
    expected = slope * torch.as_tensor(scale)
    torch.testing.assert_close(found, expected, atol=error, rtol=0, check_dtype=False)


# --- What it refuses


def test_no_direction_is_refused():
    with pytest.raises(ValueError, match="n_directions must be an integer of at least 1; got 0"):
        draw(0)


def test_a_distribution_that_is_unknown_is_refused():
    expected = r"one of \['gaussian', 'sphere', 'per-tensor'\]; got 'uniform'"
    with pytest.raises(ValueError, match=f"distribution must be {expected}"):
        draw(2, "uniform")
