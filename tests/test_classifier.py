"""ZOClassifier: what may be a module, a label, an input or a criterion, and what comes out."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.special import expit
from sklearn.datasets import make_blobs
from sklearn.metrics import f1_score
from torch import Tensor, nn

from zoestim import BlackBox, ZOClassifier
from zoestim.models import MLP, SimpleCNN

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

X, Y = make_blobs(60, 2, centers=3, random_state=0, cluster_std=0.7)
X_TWO, Y_TWO = X[Y != 2], Y[Y != 2]
WORDS = np.array(["fig", "kiwi", "lime"])
QUICK = {"sparsity": 0, "max_epochs": 15, "random_state": 0}


class Net(nn.Module):
    """A network of the user's own, which takes its sizes under its own names."""

    def __init__(self, n_features_in: int, n_classes: int, width: int = 4):
        super().__init__()
        self.hidden = nn.Linear(n_features_in, width)
        self.head = nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(x)))


def make_linear(n_features_in: int, n_outputs: int) -> nn.Module:
    return nn.Linear(n_features_in, n_outputs)


def scores(params: dict, inputs: np.ndarray) -> np.ndarray:
    return np.round(inputs @ params["w"] + params["b"], 3)


def start(n_features: int = 2, n_classes: int = 3) -> dict[str, np.ndarray]:
    return {"w": np.zeros((n_features, n_classes)), "b": np.zeros(n_classes)}


