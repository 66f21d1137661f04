"""From answers to scores: the loss of a sample is minus the score of its target."""

import numpy as np
import pytest
from scipy.special import log_softmax
from torch import nn

from defense.boxes import Client, labels, proba, scores, words
from zoestim.defense import Layout
from zoestim.defense._black_box import Responder
from zoestim.defense._scores import LEAST_PROBABILITY, Classifier
from zoestim.evaluation import Patience

X = np.random.default_rng(1).normal(size=(5, 16))
KINDS = {"proba": proba, "logits": scores, "labels": labels}


def classifier(function, kind, *, classes=(0, 1, 2), layout=None, **settings) -> Classifier:
    defaults = {"input_range": None, "quantize": False, "batch_size": 100, "penalize": False}
    patience = Patience(max_retries=0)
    layout = layout or Layout.of(X, None, "channels_first")
    given = {**defaults, "patience": patience, **settings}
    return Classifier(Responder(function, kind), kind, np.array(classes), layout, **given)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("proba", lambda: np.log(proba(X))),
        ("logits", lambda: log_softmax(scores(X), axis=1)),
        ("labels", lambda: np.eye(3)[labels(X)] - 1),
    ],
)
def test_scores(kind, expected):
    np.testing.assert_allclose(classifier(KINDS[kind], kind)(X), expected(), atol=1e-15)


def test_a_probability_of_zero_has_a_finite_loss():
    found = classifier(lambda X: np.eye(3)[labels(X)], "proba")(X)
    assert found.min() == np.log(LEAST_PROBABILITY)


@pytest.mark.parametrize("kind", KINDS)
def test_leading_axes_and_batches_change_nothing(kind):
    whole = classifier(KINDS[kind], kind)
    stack = np.stack([X, X + 1])
    found = classifier(KINDS[kind], kind, batch_size=3)(stack)
    np.testing.assert_allclose(found, np.stack([whole(X), whole(X + 1)]), atol=1e-15)


def test_a_call_holds_no_more_than_the_batch_size():
    client = Client()
    classifier(client, "logits", batch_size=3)(np.stack([X, X]))
    assert client.largest == 3
    assert client.n_images == 10


@pytest.mark.parametrize(("kind", "expected"), [("logits", [0.0, 0.7]), ("proba", [1 - 0.7, 0.7])])
def test_one_column_is_the_second_class(kind, expected):
    for column in (np.full(5, 0.7), np.full((5, 1), 0.7)):
        box = classifier(lambda X, column=column: column, kind, classes=(0, 1))
        np.testing.assert_allclose(box.values(X), [expected] * 5)


def test_labels_in_the_order_of_the_classes():
    box = classifier(words, "labels", classes=("cicada", "ant", "bee"))
    assert box.classes[box.labels(X)].tolist() == words(X).tolist()


def test_unknown_labels_and_nan_are_no_class():
    box = classifier(lambda X: np.array([0, 7, 2, 1, -1]), "labels")
    assert box.labels(X).tolist() == [0, -1, 2, 1, -1]
    assert box(X)[1].tolist() == [-1, -1, -1]
    missing = np.array([0, None, np.nan, 1, 2], dtype=object)
    assert classifier(lambda X: missing, "labels").labels(X).tolist() == [0, -1, -1, 1, 2]
    rows = np.eye(3)[[0, 1, 2, 0, 1]]
    rows[3, 1] = np.nan
    rows[4, 2] = np.inf
    assert classifier(lambda X: rows, "logits").labels(X).tolist() == [0, 1, 2, -1, -1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_failure_is_the_worst_score_if_it_is_penalized(kind):
    def failing(X):
        raise OSError("cut")

    worst = -1.0 if kind == "labels" else np.log(LEAST_PROBABILITY)
    box = classifier(failing, kind, penalize=True)
    assert (box(X) == worst).all()
    assert (box.labels(X) == -1).all()
    with pytest.raises(OSError, match="cut"):
        classifier(failing, kind)(X)


def test_rows_of_nan_are_penalized_one_by_one():
    def some(X):
        found = scores(X)
        found[1] = np.nan
        return found

    found = classifier(some, "logits", penalize=True)(X)
    np.testing.assert_array_equal(found[2:], log_softmax(scores(X), axis=1)[2:])
    assert (found[1] == np.log(LEAST_PROBABILITY)).all()
    assert np.isnan(classifier(some, "logits")(X)[1]).all()


def test_a_wrong_number_of_columns_is_refused():
    with pytest.raises(ValueError, match=r"shape \(5, 3\); expected 4 columns, one a class"):
        classifier(scores, "logits", classes=range(4))(X)


# --- What the box is given


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_samples_are_clipped_and_rounded_in_their_type(dtype):
    box = classifier(scores, "logits", input_range=(0, 1), quantize=True, dtype=dtype)
    found = box.finish(X)
    assert found.dtype == dtype
    bytes_ = np.round(np.clip(X, 0, 1) * 255)
    np.testing.assert_array_equal(found, (bytes_ / 255).astype(dtype))  # as images are read
    clipped = classifier(scores, "logits", input_range=[-0.5, 0.25]).finish(X)
    np.testing.assert_array_equal(clipped, np.clip(X, -0.5, 0.25))


def test_bytes_are_whole_numbers():
    box = classifier(scores, "logits", input_range=(0, 255), quantize=True)
    found = box.finish(100 * np.abs(X))
    np.testing.assert_array_equal(found, np.clip(np.round(100 * np.abs(X)), 0, 255))


def test_the_box_is_given_samples_as_their_owner_has_them():
    client, images = Client(), X.reshape(5, 4, 4, 1)
    layout = Layout.of(images, None, "channels_last")
    classifier(client, "logits", layout=layout)(layout.to_denoiser(images))
    np.testing.assert_array_equal(client.seen[0], images)


def test_latent_numbers_are_decoded_first():
    client = Client()
    decoder = nn.Sequential(nn.Linear(2, 16), nn.Tanh()).double()
    found = classifier(client, "logits", decoder=decoder)(X[:, :6].reshape(5, 3, 2))
    assert found.shape == (5, 3, 3)
    assert client.seen[0].shape == (15, 16)
