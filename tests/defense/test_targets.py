"""What the black box says of clean samples: all workers ask, and what fails is told."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from defense.boxes import Client, labels, proba, scores, words
from zoestim import QueryError
from zoestim.backends import JoblibBackend, SerialBackend
from zoestim.defense import Layout, ask_targets, fitted_black_box
from zoestim.defense._targets import encode
from zoestim.evaluation import Asking, Patience

X = np.random.default_rng(1).normal(size=(20, 6))
Y = (X[:, 0] > 0).astype(int)
LAYOUT = Layout.of(X, None, "channels_first")
DEFAULTS = {
    "response_method": "auto",
    "classes": None,
    "query_batch_size": 8,
    "target": "black_box",
    "max_queries": None,
    "on_error": "raise",
    "input_range": None,
    "quantize": False,
}


def ask(box, y=None, backend=None, trains=True, **settings):
    asking = Asking(backend or SerialBackend(), Patience(max_retries=0))
    defense = SimpleNamespace(**{**DEFAULTS, **settings})
    return ask_targets(defense, box, X, y, LAYOUT, asking, trains)


@pytest.mark.parametrize("kind", ["serial", "threading"])
@pytest.mark.parametrize("function", [scores, proba, labels, words])
def test_targets_are_what_the_box_says(function, kind):
    backend = SerialBackend() if kind == "serial" else JoblibBackend(2, kind)
    client = Client(function)
    classifier, targets, n_queries = ask(client, backend=backend)
    backend.close()
    assert targets.tolist() == labels(X).tolist()
    assert n_queries == client.n_images == 20
    assert client.largest == 8
    expected = ["ant", "bee", "cicada"] if function is words else [0, 1, 2]
    assert classifier.classes.tolist() == expected


def test_labels_are_the_targets_if_asked_for():
    client = Client()
    _, targets, n_queries = ask(client, y=np.array([0, 2] * 10), target="labels")
    assert targets.tolist() == [0, 2] * 10
    assert n_queries == client.n_images == 8  # the first batch, which tells what it answers


def test_classes_are_those_that_are_given():
    classifier, targets, _ = ask(scores, classes=["x", "y", "z"])
    assert classifier.classes[targets].tolist() == np.array(["x", "y", "z"])[labels(X)].tolist()
    for classes in (["x", "x", "y"], [["x"], ["y"], ["z"]]):
        with pytest.raises(ValueError, match="one label a column of the black box, each once"):
            ask(scores, classes=classes)
    with pytest.raises(ValueError, match=r"expected 2 columns, one a class. Pass classes="):
        ask(scores, classes=["x", "y"])


def test_labels_that_nobody_saw_are_classes_by_y():
    assert ask(lambda X: np.zeros(len(X), int), y=Y)[0].classes.tolist() == [0, 1]
    assert ask(words, y=Y)[0].classes.tolist() == ["ant", "bee", "cicada"]  # not beside numbers


def test_one_column_has_two_classes():
    for method in ("logits", "proba"):
        column = ask(lambda X: 1 / (1 + np.exp(-X[:, 0])), response_method=method)
        assert column[0].classes.tolist() == [0, 1]
    assert column[1].tolist() == Y.tolist()


def test_labels_that_are_missing_are_no_class():
    found = words(X).astype(object)
    found[3] = None
    with pytest.raises(QueryError, match=r"gave no class for 1 clean samples, .* sample 3: NaN"):
        ask(lambda X: found, query_batch_size=20)
    with pytest.warns(UserWarning, match="1 of 20 samples are left out of the training"):
        classifier, targets, _ = ask(lambda X: found, query_batch_size=20, on_error="penalize")
    assert classifier.classes.tolist() == ["ant", "bee", "cicada"]
    assert (targets < 0).tolist() == [i == 3 for i in range(20)]


def test_a_failure_is_an_error_with_its_cause():
    client = Client(fails_from=2)
    with pytest.raises(QueryError, match=r"failed on clean samples: OSError: cut. Mend") as raised:
        ask(client)
    assert isinstance(raised.value.__cause__, OSError)
    with pytest.warns(UserWarning, match="8 of 20 samples are left out"):
        _, targets, n_queries = ask(Client(fails_from=2, fails_until=3), on_error="penalize")
    assert (targets < 0).tolist() == [8 <= i < 16 for i in range(20)]
    assert n_queries == 20
    with pytest.raises(QueryError, match="failed on clean samples"):
        ask(Client(fails_from=1), on_error="penalize")


def test_a_box_that_gives_no_numbers_at_all_is_an_error():
    for on_error in ("raise", "penalize"):
        with pytest.raises(QueryError, match="gave no class for 20 clean samples"):
            ask(lambda X: np.full((len(X), 3), np.nan), on_error=on_error)


def test_a_budget_for_fewer_samples_is_refused_before_any_is_spent():
    client = Client()
    with pytest.raises(ValueError, match="max_queries=19 is less than the 20 clean samples"):
        ask(client, max_queries=19)
    assert client.n_images == 0
    assert ask(client, max_queries=20)[2] == 20


def test_encode():
    classes = np.array(["c", "a", "b"])
    assert encode(np.array(["a", "b", "c", "a"]), classes).tolist() == [1, 2, 0, 1]
    with pytest.raises(ValueError, match=r"y holds the labels \['z'\], which the black box does"):
        encode(np.array(["a", "z"]), classes)


def test_a_frozen_classifier_stays_the_same_and_another_is_cloned():
    fitted = LogisticRegression().fit(X, Y)
    frozen = FrozenEstimator(fitted)
    assert fitted_black_box(SimpleNamespace(estimator=frozen), X, None) is frozen
    cloned = fitted_black_box(SimpleNamespace(estimator=fitted), X, 1 - Y)
    assert cloned is not fitted
    assert (cloned.predict(X) == 1 - fitted.predict(X)).all()
    with pytest.raises(ValueError, match="requires y to be passed, but the target y is None"):
        fitted_black_box(SimpleNamespace(estimator=LogisticRegression()), X, None)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, 20), ({"response_method": "logits"}, 8), ({"classes": [0, 1, 2]}, 8)],
)
def test_a_box_that_trains_nothing_is_asked_no_more_than_shows_what_it_returns(settings, expected):
    client = Client()
    classifier, _, n_queries = ask(client, trains=False, **settings)
    assert n_queries == client.n_images == expected
    assert classifier.classes.tolist() == [0, 1, 2]


def test_a_classifier_of_scikit_learn_that_trains_nothing_is_not_asked():
    box = FrozenEstimator(LogisticRegression().fit(X, Y))
    classifier, targets, n_queries = ask(box, trains=False)
    assert (n_queries, len(targets)) == (0, 0)
    assert classifier.classes.tolist() == [0, 1]
