"""What more ranks would save, modelled from one device: ``python -m benchmarks.speed.ranks``.

On one device, a step is measured fold by fold. Then, for n ranks,

    step s = largest share s + base pass s + gather s

- largest share: the folds of the step, shared out by their work as ``backend="distributed"`` does
  (Eq. 5), each at its measured time. Imbalance is the largest share over the mean one;
- base pass: all of a step but its folds (the pass at the parameters, the plan, the differences),
  which every rank repeats;
- gather: three exchanges of objects a step (two of the plan, one of the answers), as

      exchanges * latency * log2(n) + bytes / bandwidth

  where the bytes are those of all ranks' answers, which every rank receives. Latency and
  bandwidth are those of two gloo processes on this machine, by `all_gather_object` of next to
  nothing and of some megabytes; ``--latency`` and ``--bandwidth`` are for another network.

The model leaves out that ranks may slow each other down, as processes that share the memory of
one machine do. Below the table it stands beside what gloo processes took on this machine, with a
thread each: a gather of the step's answers, and with two processes on a CPU the step itself.
"""

import argparse
import json
import math
import pickle
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.measure import add_options, now, print_table, start, write_json
from benchmarks.speed.problems import CASES, SMOOTHING, Problem, load_case
from benchmarks.speed.problems import add_options as add_problem_options
from zoestim.backends import Backend, DistributedBackend, SerialBackend, equal_shares
from zoestim.evaluation import Asking, Batch, BatchLoss, Objective, RandomState, evaluate
from zoestim.gradients import CoordinateEstimator

EXCHANGES = 3
RANKS = (1, 2, 4, 8, 16, 32, 64)
# What is sent to measure the bandwidth, and how often something is sent to measure its time.
MANY_BYTES = 2**22
TIMES = 15


class Step:
    """One gradient estimate after another, asked of a backend.

    Parameters
    ----------
    problem : Problem
        What to estimate.
    backend : Backend
        Who answers.
    """

    def __init__(self, problem: Problem, backend: Backend):
        self.objective = Objective(problem.module, BatchLoss(problem.criterion))
        self.batch, self.asking = Batch(problem.X, problem.y), Asking(backend)
        chosen = self.objective.parameters.flatten(problem.coordinates)
        self.queries = CoordinateEstimator(SMOOTHING).queries(chosen)
        self.random = RandomState.seeded(0, problem.X.device)

    def __call__(self) -> None:
        """Ask all queries."""
        evaluate(self.objective, self.batch, self.queries, self.random, self.asking)

    def seconds(self, repeats: int) -> list[float]:
        """Return how long some steps take, after two untimed ones."""
        device, found = str(self.batch.X.device), []
        for _ in range(repeats + 2):
            began = now(device)
            self()
            found.append(now(device) - began)
        return found[2:]


class Watched(SerialBackend):
    """Answers here, one fold after the other, with a look at the clock around each.

    Parameters
    ----------
    device : str
        Where the work is done.
    """

    def __init__(self, device: str):
        self.device = device
        self.work: list[float] = []
        self.seconds: list[list[float]] = []  # of each fold, a list for each step
        self.nbytes = 0.0

    def map(
        self, function: Callable[..., Any], shared: Any, work: Sequence[float]
    ) -> Iterator[tuple[list[int], Any]]:
        """Give a share for each task."""
        self.work, seconds, self.nbytes = list(work), [], 0.0
        self.seconds.append(seconds)
        for task in range(len(work)):
            began = now(self.device)
            result = function(shared, [task])
            seconds.append(now(self.device) - began)
            self.nbytes += sum(t.nbytes for t in result if isinstance(t, torch.Tensor))
            yield [task], result


def summary(runs: Sequence[float]) -> dict[str, Any]:
    """Return what is written of some runs."""
    return {"runs": list(runs), "median": statistics.median(runs)}


