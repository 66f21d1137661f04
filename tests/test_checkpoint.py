"""A fit that was killed goes on bit for bit; a file of another fit or none at all is refused."""

import contextlib
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.base import clone
from skorch.callbacks import Callback, EpochScoring, Freezer, Initializer, LRScheduler
from torch import nn

import zoestim
from benchmarks.faults import kill
from benchmarks.faults.kill import CASES, X, Y, outcome, same
from zoestim import BlackBox, ZOClassifier
from zoestim.sparsity import Pruning
from zoestim.training import _checkpoint
from zoestim.training._fingerprint import digest

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

BASE = {"batch_size": 11, "max_epochs": 2, "random_state": 0, "n_pruning_queries": 3}
TINY = {**BASE, "module__hidden": 3, "sparsity": 0.6}
STEPS = 2 * 4  # of TINY: 40 samples in batches of 11


class Killed(BaseException):
    """Stands for the end of the process."""


class Counts(Callback):
    """Counts the steps of a fit, and ends it by an error before some step."""

    def __init__(self, last: int = 10**9, error: BaseException | None = None):
        self.last = last
        self.error = error or Killed()
        self.steps = 0

    def on_batch_begin(self, net, training=True, **kwargs):
        if training and self.steps == self.last:
            raise self.error
        self.steps += training


class Memory(Callback):
    """Has a state of its own, which decides the learning rate."""

    def __init__(self):
        self.sum = torch.zeros(2)

    def on_batch_end(self, net, training=True, **kwargs):
        if training:
            self.sum += torch.tensor([1.0, net.history[-1, "batches", -1, "train_loss"]])
            net.optimizer_.param_groups[0]["lr"] = 0.1 / float(self.sum[1])

    def state_dict(self):
        return {"sum": self.sum.clone()}

    def load_state_dict(self, state):
        self.sum = state["sum"]


class Hidden(nn.Module):
    """Has a buffer that its state_dict leaves out, and one of integers."""

    def __init__(self, n_features_in: int, n_outputs: int):
        super().__init__()
        self.linear = nn.Linear(n_features_in, n_outputs)
        self.norm = nn.BatchNorm1d(n_outputs)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int16), persistent=False)

    def forward(self, x):
        if self.training:
            self.calls.add_(1)
        return self.norm(self.linear(x)) * (1 + 0.01 * self.calls)


def box(params: dict, inputs: np.ndarray) -> np.ndarray:
    return inputs @ params["w"]


START = {"w": np.zeros((3, 3))}
BOXED = {"module": box, "initial_params": START}
GROUPS = [("layers.1.*", {"lr": 0.01})]
AT_ONCE = {"early_stopping": True, "tol": 1e9, "n_iter_no_change": 1, "max_epochs": 9}


def made() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return nn.Sequential(nn.Linear(3, 3).double(), BlackBox(box, START))


def norm(net, X, y) -> float:
    return float(net.module_.layers[1].weight.detach().norm())


def cyclic() -> list[Callback]:
    return [LRScheduler("CyclicLR", base_lr=0.01, max_lr=0.2, step_every="batch")]


# Parameters, and what makes the callbacks, which have a state and serve one fit.
OTHERS = {
    "stops at once": ({**TINY, **AT_ONCE}, list),
    "budget in mid-epoch": ({**TINY, "max_epochs": 99, "max_queries": 100}, list),
    "the best for good": ({**TINY, "pruning": Pruning(selection="fixed")}, list),
    "the best anew": ({**TINY, "pruning": Pruning(selection="renewed")}, list),
    "all": ({**TINY, "pruning": None}, list),
    "ratios": ({**TINY, "pruning": {"layers.1.weight": 0.5}}, list),
    "groups": ({**TINY, "optimizer__param_groups": GROUPS}, list),
    "warm-up": ({**TINY, "warmup_epochs": 2}, list),
    "averages": ({**TINY, "optimizer": torch.optim.ASGD, "optimizer__t0": 2}, list),
    "factored": ({**TINY, "optimizer": torch.optim.Adafactor}, list),
    "amsgrad": ({**TINY, "optimizer": torch.optim.Adam, "optimizer__amsgrad": True}, list),
    "hidden buffers": ({**BASE, "module": Hidden, "feature_reuse": False}, list),
    "a black box": ({**BASE, **BOXED}, list),
    "a box inside": ({**BASE, "module": made()}, list),
    "a rate a batch": ({**TINY, "lr_schedule": "constant"}, cyclic),
    "a rate an epoch": (
        {**TINY, "lr_schedule": "constant"},
        lambda: [LRScheduler("StepLR", step_size=1)],
    ),
    "state of a callback": ({**TINY, "lr_schedule": "constant"}, lambda: [Memory()]),
    "frozen in mid-fit": (TINY, lambda: [Freezer("layers.1.*", at=2)]),
    "set as it begins": (TINY, lambda: [Initializer("layers.3.bias", fn=nn.init.ones_)]),
    "a score": (TINY, lambda: [EpochScoring(norm, name="norm", on_train=True)]),
}
FITS = {
    **{n: (kind, {**p, "max_epochs": 2}, y, list) for n, (kind, p, y) in CASES.items()},
    **{n: (ZOClassifier, params, Y, callbacks) for n, (params, callbacks) in OTHERS.items()},
}


