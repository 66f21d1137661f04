"""Bounds and radii: reference values, the edges, and how often a bound is wrong."""

import warnings

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from zoestim import certify_counts, clopper_pearson_lower, max_certifiable_radius
from zoestim.certification import min_draws, warn_unreachable

ALPHA = 0.001
ABSTAINS = None
# n, k, alpha, bound, noise_std, radius: scipy 1.17.1, the bounds also by statsmodels 2-sided
REFERENCE = [
    (100, 100, 0.001, 0.9332543008, 0.25, 0.37511876),
    (100, 99, 0.001, 0.9113731113, 0.25, 0.33731476),
    (100, 80, 0.001, 0.6535572713, 0.25, 0.09873558),
    (100, 66, 0.001, 0.5016499513, 0.25, 0.00103396),
    (100, 65, 0.001, 0.4913756115, 0.25, ABSTAINS),
    (1000, 1000, 0.001, 0.9931160484, 0.25, 0.61581565),
    (1000, 900, 0.001, 0.8674640180, 0.25, 0.27862079),
    (1000, 550, 0.001, 0.5006759601, 0.25, 0.00042360),
    (1000, 549, 0.001, 0.4996730641, 0.25, ABSTAINS),
    (1000, 990, 0.05, 0.9830968249, 0.5, 1.06118696),
    (1000, 990, 0.0005, 0.9749365669, 0.5, 0.97943990),
    (10000, 10000, 0.001, 0.9993094630, 0.25, 0.79964438),
    (10000, 9990, 0.001, 0.9975883080, 0.25, 0.70464958),
    (10000, 9000, 0.001, 0.8904097337, 0.25, 0.30717752),
    (10000, 5155, 0.001, 0.4999999394, 0.25, ABSTAINS),
    (100000, 100000, 0.001, 0.9999309248, 0.25, 0.95286414),
    (10, 10, 0.001, 0.5011872336, 0.25, 0.00074399),
    (9, 9, 0.001, 0.4641588834, 0.25, ABSTAINS),
    (1000, 0, 0.001, 0.0, 0.25, ABSTAINS),
]


def two_classes(k: int, n: int, **settings):
    """Certify a sample whose first class got k of n votes, and all votes that choose."""
    return certify_counts([100, 0], [k, n - k], **settings)


# --- The bound


@pytest.mark.parametrize(("n", "k", "alpha", "bound", "noise_std", "radius"), REFERENCE)
def test_bound_and_radius_are_those_of_the_reference(n, k, alpha, bound, noise_std, radius):
    assert clopper_pearson_lower(k, n, alpha) == pytest.approx(bound, rel=0, abs=5.1e-11)
    found = two_classes(k, n, noise_std=noise_std, alpha=alpha)
    assert found.p_lower == clopper_pearson_lower(k, n, alpha)
    assert found.abstained == (radius is ABSTAINS)
    assert found.label == (-1 if radius is ABSTAINS else 0)
    assert found.radius == pytest.approx(radius or 0.0, rel=0, abs=5.1e-9)


def test_bounds_near_one_half_decide():
    assert clopper_pearson_lower(5156, 10000, ALPHA) == pytest.approx(0.5000999682, abs=5.1e-11)
    assert not two_classes(5156, 10000, noise_std=1.0).abstained
    assert clopper_pearson_lower(1, 1000, ALPHA) == pytest.approx(1.0005e-06, rel=1e-4)


def test_the_bound_is_the_lower_end_of_scipys_interval():
    generator = np.random.default_rng(0)
    n = generator.integers(1, 5000, size=60)
    k = generator.integers(0, n + 1)
    for alpha in (0.3, 0.05, 1e-6):
        expected = [
            binomtest(int(a), int(b), alternative="greater").proportion_ci(1 - alpha, "exact").low
            for a, b in zip(k, n, strict=True)
        ]
        np.testing.assert_allclose(clopper_pearson_lower(k, n, alpha), expected, atol=1e-9, rtol=0)


