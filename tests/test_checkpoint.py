"""A fit that was killed goes on bit for bit, and a file of another fit is refused."""

import contextlib
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.base import clone
from skorch.callbacks import Callback
from torch import nn

import zoestim
from benchmarks.faults import kill
from benchmarks.faults.kill import X, Y, outcome, same
from case_checkpoints import (
    BASE,
    FITS,
    START,
    STEPS,
    TINY,
    Counts,
    Killed,
    Memory,
    alike,
    box,
    fitted,
    made,
)
from zoestim import ZOClassifier
from zoestim.sparsity import Pruning
from zoestim.training import _checkpoint

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


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
    assert steps + 1 < len(written) <= steps + expected.n_iter_ + 2  # one before the first step
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


@pytest.mark.parametrize("name", ["early stopping", "a set a batch", "budget", "a rate a batch"])
def test_a_process_a_step_is_enough(name: str, tmp_path: Path):
    expected, model, processes = fitted(name), None, 0
    while model is None:
        processes += 1
        with contextlib.suppress(Killed):
            model = fitted(name, Counts(1), checkpoint=tmp_path / "fit")
    alike(model, expected)
    assert processes == expected.net_.zo_step.n_steps


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


def test_a_callback_that_ends_a_fit_ends_it_again(tmp_path: Path):
    class First(Callback):
        def on_epoch_end(self, net, **kwargs):
            raise KeyboardInterrupt

    expected, again = fitted("tiny", First()), Counts()
    assert expected.termination_condition_ == "callback"
    alike(fitted("tiny", First(), checkpoint=tmp_path / "fit"), expected)
    alike(fitted("tiny", again, First(), checkpoint=tmp_path / "fit"), expected)
    assert again.steps == 0
    alike(fitted(checkpoint=tmp_path / "fit"), fitted())


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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("write", [1, 2, 4])
def test_a_kill_in_the_middle_of_a_write_leaves_the_file_before(
    write: int, tmp_path: Path, monkeypatch, every: list[bytes]
):
    sync = os.fsync

    def die(descriptor: int) -> None:
        if len(every) == write - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    monkeypatch.setitem(kill.CASES, "tiny", (ZOClassifier, TINY, Y))
    monkeypatch.setattr(os, "fsync", die)
    _, status = os.waitpid(kill.start("tiny", tmp_path / "fit"), 0)
    monkeypatch.setattr(os, "fsync", sync)
    assert os.WIFSIGNALED(status)
    left = {".fit.being-written", ".fit.lock"} | ({"fit"} if write > 1 else set())
    assert {file.name for file in tmp_path.iterdir()} == left
    rest = Counts()
    alike(fitted("tiny", rest, checkpoint=tmp_path / "fit"), fitted())
    assert rest.steps == STEPS - max(0, write - 2)  # the first is before the first step
    assert [file.name for file in tmp_path.iterdir()] == ["fit"]


def test_what_a_killed_write_left_is_removed(tmp_path: Path):
    (tmp_path / ".fit.being-written").write_bytes(b"half of it")
    fitted(checkpoint=tmp_path / "fit")
    assert [file.name for file in tmp_path.iterdir()] == ["fit"]


def test_a_write_that_fails_leaves_the_last_file(tmp_path: Path, monkeypatch):
    def full(*args, **kwargs) -> None:
        raise OSError("No space left on device")

    path = tmp_path / "fit"
    with pytest.raises(Killed):
        fitted("tiny", Counts(3), checkpoint=path)
    content = path.read_bytes()
    monkeypatch.setattr(_checkpoint.os, "fsync", full)
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
        ({"criterion": nn.CrossEntropyLoss(label_smoothing=0.1)}, "criterion is Cross.*, expec"),
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


@pytest.mark.parametrize("path", [".", "no/such/folder/fit", os.devnull, "x" * 250])
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
    assert len(every) == 12 + 17
    for content in every[12:]:
        second.write_bytes(content)
        alike(continued(first, second), expected)


def test_a_continued_fit_needs_a_path_of_its_own(tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"another fit: .*the start .* expected None.*another path"
    ):
        continued(tmp_path / "1", tmp_path / "1")


def test_partial_fit_refuses_a_checkpoint(tmp_path: Path):
    model = ZOClassifier(**TINY, checkpoint=tmp_path / "fit")
    with pytest.raises(ValueError, match=r"partial_fit cannot keep a checkpoint.*Call fit, or set"):
        model.partial_fit(X, Y)
    assert list(tmp_path.iterdir()) == []
