"""What is saved comes back bitwise equal; a file of somebody else's is refused and runs nothing."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.exceptions import NotFittedError
from skorch.callbacks import Callback
from torch import nn

import zoestim
from zoestim import BlackBox, ZOClassifier, ZORegressor
from zoestim.gradients import CoordinateEstimator, RandomizedEstimator
from zoestim.models import MLP, SimpleCNN, resnet20
from zoestim.sparsity import Pruning

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

X = np.random.default_rng(0).normal(size=(12, 2))
Y = np.arange(12) % 3
WORDS = np.array(["fig", "kiwi", "lime"])
QUICK = {"max_epochs": 2, "n_pruning_queries": 3, "sparsity": 0.5, "random_state": 0}
TIED = {"w": np.zeros((3, 2)).T, "b": np.zeros(3)}  # w is not contiguous


class Net(nn.Module):
    """A network of the user's own, with buffers and a tied weight."""

    def __init__(self, n_features_in: int, n_outputs: int):
        super().__init__()
        self.one = nn.Linear(n_features_in, n_outputs)
        self.two = nn.Linear(n_features_in, n_outputs)
        self.two.weight = self.one.weight
        self.norm = nn.BatchNorm1d(n_outputs)

    def forward(self, x):
        return self.norm(self.one(x) - self.two(-x))


def box(params: dict, inputs: np.ndarray) -> np.ndarray:
    return inputs @ params["w"] + params["b"]


def made() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return nn.Linear(2, 3)


def saved(tmp_path: Path, model=None, labels=Y) -> tuple:
    model = (model or ZOClassifier(**QUICK)).fit(X, labels)
    model.save(tmp_path / "model")
    return model, tmp_path / "model"


def come_back_equal(model, again) -> None:
    output = "predict_proba" if isinstance(model, ZOClassifier) else "predict"
    np.testing.assert_array_equal(getattr(again, output)(X), getattr(model, output)(X))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    for name in ("n_iter_", "n_queries_", "n_features_in_", "loss_curve_", "layer_ratios_"):
        assert getattr(again, name) == getattr(model, name)
    assert again.termination_condition_ == model.termination_condition_
    assert again.feature_reuse_ == model.feature_reuse_
    assert again.history_[:, "train_loss"] == model.history_[:, "train_loss"]


# --- Round trips


@pytest.mark.parametrize(
    ("params", "given"),
    [
        ({}, {}),
        ({"module": MLP, "module__hidden": (4, 3)}, {}),
        ({"module": MLP, "module__activation": nn.ReLU}, {}),
        ({"module": Net}, {"module": Net}),
        ({"module": made()}, {"module": made()}),
        ({"module": made}, {"module": made}),
        ({"module": box, "initial_params": TIED}, {"module": box}),
        ({"module": BlackBox(box, TIED)}, {"module": BlackBox(box, TIED)}),
        ({"gradient": RandomizedEstimator(3, distribution="sphere")}, {}),
        ({"gradient": CoordinateEstimator(scheme="central")}, {}),
        ({"pruning": Pruning("magnitude", selection="fixed")}, {}),
        ({"pruning": {"layers.1.weight": 0.25}, "class_weight": {0: 2.0, 1: 1.0, 2: 0.5}}, {}),
        ({"criterion": nn.CrossEntropyLoss, "criterion__label_smoothing": 0.1}, {}),
        ({"optimizer": torch.optim.Adam, "optimizer__betas": (0.8, 0.9), "lr": 0.01}, {}),
        ({"lr_schedule": abs}, {"lr_schedule": abs}),
        ({"max_queries": np.int64(500), "device": torch.device("cpu")}, {}),
        ({"callbacks": [Callback()]}, {"callbacks": None}),
        ({"early_stopping": True, "validation_fraction": 0.5, "precision": "float32"}, {}),
    ],
)
def test_a_classifier_comes_back_and_goes_on(params: dict, given: dict, tmp_path: Path):
    model, path = saved(tmp_path, ZOClassifier(**{**QUICK, **params}))
    again = zoestim.load(path, **given)
    come_back_equal(model, again)
    again.partial_fit(X, Y)
    assert again.n_iter_ == model.n_iter_ + 1
    assert again.n_queries_ > model.n_queries_
    assert not np.array_equal(again.predict_proba(X), model.predict_proba(X))


@pytest.mark.parametrize("labels", [WORDS[Y], WORDS.astype(object)[Y], Y % 2 == 0, 10.0 * Y])
def test_labels_come_back_as_they_were(labels: np.ndarray, tmp_path: Path):
    model, path = saved(tmp_path, labels=labels)
    again = zoestim.load(path)
    assert again.classes_.dtype == model.classes_.dtype
    np.testing.assert_array_equal(again.predict(X), model.predict(X))


