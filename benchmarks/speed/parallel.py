"""What workers save where queries are expensive: ``python -m benchmarks.speed.parallel``.

A black box takes a fixed time a query. One row is one dense gradient by some workers. Idle is
the part of the workers' time in which no query was under way.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from benchmarks.speed.measure import add_options, interleaved, print_table, start, write_json
from zoestim import BlackBox
from zoestim.backends import Backend, JoblibBackend, SerialBackend
from zoestim.evaluation import Asking, Batch, BatchLoss, Evaluation, Objective, evaluate
from zoestim.gradients import CoordinateEstimator

KINDS = ("threading", "loky", "dask", "ray")


class Slow:
    """A linear model that takes its time.

    Parameters
    ----------
    seconds : float
        How long a query takes.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds

    def __call__(self, params: np.ndarray, X: np.ndarray) -> np.ndarray:
        """Return the outputs."""
        time.sleep(self.seconds)
        return X @ params


class Gradient:
    """One dense gradient of the slow model, asked of a backend."""

    def __init__(self, options: argparse.Namespace, backend: Backend):
        draws = np.random.default_rng(options.seed)
        box = BlackBox(Slow(options.milliseconds / 1000), draws.normal(size=options.n_queries))
        self.objective = Objective(box, BatchLoss(torch.nn.MSELoss()))
        X = torch.from_numpy(draws.normal(size=(32, options.n_queries)))
        self.batch, self.asking = Batch(X, X[:, 0]), Asking(backend)
        self.queries = CoordinateEstimator().queries(torch.arange(options.n_queries))
        self.busy: list[float] = []

    def __call__(self) -> Evaluation:
        """Return the losses."""
        found = evaluate(self.objective, self.batch, self.queries, asking=self.asking)
        self.busy.append(sum(record.seconds for record in found.records))
        return found


@contextlib.contextmanager
def cluster(kind: str, n_workers: int) -> Iterator[None]:
    """Start what a backend needs beside this process, on this machine."""
    if kind == "dask":
        import distributed

        processes = {"n_workers": n_workers, "threads_per_worker": 1, "dashboard_address": ":0"}
        with distributed.LocalCluster(**processes) as local, distributed.Client(local):
            yield
    elif kind == "ray":
        import ray
        from ray.util.joblib import register_ray

        register_ray()
        ray.init(num_cpus=n_workers, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()
    else:
        yield


def compare(options: argparse.Namespace, kind: str) -> dict[str, Any]:
    """Time one backend beside this process alone, and return its row."""
    with cluster(kind, options.workers):
        backend = JoblibBackend(options.workers, kind)
        serial, parallel = Gradient(options, SerialBackend()), Gradient(options, backend)
        equal = torch.equal(serial().losses, parallel().losses)
        n = options.n_queries
        methods = {"serial": (serial, n), "parallel": (parallel, n)}
        runs = interleaved(methods, options.repeats, "cpu")
        backend.close()
    seconds = runs["parallel"].seconds
    busy = zip(parallel.busy[-len(seconds) :], seconds, strict=True)
    return {
        "backend": kind,
        "workers": options.workers,
        "serial s": runs["serial"].median,
        "parallel s": runs["parallel"].median,
        "speed-up": 1 / runs["parallel"].ratio_to(runs["serial"]),
        "idle %": 100 * statistics.median(1 - b / (options.workers * s) for b, s in busy),
        "same bits": "yes" if equal else "no",
        "runs": {name: run.as_row()["seconds"]["runs"] for name, run in runs.items()},
    }


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Print the table and return its rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(KINDS))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--n-queries", type=int, default=100)
    parser.add_argument("--milliseconds", type=float, default=50.0, help="that a query takes")
    add_options(parser)
    options = parser.parse_args(arguments)

    start(options)
    rows = [compare(options, kind) for kind in options.kinds]
    print_table([{name: row[name] for name in row if name != "runs"} for row in rows])
    write_json(options, {"rows": rows})
    return rows


if __name__ == "__main__":
    main()