def fitted(name: str = "tiny", *callbacks: Callback, **more):
    kind, params, y, make = FITS.get(name, (ZOClassifier, TINY, Y, list))
    return kind(**{**params, **more}, callbacks=[*make(), *callbacks]).fit(X, y)


def alike(model, expected) -> None:
    """Compare two fits bit for bit."""
    found, wanted = outcome(model), outcome(expected)
    assert [key for key in wanted if not same(found[key], wanted[key])] == []


@pytest.fixture
def every(monkeypatch) -> list[bytes]:
    """Let each step be written, and keep what was."""
    files, replace = [], _checkpoint._replace

    def replace_and_read(path: Path, *content) -> None:
        replace(path, *content)
        files.append(path.read_bytes())

    monkeypatch.setattr(_checkpoint, "SHARE", 1e9)
    monkeypatch.setattr(_checkpoint, "_replace", replace_and_read)
    return files


# --- Bit for bit


@pytest.mark.filterwarnings("ignore::zoestim.evaluation.FeatureReuseWarning")
@pytest.mark.parametrize("name", FITS)
def test_a_fit_goes_on_from_every_step(name: str, every: list[bytes], tmp_path: Path):
    path, expected = tmp_path / "fit", fitted(name)
    alike(fitted(name, checkpoint=path), expected)
    written, steps = list(every), expected.net_.zo_step.n_steps
    assert steps < len(written) <= steps + expected.n_iter_ + 1
    for content in written:
        path.write_bytes(content)
        alike(fitted(name, checkpoint=path), expected)


@pytest.mark.parametrize("error", [Killed(), RuntimeError("broken"), KeyboardInterrupt()])
@pytest.mark.parametrize("last", range(1, STEPS))
def test_an_error_leaves_the_last_whole_step(last: int, error: BaseException, tmp_path: Path):
    path, ends = tmp_path / "fit", Counts(last, error)
    if isinstance(error, KeyboardInterrupt):
        assert fitted("tiny", ends, checkpoint=path).termination_condition_ == "callback"
    else:
        with pytest.raises(type(error)):
            fitted("tiny", ends, checkpoint=path)
    rest = Counts()
    alike(fitted("tiny", rest, checkpoint=path), fitted())
    assert rest.steps == STEPS - last


def test_an_error_within_a_step_leaves_the_step_before(tmp_path: Path):
    class Broken(Callback):
        def on_grad_computed(self, net, **kwargs):
            if net.zo_step.n_steps == 6:
                net.module_.layers[1].weight.data.zero_()  # what is half done is not kept
                raise OSError("broken")

    path, rest = tmp_path / "fit", Counts()
    with pytest.raises(OSError, match="broken"):
        fitted("tiny", Broken(), checkpoint=path)
    alike(fitted("tiny", rest, checkpoint=path), fitted())
    assert rest.steps == STEPS - 5


def test_a_validation_that_was_cut_short_is_done_again(tmp_path: Path):
    class Broken(Callback):
        def on_batch_end(self, net, training=True, **kwargs):
            if not training and len(net.history) == 2:
                raise OSError("broken")

    params = {"early_stopping": True, "validation_fraction": 0.4}
    path, rest = tmp_path / "fit", Counts()
    with pytest.raises(OSError, match="broken"):
        fitted("tiny", Broken(), checkpoint=path, **params)
    alike(fitted("tiny", rest, checkpoint=path, **params), fitted(**params))
    assert rest.steps == 0


