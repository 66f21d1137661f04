"""A checkpoint that is truncated, foreign or hostile is refused by name, and runs nothing."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import zoestim
from benchmarks.faults.kill import X, Y, outcome, same
from case_checkpoints import Counts, Killed, fitted
from zoestim.training._fingerprint import digest

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

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
    "a seed below zero": put("seed", -1),
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


def test_a_file_that_makes_no_sense_leaves_an_earlier_fit_as_it_was(tmp_path: Path):
    def go_on(model):
        model.set_params(warm_start=True, max_epochs=3, checkpoint=tmp_path / "fit")
        return model.fit(X, Y)

    go_on(fitted())
    for change in ("half a generator", "ratios of nothing", "a history of less", "a tensor less"):
        rewritten(tmp_path / "fit", CHANGES[change])
        model = fitted()
        with pytest.raises(ValueError, match="does not hold what this fit needs"):
            go_on(model)
        found, expected = outcome(model), outcome(fitted())
        assert [key for key in expected if not same(found[key], expected[key])] == []


def test_a_fingerprint_of_text_is_refused(tmp_path: Path):
    path = in_mid_fit(tmp_path)
    rewritten(path, put("fingerprint", "parameters", "x" * 1000))
    refused(path, r"is of another fit: parameters is \{.*\.\.\., expected x+\.\.\.\. Delete")
