"""Predictions by majority and certificates, with a defense that is as small as can be."""

import warnings

import numpy as np
import pytest
from scipy.stats import norm

from defense.boxes import IMAGES, Client, defense, labels, words
from zoestim import CertifiedAccuracyDisplay, certify_counts, max_certifiable_radius
from zoestim.defense import Defended
from zoestim.evaluation import Patience

X, SIGMA = IMAGES, 0.25
PARTS = [1, 7, 100, 1024]


@pytest.fixture(scope="module")
def client() -> Client:
    return Client()


@pytest.fixture(scope="module")
def model(client):
    return defense(client, max_epochs=1).fit(X)


@pytest.fixture(scope="module")
def worded():
    return defense(words, max_epochs=0).fit(X)


def of_size(model, query_batch_size: int):
    return model.set_params(query_batch_size=query_batch_size)


# --- By majority


def test_predictions_are_of_the_majority(model):
    shares = model.predict_proba(X)
    np.testing.assert_allclose(shares.sum(1), 1)
    np.testing.assert_array_equal(shares * 15, np.round(shares * 15))
    np.testing.assert_array_equal(model.predict(X), model.classes_[shares.argmax(1)])
    assert model.score(X, labels(X)) > 0.6


def test_predictions_are_the_same_each_time_and_for_each_subset(model):
    expected = model.predict_proba(X)
    np.testing.assert_array_equal(model.predict_proba(X), expected)
    np.testing.assert_array_equal(model.predict_proba(X[5:6]), expected[5:6])
    np.testing.assert_array_equal(model.predict_proba(X[::-1]), expected[::-1])


@pytest.mark.parametrize("query_batch_size", PARTS)
def test_batches_change_no_prediction(model, query_batch_size, client):
    try:
        expected = model.predict_proba(X), model.certify(X[:4], 10, 30, random_state=0)
        of_size(model, query_batch_size)
        client.largest = 0
        np.testing.assert_array_equal(model.predict_proba(X), expected[0])
        found = model.certify(X[:4], 10, 30, random_state=0)
        np.testing.assert_array_equal(found.counts, expected[1].counts)
        np.testing.assert_array_equal(found.radius, expected[1].radius)
        assert client.largest <= query_batch_size
        np.testing.assert_allclose(model.denoise(X), of_size(model, 1024).denoise(X), atol=1e-6)
    finally:
        of_size(model, 1024)


def test_single_precision_is_kept():
    given = X.astype(np.float32)
    client = Client()
    model = defense(client, max_epochs=1).fit(given)
    assert model.denoise(given).dtype == np.float32
    model.predict(given)
    assert {seen.dtype for seen in client.seen} == {np.dtype(np.float32)}


# --- Certificates


def test_a_certificate_is_of_its_counts(model, client):
    before = client.n_images
    found = model.certify(X[:6], n0=20, n=50, alpha=0.01, random_state=0)
    assert found.n_queries == client.n_images - before == 6 * 70
    assert found.counts.sum(1).tolist() == [50] * 6
    assert found.counts.dtype == np.int64
    top = np.searchsorted(model.classes_, found.label)
    for i in range(6):
        exact = certify_counts(np.eye(3, dtype=int)[top[i]], found.counts[i], SIGMA, 0.01)
        assert found.radius[i] == exact.radius
        assert found.p_lower[i] == exact.p_lower
    assert (found.abstained == (found.p_lower <= 0.5)).all()
    sure = ~found.abstained
    np.testing.assert_allclose(found.radius[sure], SIGMA * norm.ppf(found.p_lower[sure]))
    assert (found.radius[~sure] == 0).all()


def test_certificates_draw_anew_unless_they_are_told_not_to(model):
    one, other = (model.certify(X[:4], 10, 200, random_state=seed) for seed in (0, 0))
    np.testing.assert_array_equal(one.counts, other.counts)
    assert (model.certify(X[:4], 10, 200).counts != model.certify(X[:4], 10, 200).counts).any()
    assert model.certify(X[:4], 5, 5, random_state=np.random.RandomState(0)).counts.sum() == 20


def test_the_black_box_alone(model):
    alone = defense(Client(), denoiser=None).fit(X)
    found, expected = (
        each.certify(X[:5], 10, 30, random_state=0, defended=defended)
        for each, defended in ((model, False), (alone, True))
    )
    np.testing.assert_array_equal(found.counts, expected.counts)