@pytest.mark.parametrize("state", [None, np.random.RandomState(0)])
def test_without_a_seed_the_held_out_samples_stay(state, tmp_path: Path, every: list[bytes]):
    params = {"random_state": state, "early_stopping": True, "validation_fraction": 0.3}
    path = tmp_path / "fit"
    expected = fitted(checkpoint=path, **params)
    for content in every[::3]:
        path.write_bytes(content)
        alike(fitted(checkpoint=path, **params), expected)


def test_a_fit_that_has_ended_is_asked_nothing_more(tmp_path: Path):
    calls = []

    def counted(params: dict, inputs: np.ndarray) -> np.ndarray:
        calls.append(len(inputs))
        return inputs @ params["w"]

    params, path = {**BASE, "module": counted, "initial_params": START}, tmp_path / "fit"
    model = ZOClassifier(**params, checkpoint=path).fit(X, Y)
    before, content, watch = len(calls), path.read_bytes(), Counts()
    again = ZOClassifier(**params, checkpoint=str(path), callbacks=[watch]).fit(X, Y)
    assert (len(calls), watch.steps) == (before, 0)
    assert path.read_bytes() == content
    alike(again, model)
    np.testing.assert_array_equal(again.predict(X), model.predict(X))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_fits_that_are_killed_become_what_they_would_have(capsys):
    assert kill.main(["--kills", "10"]) == 0
    assert "10 kills, " in capsys.readouterr().out


@pytest.mark.parametrize("last", [3, 10**9])
def test_a_fit_that_went_on_can_be_copied(last: int, tmp_path: Path):
    with contextlib.suppress(Killed):
        fitted("tiny", Counts(last), checkpoint=tmp_path / "fit")
    model = fitted(checkpoint=tmp_path / "fit")
    alike(pickle.loads(pickle.dumps(model)), model)
    assert clone(model).checkpoint == tmp_path / "fit"


# --- When it is written


def test_the_file_is_written_after_the_first_step_each_epoch_and_the_end(
    tmp_path: Path, monkeypatch, every: list[bytes]
):
    monkeypatch.setattr(_checkpoint, "SHARE", 0)
    fitted(checkpoint=tmp_path / "fit")
    assert len(every) == 1 + 2 + 1


def test_who_asks_is_told_of_each_write(tmp_path: Path, every: list[bytes], monkeypatch):
    told: list[int] = []
    make = _checkpoint.Checkpoint
    monkeypatch.setattr(
        "zoestim.training._session.Checkpoint", lambda path: make(path, on_write=told.append)
    )
    fitted(checkpoint=tmp_path / "fit")
    assert told == [1, 2, 3, 4, 4, 5, 6, 7, 8, 8, 8]


def test_what_a_killed_write_left_is_removed(tmp_path: Path):
    (tmp_path / "fit.tmp").write_bytes(b"half of it")
    fitted(checkpoint=tmp_path / "fit")
    assert [file.name for file in tmp_path.iterdir()] == ["fit"]