def test_all_hits_give_the_closed_form():
    n = np.array([1, 7, 100, 10**5, 10**9])
    np.testing.assert_allclose(clopper_pearson_lower(n, n, 0.01), 0.01 ** (1 / n), rtol=1e-12)


def test_no_hit_gives_exactly_zero():
    found = clopper_pearson_lower([0, 0, 1], [1, 10**6, 1], 0.01)
    assert found[:2].tolist() == [0.0, 0.0]
    assert found[2] == pytest.approx(0.01)


def test_counts_are_broadcast():
    found = clopper_pearson_lower([[1], [5]], [10, 20, 30], 0.05)
    assert found.shape == (2, 3)
    assert found[1, 2] == clopper_pearson_lower(5, 30, 0.05)
    assert isinstance(clopper_pearson_lower(np.int32(5), np.float64(30), 0.05), float)


def test_no_bound_is_one():
    assert clopper_pearson_lower(2**53, 2**53, 0.999) < 1


@pytest.mark.parametrize(
    ("k", "n", "alpha", "error", "match"),
    [
        (11, 10, 0.1, ValueError, "k, the number of hits, must be at most n"),
        (0, 0, 0.1, ValueError, r"n must be integers from 1 to .*; got 0\."),
        (-1, 10, 0.1, ValueError, r"k must be integers from 0 to .*; got -1\."),
        (0.5, 10, 0.1, ValueError, r"got 0\.5\. Pass counts, not fractions"),
        (np.nan, 10, 0.1, ValueError, "got nan"),
        (1, np.inf, 0.1, ValueError, "n must be integers .* got inf"),
        ("1", 10, 0.1, TypeError, "k must be integers, .* got dtype <U1"),
        (True, 10, 0.1, TypeError, "k must be integers, .* got dtype bool"),
        (1, 10, 0.0, ValueError, r"alpha must be .* above 0 and below 1, .* got 0\.0"),
        (1, 10, 1, ValueError, "alpha must be .* got 1"),
        (1, 10, "small", ValueError, "alpha must be .* got 'small'"),
    ],
)
def test_what_is_no_count_or_level_is_refused(k, n, alpha, error, match):
    with pytest.raises(error, match=match):
        clopper_pearson_lower(k, n, alpha)


# --- CERTIFY


