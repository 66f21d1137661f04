"""From a name to a strategy."""

import pytest

from zoestim.gradients import CoordinateEstimator, RandomizedEstimator, resolve_estimator


def test_cge_is_the_coordinate_estimator_with_these_settings():
    found = resolve_estimator("cge", 0.1, "central", 7)
    assert isinstance(found, CoordinateEstimator)
    assert found.get_params() == {"smoothing": 0.1, "scheme": "central"}


def test_rge_is_the_gaussian_estimator_with_these_settings():
    found = resolve_estimator("rge", 0.1, "central", 7)
    expected = RandomizedEstimator(7, 0.1, "central", "gaussian")
    assert isinstance(found, RandomizedEstimator)
    assert found.get_params() == expected.get_params()


def test_an_object_is_its_own_and_keeps_its_settings():
    given = RandomizedEstimator(n_directions=3, smoothing=0.2, distribution="sphere")
    assert resolve_estimator(given, 0.1, "central", 7) is given
    assert given.get_params() == RandomizedEstimator(3, 0.2, "forward", "sphere").get_params()


def test_a_strategy_need_not_inherit_from_anything():
    class Own:
        def queries(self, coordinates, segments, generator): ...
        def combine(self, queries, base_loss, losses): ...

    given = Own()
    assert resolve_estimator(given, 0.1, "forward", 7) is given


@pytest.mark.parametrize("given", ["CGE", "spsa", None, 3, {"queries": 1}])
def test_what_is_no_strategy_is_refused_with_what_to_pass(given: object):
    text = "gradient must be 'cge', 'rge' or an object with queries and combine such as Coord"
    with pytest.raises(ValueError, match=text):
        resolve_estimator(given, 0.1, "forward", 7)


def test_refusal_names_the_parameter_that_was_given():
    with pytest.raises(ValueError, match=r"method must be 'cge'.* got 'spsa'"):
        resolve_estimator("spsa", 0.1, "forward", 7, "method")