def built(make: Callable[[], nn.Module]) -> nn.Module:
    """Return what `make` makes, without a draw from the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make()


def instance(n_features: int = 2, n_classes: int = 3) -> nn.Module:
    return built(lambda: nn.Linear(n_features, n_classes))


def state(module: nn.Module) -> list[Tensor]:
    return [value.clone() for value in module.state_dict().values()]


def learns(model: ZOClassifier, inputs=X, labels=Y, at_least: float = 0.85) -> ZOClassifier:
    """Fit, and return the model if it learned what can be learned."""
    assert model.fit(inputs, labels).score(inputs, labels) >= at_least
    return model


# --- What may be a module


def test_no_module_is_a_small_mlp_in_float64_sized_from_the_data():
    model = learns(ZOClassifier(random_state=0, max_epochs=30))
    assert isinstance(model.module_, MLP)
    assert [tuple(p.shape) for p in model.module_.parameters()] == [(32, 2), (32,), (3, 32), (3,)]
    assert next(model.module_.parameters()).dtype == torch.float64


def test_the_width_of_the_default_network_is_a_parameter():
    model = ZOClassifier(module__hidden=(5, 4), max_epochs=1, random_state=0).fit(X, Y)
    assert [p.shape[0] for p in model.module_.parameters()] == [5, 5, 4, 4, 3, 3]


def test_a_class_gets_the_sizes_and_parameters_that_its_signature_names():
    model = learns(ZOClassifier(Net, module__width=6, **QUICK))
    assert model.module_.hidden.weight.shape == (6, 2)
    assert model.module_.head.weight.shape == (3, 6)


def test_a_factory_gets_the_sizes_that_its_signature_names():
    model = learns(ZOClassifier(make_linear, **QUICK))
    assert model.module_.weight.shape == (3, 2)


def test_given_sizes_win_over_those_of_the_data():
    model = ZOClassifier(Net, module__n_classes=5, sparsity=0, max_epochs=1).fit(X, Y)
    assert model.module_.head.weight.shape == (5, 4)


def test_an_instance_is_copied_and_never_trained_in_place():
    given = instance()
    before = state(given)
    model = learns(ZOClassifier(given, **QUICK))
    assert model.module_ is not given
    assert all(map(torch.equal, state(given), before))
    assert not torch.equal(model.module_.weight, given.weight)
    assert all(p.grad is None for p in given.parameters())


def test_an_instance_in_eval_mode_stays_in_eval_mode():
    given = instance().eval()
    ZOClassifier(given, max_epochs=1).fit(X, Y)
    assert not given.training


def test_frozen_parameters_stay_as_they_are():
    given = built(lambda: Net(2, 3))
    given.hidden.requires_grad_(False)
    model = ZOClassifier(given, **QUICK).fit(X, Y)
    assert torch.equal(model.module_.hidden.weight, given.hidden.weight)
    assert not torch.equal(model.module_.head.weight, given.head.weight)


def test_a_numpy_function_with_named_arrays_is_trained():
    given = start()
    model = learns(ZOClassifier(scores, initial_params=given, **QUICK | {"smoothing": 0.1}))
    assert set(model.layer_ratios_) == {"w", "b"}
    np.testing.assert_array_equal(given["w"], np.zeros((2, 3)))


def test_a_numpy_function_with_one_array_is_trained():
    model = ZOClassifier(lambda w, inputs: inputs @ w, initial_params=np.zeros((2, 3)), **QUICK)
    learns(model)
    assert model.module_.params.shape == (2, 3)


def test_initial_arrays_may_be_read_only():
    given = np.zeros((2, 3))
    given.setflags(write=False)  # as those that joblib shares between processes
    ZOClassifier(lambda w, inputs: inputs @ w, initial_params=given, max_epochs=1).fit(X, Y)


@pytest.mark.parametrize("vectorized", [False, True])
def test_a_black_box_is_trained(vectorized: bool):
    def linear(params: dict, inputs: np.ndarray) -> np.ndarray:
        return inputs @ params["w"] + params["b"][..., None, :]

    learns(ZOClassifier(BlackBox(linear, start(), vectorized=vectorized), **QUICK))


def test_a_black_box_is_trained_as_a_layer_between_torch_layers():
    box = BlackBox(scores, {"w": np.eye(4), "b": np.zeros(4)})
    net = nn.Sequential(instance(2, 4), box, nn.ReLU(), instance(4, 3)).double()
    model = learns(ZOClassifier(net, **QUICK | {"smoothing": 0.1}))
    for ours, given in zip(model.module_.parameters(), net.parameters(), strict=True):
        assert not torch.equal(ours, given)


# --- What may be a label


def test_string_labels_come_back_as_strings():
    model = ZOClassifier(make_linear, **QUICK).fit(X, WORDS[Y])
    assert model.classes_.tolist() == ["fig", "kiwi", "lime"]
    assert (model.predict(X) == WORDS[Y]).mean() >= 0.85


def test_labels_need_not_start_at_zero():
    model = ZOClassifier(make_linear, **QUICK).fit(X, 10 * Y - 5)
    assert set(model.predict(X)) == {-5, 5, 15}


def test_one_class_alone_is_always_predicted():
    model = ZOClassifier(max_epochs=1).fit(X, np.full(60, "fig"))
    assert set(model.predict(X)) == {"fig"}
    np.testing.assert_array_equal(model.predict_proba(X), np.ones((60, 1)))


def test_a_module_may_have_more_outputs_than_there_are_classes():
    model = learns(ZOClassifier(instance(2, 10), **QUICK))
    assert model.predict_proba(X).shape == (60, 3)
    np.testing.assert_allclose(model.predict_proba(X).sum(1), 1)


# --- What may be an input


def test_images_of_four_dimensions_reach_a_network_as_they_are():
    images = np.random.default_rng(0).normal(size=(24, 1, 6, 6)).astype(np.float32)
    labels = np.arange(24) % 2
    images[labels == 1] += 1.5
    model = ZOClassifier(SimpleCNN, module__in_channels=1, module__width=3, sparsity=0.5)
    model.set_params(max_epochs=12, random_state=0, n_pruning_queries=8)
    learns(model, images, labels)
    assert next(model.module_.parameters()).dtype == torch.float32


def test_images_of_bytes_become_floats():
    images = np.random.default_rng(0).integers(0, 256, (16, 1, 4, 4), dtype=np.uint8)
    seen = []

    class Watching(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((x.dtype, float(x.max())))
            return super().forward(x.flatten(1) / 255)

    model = ZOClassifier(
        built(lambda: Watching(16, 2)), feature_reuse=False, max_epochs=1, sparsity=0
    )
    model.fit(images, np.arange(16) % 2).predict(images)
    assert set(seen) == {(torch.float32, float(images.max()))}


def test_integers_reach_an_embedding_as_integers():
    words = np.random.default_rng(0).integers(0, 6, (40, 3))
    net = built(lambda: nn.Sequential(nn.Embedding(6, 2), nn.Flatten(), nn.Linear(6, 2)))
    model = learns(ZOClassifier(net, **QUICK | {"max_epochs": 40}), words, words[:, 0] // 3)
    assert model.predict_proba(words).shape == (40, 2)


def test_float32_modules_get_float32_and_precision_changes_both():
    for precision, expected in [("auto", torch.float32), ("float64", torch.float64)]:
        model = ZOClassifier(make_linear, precision=precision, max_epochs=1).fit(X, Y)
        assert model.module_.weight.dtype == expected


# --- What comes out


def test_probabilities_are_the_softmax_of_the_logits():
    model = ZOClassifier(make_linear, **QUICK).fit(X, Y)
    with torch.no_grad():
        expected = torch.softmax(model.module_(torch.tensor(X).float()).double(), 1).numpy()
    np.testing.assert_array_equal(model.predict_proba(X), expected)
    np.testing.assert_array_equal(model.predict(X), expected.argmax(1))


def test_log_probabilities_of_a_network_for_nllloss_come_back_as_probabilities():
    net = nn.Sequential(instance(), nn.LogSoftmax(1))
    model = learns(ZOClassifier(net, criterion=nn.NLLLoss, **QUICK))
    with torch.no_grad():
        expected = model.module_(torch.tensor(X).float()).double().exp().numpy()
    np.testing.assert_allclose(model.predict_proba(X), expected, rtol=1e-6)


def test_one_logit_tells_two_classes_apart():
    def on_one_logit(outputs: Tensor, y: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(outputs[:, 0], y.to(outputs))

    model = ZOClassifier(instance(2, 1), criterion=on_one_logit, **QUICK)
    learns(model, X_TWO, WORDS[Y_TWO], at_least=0.8)
    with torch.no_grad():
        logit = model.module_(torch.tensor(X_TWO).float()).double().numpy()[:, 0]
    found = model.predict_proba(X_TWO)
    np.testing.assert_allclose(found, np.stack([expit(-logit), expit(logit)], 1))
    np.testing.assert_array_equal(model.predict(X_TWO), WORDS[(logit > 0).astype(int)])


# --- What may be a criterion


def one_minus_f1(outputs: Tensor, y: Tensor) -> float:
    return 1 - f1_score(y.numpy(), outputs.argmax(1).numpy(), average="macro")


def zero_one(outputs: Tensor, y: Tensor) -> Tensor:
    return outputs.argmax(1) != y


@pytest.mark.parametrize("criterion", [one_minus_f1, zero_one])
def test_a_criterion_that_is_constant_almost_everywhere_trains(criterion):
    model = ZOClassifier(
        make_linear, criterion=criterion, gradient="rge", n_directions=16, smoothing=0.5
    ).set_params(lr=0.1, **QUICK | {"max_epochs": 40})
    model.fit(X, Y)
    assert model.loss_curve_[0] > 0.3
    assert min(model.loss_curve_) < 0.5 * model.loss_curve_[0]


@pytest.mark.parametrize(
    "criterion",
    [
        nn.CrossEntropyLoss,
        nn.CrossEntropyLoss(),
        nn.functional.cross_entropy,
        nn.CrossEntropyLoss(reduction="none"),
    ],
    ids=["class", "instance", "function", "each"],
)
def test_a_criterion_may_be_a_class_an_instance_or_a_function(criterion):
    model = learns(ZOClassifier(make_linear, criterion=criterion, **QUICK))
    expected = ZOClassifier(make_linear, **QUICK).fit(X, Y)
    np.testing.assert_allclose(model.loss_curve_, expected.loss_curve_, rtol=1e-3)


def test_a_criterion_class_gets_its_parameters():
    smoothed = ZOClassifier(make_linear, criterion=nn.CrossEntropyLoss, random_state=0)
    smoothed.set_params(criterion__label_smoothing=0.5, max_epochs=1, sparsity=0).fit(X, Y)
    plain = ZOClassifier(make_linear, random_state=0, max_epochs=1, sparsity=0).fit(X, Y)
    given = nn.CrossEntropyLoss(label_smoothing=0.5)
    instance_ = ZOClassifier(make_linear, criterion=given, max_epochs=1, sparsity=0, random_state=0)
    assert smoothed.loss_curve_ == instance_.fit(X, Y).loss_curve_
    assert smoothed.loss_curve_ != plain.loss_curve_


# --- Weights


def fitted(*data, **params) -> ZOClassifier:
    model = ZOClassifier(MLP, module__hidden=3, precision="float64", **QUICK)
    return model.set_params(max_epochs=4, **params).fit(*data)


def test_a_weight_of_two_equals_a_sample_given_twice():
    times = 1 + np.arange(60) % 2
    repeated = fitted(np.repeat(X, times, axis=0), np.repeat(Y, times))
    weighted = fitted(X, Y, times)
    assert len(np.repeat(X, times, axis=0)) == 90
    np.testing.assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), rtol=1e-9)


def test_a_weight_of_zero_equals_a_sample_left_out():
    left_out = fitted(X[:50], Y[:50])
    weighted = fitted(X, Y, np.r_[np.ones(50), np.zeros(10)])
    np.testing.assert_allclose(weighted.predict_proba(X), left_out.predict_proba(X), rtol=1e-9)


def test_class_weights_are_sample_weights_and_multiply_them():
    by_class, by_sample = {"fig": 1, "kiwi": 3, "lime": 0.5}, 1 + np.arange(60) % 3
    both = fitted(X, WORDS[Y], by_sample, class_weight=by_class)
    product = by_sample * np.array([1, 3, 0.5])[Y]
    expected = fitted(X, WORDS[Y], product)
    np.testing.assert_array_equal(both.predict_proba(X), expected.predict_proba(X))


def test_balanced_class_weights_are_scikit_learns():
    few = np.r_[np.flatnonzero(Y != 2), np.flatnonzero(Y == 2)[:5]]  # 20, 20 and 5 samples
    balanced = fitted(X[few], Y[few], class_weight="balanced")
    expected = fitted(X[few], Y[few], class_weight={0: 0.75, 1: 0.75, 2: 3.0})
    np.testing.assert_array_equal(balanced.predict_proba(X), expected.predict_proba(X))