def test_a_write_that_fails_leaves_the_last_file(tmp_path: Path, monkeypatch):
    def full(*args, **kwargs) -> None:
        raise OSError("No space left on device")

    path = tmp_path / "fit"
    with pytest.raises(Killed):
        fitted("tiny", Counts(3), checkpoint=path)
    content = path.read_bytes()
    monkeypatch.setattr(_checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        fitted(checkpoint=path)
    assert [file.name for file in tmp_path.iterdir()] == ["fit"]
    assert path.read_bytes() == content


def test_a_link_stays_a_link(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "fit")
    fitted(checkpoint=tmp_path / "link")
    assert (tmp_path / "link").is_symlink()


def test_a_checkpoint_changes_nothing_of_a_fit(tmp_path: Path):
    (tmp_path / "other").mkdir()
    model = fitted(checkpoint=tmp_path / "other" / "fit")
    alike(model, fitted())
    model.save(tmp_path / "model")
    assert zoestim.load(tmp_path / "model").checkpoint == str(tmp_path / "other" / "fit")


# --- Whose it is


@pytest.mark.parametrize(
    ("params", "differs"),
    [
        ({"lr": 0.5}, "lr is 0.5, expected None"),
        ({"max_epochs": 3}, "max_epochs is 3, expected 2"),
        ({"max_queries": 900}, "max_queries is 900, expected None"),
        ({"random_state": 1}, "random_state is 1, expected 0"),
        ({"optimizer": torch.optim.Adam}, "optimizer is .*Adam.*, expected .*SGD"),
        ({"optimizer__momentum": 0.5}, "optimizer__momentum is 0.5, expected None"),
        ({"module__hidden": 4}, r"layers.1.weight is \(4, 3\) .*, expected \(3, 3\)"),
        ({"pruning": Pruning("random")}, "pruning is .*random.*, expected zo-grasp"),
        ({"class_weight": {0: 1.0, 1: 2.0, 2: 3.0}}, "sample_weight is .*, expected None"),
        ({"precision": "float32"}, "precision is float32, expected auto"),
    ],
)
def test_a_fit_with_other_parameters_is_refused(params: dict, differs: str, tmp_path: Path):
    path = tmp_path / "fit"
    fitted(checkpoint=path)
    content = path.read_bytes()
    with pytest.raises(ValueError, match=f"is of another fit: .*{differs}.* Delete the file"):
        fitted(checkpoint=path, **params)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("X", (X + 1e-9, Y)),
        ("y", (X, Y[::-1])),
        ("y", (X, Y.astype(str))),
        ("sample_weight", (X, Y, np.ones(40))),
    ],
)
def test_other_data_are_refused(name: str, data: tuple, tmp_path: Path):
    fitted(checkpoint=tmp_path / "fit")
    with pytest.raises(ValueError, match=f"is of another fit: {name} is .*, expected"):
        ZOClassifier(**TINY, checkpoint=tmp_path / "fit").fit(*data)


def test_another_start_is_refused(tmp_path: Path):
    for params in ({"module": made()}, {"module": box, "initial_params": START}):
        path = tmp_path / f"{len(params)}"
        ZOClassifier(**BASE, **params, checkpoint=path).fit(X, Y)
        again = {**params, "module": made()} if len(params) == 1 else dict(params)
        if len(params) == 1:
            again["module"][0].bias.data += 1
        else:
            again["initial_params"] = {"w": START["w"] + 1}
        with pytest.raises(ValueError, match=r"is of another fit: (module|initial_params) is"):
            ZOClassifier(**BASE, **again, checkpoint=path).fit(X, Y)


def test_what_does_not_decide_the_result_may_differ(tmp_path: Path, capsys):
    path = tmp_path / "fit"
    with pytest.raises(Killed):
        fitted("tiny", Counts(5), checkpoint=path)
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / "fit")
    params = {"verbose": 2, "device": torch.device("cpu"), "memory_budget": 10**9}
    model = fitted("tiny", Memory(), checkpoint=moved, lr_schedule="cosine", **params)
    assert same(outcome(model)["module"], outcome(fitted("tiny", Memory()))["module"])


def test_a_refused_file_leaves_an_earlier_fit_as_it_was(tmp_path: Path):
    fitted(checkpoint=tmp_path / "fit")
    model = fitted()
    before = dict(vars(model))
    model.set_params(lr=0.5, checkpoint=tmp_path / "fit")
    with pytest.raises(ValueError, match="of another fit"):
        model.fit(X, Y)
    assert {n: v for n, v in vars(model).items() if n.endswith("_")} == {
        n: v for n, v in before.items() if n.endswith("_")
    }


@pytest.mark.parametrize("path", [".", "no/such/folder/fit"])
def test_a_path_that_cannot_be_written_is_refused(path: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"cannot be written: expected the path of a file in"):
        fitted(checkpoint=path)


def test_batches_in_an_order_of_the_global_generator_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"cannot keep the order .*expected a torch\.Generator"):
        fitted(checkpoint=tmp_path / "fit", iterator_train__generator=None)


def test_a_state_that_no_file_can_hold_is_refused(tmp_path: Path):
    class Odd(Memory):
        def state_dict(self):
            return {"history": [{1, 2}]}

    with pytest.raises(TypeError, match=r"cannot hold set, .*at callbacks\.Odd\.history\.0; exp"):
        fitted("tiny", Odd(), checkpoint=tmp_path / "fit")


# --- Fits that go on


def continued(first: Path | None, second: Path | None):
    """Fit, and fit on with other parameters."""
    model = fitted(checkpoint=first)
    return model.set_params(warm_start=True, max_epochs=3, checkpoint=second).fit(X, Y)


