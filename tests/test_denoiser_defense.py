"""ZODenoiserDefense: black boxes, layouts and denoisers."""

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from defense.boxes import (
    IMAGES,
    SMALL,
    Client,
    boxed,
    defense,
    labels,
    proba,
    same,
    scores,
    weights,
    words,
)
from zoestim import ZOClassifier, ZODenoiserDefense
from zoestim.models import DnCNN

pytestmark = pytest.mark.usefixtures("global_rng_untouched")
X = IMAGES
Y = labels(X)
FITTED = LogisticRegression().fit(X, Y)


def module_of() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.BatchNorm1d(3), nn.Dropout())


def dncnn(depth: int = 2, width: int = 4) -> DnCNN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return DnCNN(depth, width)


# --- Black boxes


@pytest.mark.parametrize("method", ["auto", "predict_proba", "decision_function", "predict"])
def test_a_fitted_classifier_is_the_same_object_and_is_not_fitted_again(method):
    frozen, before = FrozenEstimator(FITTED), FITTED.coef_.copy()
    model = defense(frozen, response_method=method).fit(X)
    assert model.estimator_ is frozen
    assert frozen.estimator is FITTED
    np.testing.assert_array_equal(FITTED.coef_, before)
    assert model.classes_.tolist() == FITTED.classes_.tolist()
    assert model.score(X, FITTED.predict(X)) > 0.4


def test_a_classifier_is_cloned_and_fitted_to_what_it_predicts():
    given = LogisticRegression()
    model = defense(given).fit(X, Y)
    assert not hasattr(given, "classes_")
    np.testing.assert_array_equal(model.estimator_.coef_, FITTED.coef_)
    with pytest.raises(ValueError, match=r"y is None: a clone of LogisticRegression is to be"):
        defense(given).fit(X)


def test_a_module_is_not_changed_in_any_way():
    module = module_of().train()
    before = copy.deepcopy(module.state_dict())
    model = defense(module).fit(X)
    model.certify(X[:3], 5, 10)
    assert module.training
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert model.estimator is module
    assert model.classes_.tolist() == [0, 1, 2]


@pytest.mark.parametrize("function", [scores, proba, labels, words])
def test_a_callable_may_return_scores_or_labels(function):
    model = defense(function).fit(X)
    expected = ["ant", "bee", "cicada"] if function is words else [0, 1, 2]
    assert model.classes_.tolist() == expected
    assert set(model.predict(X)) <= set(expected)
    assert model._classifier.kind == {"scores": "logits", "proba": "proba"}.get(
        function.__name__, "labels"
    )


def test_classes_name_the_columns():
    model = defense(scores, classes=["x", "y", "z"]).fit(X)
    plain = defense(scores).fit(X)
    assert model.predict(X).tolist() == np.array(["x", "y", "z"])[plain.predict(X)].tolist()


def test_a_decision_function_of_two_classes():
    y = np.where(Y > 0, "yes", "no")
    model = defense(RidgeClassifier(), n_samples=30).fit(X, y)
    assert model.predict_proba(X).shape == (len(X), 2)
    assert model.score(X, y) > 0.6


def test_an_estimator_of_ours_may_be_the_box():
    box = ZOClassifier(max_epochs=2, random_state=0).fit(X, Y)
    assert set(defense(FrozenEstimator(box)).fit(X).predict(X)) <= {0, 1, 2}


def test_names_of_columns_make_no_warning():
    frame = pd.DataFrame(X, columns=[f"pixel {i}" for i in range(16)])
    box = FrozenEstimator(LogisticRegression().fit(frame, Y))
    model = defense(box).fit(frame)
    plain = defense(FrozenEstimator(FITTED)).fit(X)
    assert list(model.feature_names_in_) == list(frame.columns)
    np.testing.assert_array_equal(model.predict(frame), plain.predict(X))
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(frame.iloc[:, ::-1])


@pytest.mark.parametrize(("box", "step"), [(KNeighborsClassifier(3), 0.05), (FITTED, 5e-3)])
def test_steps_follow_the_box(box, step):
    assert defense(box).fit(X, Y).trainer_.smoothing == step
    assert defense(box, smoothing=0.3).fit(X, Y).trainer_.smoothing == 0.3


# --- Layouts


