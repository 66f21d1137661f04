"""What may be a black box, how it is asked, and what its answers are taken for."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.ensemble import RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from torch import nn

from defense.boxes import Client, labels, proba, scores, words
from zoestim import BlackBox
from zoestim.defense._black_box import Responder, is_estimator, kind_of, refuse_no_classifier
from zoestim.defense._steps import steps_for

X = np.random.default_rng(1).normal(size=(20, 6))
Y = (X[:, 0] > 0).astype(int)


@pytest.mark.parametrize(
    ("response_method", "kind", "method"),
    [
        ("auto", "proba", "predict_proba"),
        ("predict_proba", "proba", "predict_proba"),
        ("proba", "proba", "predict_proba"),
        ("decision_function", "logits", "decision_function"),
        ("logits", "logits", "decision_function"),
        ("predict", "labels", "predict"),
        ("labels", "labels", "predict"),
    ],
)
def test_a_classifier_is_asked_by_a_method_of_it(response_method, kind, method):
    model = LogisticRegression().fit(X, Y)
    responder = Responder(model, response_method)
    assert responder.kind == kind
    np.testing.assert_array_equal(responder(X), getattr(model, method)(X))


def test_auto_takes_the_first_method_that_there_is():
    assert Responder(RidgeClassifier().fit(X, Y), "auto").kind == "logits"


def test_a_method_that_is_missing_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"has no predict_proba; expected one of \['decision_fun"):
        Responder(RidgeClassifier().fit(X, Y), "proba")
    with pytest.raises(ValueError, match="method of scikit-learn's classifiers; expected 'auto'"):
        Responder(scores, "predict_proba")


def test_columns_have_the_names_of_the_fit():
    frame = pd.DataFrame(X, columns=list("abcdef"))
    model = FrozenEstimator(LogisticRegression().fit(frame, Y))
    np.testing.assert_array_equal(Responder(model, "auto")(X), model.predict_proba(frame))


def test_a_module_is_asked_in_evaluation_mode_and_left_alone():
    module = nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3), nn.Dropout())
    before = copy.deepcopy(module.state_dict())
    found = Responder(module, "auto")(X)
    assert module.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    expected = copy.deepcopy(module).eval()(torch.from_numpy(X).float())
    np.testing.assert_array_equal(found, expected.detach().numpy())


@pytest.mark.parametrize("vectorized", [False, True, 4])
def test_a_box_may_have_parameters_and_take_stacks(vectorized):
    plain = Responder(BlackBox(scores), "auto")(X)
    weight = np.eye(6)[:, :3]
    held = Responder(BlackBox(lambda p, x: x @ p, weight, vectorized=vectorized), "auto")(X)
    stacked = BlackBox(lambda x: scores(x[0])[None], vectorized=True)
    np.testing.assert_array_equal(plain, scores(X))
    np.testing.assert_array_equal(held, X[:, :3])
    np.testing.assert_array_equal(Responder(stacked, "auto")(X), scores(X))


def test_a_client_with_a_lock_can_be_cloned_in_a_box():
    client = Client()
    assert clone(BlackBox(client), safe=False).function is client
    with pytest.raises(TypeError, match="lock"):
        clone(client, safe=False)


@pytest.mark.parametrize(
    "answers", [np.ones(3), np.ones((20, 3, 1)), 1.0, np.ones((19, 3)), ["a"] * 21]
)
def test_answers_of_a_wrong_shape_are_refused(answers):
    with pytest.raises(ValueError, match=r"for 20 samples; expected \(20, n_classes\) scores, or"):
        Responder(lambda X: answers, "auto")(X)


def test_complex_answers_are_refused():
    with pytest.raises(TypeError, match="array of complex128; expected real numbers, or labels"):
        Responder(lambda X: scores(X) + 1j, "auto")(X)


def test_a_box_may_write_to_what_it_gets():
    given = X.copy()

    def writing(X):
        found = scores(X)
        X[:] = 0
        return found

    responder = Responder(writing, "auto")
    np.testing.assert_array_equal(responder(given), responder(given))
    np.testing.assert_array_equal(given, X)


def test_what_is_no_classifier_is_refused():
    with pytest.raises(TypeError, match="LinearRegression, which is no classifier"):
        refuse_no_classifier(LinearRegression())
    with pytest.raises(TypeError, match="cannot be asked; expected a scikit-learn classifier"):
        refuse_no_classifier(7)
    with pytest.raises(TypeError, match="LogisticRegression'> cannot be asked"):
        refuse_no_classifier(LogisticRegression)
    for fine in (LogisticRegression(), FrozenEstimator(LogisticRegression()), nn.ReLU(), scores):
        refuse_no_classifier(fine)
    assert is_estimator(LogisticRegression())
    assert not is_estimator(nn.ReLU())


@pytest.mark.parametrize(
    ("function", "kind"),
    [(proba, "proba"), (scores, "logits"), (labels, "labels"), (words, "labels")],
)
def test_answers_tell_what_they_are(function, kind):
    assert kind_of([function(X[:7]), function(X[7:])]) == kind


def test_answers_that_failed_tell_nothing():
    failed = np.full((5, 3), np.nan)
    assert kind_of([failed, scores(X)]) == "logits"
    assert kind_of([failed, proba(X)]) == "proba"
    assert kind_of([failed]) == "logits"
    mixed = proba(X)
    mixed[0] = np.nan
    assert kind_of([mixed]) == "proba"
    assert kind_of([np.array([1.0, np.nan])]) == "labels"


def test_one_batch_does_not_tell_for_all():
    assert kind_of([np.array([[0.5, 0.5]]), np.array([[2.0, -1.0]])]) == "logits"


@pytest.mark.parametrize("column", [np.array([0.25, 1.0]), np.array([[0.25], [1.0]])])
def test_one_score_a_sample_is_not_taken_for_a_label(column):
    with pytest.raises(ValueError, match=r"such as 0\.25, which is no label; .* Set response_met"):
        kind_of([column])


def test_steps_are_larger_where_answers_jump():
    forest = FrozenEstimator(RandomForestClassifier(2).fit(X, Y))
    assert steps_for(forest, "proba", "auto", "auto") == (0.05, "central")
    assert steps_for(scores, "labels", "auto", "auto") == (0.1, "central")
    assert steps_for(scores, "proba", "auto", "auto") == (5e-3, "forward")
    assert steps_for(forest, "labels", 0.3, "forward") == (0.3, "forward")