@pytest.mark.parametrize(
    ("module", "columns"), [(None, ()), (None, (1,)), (None, (3,)), (made, (3,))]
)
def test_a_regressor_comes_back_with_its_units(module, columns: tuple, tmp_path: Path):
    y = 1000 + np.random.default_rng(1).normal(size=(12, *columns))
    model, path = saved(tmp_path, ZORegressor(module, **QUICK), labels=y)
    again = zoestim.load(path, **({} if module is None else {"module": module}))
    come_back_equal(model, again)
    assert again.predict(X).shape == y.shape
    again.partial_fit(X, y)


def test_images_and_buffers_come_back(tmp_path: Path):
    images = np.random.default_rng(0).normal(size=(8, 3, 4, 4))
    model = ZOClassifier(SimpleCNN, module__width=2, **QUICK).fit(images, Y[:8])
    model.save(tmp_path / "cnn")
    again = zoestim.load(tmp_path / "cnn")
    np.testing.assert_array_equal(again.predict_proba(images), model.predict_proba(images))
    assert again.module is SimpleCNN
    assert again.module_.blocks[0][1].num_batches_tracked == 2


def test_functions_of_zoestim_come_back_by_name(tmp_path: Path):
    images = np.zeros((2, 3, 8, 8))
    model = ZOClassifier(resnet20, sparsity=0.99, pruning="random", gradient="rge", n_directions=1)
    model.set_params(max_epochs=1).fit(images, [0, 1]).save(tmp_path / "resnet")
    assert zoestim.load(tmp_path / "resnet").module is resnet20


def test_parameters_come_back_as_they_were(tmp_path: Path):
    gradient = RandomizedEstimator(3, smoothing=0.1)
    model = ZOClassifier(gradient=gradient, optimizer__nesterov=True, **QUICK)
    again = zoestim.load(saved(tmp_path, model)[1])
    ours, theirs = again.get_params(deep=False), model.get_params(deep=False)
    assert ours.pop("gradient").get_params() == theirs.pop("gradient").get_params()
    assert ours == theirs


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
@pytest.mark.parametrize("value", [[[0.0] * 3] * 2, [[0] * 3] * 2])
def test_initial_arrays_come_back_as_they_were(kind, value: list, tmp_path: Path):
    start = {"w": kind(value), "b": kind([0.5, 0.0, 0.0])}
    _, path = saved(tmp_path, ZOClassifier(box, initial_params=start, **QUICK))
    again = zoestim.load(path, module=box).initial_params
    assert {n: (type(a), a.dtype) for n, a in again.items()} == {
        n: (type(a), a.dtype) for n, a in start.items()
    }
    np.testing.assert_array_equal(again["w"], start["w"])