def measured(problem: Problem, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a step takes on one device: its folds, and the rest."""
    backend = Watched(options.device)
    whole = Step(problem, backend).seconds(options.repeats)
    folds = backend.seconds[-len(whole) :]
    rest = [all_ - sum(run) for all_, run in zip(whole, folds, strict=True)]
    return {
        "step": summary(whole),
        "base pass": summary(rest),
        "folds": [statistics.median(runs) for runs in zip(*folds, strict=True)],
        "work": backend.work,
        "bytes": backend.nbytes,
    }


def modelled(figures: dict[str, Any], ranks: int, latency: float, bandwidth: float) -> dict:
    """Return the row of a number of ranks."""
    folds, rest = figures["folds"], figures["base pass"]["median"]
    shares = equal_shares(figures["work"], ranks)
    loads = [sum(folds[task] for task in share) for share in shares]
    gather = EXCHANGES * gathering(ranks, 0, latency, bandwidth)
    gather += gathering(ranks, figures["bytes"], 0, bandwidth)
    step, alone = max(loads) + rest + gather, sum(folds) + rest
    return {
        "ranks": ranks,
        "largest share s": max(loads),
        "imbalance": max(loads) / statistics.mean(loads),
        "base pass s": rest,
        "gather s": gather,
        "step s": step,
        "speed-up": alone / step,
        "efficiency %": 100 * alone / step / ranks,
    }


def gathering(ranks: int, nbytes: float, latency: float, bandwidth: float) -> float:
    """Return the seconds that ranks need to tell each other what has so many bytes in all."""
    return latency * math.log2(ranks) + (nbytes / bandwidth if ranks > 1 else 0.0)


# --- Processes that do it


def rank(number: int, size: int, folder: str, nbytes: int, repeats: int) -> None:
    """Be one of some gloo processes, the first of which writes what it measured."""
    import torch.distributed as distributed

    torch.set_num_threads(1)
    where = f"file://{folder}/store{size}"
    distributed.init_process_group("gloo", init_method=where, rank=number, world_size=size)
    sizes = {"nothing": 0, "many bytes": MANY_BYTES, "answers": nbytes // size}
    found: dict[str, Any] = {name: summary(exchanged(each)) for name, each in sizes.items()}
    path = Path(folder) / "problem"
    if size == 2 and path.exists():
        problem = torch.load(path, weights_only=False)
        found["step"] = summary(Step(problem, DistributedBackend()).seconds(repeats))
    if number == 0:
        (Path(folder) / f"found{size}").write_text(json.dumps(found))
    distributed.destroy_process_group()


def exchanged(nbytes: int) -> list[float]:
    """Return how long it takes all ranks to tell each other so many bytes each, several times."""
    import torch.distributed as distributed

    told, seconds = bytes(nbytes), []
    for _ in range(TIMES):
        distributed.barrier()
        began = time.perf_counter()
        distributed.all_gather_object([None] * distributed.get_world_size(), told)
        seconds.append(time.perf_counter() - began)
    return seconds


def together(
    problem: Problem, size: int, nbytes: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Start processes, and return what the first of them measured."""
    with tempfile.TemporaryDirectory() as folder:
        if options.device == "cpu":
            torch.save(problem, Path(folder) / "problem")
        arguments = (size, folder, nbytes, options.repeats)
        torch.multiprocessing.spawn(rank, arguments, nprocs=size)
        return json.loads((Path(folder) / f"found{size}").read_text())


def network(options: argparse.Namespace, pair: dict[str, Any]) -> tuple[float, float]:
    """Return latency and bandwidth, given or as two processes had them."""
    nothing, many = pair["nothing"]["median"], pair["many bytes"]["median"]
    latency = nothing if options.latency is None else options.latency
    bandwidth = 2 * MANY_BYTES / max(many - nothing, 1e-9)
    return latency, bandwidth if options.bandwidth is None else options.bandwidth


def beside(
    figures: dict[str, Any], found: dict[int, dict[str, Any]], latency: float, bandwidth: float
) -> list[dict[str, Any]]:
    """Return rows that compare the model with what processes took."""
    rows = []
    for size, seconds in found.items():
        expected = gathering(size, figures["bytes"], latency, bandwidth)
        got = seconds["answers"]["median"]
        rows.append({"processes": size, "what": "gather ms", "measured": 1000 * got})
        rows[-1]["modelled"] = 1000 * expected
        if "step" in seconds:
            row, took = modelled(figures, size, latency, bandwidth), seconds["step"]["median"]
            alone = figures["step"]["median"]
            rows += [
                {"processes": size, "what": what, "measured": a, "modelled": b}
                for what, a, b in (
                    ("step s", took, row["step s"]),
                    ("speed-up", alone / took, row["speed-up"]),
                )
            ]
    return rows


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Print both tables and return the rows of the first."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", choices=CASES, default="resnet90")
    parser.add_argument("--n-coordinates", type=int, default=0, help="of the step; 0 for all")
    parser.add_argument(
        "--processes", type=int, nargs="+", default=[2, 4], help="gloo processes; 2 among them"
    )
    parser.add_argument("--latency", type=float, help="seconds, instead of those measured")
    parser.add_argument("--bandwidth", type=float, help="bytes a second, instead of those measured")
    add_problem_options(parser)
    add_options(parser)
    options = parser.parse_args(arguments)
    if 2 not in options.processes:
        parser.error("--processes needs 2, of which latency and bandwidth are measured")

    start(options)
    case = load_case(options.case, options)
    problem = case.sample(options.n_coordinates, options.seed)
    print(f"{case.name}: {problem.n_coordinates:,} coordinates, batch {len(case.X)}; {case.data}")
    figures = measured(problem, options)
    nbytes = len(pickle.dumps(bytes(int(figures["bytes"]))))
    found = {size: together(problem, size, nbytes, options) for size in options.processes}
    latency, bandwidth = network(options, found[2])
    print(
        f"{len(figures['folds'])} folds, {figures['bytes'] / 1024:.4g} KiB of answers; an exchange "
        f"takes {1000 * latency:.3g} ms * log2(ranks) and a second for {bandwidth / 1e6:.4g} MB"
    )
    rows = [modelled(figures, ranks, latency, bandwidth) for ranks in RANKS]
    print_table(rows)
    print("\ngloo processes on this machine, one thread each")
    compared = beside(figures, found, latency, bandwidth)
    print_table(compared)
    content = {"case": case.name, "data": case.data, "rows": rows, "measured": figures}
    write_json(options, {**content, "processes": found, "compared": compared})
    return rows


if __name__ == "__main__":
    main()
