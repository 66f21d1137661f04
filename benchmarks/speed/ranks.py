"""What more ranks would save, modelled from one device: ``python -m benchmarks.speed.ranks``.

On one device, a step is measured fold by fold; of a large one, folds of each parameter that hold
`--n-coordinates` in all, and the others take as long for their work. Then, for n ranks,

    step s = largest share s + base pass s + gather s

- largest share: the folds of the step, shared out by their work as ``backend="distributed"`` does
  (Eq. 5), each at its time. Imbalance is the largest share over the mean one;
- base pass: all of a step but its folds (the pass at the parameters, the plan, the differences),
  which every rank repeats;
- gather: three exchanges of objects a step (two of the plan, one of the answers), as

      exchanges * latency * log2(n) + bytes / bandwidth

  where the bytes are those of all ranks' answers, which every rank receives. Latency and
  bandwidth are those of two gloo processes on this machine, by `all_gather_object` of next to
  nothing and of some megabytes; ``--latency`` and ``--bandwidth`` are for another network.

The model leaves out that ranks may slow each other down, as processes that share the memory of
one machine do. Below the table it stands beside what gloo processes took on this machine, with a
thread each: a gather of answers, and with two processes on a CPU a whole step, of
`--n-coordinates` coordinates.
"""

import argparse
import contextlib
import json
import math
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
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
BYTES = 16  # of an answer: its position and its number
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
            with contextlib.suppress(Enough):
                self()
            found.append(now(device) - began)
        return found[2:]


class Enough(Exception):
    """As many folds were timed as were to be."""


class Watched(SerialBackend):
    """Answers here, one fold after the other, with a look at the clock around each.

    Parameters
    ----------
    device : str
        Where the work is done.
    n_timed : int
        About how many queries the folds hold that are timed; 0 for all.
    """

    def __init__(self, device: str, n_timed: int = 0):
        self.device, self.n_timed = device, n_timed
        self.parts: list[tuple[str, ...]] = []  # what each fold perturbs
        self.work: list[float] = []
        self.seconds: list[dict[int, float]] = []  # of folds, for each step

    def map(
        self, function: Callable[..., Any], shared: Any, work: Sequence[float]
    ) -> Iterator[tuple[list[int], Any]]:
        """Give a share for each task."""
        parts, seconds = [shared.parts[k] for k in shared.todo], {}
        self.work, self.parts = list(work), [part.group.names for part in parts]
        self.seconds.append(seconds)
        each = max(1, sum(map(len, parts)) // self.n_timed) if self.n_timed else 1
        for names in dict.fromkeys(self.parts):
            tasks = [task for task, other in enumerate(self.parts) if other == names]
            for task in tasks[::each]:
                began = now(self.device)
                result = function(shared, [task])
                seconds[task] = now(self.device) - began
                yield [task], result
        if len(seconds) < len(work):
            raise Enough

    def folds(self, runs: Sequence[Mapping[int, float]]) -> list[float]:
        """Return what each fold takes; one that was not timed as long for its work as others."""
        timed = {task: statistics.median(run[task] for run in runs) for task in runs[-1]}
        work: dict[tuple[str, ...], float] = defaultdict(float)
        took: dict[tuple[str, ...], float] = defaultdict(float)
        for task, seconds in timed.items():
            work[self.parts[task]] += self.work[task]
            took[self.parts[task]] += seconds
        rates = {names: took[names] / work[names] for names in work}
        named = zip(self.work, self.parts, strict=True)
        return [timed.get(k, rates[names] * amount) for k, (amount, names) in enumerate(named)]


def summary(runs: Sequence[float]) -> dict[str, Any]:
    """Return what is written of some runs."""
    return {"runs": list(runs), "median": statistics.median(runs)}


def measured(problem: Problem, n_timed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a step takes on one device: its folds, and the rest."""
    backend = Watched(options.device, n_timed)
    whole = Step(problem, backend).seconds(options.repeats)
    runs = backend.seconds[-len(whole) :]  # the first step may prove all of its folds instead
    pairs = zip(whole, runs, strict=True)
    return {
        "base pass": summary([seconds - sum(run.values()) for seconds, run in pairs]),
        "timed": len(runs[-1]),
        "folds": backend.folds(runs),
        "work": backend.work,
        "bytes": BYTES * problem.n_coordinates,
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
        if number == 0:  # the other one waits
            found["alone"] = summary(Step(problem, SerialBackend()).seconds(repeats))
        distributed.barrier()
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
            alone = seconds["alone"]["median"]
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
    parser.add_argument("--n-coordinates", type=int, default=1_000, help="timed; 0 for all")
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
    print(f"{case.name}: {case.n_coordinates:,} coordinates, batch {len(case.X)}; {case.data}")
    figures = measured(case, options.n_coordinates, options)
    sample = case.sample(options.n_coordinates, options.seed)
    few = figures if sample is case else measured(sample, 0, options)
    sizes = options.processes
    found = {size: together(sample, size, few["bytes"], options) for size in sizes}
    latency, bandwidth = network(options, found[2])
    print(
        f"{len(figures['folds'])} folds, {figures['timed']} of them timed; an exchange takes "
        f"{1000 * latency:.3g} ms * log2(ranks), and a second for {bandwidth / 1e6:.4g} MB"
    )
    rows = [modelled(figures, ranks, latency, bandwidth) for ranks in RANKS]
    print_table(rows)
    print(f"\n{sample.n_coordinates:,} coordinates by gloo processes, one thread each")
    compared = beside(few, found, latency, bandwidth)
    print_table(compared)
    content = {"case": case.name, "data": case.data, "rows": rows}
    content |= {"measured": figures, "measured few": few}
    write_json(options, {**content, "processes": found, "compared": compared})
    return rows


if __name__ == "__main__":
    main()
