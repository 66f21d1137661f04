"""Every check that scikit-learn has for estimators, none excused."""

import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from zoestim import ZOClassifier, ZODenoiserDefense, ZORegressor

QUICK = {"pretrain_epochs": 10, "max_epochs": 2}
ESTIMATORS = [ZOClassifier(), ZORegressor(), ZODenoiserDefense(LogisticRegression(), **QUICK)]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.DataConversionWarning")
@parametrize_with_checks(ESTIMATORS, expected_failed_checks=lambda _: {})
def test_every_check_of_scikit_learn_passes(estimator, check):
    check(estimator)