def test_a_continued_fit_goes_on_from_every_step(tmp_path: Path, every: list[bytes]):
    first, second = tmp_path / "1", tmp_path / "2"
    expected = continued(None, None)
    alike(continued(first, second), expected)
    assert len(every) == 11 + 16
    for content in every[11:]:
        second.write_bytes(content)
        alike(continued(first, second), expected)


def test_a_continued_fit_needs_a_path_of_its_own(tmp_path: Path):
    with pytest.raises(ValueError, match=r"another fit: .*what the fit starts from .*another path"):
        continued(tmp_path / "1", tmp_path / "1")


def test_partial_fit_refuses_a_checkpoint(tmp_path: Path):
    model = ZOClassifier(**TINY, checkpoint=tmp_path / "fit")
    with pytest.raises(ValueError, match=r"partial_fit cannot keep a checkpoint.*Call fit, or set"):
        model.partial_fit(X, Y)
    assert list(tmp_path.iterdir()) == []


# --- Files that are no good


_FILES: list[bytes] = []


def in_mid_fit(tmp_path: Path) -> Path:
    """Return the file of a fit that was killed in its second epoch."""
    path = tmp_path / "fit"
    if not _FILES:
        with pytest.raises(Killed):
            fitted("tiny", Counts(6), checkpoint=path)
        _FILES.append(path.read_bytes())
    path.write_bytes(_FILES[0])
    return path


def refused(path: Path, match: str) -> None:
    content, watch = path.read_bytes(), Counts()
    with pytest.raises(ValueError, match=match) as caught:
        fitted("tiny", watch, checkpoint=path)
    assert str(path) in str(caught.value)
    assert (path.read_bytes(), watch.steps) == (content, 0)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, 0.3, 0.5, 0.9, -8, -1])
def test_a_truncated_file_is_refused(kept: float, tmp_path: Path):
    path = in_mid_fit(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    refused(path, "no readable safetensors file .*It may be truncated")


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes_are_refused(seed: int, tmp_path: Path):
    path = tmp_path / "fit"
    path.write_bytes(np.random.default_rng(seed).bytes(10 ** (seed + 1)))
    refused(path, "no readable safetensors file")


@pytest.mark.parametrize("seed", range(20))
def test_a_bit_that_fell_over_is_found(seed: int, tmp_path: Path):
    path = in_mid_fit(tmp_path)
    content = bytearray(path.read_bytes())
    place = int(np.random.default_rng(seed).integers(len(content)))
    content[place] ^= 1 << seed % 8
    path.write_bytes(content)
    refused(path, "no readable safetensors file|does not hold what was written|has the format")


class Runs:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("it-ran"),)