def test_a_single_initial_array_comes_back_as_one(tmp_path: Path):
    def linear(params: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        return inputs @ params

    _, path = saved(tmp_path, ZOClassifier(linear, initial_params=np.ones((2, 3)), **QUICK))
    np.testing.assert_array_equal(zoestim.load(path, module=linear).initial_params, np.ones((2, 3)))


def test_names_of_features_come_back(tmp_path: Path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=["length", "width"])
    model = ZOClassifier(**QUICK).fit(frame, Y)
    model.save(tmp_path / "named")
    again = zoestim.load(tmp_path / "named")
    np.testing.assert_array_equal(again.predict(frame), model.predict(frame))
    assert again.feature_names_in_.tolist() == ["length", "width"]


def test_what_was_loaded_is_saved_alike(tmp_path: Path):
    model, path = saved(tmp_path)
    zoestim.load(path).save(tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()
    come_back_equal(model, zoestim.load(tmp_path / "again"))


def test_given_parameters_replace_those_of_the_file(tmp_path: Path):
    _, path = saved(tmp_path)
    assert zoestim.load(path, lr=0.125, verbose=0).lr == 0.125


def test_saving_needs_a_fit(tmp_path: Path):
    with pytest.raises(NotFittedError, match="not fitted"):
        ZOClassifier().save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


# --- What only the user can bring


def test_a_function_of_the_users_own_is_asked_for_by_name(tmp_path: Path):
    model = ZOClassifier(box, initial_params=TIED, lr_schedule=abs, **QUICK)
    _, path = saved(tmp_path, model)
    with pytest.raises(
        ValueError, match=r"cannot hold .*call load\(path, lr_schedule=\.\.\., module=\.\.\.\)"
    ):
        zoestim.load(path)
    with pytest.raises(ValueError, match=r"call load\(path, module=\.\.\.\)"):
        zoestim.load(path, lr_schedule=abs)


def test_another_module_is_refused_for_its_shapes(tmp_path: Path):
    _, path = saved(tmp_path, ZOClassifier(made, **QUICK))
    with pytest.raises(ValueError, match=r"(?s)size mismatch for weight.*the same shapes"):
        zoestim.load(path, module=wide())
    with pytest.raises(ValueError, match=r"(?s)does not hold .*a module of the same shapes"):
        zoestim.load(path, module=Net)


def wide() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return nn.Linear(4, 3)


# --- Files that are no good


def rewritten(path: Path, change) -> Path:
    """Write the file anew with its JSON changed by a function."""
    with safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()["zoestim"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(content)
    save_file(tensors, str(path), metadata={"zoestim": json.dumps(content)})
    return path


def put(*keys):
    """Return a function that sets content[keys[0]][keys[1]]... to the last of keys."""

    def change(content: dict) -> None:
        *path, last, value = keys
        for key in path:
            content = content[key]
        content[last] = value

    return change


NAMES = [
    "os.system",
    "builtins.eval",
    "torch.nn.Module.__init__",
    "torch.nn.__builtins__",
    "torch.load",
    "torch.optim.__doc__",
    "torch.optim.os.system",
    "zoestim.models._mlp.nn",
    "zoestim.models.nn",
    "zoestim.gradients.__builtins__",
    "zoestim._load.load",
    "eval",
    "",
    ".",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", [{"$name": "{}"}, {"$object": "{}", "params": {"command": "x"}}])
@pytest.mark.parametrize("parameter", ["module", "optimizer", "criterion"])
def test_names_beyond_the_list_are_refused(name, form, parameter, tmp_path: Path):
    value = {key: name if text == "{}" else text for key, text in form.items()}
    path = rewritten(saved_once(tmp_path), put("params", parameter, value))
    with pytest.raises(
        ValueError, match=r"names .* which a zoestim file may not; .*nothing was run"
    ):
        zoestim.load(path)


_FILES: list[bytes] = []


def saved_once(tmp_path: Path) -> Path:
    if not _FILES:
        _FILES.append(saved(tmp_path)[1].read_bytes())
    (tmp_path / "model").write_bytes(_FILES[0])
    return tmp_path / "model"


@pytest.mark.parametrize(
    "change",
    [
        put("class", "os.system"),
        put("class", ["ZOClassifier"]),
        put("params", None),
        put("params", "module", {"$nothing": 1}),
        put("params", "module", {"$object": "torch.nn.Linear", "params": {}}),
        put("params", "pruning", {"$object": "zoestim.sparsity.Pruning", "params": {"x": 1}}),
        put("params", "random_state", {"$dict": [[{"$list": []}, 1]]}),
        put("params", "initial_params", {"$initial_params": ["w"], "torch": False}),
        put("arrays", "classes_", {"dtype": "zzz", "values": [0]}),
        put("arrays", "classes_", [0, 1]),
        put("fitted", None),
        put("fitted", "n_features_in_", 3),
        put("fitted", "n_features_in_", None),
        put("params", "predict", 3),
        put("history", 7),
        put("history", [7]),
        put("feature_reuse", {"colour": "red"}),
        put("format", "zoestim-99"),
        put("format", None),
    ],
)
def test_contents_that_make_no_sense_are_refused(change, tmp_path: Path):
    path = rewritten(saved_once(tmp_path), change)
    with pytest.raises(ValueError, match=r"[Ee]xpected"):
        zoestim.load(path)


def test_a_file_cannot_replace_methods(tmp_path: Path):
    path = saved_once(tmp_path)
    rewritten(path, put("fitted", "predict", "overwritten"))
    rewritten(path, put("plain", "fit", "overwritten"))
    rewritten(path, put("arrays", "save", {"dtype": "<i8", "values": [0]}))
    assert vars(zoestim.load(path)).keys().isdisjoint({"predict", "fit", "save"})


def test_a_parameter_that_nothing_takes_is_refused_with_a_guess(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no parameter max_epoch\. Did you mean max_epochs\?"):
        zoestim.load(saved_once(tmp_path), max_epoch=3)


class Runs:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("it-ran"),)


def nested(n: int) -> bytes:
    header = json.dumps({"__metadata__": {"zoestim": "[" * n}}).encode()
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 8, b"zoestim", pickle.dumps(Runs()), pickle.dumps({"format": 1}), nested(10**5)],
    ids=["empty", "zeros", "text", "code", "pickle", "deep"],
)
def test_other_files_are_refused_and_nothing_is_unpickled(
    content: bytes, tmp_path: Path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    Path("model").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"model is no readable safetensors file .*written by save"
    ):
        zoestim.load("model")
    assert not Path("it-ran").exists()


@pytest.mark.parametrize("kept", [0.05, 0.5, 0.99])
def test_a_truncated_file_is_refused(kept: float, tmp_path: Path):
    path = saved_once(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(ValueError, match=r"no readable safetensors file .*It may be truncated"):
        zoestim.load(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"zoestim": "[]"}])
def test_a_safetensors_file_of_somebody_elses_is_refused(metadata, tmp_path: Path):
    save_file({"weight": torch.ones(2)}, str(tmp_path / "other"), metadata=metadata)
    with pytest.raises(ValueError, match="has the format None; expected 'zoestim-1'"):
        zoestim.load(tmp_path / "other")


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_missing_file_is_named(name: str, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"There is no file .*; expected one written by"):
        zoestim.load(tmp_path / name)
