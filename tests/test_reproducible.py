"""The same seed gives the same fit, bit for bit; copies and continued fits go on from there."""

import copy
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import zoestim
from zoestim import BlackBox, ZOClassifier, ZORegressor
from zoestim.gradients import RandomizedEstimator
from zoestim.models import MLP

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

X = np.random.default_rng(0).normal(size=(24, 2))
Y = (X[:, 0] * X[:, 1] > 0).astype(int)
QUICK = {"max_epochs": 3, "n_pruning_queries": 4, "sparsity": 0.5, "random_state": 7}


class Dropping(nn.Module):
    def __init__(self, n_features_in: int, n_outputs: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(n_features_in, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, n_outputs)
        )

    def forward(self, x):
        return self.layers(x)


def scores(params: dict, inputs: np.ndarray) -> np.ndarray:
    return inputs @ params["w"] + params["b"]


START = {"w": np.zeros((2, 2)), "b": np.zeros(2)}
KINDS = {
    "default": {},
    "class": {"module": MLP, "module__hidden": 4},
    "black box": {"module": scores, "initial_params": START},
    "boxed": {"module": BlackBox(scores, START)},
    "dropout": {"module": Dropping},
    "rge": {"gradient": "rge", "n_directions": 5},
    "sphere": {"gradient": RandomizedEstimator(4, distribution="sphere"), "pruning": None},
    "validation": {"early_stopping": True, "validation_fraction": 0.25, "n_iter_no_change": 1},
    "random sets": {"pruning": "random", "mask_interval": "batch"},
    "adam": {"optimizer": torch.optim.Adam, "lr": 0.01},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def make(kind: str = "class", **params) -> ZOClassifier:
    return ZOClassifier(**{**QUICK, "batch_size": 10, **KINDS[kind], **params})


def same(one: ZOClassifier, other: ZOClassifier) -> bool:
    """Say whether all parameters and buffers are bitwise equal."""
    ours, theirs = one.module_.state_dict(), other.module_.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# --- Seeds


@each_kind
def test_the_same_seed_gives_bitwise_equal_parameters(kind: str):
    one, other = make(kind).fit(X, Y), make(kind).fit(X, Y)
    assert same(one, other)
    assert one.loss_curve_ == other.loss_curve_


@each_kind
def test_a_second_fit_equals_the_first(kind: str):
    model = make(kind).fit(X, Y)
    first = copy.deepcopy(model)
    assert same(model.fit(X, Y), first)
    assert model.n_queries_ == first.n_queries_


@pytest.mark.parametrize("kind", ["default", "dropout", "rge", "black box"])
def test_other_seeds_give_other_parameters(kind: str):
    assert not same(make(kind).fit(X, Y), make(kind, random_state=8).fit(X, Y))


def test_no_seed_means_another_fit_each_time():
    model = make(random_state=None)
    assert not same(clone(model).fit(X, Y), model.fit(X, Y))


def test_a_generator_as_random_state_goes_on():
    one, other = (make(random_state=np.random.RandomState(3)) for _ in range(2))
    assert same(one.fit(X, Y), other.fit(X, Y))
    first = copy.deepcopy(one)
    assert not same(one.fit(X, Y), first)


@each_kind
def test_the_global_generators_do_not_matter(kind: str):
    first = make(kind).fit(X, Y)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(99)
        assert same(make(kind).fit(X, Y), first)


@each_kind
def test_nothing_touches_the_global_generators(kind: str, tmp_path):
    # The fixture of this file watches them.
    model = make(kind).fit(X, Y)
    model.predict(X)
    model.partial_fit(X, Y)
    model.save(tmp_path / "model")
    given = {} if kind not in ("black box", "boxed", "dropout") else {"module": model.module}
    zoestim.load(tmp_path / "model", **given).partial_fit(X, Y).predict_proba(X)


def test_prediction_does_not_depend_on_the_batch_it_is_made_in():
    model = make("dropout").fit(X, Y)
    once = model.predict_proba(X)
    np.testing.assert_array_equal(model.predict_proba(X), once)
    parts = np.r_[model.predict_proba(X[:9]), model.predict_proba(X[9:])]
    np.testing.assert_allclose(parts, once, rtol=1e-5)  # the rounding of float32


# --- Continued fits


@pytest.mark.parametrize("kind", ["default", "dropout", "rge", "black box", "adam"])
def test_six_partial_fits_equal_six_epochs_at_a_constant_rate(kind: str):
    whole = make(kind, max_epochs=6, lr_schedule="constant", batch_size="auto").fit(X, Y)
    part = make(kind, batch_size="auto")
    for _ in range(6):
        part.partial_fit(X, Y)
    assert same(part, whole)
    assert part.n_iter_ == whole.n_iter_ == 6
    assert part.n_queries_ == whole.n_queries_
    assert part.loss_curve_ == whole.loss_curve_


def test_partial_fit_after_a_cosine_learns_at_the_full_rate():
    model = make(lr=0.5).fit(X, Y)
    model.partial_fit(X, Y)
    assert model.net_.optimizer_.param_groups[0]["lr"] == 0.5


def test_warm_start_goes_on_where_the_last_fit_ended():
    both = make(warm_start=True, lr_schedule="constant", max_epochs=2).fit(X, Y)
    both.set_params(max_epochs=3).fit(X, Y)
    whole = make(lr_schedule="constant", max_epochs=5).fit(X, Y)
    assert same(both, whole)
    assert (both.n_iter_, both.termination_condition_) == (5, "max_epochs")


def test_without_warm_start_a_fit_starts_anew():
    model = make().fit(X, Y)
    assert model.fit(X, Y).n_iter_ == 3


def test_warm_start_with_labels_that_the_first_fit_did_not_see_is_refused():
    model = make(warm_start=True).fit(X, Y)
    with pytest.raises(ValueError, match=r"labels \[2\], which the first fit did not see"):
        model.fit(X, np.arange(24) % 3)


def test_partial_fit_takes_all_labels_that_will_ever_come():
    model = make("default").partial_fit(X[:8], np.zeros(8), classes=[0, 1, 2])
    model.partial_fit(X, np.arange(24) % 3)
    assert model.predict_proba(X).shape == (24, 3)


# --- Copies


@each_kind
def test_clones_fit_alike(kind: str):
    model = make(kind)
    assert same(clone(model).fit(X, Y), model.fit(X, Y))
    assert not hasattr(clone(model), "module_")


@each_kind
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_before_and_after_a_fit_predict_and_go_on_alike(kind: str, copied):
    model = make(kind)
    before = copied(model).fit(X, Y)
    model.fit(X, Y)
    after = copied(model)
    np.testing.assert_array_equal(before.predict_proba(X), model.predict_proba(X))
    np.testing.assert_array_equal(after.predict_proba(X), model.predict_proba(X))
    assert same(after.partial_fit(X, Y), model.partial_fit(X, Y))
    assert after.n_queries_ == model.n_queries_
    assert not same(before, model)


def test_a_copy_learns_without_its_original():
    model = make().fit(X, Y)
    once = model.predict_proba(X)
    copy.deepcopy(model).partial_fit(X, Y)
    np.testing.assert_array_equal(model.predict_proba(X), once)


# --- Parameters and searches


def test_prefixed_parameters_are_seen_set_and_cloned():
    model = ZOClassifier(module__hidden=3)
    assert model.get_params()["module__hidden"] == 3
    model.set_params(module__hidden=4, optimizer__momentum=0.5, lr=0.2)
    assert clone(model).get_params()["module__hidden"] == 4
    model.set_params(max_epochs=1).fit(X, Y)
    assert model.module_.layers[1].weight.shape == (4, 2)
    assert model.net_.optimizer_.param_groups[0]["momentum"] == 0.5


def test_the_parameters_of_a_strategy_are_set_through_the_estimator():
    model = make("sphere")
    assert model.get_params()["gradient__n_directions"] == 4
    model.set_params(gradient__n_directions=2, batch_size="auto").fit(X, Y)
    assert model.n_queries_ == 3 * (1 + 2)


def test_fitted_attributes_are_no_parameters():
    model = make().fit(X, Y)
    assert model.get_params().keys() == make().get_params().keys()


def test_a_grid_search_with_two_jobs_finds_what_one_job_finds():
    # Slow (seconds, more on a busy machine): its two processes each import torch.
    model = make_pipeline(StandardScaler(), ZOClassifier(MLP, **QUICK | {"max_epochs": 2}))
    grid = {
        "zoclassifier__module__hidden": [2, (3, 2)],
        "zoclassifier__sparsity": [0, 0.5],
        "zoclassifier__lr": [0.1],
    }
    found = [GridSearchCV(model, grid, cv=2, n_jobs=jobs).fit(X, Y) for jobs in (1, 2)]
    for key in ("mean_test_score", "rank_test_score"):
        np.testing.assert_array_equal(*(search.cv_results_[key] for search in found))
    assert same(*(search.best_estimator_[-1] for search in found))


def test_regressors_are_reproducible_and_cross_validated():
    model = ZORegressor(**QUICK)
    y = X @ np.array([[1.0, 2.0], [0.0, -1.0]])
    assert same(clone(model).fit(X, y), model.fit(X, y))
    one, other = (cross_val_score(model, X, y, cv=2) for _ in range(2))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("params", [{"optimizer": torch.optim.Adam}, {"module__hidden": 3}])
def test_a_warm_start_refuses_another_build(params: dict):
    model = make("default", warm_start=True).fit(X, Y)
    model.set_params(**params)
    with pytest.raises(ValueError, match=rf"{next(iter(params))}.* changed since the fit"):
        model.fit(X, Y)
    model.predict(X)
