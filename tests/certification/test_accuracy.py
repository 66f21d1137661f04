"""Certified accuracy and average radius, against the loop over samples."""

import numpy as np
import pytest

from zoestim.certification import average_certified_radius, certified_accuracy

Y = ["a", "b", "b", "c", "a", "c"]
LABEL = np.array(["a", "b", "a", "c", "a", None], dtype=object)
RADIUS = [0.5, 0.25, 0.9, 0.5, 0.0, 0.0]  # the last two abstained


def test_a_radius_that_was_found_counts_at_itself():
    found = certified_accuracy(Y, LABEL, RADIUS, [0.0, 0.25, 0.2500001, 0.5, 0.6])
    np.testing.assert_allclose(found, np.array([3, 3, 2, 2, 0]) / 6, rtol=1e-15)


def test_who_abstains_is_wrong_whatever_the_label():
    assert certified_accuracy(["a"], ["a"], [0.0], 0.0) == 0.0
    assert certified_accuracy([-1, 1], [-1, 1], [0.0, 0.3], 0.0) == 0.5


def test_it_is_the_mean_over_all_samples():
    generator = np.random.default_rng(0)
    y, label = generator.integers(3, size=(2, 200))
    radius = generator.choice([0.0, 0.1, 0.2, 0.4], size=200)
    grid = np.linspace(0, 0.5, 11).reshape(1, 11)
    loop = [
        np.mean([a == b and c > 0 and c >= r for a, b, c in zip(y, label, radius, strict=True)])
        for r in grid[0]
    ]
    found = certified_accuracy(y, label, radius, grid)
    assert found.shape == grid.shape
    np.testing.assert_allclose(found[0], loop, rtol=1e-15)
    assert isinstance(certified_accuracy(y, label, radius, 0.1), float)


def test_the_average_radius_is_the_area_below_the_curve():
    area = certified_accuracy(Y, LABEL, RADIUS, np.linspace(0, 1, 20_001)).mean()
    assert average_certified_radius(Y, LABEL, RADIUS) == pytest.approx(1.25 / 6)
    assert area == pytest.approx(1.25 / 6, abs=1e-4)


def test_a_radius_that_is_no_number_certifies_nothing():
    assert certified_accuracy([0, 0], [0, 0], [np.nan, 1.0], [0.0, 1.0]).tolist() == [0.5, 0.5]
    assert average_certified_radius([0, 0], [0, 0], [np.nan, 1.0]) == 0.5


@pytest.mark.parametrize(
    "given", [([], [], []), ([0, 1], [0], [1.0, 1.0]), ([[0], [1]], [0, 1], [1.0, 1.0])]
)
def test_what_does_not_fit_together_is_refused(given):
    with pytest.raises(ValueError, match=r"must have the shape \(n_samples,\)"):
        average_certified_radius(*given)
