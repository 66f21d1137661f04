"""What each rank of the tests of the distributed backend runs: ``ranks.py SCENARIO FOLDER``."""

import hashlib
import os
import pickle
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skorch.callbacks import Callback
from torch import nn

from benchmarks.faults.kill import Noisy, outcome
from zoestim import BlackBox, ZOClassifier, estimate_gradient
from zoestim.backends import DistributedBackend
from zoestim.training import _checkpoint

DRAWS = np.random.default_rng(0)
X, Y = DRAWS.normal(size=(40, 3)), np.arange(40) % 3
LOSS = nn.CrossEntropyLoss()
NOISY = {"module": Noisy, "batch_size": 11, "max_epochs": 3, "early_stopping": True}
NOISY |= {"sparsity": 0.5, "n_pruning_queries": 4, "validation_fraction": 0.25}
BOXED = {"initial_params": np.zeros((3, 3)), "batch_size": 15, "max_epochs": 3, "random_state": 0}
BOXED |= {"early_stopping": True, "validation_fraction": 0.25, "sparsity": 0.0}


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


class Counted:
    """A linear model that writes a line for each call, in whatever process, and takes its time."""

    def __init__(self, path: Path, seconds: float = 0.0):
        self.path, self.seconds = path, seconds

    def __call__(self, params: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        asked = hashlib.sha256(params.tobytes() + inputs.tobytes()).hexdigest()
        with self.path.open("a") as file:
            file.write(f"{asked} {rank()}\n")
        time.sleep(self.seconds)
        return inputs @ params


class Fails:
    """A linear model that raises in one rank, from some call on."""

    def __init__(self, error: Exception, rank: int, first: int = 0):
        self.error, self.rank, self.first, self.calls = error, rank, first, 0

    def __call__(self, params: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        self.calls += 1
        if self.rank == rank() and self.calls > self.first:
            raise self.error
        return inputs @ params


class Strange(Exception):
    """An error that cannot be sent."""

    def __init__(self, name: str, lock: Any):
        super().__init__(name, lock)


class Meddles(Callback):
    """Changes the model of one rank at the end of an epoch."""

    def on_epoch_end(self, net, **kwargs):
        with torch.no_grad():
            next(net.module_.parameters()).add_(rank())


def noisy() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Noisy(3, 3).double()


def gradient(backend: Any, seed: int, **given: Any) -> list[Any]:
    """Return an estimate for a module that draws, with the global generator as the seed has it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = estimate_gradient(noisy(), LOSS, X, Y, backend=backend, **given)
    return [found.loss, found.n_queries, found.gradient.indices, found.gradient.values]


def fit(backend: Any, random_state: int | None) -> dict[str, Any]:
    """Return all that a fit is made of."""
    return outcome(ZOClassifier(**NOISY, random_state=random_state, backend=backend).fit(X, Y))


def boxed(backend: Any, box: Any, **given: Any) -> dict[str, Any]:
    """Return all that a fit of a black box is made of."""
    return outcome(ZOClassifier(box, **BOXED, backend=backend, **given).fit(X, Y))


def error_of(call: Callable[[], Any]) -> str:
    """Return what a call raises."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error} <- {error.__cause__!r}"
    return "nothing"


def equal(folder: Path) -> dict[str, Any]:
    """Return what has to be the same on all ranks, and but for what is drawn in one process."""
    return {
        "gradient": gradient("distributed", rank()),
        "directions": gradient("distributed", rank(), method="rge", n_directions=9),
        "fit": fit("distributed", 0),
        "drawn": fit("distributed", None),
        "boxed": boxed("distributed", Counted(folder / "calls")),
    }


def unequal(folder: Path) -> dict[str, str]:
    """Return what ranks raise that differ or fail; all of them go on."""
    y, n = (Y[::-1].copy() if rank() == 1 else Y), (30 if rank() == 1 else 40)
    estimate = {"backend": "distributed", "max_retries": 0}
    backend, data = DistributedBackend(), (LOSS, X, Y)
    cut, sent = OSError("the wire is cut"), Strange("strange", threading.Lock())

    def box(error: Exception, rank: int) -> BlackBox:
        return BlackBox(Fails(error, rank), np.zeros((3, 3)))

    def meddle() -> Any:
        return ZOClassifier(callbacks=[Meddles()], backend="distributed", random_state=0).fit(X, Y)

    return {
        "labels": error_of(lambda: estimate_gradient(noisy(), LOSS, X, y, **estimate)),
        "samples": error_of(lambda: ZOClassifier(backend="distributed").fit(X[:n], Y[:n])),
        "state": error_of(meddle),
        "program": error_of(
            lambda: backend.same(1) if rank() else estimate_gradient(noisy(), *data, **estimate)
        ),
        "query": error_of(lambda: estimate_gradient(box(cut, 1), *data, **estimate)),
        "base": error_of(lambda: estimate_gradient(box(cut, 0), *data, **estimate)),
        "strange": error_of(lambda: estimate_gradient(box(sent, 1), *data, **estimate)),
        "strange base": error_of(lambda: estimate_gradient(box(sent, 0), *data, **estimate)),
    }


def both(folder: Path) -> dict[str, Any]:
    """Run what needs a process group, whose start takes longest."""
    return {"equal": equal(folder), "unequal": unequal(folder)}


def killed(folder: Path) -> dict[str, Any]:
    """Fit with a checkpoint and a journal, slowly enough to be killed meanwhile."""
    replace = _checkpoint._replace

    def told(*content: Any) -> None:
        with (folder / "writers").open("a") as file:
            file.write(f"{rank()}\n")
        replace(*content)

    _checkpoint._replace = told
    box = Counted(folder / "calls", seconds=0.02)
    return boxed("distributed", box, checkpoint=folder / "fit", journal_queries=True)


def lost(folder: Path) -> str:
    """Lose a rank in the midst of its queries."""

    def box(params: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        if rank() == 1:
            os._exit(9)
        return inputs @ params

    return error_of(
        lambda: estimate_gradient(
            BlackBox(box, np.zeros((3, 3))), LOSS, X, Y, backend="distributed"
        )
    )


def main(scenario: str, folder: Path) -> None:
    warnings.simplefilter("ignore")  # of libraries at their start
    torch.set_num_threads(1)
    found = globals()[scenario](folder)
    (folder / f"rank{rank()}").write_bytes(pickle.dumps(found))


def unwatched(number: int, size: int, store: Path, scenario: str, folder: Path) -> None:
    """Be a rank that torchrun has not started, and does not end when another is lost."""
    os.environ["RANK"] = str(number)
    where = f"file://{store}"
    torch.distributed.init_process_group("gloo", where, rank=number, world_size=size)
    main(scenario, folder)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