def test_layouts_give_the_same_to_the_last_bit():
    rows = IMAGES[:, :12].repeat(2, axis=1).reshape(40, 2, 3, 4)  # channels first
    last = np.moveaxis(rows, 1, -1)

    def box(given: np.ndarray) -> np.ndarray:
        asked.append(given.shape[1:])
        return scores(
            given if given.ndim == 2 or given.shape[1] == 2 else np.moveaxis(given, -1, 1)
        )

    found = []
    for data, settings in (
        (rows, {"image_shape": None}),
        (rows, {"image_shape": (2, 3, 4)}),
        (rows.reshape(40, -1), {"image_shape": (2, 3, 4)}),
        (last, {"image_shape": None, "data_format": "channels_last"}),
    ):
        asked: list[tuple[int, ...]] = []
        model = defense(box, **settings).fit(data)
        found.append((weights(model), model.predict_proba(data[:5]), model.denoise(data[:5])))
        assert set(asked) == {data.shape[1:]}
        assert found[-1][2].shape == data[:5].shape
    for learned, votes, cleaned in found[1:3]:
        assert same(learned, found[0][0])
        np.testing.assert_array_equal(votes, found[0][1])
        np.testing.assert_array_equal(cleaned.reshape(5, 2, 3, 4), found[0][2])
    assert same(found[3][0], found[0][0])  # but its votes are of other noise
    np.testing.assert_array_equal(np.moveaxis(found[3][2], -1, 1), found[0][2])


@pytest.mark.parametrize("shape", [(40, 16), (40, 4, 4), (40, 1, 4, 4)])
def test_images_of_one_channel(shape):
    data = X.reshape(shape)
    settings = {} if data.ndim == 2 else {"image_shape": None}
    model, plain = defense(scores, **settings).fit(data), defense(scores).fit(X)
    assert same(weights(model), weights(plain))
    np.testing.assert_array_equal(model.predict_proba(data), plain.predict_proba(X))


def test_rows_of_a_table_have_a_network_of_their_own():
    model = defense(scores, image_shape=None).fit(X)
    assert model.denoise(X).shape == X.shape
    assert type(model.white_[0]).__name__ == "ResidualMLP"


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"shape \(16,\) and image_shape is \(4, 5\); expected"):
        defense(scores, image_shape=(4, 5)).fit(X)
    model = defense(scores, image_shape=None).fit(X.reshape(40, 1, 4, 4))
    with pytest.raises(ValueError, match=r"samples of shape \(1, 2, 8\); expected \(1, 4, 4\)"):
        model.predict(X.reshape(40, 1, 2, 8))


def test_pixels_up_to_255_warn_of_units():
    pixels = np.random.default_rng(0).integers(0, 256, (10, 16))
    with pytest.warns(UserWarning, match=r"up to 255 and noise_std=0.25 is in the same") as caught:
        defense(scores, max_epochs=0).fit(pixels)
    assert caught[0].filename == __file__
    defense(scores, max_epochs=0, noise_std=64.0).fit(pixels)
    defense(scores, max_epochs=0).fit(3 * X)  # centred: no pixels as they were


def test_the_box_sees_clipped_and_rounded_samples():
    client = Client(proba)
    model = defense(client, input_range=(-0.5, 0.5), quantize=True).fit(X)
    clean, *denoised = client.seen
    np.testing.assert_array_equal(clean, X)  # as they are
    seen = np.concatenate(denoised)
    levels = (seen + 0.5) * 255
    assert seen.min() >= -0.5
    assert seen.max() <= 0.5
    np.testing.assert_allclose(levels, levels.round(), atol=1e-9)
    cleaned = model.denoise(X)
    assert np.abs(cleaned).max() <= 0.5
    np.testing.assert_array_equal(model.transform(X), cleaned)


# --- Denoisers


@pytest.mark.parametrize("name", ["dncnn", "auto", DnCNN])
def test_denoisers_of_images(name):
    assert isinstance(defense(scores, denoiser=name, max_epochs=0).fit(X).white_[0], DnCNN)


def test_a_module_is_copied():
    given = dncnn()
    before = copy.deepcopy(given.state_dict())
    model = defense(scores, denoiser=given).fit(X)
    assert all(torch.equal(before[name], value) for name, value in given.state_dict().items())
    assert not same(weights(model), [value.numpy() for value in before.values()])


@pytest.mark.parametrize("denoiser", [lambda rows: 0.5 * rows, None])
def test_what_is_not_trained_is_used_as_it_is(denoiser):
    client = Client()
    model = defense(client, denoiser=denoiser).fit(X)
    assert client.n_images == model.n_queries_ == len(X)
    assert model.trainer_ is None
    np.testing.assert_array_equal(model.denoise(X), X if denoiser is None else 0.5 * X)
    with pytest.raises(ValueError, match="is not trained, and latent_dim and init_denoiser are"):
        defense(scores, denoiser=denoiser, latent_dim=2, space="input").fit(X)


def test_what_is_not_trained_keeps_the_shape():
    with pytest.raises(ValueError, match=r"array of shape \(2, 8\) for samples of shape \(2, 16"):
        defense(scores, denoiser=lambda rows: rows[:, :8]).fit(X)


def test_a_module_without_parameters_is_not_trained():
    assert defense(scores, denoiser=nn.Identity()).fit(X).trainer_ is None


