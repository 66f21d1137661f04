"""The same defense, bit for bit: whoever asks, wherever it was interrupted, however it is kept."""

import pickle

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from defense.boxes import IMAGES, Client, defense, labels, same, scores, weights
from zoestim import BlackBox, QueryError

pytestmark = pytest.mark.usefixtures("global_rng_untouched")
X, Y = IMAGES, labels(IMAGES)
FROZEN = FrozenEstimator(LogisticRegression().fit(X, Y))


@pytest.fixture(scope="module")
def expected():
    return defense(FROZEN).fit(X)


# --- Random numbers


@pytest.mark.parametrize("space", ["params", "input"])
def test_a_seed_decides_everything(space):
    one, other, third = (
        defense(scores, space=space, random_state=seed).fit(X)
        for seed in (1, np.random.RandomState(1), 2)
    )
    assert same(weights(one), weights(other))
    np.testing.assert_array_equal(one.predict_proba(X), other.predict_proba(X))
    assert not same(weights(one), weights(third))
    before = weights(one)
    assert same(weights(one.fit(X)), before)


def test_without_a_seed_fits_differ_and_no_global_generator_is_touched():
    one, other = (defense(scores, random_state=None).fit(X) for _ in range(2))
    assert not same(weights(one), weights(other))
    one.certify(X[:2], 5, 5)


# --- Whoever asks


@pytest.mark.parametrize("space", ["params", "input"])
@pytest.mark.parametrize("kind", ["threading", "loky"])
def test_workers_learn_the_same(kind, space, expected):
    plain = expected if space == "params" else defense(FROZEN, space=space).fit(X)
    model = defense(FROZEN, space=space, n_jobs=2, backend=kind).fit(X)
    assert same(weights(model), weights(plain))
    assert model.n_queries_ == plain.n_queries_
    np.testing.assert_array_equal(model.predict_proba(X), plain.predict_proba(X))


def test_a_client_with_a_lock_is_shared_by_threads():
    client = Client()
    model = defense(client, n_jobs=2, backend="threading", query_batch_size=64).fit(X)
    plain = defense(scores, query_batch_size=64).fit(X)
    assert same(weights(model), weights(plain))
    assert client.n_images == model.n_queries_
    assert clone(model).estimator.function is client


def test_repeats_average_what_a_noisy_box_says():
    model = defense(scores, n_repeats=2, max_epochs=1).fit(X)
    assert model.n_queries_ == 40 + 2 * 40 * 37


# --- Interrupted


@pytest.mark.parametrize("at", [3, 6, 9])
@pytest.mark.parametrize("error", ["cut", KeyboardInterrupt()])
@pytest.mark.parametrize("settings", [{}, {"space": "input"}])
def test_an_interrupted_fit_goes_on(at, error, settings, tmp_path):
    settings = {"checkpoint": tmp_path / "fit", "journal_queries": True, **settings}
    client = Client(fails_from=at, fails_until=at + 1, error=error)
    model = defense(client, query_batch_size=400, **settings)
    plain = defense(scores, query_batch_size=400, space=model.space).fit(X)
    if error == "cut":
        with pytest.raises(QueryError, match="cut"):
            model.fit(X)
    else:
        with pytest.warns(UserWarning, match="The fit was interrupted"):
            model.fit(X)
    again = clone(model).fit(X)
    lost = client.seen[at - 1].shape[0] + len(X)  # the call that failed, and the clean samples
    assert client.n_images <= plain.n_queries_ + lost
    assert same(weights(again), weights(plain))
    assert again.n_queries_ == plain.n_queries_
    np.testing.assert_array_equal(again.predict_proba(X), plain.predict_proba(X))


# --- Going on


def test_warm_start_goes_on(expected):
    client = Client()
    model = defense(client, warm_start=True).fit(X)
    before, n_queries, box = weights(model), model.n_queries_, model.estimator_
    model.set_params(max_epochs=3, lr=1e-2).fit(X)
    assert model.estimator_ is box
    assert model.n_queries_ == client.n_images == n_queries + 40 + 3 * 40 * 37
    assert model.n_iter_ == len(model.loss_curve_) == 5
    assert not same(weights(model), before)
    fresh = defense(scores).fit(X)
    assert same(before, weights(fresh))


