"""Fits that are killed at random moments: ``python -m benchmarks.faults.kill --kills 200``.

Each run fits in a process of its own with ``checkpoint=``, kills it with SIGKILL, starts it again,
and so on until it ends. Then all that the fit is made of has to be that of an uninterrupted fit,
bit for bit: parameters, buffers, optimizer, generators, history, counts. Needs `os.fork`.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoestim import ZOClassifier, ZORegressor
from zoestim.models import MLP

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3))
Y = np.arange(40) % 3
TARGETS = X @ RNG.normal(size=(3, 2)) + 7.0


class Noisy(nn.Module):
    """BatchNorm and dropout: statistics that move, and masks that are drawn."""

    def __init__(self, n_features_in: int, n_outputs: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(n_features_in, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), nn.Linear(4, n_outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return one output a class."""
        return self.layers(x)


def scores(params: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Return the outputs of a black box."""
    return np.round(inputs @ params, 3)


SMALL = {"module__hidden": 4, "sparsity": 0.6, "n_pruning_queries": 5, "batch_size": 7}
FEW = {"max_epochs": 6, "random_state": 0}
RGE = {"gradient": "rge", "n_directions": 6, "optimizer": torch.optim.Adam, "lr": 0.01}
STOPPING = {"early_stopping": True, "validation_fraction": 0.3, "n_iter_no_change": 2, "tol": 0.05}
CASES: dict[str, tuple[type, dict[str, Any], Any]] = {
    "sparse CGE, momentum, cosine": (ZOClassifier, {**SMALL, **FEW}, Y),
    "RGE, Adam": (ZOClassifier, {**SMALL, **FEW, **RGE}, Y),
    "dropout, BatchNorm": (ZOClassifier, {**FEW, "module": Noisy, "batch_size": 9}, Y),
    "early stopping": (ZOClassifier, {**SMALL, **FEW, **STOPPING, "max_epochs": 30}, Y),
    "a set a batch": (ZOClassifier, {**SMALL, **FEW, "mask_interval": "batch"}, Y),
    "two targets": (ZORegressor, {**SMALL, **FEW}, TARGETS),
    "budget": (ZOClassifier, {**SMALL, **FEW, "max_epochs": 99, "max_queries": 700}, Y),
    "a black box, journal": (
        ZOClassifier,
        {**FEW, "module": scores, "initial_params": np.zeros((3, 3)), "sparsity": 0}
        | {"smoothing": 0.1, "batch_size": 9},
        Y,
    ),
    "float32": (ZOClassifier, {**SMALL, **FEW, "module": MLP, "precision": "float32"}, Y),
}


def fitted(name: str, checkpoint: Path | None = None) -> Any:
    """Return the fit of a case."""
    kind, params, y = CASES[name]
    journal = "journal" in name and checkpoint is not None
    keep = {"checkpoint": checkpoint, "journal_queries": journal}
    return kind(**params, **keep).fit(X, y)


def outcome(model: Any) -> dict[str, Any]:
    """Return all that a fit is made of, but seconds and the batches of epochs that ended."""
    step = model.net_.zo_step
    callbacks = model.net_.callbacks_
    return {
        "module": dict(model.module_.state_dict()),
        "buffers": dict(model.module_.named_buffers()),
        "optimizer": model.net_.optimizer_.state_dict(),
        "generator": step.generator.get_state(),
        "shuffler": model.net_.iterator_train__generator.get_state(),
        "steps": (step.n_steps, step.n_queries, step.epoch, step.responded, step.active),
        "schedule": None if step.schedule is None else step.schedule.state_dict(),
        "history": [
            {key: value for key, value in row.items() if key not in ("batches", "dur")}
            for row in model.history_
        ],
        "best": [c.best_score_ for _, c in callbacks if hasattr(c, "best_score_")],
        "loss_curve_": model.loss_curve_,
        "layer_ratios_": model.layer_ratios_,
        "feature_reuse_": model.feature_reuse_,
        "counts": (model.n_iter_, model.n_queries_, model.termination_condition_),
    }


def same(a: Any, b: Any) -> bool:
    """Return whether nested values are equal, every bit of every tensor."""
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    return bool(a == b)


def start(name: str, checkpoint: Path) -> int:
    """Fit in a new process, and return its number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        child = os.fork()
    if child:
        return child
    try:
        fitted(name, checkpoint)
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def killed_after(child: int, seconds: float) -> bool:
    """Kill a process after a while; return False if it had ended by then."""
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)  # one that has ended is still there to be waited for
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise RuntimeError("a fit ended by an error, which stands above")
    return os.WIFSIGNALED(status)


def run(name: str, seconds: float, kills_left: int, draw: random.Random) -> tuple[Any, int, int]:
    """Return what a fit became, how often it was killed, and how often while it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        path, kills, writing = Path(folder) / "fit.safetensors", 0, 0
        while kills < kills_left and killed_after(start(name, path), draw.uniform(0, seconds)):
            kills += 1
            writing += len(list(Path(folder).iterdir())) > path.exists()
        if os.waitpid(start(name, path), 0)[1] != 0:
            raise RuntimeError(f"the fit of {name!r} did not end after {kills} kills")
        found = outcome(fitted(name, path))
        left = [file.name for file in Path(folder).iterdir()]
        if left != [path.name]:
            raise RuntimeError(f"the fit of {name!r} left {left}")
        return found, kills, writing


def main(arguments: Sequence[str] | None = None) -> int:
    """Kill fits, say how many became what they should, and return 0 if all did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)
    expected, seconds = {}, {}
    for name in CASES:
        began = time.perf_counter()
        expected[name] = outcome(fitted(name))
        seconds[name] = time.perf_counter() - began
    draw, runs, equal, kills, writing = random.Random(given.seed), 0, 0, 0, 0
    while kills < given.kills:
        name = list(CASES)[runs % len(CASES)]
        found, times, within = run(name, seconds[name], given.kills - kills, draw)
        runs, kills, writing = runs + 1, kills + times, writing + within
        equal += same(found, expected[name])
        if not same(found, expected[name]):
            wrong = [key for key in found if not same(found[key], expected[name][key])]
            print(f"{name}, killed {times} times: {wrong} differ")
    print(f"{kills} kills, {runs} runs, {equal} bitwise equal")
    print(f"{writing} of the kills fell into a write")
    return int(equal != runs)


if __name__ == "__main__":
    sys.exit(main())
