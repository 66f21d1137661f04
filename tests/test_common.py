"""Every check that scikit-learn has for estimators, none excused."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from zoestim import ZOClassifier, ZORegressor


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.DataConversionWarning")
@parametrize_with_checks([ZOClassifier(), ZORegressor()], expected_failed_checks=lambda _: {})
def test_every_check_of_scikit_learn_passes(estimator, check):
    check(estimator)
