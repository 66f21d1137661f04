"""Every example and benchmark runs, at a tiny size, and prints the table it promises."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import defaults, resnet20_slice

ROOT = Path(__file__).resolve().parents[1]
HTTP = "plot_train_through_http.py"
TINY = {
    "demo.py": ["--max-queries", "1500", "--verbose", "0"],
    HTTP: ["--max-queries", "130", "--no-plot"],
}
PROMISED = {
    "demo.py": ["test accuracy", "zoestim, loss values only", "backprop", "max_queries"],
    HTTP: [
        "test accuracy before 0.1",
        "faulty server",
        "queries of the fit: 128;",
        "the same bits as through the sound server: True",
        "QueryLog(124 queries by",
        "asked again",
    ],
}
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_prints_its_table(example, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(example), *TINY[example.name]])
    runpy.run_path(str(example), run_name="__main__")
    printed = capsys.readouterr().out
    assert [text for text in PROMISED[example.name] if text not in printed] == []


def test_no_query_is_lost_by_a_server_that_fails(tmp_path):
    example = runpy.run_path(str(ROOT / "examples" / HTTP))
    data = example["digits"]()
    model, faulty = example["train"](0.1, 330, tmp_path, data)
    sound_model, sound = example["train"](0.0, 330, tmp_path, data)
    assert faulty["failed"] > 0
    assert faulty["distinct"] == sound["distinct"] == model.n_queries_ == 320
    assert faulty["calls"] >= 320 + faulty["failed"] + faulty["hung"]  # all of them asked again
    assert int(model.query_log_.rows["n_queries"].sum()) == 310  # and 10 at the parameters
    assert faulty["accuracy"] > example["accuracy_before"](data) + 0.2
    assert example["same_bits"](model, sound_model)


def test_defaults_are_compared_and_written_with_versions(tmp_path, capsys):
    out = tmp_path / "defaults.json"
    rows = defaults.main(["--datasets", "iris", "--folds", "2", "--out", str(out)])
    title, header, iris = capsys.readouterr().out.splitlines()
    assert title.startswith("2-fold mean score")
    assert header.split() == ["zoestim", "MLP", "difference", "queries", "seconds", "MLP", "s"]
    assert iris.startswith("iris")
    written = json.loads(out.read_text())
    assert written["rows"] == rows
    assert {"zoestim", "torch", "scikit-learn", "python"} <= written["versions"].keys()
    assert len(rows[0]["queries"]) == len(rows[0]["mlp_scores"]) == 2


@pytest.fixture
def images(tmp_path):
    """Return a folder of random images, one of each of two classes."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "train" / name / "0.png")
    return tmp_path


def test_resnet20_slice_takes_its_steps_and_spends_its_budget(images, capsys):
    tiny = ["--n-samples", "2", "--batch-size", "2", "--steps", "2", "--n-pruning-queries", "1"]
    losses = resnet20_slice.main(["--data", str(images), "--sparsity", "0.99999", *tiny])
    printed = capsys.readouterr().out
    coordinates = resnet20_slice.n_coordinates(0.99999, n_classes=2)
    assert len(losses) == 3
    assert f"{4 + 2 * (coordinates + 1):,} queries in" in printed
    assert "ms a coordinate" in printed
    assert "ended by max_" in printed