def test_the_draws_that_choose_are_not_those_that_bound():
    client = Client()
    model = defense(client, latent_dim=3, space="input", max_epochs=0).fit(X)
    client.seen.clear()
    model.certify(X[:1], 10, 10, random_state=0, defended=False)
    chosen, bounded = client.seen
    assert np.abs(chosen - bounded).min() > 0
    assert 0.1 < np.std(chosen - X[0]) < 0.4  # noise alone: nothing was encoded or decoded


def test_workers_count_the_same_votes(model):
    expected = model.certify(X[:4], 10, 30, random_state=0).counts
    try:
        model.set_params(n_jobs=2, backend="threading")
        found = model.certify(X[:4], 10, 30, random_state=0).counts
    finally:
        model.set_params(n_jobs=None, backend=None)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"n0": 0}, "n0 must be an integer of at least 1"),
        ({"n": 2.5}, "n must be an integer of at least 1"),
        ({"alpha": 0}, "alpha must be a number above 0"),
        ({"alpha": 1.5}, "alpha must be a number above 0"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_asked(model, client, settings, text):
    before = client.n_images
    with pytest.raises(ValueError, match=text):
        model.certify(X, **settings)
    for curve in (
        lambda: model.certified_accuracy(X, labels(X)[:-1], [0.1], 5, 5),
        lambda: model.average_certified_radius(X, labels(X)[:-1], 5, 5),
    ):
        with pytest.raises(ValueError, match="inconsistent numbers of samples"):
            curve()
    assert client.n_images == before


# --- Abstentions


def abstaining(model, label):
    """With five draws, no class can be certified."""
    return model.predict_certified(X[:3], 5, 5, abstain_label=label, random_state=0)


def test_abstentions_are_told(model, worded):
    assert abstaining(model, -1).tolist() == [-1] * 3
    assert abstaining(model, -1).dtype.kind == "i"
    assert abstaining(model, None).tolist() == [None] * 3
    assert abstaining(model, "?").tolist() == ["?"] * 3
    assert abstaining(worded, -1).tolist() == [-1] * 3
    assert abstaining(worded, "abstention").tolist() == ["abstention"] * 3  # longer than a class
    with pytest.raises(ValueError, match="is several; expected one value for all samples"):
        abstaining(model, [-1, -2])
    for each, label in ((model, 1), (worded, "bee")):
        with pytest.raises(ValueError, match="is one of the classes; expected a value that is non"):
            abstaining(each, label)


def test_what_is_certified_is_predicted(model):
    settings = {"n0": 10, "n": 60, "random_state": 0}
    found, predicted = model.certify(X, **settings), model.predict_certified(X, **settings)
    assert found.abstained.any()
    assert not found.abstained.all()
    np.testing.assert_array_equal(predicted, np.where(found.abstained, -1, found.label))


# --- What certificates are worth


def test_certified_accuracy_and_average_radius(model):
    y, settings = labels(X), {"n0": 10, "n": 60, "random_state": 0}
    found = model.certify(X, **settings)
    right = (found.label == y) & ~found.abstained
    radii = [0, 0.1, 0.2]
    curve = model.certified_accuracy(X, y, radii, **settings)
    np.testing.assert_allclose(curve, [(right & (found.radius >= r)).mean() for r in radii])
    mean = model.average_certified_radius(X, y, **settings)
    assert mean == pytest.approx((found.radius * right).mean())


def test_a_radius_that_cannot_be_reached_warns_whoever_asks(model):
    most = max_certifiable_radius(60, 1e-3, SIGMA)
    with pytest.warns(UserWarning, match="60 draws reach at most") as caught:
        curve = model.certified_accuracy(X, labels(X), [most + 0.01], 10, 60)
    assert caught[0].filename == __file__
    assert curve == [0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.certified_accuracy(X[:2], labels(X)[:2], [most], 10, 60)


def test_a_display_is_made_from_a_defense(model):
    pytest.importorskip("matplotlib").use("Agg")
    display = CertifiedAccuracyDisplay.from_estimator(
        model, X[:8], labels(X)[:8], n0=10, n=40, random_state=0, baseline=True
    )
    assert display.line_ is not None


def test_failed_denoising_is_not_asked_again():
    """Patience is for the box: a denoiser does not come and go."""
    model = defense(Client(), max_epochs=0).fit(X)
    defended = Defended(model.white_, model._classifier, Patience(max_retries=5))
    with pytest.raises(ValueError, match="reshape"):
        defended(X[:, :7])