@pytest.mark.parametrize("form", [lambda module: module, lambda module: module.state_dict()])
def test_init_denoiser(form):
    given = dncnn()
    model = defense(scores, init_denoiser=form(given), max_epochs=0).fit(X)
    assert same(weights(model), [value.numpy() for value in given.state_dict().values()])
    with pytest.raises(ValueError, match="init_denoiser does not fit the denoiser: "):
        defense(scores, init_denoiser=form(dncnn(3))).fit(X)


def test_a_fit_anew_leaves_nothing_of_the_one_before():
    model = defense(scores).fit(X)
    assert len(model.loss_curve_) == model.n_iter_ == 2
    model.set_params(denoiser=None).fit(X)
    assert model.n_iter_ == 0
    assert not hasattr(model, "loss_curve_")


@pytest.mark.parametrize(
    ("settings", "trained"),
    [
        ({"trainable": "last"}, {"net.5.weight"}),
        ({"trainable": ["net.0.bias"]}, {"net.0.bias"}),
        ({"trainable": "all"}, None),
        ({"trainable": "zo-grasp", "sparsity": 0.5}, None),
        ({"space": "input"}, None),
        ({"space": "input", "trainable": "last"}, {"net.5.weight"}),
    ],
)
def test_only_what_is_trainable_moves(settings, trained):
    settings = {"depth": 3, "max_epochs": 1, "gradient": "rge", **settings}
    before = defense(scores, **{**settings, "max_epochs": 0}).fit(X).white_[0].state_dict()
    model = defense(scores, **settings).fit(X)
    after = model.white_[0].state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    buffers = {name for name, _ in model.white_[0].named_buffers()}
    assert not moved & buffers  # BatchNorm keeps its statistics
    assert moved == (set(before) - buffers if trained is None else trained)


def test_bad_settings_are_refused_before_anything_is_asked():
    client = Client()
    for settings, text in (
        ({"trainable": ["net.9.weight"]}, r"trainable names \['net.9.weight'\]; expected some"),
        ({"latent_dim": 3}, "is for queries at the black box's input, and space='params'"),
        ({"target": "labels"}, "target='labels' needs the classes, and y is None"),
        ({"quantize": True}, "quantize=True rounds to 256 levels of input_range, which is None"),
        ({"input_range": (1, 0)}, "is no range; expected two finite numbers, the smaller first"),
        ({"input_range": (0, 1, 2)}, "is no range"),
        ({"input_range": ("a", "b")}, "is no range"),
        ({"denoiser": "mlp"}, "denoiser='mlp' is for the rows of a table"),
        ({"denoiser": nn.Conv2d}, "required positional argument"),
        ({"journal_queries": True}, "journal_queries=True keeps answers beside the checkpoint"),
        ({"checkpoint": "a file", "random_state": None}, "checkpoint needs a random_state"),
    ):
        with pytest.raises((ValueError, TypeError), match=text):
            defense(client, **settings).fit(X)
    assert client.n_images == 0


def test_labels_may_be_the_targets():
    wrong = (Y + 1) % 3
    fits = [
        defense(scores, target=target, max_epochs=1).fit(X, wrong).loss_curve_[0]
        for target in ("black_box", "labels")
    ]
    assert fits[0] < fits[1]


def test_the_squared_error_holds_the_denoiser_back():
    settings = {"trainable": "all", "space": "input", "max_epochs": 4, "lr": 0.05}
    errors = [
        float(((defense(scores, mse_weight=w, **settings).fit(X).denoise(X) - X) ** 2).mean())
        for w in (0.0, 1e4)
    ]
    assert errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize("image_shape", [(4, 4), None])
@pytest.mark.parametrize("mse_weight", [0.0, 1.0])
def test_latent_numbers_are_perturbed(image_shape, mse_weight):
    client = Client()
    model = defense(
        client, latent_dim=3, space="input", image_shape=image_shape, mse_weight=mse_weight
    ).fit(X)
    assert model.n_queries_ == client.n_images == 40 + 2 * 40 * (3 + 1)
    assert len(model.white_) == 2
    assert model.denoise(X).shape == X.shape
    assert model.predict_proba(X).shape == (40, 3)


def test_a_default_defense_is_made_from_the_estimator_alone():
    model = ZODenoiserDefense(boxed(Client()))
    assert {name for name in SMALL if name not in model.get_params()} == set()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"width": 1}, "params"),  # 9 weights in the last layer, 16 pixels
        ({"width": 2}, "input"),
        ({"width": 2, "trainable": "last"}, "params"),
        ({"width": 2, "pruning": "random"}, "params"),
        ({"width": 1, "trainable": "all"}, "input"),
        ({"width": 1, "latent_dim": 3}, "input"),
    ],
)
def test_queries_perturb_what_takes_fewer_of_them(settings, expected):
    model = defense(scores, space="auto", max_epochs=1, **settings).fit(X)
    assert model.space_ == expected
    assert (model.trainer_.module.width is None) == (expected == "params")
