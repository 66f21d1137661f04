"""Every fault on every backend: ``python -m benchmarks.faults.table``.

One row is one gradient of a black box on which one call goes wrong. Lost are queries without an
answer in the end; asked twice are those that were asked again after the box had answered them.
"""

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch

from benchmarks.faults import faulty
from benchmarks.faults.faulty import FAULTS, Faulty
from benchmarks.speed.measure import print_table
from benchmarks.speed.parallel import cluster
from zoestim import BlackBox
from zoestim.backends import Backend, JoblibBackend, SerialBackend
from zoestim.evaluation import (
    Asking,
    Batch,
    BatchLoss,
    Evaluation,
    Journal,
    Objective,
    Patience,
    evaluate,
)
from zoestim.gradients import CoordinateEstimator

BACKENDS = ("serial", "threading", "loky", "dask", "ray")
N = 30  # coordinates
# A kill of the process that asks ends the fit: see benchmarks.faults.kill.
OWN_PROCESS = ("serial", "threading")


def gradient(box: Faulty, backend: Backend, journal: Journal | None) -> Evaluation:
    """Return the losses of one dense gradient."""
    X = torch.linspace(-1, 1, 60, dtype=torch.float64).view(6, 10)
    batch = Batch(X, torch.tensor([0, 1, 2] * 2))
    criterion = BatchLoss(torch.nn.CrossEntropyLoss())
    objective = Objective(BlackBox(box, np.ones((10, 3))), criterion)
    queries = CoordinateEstimator().queries(torch.arange(N))
    asking = Asking(backend, Patience(timeout=2.0), journal)
    return evaluate(objective, batch, queries, None, asking)


def row(kind: str, fault: str, journalled: bool, sound: torch.Tensor) -> dict[str, Any]:
    """Inject one fault into one gradient, and return what came of it."""
    backend = SerialBackend() if kind == "serial" else JoblibBackend(2, kind)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        box = Faulty(folder, fault)
        journal = Journal(folder / "journal") if journalled else None
        found = gradient(box, backend, journal)
        answered = box.counts("answered")
    backend.close()
    return {
        "backend": kind,
        "fault": fault,
        "journal": "yes" if journalled else "no",
        "outcome": "the same bits" if torch.equal(found.losses, sound) else "other losses",
        "lost": N - int(torch.isfinite(found.losses).sum()),
        "asked twice": answered.total() - len(answered),
    }


def rows_of(kind: str, sound: torch.Tensor) -> Iterator[dict[str, Any]]:
    """Give the rows of one backend."""
    start = cluster(kind, 2) if kind != "serial" else contextlib.nullcontext()
    with start:
        for fault in FAULTS:
            if fault == "kill" and kind in OWN_PROCESS:
                continue
            for journalled in (False, True):
                yield row(kind, fault, journalled, sound)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Print the table and return its rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backends", type=lambda text: text.split(","), default=list(BACKENDS))
    options = parser.parse_args(arguments)

    cloudpickle.register_pickle_by_value(faulty)  # a cluster does not know this folder
    with tempfile.TemporaryDirectory() as folder:
        sound = gradient(Faulty(Path(folder)), SerialBackend(), None).losses
    rows = [row for kind in options.backends for row in rows_of(kind, sound)]
    print_table(rows)
    return rows


if __name__ == "__main__":
    main()