def test_a_pickle_is_refused_and_does_not_run(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for save in (lambda path: path.write_bytes(pickle.dumps(Runs())), lambda p: torch.save([1], p)):
        save(tmp_path / "fit")
        refused(tmp_path / "fit", "no readable safetensors file")
    assert not Path("it-ran").exists()


def test_files_of_others_are_refused(tmp_path: Path):
    path = tmp_path / "fit"
    save_file({"weight": torch.ones(2)}, str(path))
    refused(path, "has the format None; expected 'zoestim-checkpoint-1'")
    fitted().save(path)
    refused(path, "has the format 'zoestim-1'; expected 'zoestim-checkpoint-1'")
    save_file({"weight": torch.ones(2)}, str(path), metadata={"zoestim": "[" * 10**5})
    refused(path, "no readable safetensors file")
    save_file({"weight": torch.ones(2)}, str(path), metadata={"zoestim": "9" * 10**5})
    refused(path, "no readable safetensors file")
    with pytest.raises(ValueError, match="has the format 'zoestim-checkpoint-1'"):
        zoestim.load(in_mid_fit(tmp_path))


def rewritten(path: Path, change, *, signed: bool = True) -> None:
    """Write the file anew after a function has changed its JSON and its tensors."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    content = json.loads(metadata["zoestim"])
    change(content, tensors)
    header = json.dumps(content)
    mark = digest(header, tensors) if signed else metadata["sha256"]
    save_file(tensors, str(path), metadata={"zoestim": header, "sha256": mark})


def put(*keys):
    """Return a function that sets content[keys[0]][keys[1]]... to the last of keys."""

    def change(content: dict, tensors: dict) -> None:
        *path, last, value = keys
        for key in path:
            content = inner(content)[key]
        inner(content)[last] = value

    def inner(content):
        return (
            Pairs(content["$dict"]) if isinstance(content, dict) and "$dict" in content else content
        )

    return change


class Pairs:
    """A dict as its list of pairs in JSON."""

    def __init__(self, pairs: list):
        self.pairs = pairs

    def __getitem__(self, key):
        return next(value for name, value in self.pairs if name == key)

    def __setitem__(self, key, value):
        next(pair for pair in self.pairs if pair[0] == key)[1] = value


def tensor(name: str, change):
    def changed(content: dict, tensors: dict) -> None:
        tensors[name] = change(tensors[name]).contiguous()

    return changed


def deep(n: int = 400) -> dict:
    value: dict = {"$list": []}
    for _ in range(n):
        value = {"$list": [value]}
    return value


WEIGHT = "module.state.layers.1.weight"
CHANGES = {
    "a tensor of another type": tensor(WEIGHT, lambda t: t.float()),
    "a tensor of another shape": tensor(WEIGHT, lambda t: t[:1]),
    "a flat tensor": tensor(WEIGHT, lambda t: t.flatten()),
    "momentum of another shape": tensor(
        "optimizer.state.0.momentum_buffer", lambda t: torch.zeros(7)
    ),
    "a generator of floats": tensor("step.generator", lambda t: t.double()),
    "half a generator": tensor("step.generator", lambda t: t[:100]),
    "coordinates out of range": tensor("step.schedule.current.layers.1.weight", lambda t: t + 99),
    "coordinates below zero": tensor("step.schedule.current.layers.1.weight", lambda t: t - 99),
    "coordinates of floats": tensor("step.schedule.current.layers.1.weight", lambda t: t.double()),
    "a set twice": tensor("step.active", lambda t: t * 0),
    "a tensor less": lambda content, tensors: tensors.pop(WEIGHT),
    "no state": put("state", None),
    "a state of text": put("state", "os.system('touch it-ran')"),
    "a module of text": put("state", "module", "torch.nn.Linear"),
    "a name": put("state", "module", {"$name": "os.system"}),
    "an object": put("state", "step", {"$object": "os.system", "params": {"command": "true"}}),
    "code as a count": put("state", "step", "n_queries", "__import__('os').abort()"),
    "a count below zero": put("state", "step", "n_steps", -1),
    "an infinite count": put("state", "step", "n_queries", float("inf")),
    "a true count": put("state", "step", "epoch", True),
    "ratios of nothing": put("state", "step", "schedule", "ratios", {"$dict": []}),
    "a renewal by name": put("state", "step", "schedule", "renewed_at", "eval"),
    "no optimizer": put("state", "optimizer", {"$dict": []}),
    "groups of nobody": put("state", "optimizer", "param_groups", {"$list": []}),
    "a key that cannot be": put("state", "optimizer", {"$dict": [[{"$list": []}, 1]]}),
    "pairs of three": put("state", "optimizer", {"$dict": [[1, 2, 3]]}),
    "a colour of reuse": put("state", "reuse", {"$dict": [["colour", "red"]]}),
    "callbacks of text": put("state", "callbacks", "x"),
    "a callback of text": put("state", "callbacks", "LearningRate", "x"),
    "callbacks beyond depth": put("state", "callbacks", deep()),
    "a history of numbers": put("rows", {"$list": [1]}),
    "no history": put("rows", None),
    "a history of less": put("rows", {"$list": []}),
    "a row of nothing": put("row", {"$dict": []}),
    "no fingerprint": put("fingerprint", None),
    "a seed of text": put("seed", "eval"),
    "an end by nobody": put("finished", "os.system"),
    "steps of text": put("n_steps", "3"),
}


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("name", CHANGES)
def test_contents_that_make_no_sense_are_refused(name: str, signed: bool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = in_mid_fit(tmp_path)
    rewritten(path, CHANGES[name], signed=signed)
    refused(path, "does not hold what this fit needs" if signed else "checksum differs")
    assert not Path("it-ran").exists()


def test_a_fingerprint_of_text_is_refused(tmp_path: Path):
    path = in_mid_fit(tmp_path)
    rewritten(path, put("fingerprint", "parameters", "x" * 1000))
    refused(path, r"is of another fit: parameters is \{.*\.\.\., expected x+\.\.\.\. Delete")