def test_warm_start_keeps_to_the_budget():
    client = Client()
    model = defense(client, warm_start=True, max_queries=5000).fit(X)
    spent = model.n_queries_
    with pytest.raises(ValueError, match=f"less than the 40 clean .* beside the {spent} of the"):
        model.set_params(max_queries=spent + 39).fit(X)
    model.set_params(max_queries=spent + 40 + 16 * 37).fit(X)
    assert client.n_images == model.n_queries_ == spent + 40 + 16 * 37
    assert model.termination_condition_ == "max_queries"


def test_warm_start_trains_what_was_only_pretrained():
    model = defense(scores, warm_start=True, max_epochs=0).fit(X)
    assert model.trainer_ is None
    before = weights(model)
    model.set_params(max_epochs=2).fit(X)
    assert model.n_iter_ == 2
    assert not same(weights(model), before)


def test_warm_start_after_a_refused_budget():
    model = defense(scores, warm_start=True, max_queries=50)
    with pytest.raises(ValueError, match="does not allow one training step"):
        model.fit(X)
    model.set_params(max_queries=40 + 40 + 16 * 37).fit(X)
    assert model.n_queries_ == 40 + 40 + 16 * 37


@pytest.mark.parametrize(
    ("change", "data"),
    [
        ({"noise_std": 0.5}, X),
        ({"trainable": "all"}, X),
        ({"estimator": scores}, X),
        ({}, X[:, :9]),
    ],
)
def test_warm_start_refuses_what_it_cannot_change(change, data):
    model = defense(FROZEN, warm_start=True).fit(X)
    before = weights(model)
    settings = {**change, **({"image_shape": (3, 3)} if data is not X else {})}
    with pytest.raises(ValueError, match="changed since the fit that is to go on, which keeps"):
        model.set_params(**settings).fit(data)
    assert same(weights(model), before)


# --- Kept


@pytest.mark.parametrize("through", ["pickle", "joblib"])
@pytest.mark.parametrize("space", ["params", "input"])
def test_a_file_holds_all_of_it(through, space, tmp_path):
    settings = {"space": space, "latent_dim": 3 if space == "input" else None}
    model = defense(FROZEN, **settings).fit(X)
    if through == "pickle":
        again = pickle.loads(pickle.dumps(model))
    else:
        joblib.dump(model, tmp_path / "model")
        again = joblib.load(tmp_path / "model")
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    one, other = (m.certify(X[:3], 5, 9, random_state=0).counts for m in (model, again))
    np.testing.assert_array_equal(one, other)
    again.set_params(warm_start=True).fit(X)
    model.set_params(warm_start=True).fit(X)
    assert same(weights(model), weights(again))


def test_a_clone_has_the_parameters_alone():
    with torch.random.fork_rng(devices=[]):
        module = nn.Linear(16, 3)
    for estimator in (LogisticRegression(), FROZEN, module, BlackBox(scores), scores):
        model = defense(scores).set_params(estimator=estimator, noise_std=0.5)
        copied = clone(model)
        assert copied.noise_std == 0.5
        assert not hasattr(copied.fit(X, Y), "not_there")
        assert not hasattr(clone(copied), "white_")


# --- In scikit-learn


def test_in_a_pipeline():
    model = make_pipeline(StandardScaler(), defense(LogisticRegression(), noise_std=0.5))
    assert model.fit(X, Y).score(X, Y) > 0.6
    within = make_pipeline(defense(scores), LogisticRegression()).fit(X, Y)  # as a transformer
    assert within.predict(X).shape == (40,)


def test_in_a_grid_search():
    grid = {"noise_std": [0.1, 0.5]}
    search = GridSearchCV(defense(LogisticRegression()), grid, cv=2, n_jobs=2).fit(X, Y)
    assert search.best_params_["noise_std"] in grid["noise_std"]
    assert search.best_estimator_.noise_std == search.best_params_["noise_std"]
    nested = defense(LogisticRegression()).set_params(estimator__C=0.1)
    assert nested.fit(X, Y).estimator_.C == 0.1


def test_in_a_cross_validation():
    found = cross_val_score(defense(FROZEN), X, Y, cv=3)
    assert found.shape == (3,)
    assert np.isfinite(found).all()