def test_samples_are_certified_as_one_by_one():
    counts0 = np.array([[5, 95], [60, 40], [50, 50], [0, 100]])
    counts = np.array([[10, 990], [549, 451], [900, 100], [1000, 0]])
    found = certify_counts(counts0, counts, noise_std=0.5)
    assert found.label.tolist() == [1, -1, 0, -1]  # of two equal ones, the first
    assert found.abstained.tolist() == [False, True, False, True]
    assert found.p_lower[3] == 0.0
    for k, (first, second) in enumerate(zip(counts0, counts, strict=True)):
        alone = certify_counts(first, second, noise_std=0.5)
        assert all(alone[key] == found[key][k] for key in found)


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint16, np.int64])
def test_radii_are_those_of_float64_whatever_the_counts(dtype):
    counts = np.array([[10000, 0], [9990, 10]])
    found = certify_counts((counts // 100).astype(dtype), counts.astype(dtype), noise_std=0.25)
    assert found.radius.dtype == found.p_lower.dtype == np.float64
    np.testing.assert_allclose(found.radius, [0.79964438, 0.70464958], atol=5.1e-9, rtol=0)


def test_many_draws_do_not_round_the_radius_up():
    """In float32 it would be 5.2947 times the noise."""
    found = two_classes(10**8, 10**8, noise_std=1.0)
    exact = norm.isf(-np.expm1(np.log(ALPHA) / 10**8))
    assert found.radius == pytest.approx(exact, rel=1e-9)
    assert f"{found.radius:.4f}" == "5.2677"


def test_draws_without_a_vote_count_against_the_class():
    dropped = certify_counts([90, 0], [900, 0], noise_std=0.25)
    counted = certify_counts([90, 0], [900, 0], noise_std=0.25, n=1000)
    assert dropped.radius == pytest.approx(max_certifiable_radius(900, ALPHA, 0.25))
    assert counted.radius == pytest.approx(0.27862079, abs=5.1e-9)


def test_samples_may_have_their_own_number_of_draws():
    found = certify_counts([[9, 0]] * 2, [[900, 0]] * 2, noise_std=0.25, n=[900, 1000])
    one_by_one = [certify_counts([9, 0], [900, 0], 0.25, n=n).radius for n in (900, 1000)]
    assert found.radius.tolist() == one_by_one


@pytest.mark.parametrize("n", [None, 1000])
@pytest.mark.parametrize(
    ("counts0", "counts"), [([0, 0], [0, 0]), ([0, 0], [1000, 0]), ([100, 0], [0, 0])]
)
def test_without_votes_it_abstains(counts0, counts, n):
    found = certify_counts(counts0, counts, noise_std=1.0, n=n)
    assert (found.label, found.radius, found.abstained, found.p_lower) == (-1, 0.0, True, 0.0)


def test_one_class_alone_can_be_certified():
    found = certify_counts([[10]], [[1000]], noise_std=0.25)
    assert found.label.tolist() == [0]
    assert found.radius[0] == max_certifiable_radius(1000, ALPHA, 0.25)


def test_no_sample_gives_no_radius():
    found = certify_counts(np.empty((0, 3), int), np.empty((0, 3), int), noise_std=1.0)
    assert all(found[key].shape == (0,) for key in found)


def test_radii_are_in_the_units_of_the_noise():
    one, many = (two_classes(900, 1000, noise_std=std).radius for std in (1.0, 255.0))
    assert many == pytest.approx(255 * one)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"counts": [[1, 2]]}, r"the shape \(n_samples, n_classes\) .*got \(2,\) and \(1, 2\)"),
        ({"counts0": 1, "counts": 1}, r"got \(\) and \(\)"),
        ({"counts0": [], "counts": []}, r"got \(0,\) and \(0,\)"),
        ({"noise_std": 0.0}, r"noise_std must be .* above 0, .*; got 0\.0\. Without noise"),
        ({"noise_std": np.inf}, "noise_std must be a finite number"),
        ({"alpha": 2.0}, r"alpha must be .* got 2\.0"),
        ({"n": 4}, "at least the sum of the votes; got n = 4 for up to 5 votes"),
        ({"n": [5, 5]}, "n must be the number of draws behind counts"),
        ({"n": 0}, "n must be integers from 1"),
        ({"counts": [0.5, 0.5]}, "counts must be integers .* Pass counts, not fractions"),
    ],
)
def test_what_cannot_be_certified_is_refused(given, match):
    settings = {"counts0": [1, 0], "counts": [5, 0], "noise_std": 1.0, **given}
    with pytest.raises(ValueError, match=match):
        certify_counts(**settings)


# --- How often a bound is wrong

TRIALS = 20_000


def violations(alpha: float, n_classes: int, n: int, again: bool) -> float:
    """Return how often the bound is above the probability, which is that of equal classes."""
    generator = np.random.default_rng(0)
    equal = np.full(n_classes, 1 / n_classes)
    counts0, counts = generator.multinomial(n, equal, size=(2, TRIALS))
    found = certify_counts(counts if again else counts0, counts, 1.0, alpha)
    return float(np.mean(found.p_lower > 1 / n_classes))


@pytest.mark.parametrize("alpha", [0.2, 0.05, 0.001])
@pytest.mark.parametrize(("n_classes", "n"), [(10, 100), (2, 1000), (3, 17)])
def test_bounds_are_wrong_no_more_often_than_alpha(alpha, n_classes, n):
    three_sigma = 3 * np.sqrt(alpha * (1 - alpha) / TRIALS)
    assert violations(alpha, n_classes, n, again=False) <= alpha + three_sigma


def test_the_simulation_sees_votes_that_are_used_twice():
    """Nobody may choose the class by the votes that bound it."""
    assert violations(0.05, 10, 100, again=True) == pytest.approx(0.361, abs=0.015)
    assert violations(0.05, 10, 100, again=False) == pytest.approx(0.039, abs=0.006)


# --- What can be reached


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (0.001, {100: 1.500475, 1000: 2.463263, 10000: 3.198578, 100000: 3.811457}),
        (0.05, {100: 1.887999, 1000: 2.748739, 10000: 3.432041, 100000: 4.01315}),
    ],
)
def test_largest_radii_are_those_of_the_reference(alpha, expected):
    found = max_certifiable_radius(list(expected), alpha, 1.0)
    np.testing.assert_allclose(found, list(expected.values()), atol=5.1e-7, rtol=0)


def test_the_largest_radius_is_what_votes_of_one_mind_certify():
    for n in (9, 10, 250, 10**6):
        found = two_classes(n, n, noise_std=0.3)
        assert found.radius == max_certifiable_radius(n, ALPHA, 0.3)
    assert max_certifiable_radius(9, ALPHA, 1.0) == 0.0


@pytest.mark.parametrize(
    ("noise_std", "radius", "n", "k_of_10000"),
    [
        (0.25, 0.25, 40, 8526),
        (0.25, 0.5, 301, 9818),
        (0.25, 0.75, 5114, 9997),
        (0.5, 0.75, 100, 9409),
        (0.5, 1.0, 301, 9818),
        (0.5, 1.25, 1109, 9962),
    ],
)
def test_least_draws_and_votes_are_those_of_the_reference(noise_std, radius, n, k_of_10000):
    assert min_draws(radius, noise_std, ALPHA) == n
    assert two_classes(k_of_10000, 10000, noise_std=noise_std).radius >= radius
    assert two_classes(k_of_10000 - 1, 10000, noise_std=noise_std).radius < radius


@pytest.mark.parametrize("alpha", [0.5, 0.05, 1e-9])
def test_one_draw_less_does_not_reach(alpha):
    for radius in (0.0, 1e-6, 0.3, 1.0, 3.0, 4.5):
        n = min_draws(radius, 1.0, alpha)
        reached = max_certifiable_radius(n, alpha, 1.0)
        assert reached >= radius
        assert reached > 0
        if n > 1:
            below = max_certifiable_radius(n - 1, alpha, 1.0)
            assert below < radius or below == 0


def test_the_largest_radius_of_some_draws_needs_no_others():
    numbers = np.arange(10, 200)
    radii = max_certifiable_radius(numbers, ALPHA, 0.3)
    assert [min_draws(radius, 0.3, ALPHA) for radius in radii] == numbers.tolist()


@pytest.mark.parametrize(
    ("radius", "match"),
    [
        (9.0, "9 times noise_std = 1"),
        (60.0, "60 times"),
        (-1.0, "at least 0; got -1"),
        (np.inf, "finite number"),
    ],
)
def test_radii_beyond_all_draws_are_refused(radius, match):
    with pytest.raises(ValueError, match=match):
        min_draws(radius, 1.0)


def estimator_warns(radii, n):
    """Stand in for the method of an estimator that warns."""
    warn_unreachable(radii, n, ALPHA, 0.25)


def test_a_radius_out_of_reach_warns_where_the_user_called():
    with pytest.warns(
        UserWarning, match=r"radius 0\.75 .* at most 0\.616.* at least 5114,"
    ) as seen:
        estimator_warns([0.0, 0.5, 0.75], 1000)
    assert seen[0].filename == __file__
    with pytest.warns(UserWarning, match=r"alike\. Pass a larger noise_std\.$"):
        estimator_warns(3.0, 1000)


def test_radii_within_reach_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimator_warns([0.0, 0.5, 0.75], 5114)
        estimator_warns([], 10)
        estimator_warns(max_certifiable_radius(77, ALPHA, 0.25), 77)
