"""Where the time of a training step goes, Table A1: ``python -m benchmarks.speed.stages``.

A step here is: draw a coordinate set, estimate the gradient on it, write it to ``.grad``. Its
stages, for the loop (each part timed apart, with a look at the clock around it) and for zoestim:

- coordinates: drawing the set by its layer-wise ratios and making queries of it;
- perturbation: moving one parameter and putting it back. zoestim perturbs within its evaluation,
  many coordinates at a time or as the change that they make to a layer's output; this cannot be
  timed apart and is part of inference;
- inference: the base loss and one loss for each coordinate. In zoestim, all between the last of
  the queries and the first of the differences: perturbation, memory and bookkeeping included;
- other: differences and ``.grad``.

Below it, torch's profiler says which operations zoestim's step spends its CPU time in, alone.
"""

import argparse
import copy
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.measure import add_options, now, print_table, start, write_json
from benchmarks.speed.problems import (
    CASES,
    SMOOTHING,
    Problem,
    every_coordinate,
    load_case,
)
from benchmarks.speed.problems import add_options as add_problem_options
from benchmarks.speed.rivals import Kept
from zoestim.gradients import CoordinateEstimator
from zoestim.sparsity import draw_coordinates

STAGES = ("coordinates", "perturbation", "inference", "other")
KINDS = {
    "convolutions, matrix products": ("conv", "mm", "linear", "dot", "einsum"),
    "BatchNorm, pooling, softmax": ("norm", "pool", "softmax", "nll", "var", "mean"),
    "copies, indexing, new tensors": (
        *("copy", "index", "cat", "stack", "gather", "scatter", "empty", "zeros", "fill"),
        *("unfold", "im2col", "pad", "clone", "contiguous", "slice", "select", "view"),
    ),
}


class Clock:
    """Adds up the seconds of each stage; `lap` ends the current one."""

    def __init__(self, device: str):
        self.device = device
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._last = now(device)

    def lap(self, stage: str) -> None:
        """Count the time since the last lap as this stage."""
        time = now(self.device)
        self.seconds[stage] += time - self._last
        self._last = time


def redrawn(problem: Problem, seed: int) -> Problem:
    """Return the problem with a new coordinate set of the same layer-wise ratios."""
    sizes = {name: p.numel() for name, p in problem.module.named_parameters()}
    ratios = {name: 1 - len(i) / sizes[name] for name, i in problem.coordinates.items()}
    sparse = {name: ratio for name, ratio in ratios.items() if ratio > 0}
    drawn = draw_coordinates(sparse, sizes, torch.Generator().manual_seed(seed))
    return problem.at(every_coordinate(problem.module) | drawn)


@torch.no_grad()
def loop_step(problem: Problem, n: int, seed: int) -> Clock:
    """Take one step by the loop, on n coordinates of the set, and return its clock."""
    module, X, y = problem.module, problem.X, problem.y
    clock = Clock(str(X.device))
    asked = redrawn(problem, seed).sample(n, seed)
    clock.lap("coordinates")
    base = problem.criterion(module(X), y)
    clock.lap("inference")
    for name, indices in asked.coordinates.items():
        parameter = module.get_parameter(name)
        flat, losses = parameter.view(-1), []
        for index in indices.tolist():
            before = flat[index].clone()
            flat[index] += SMOOTHING
            clock.lap("perturbation")
            losses.append(problem.criterion(module(X), y))
            clock.lap("inference")
            flat[index] = before
            clock.lap("perturbation")
        values = (torch.stack(losses) - base) / SMOOTHING
        gradient = torch.zeros_like(flat)
        gradient[indices.to(flat.device)] = values
        parameter.grad = gradient.view_as(parameter)
        clock.lap("other")
    return clock


class TimedEstimator(CoordinateEstimator):
    """Coordinate-wise estimates that end a stage when they are asked for anything.

    Parameters
    ----------
    clock : Clock
        Where the stages are counted.
    """

    def __init__(self, clock: Clock):
        super().__init__(SMOOTHING)
        self.clock = clock

    def queries(self, *arguments: Any) -> Any:
        """Ask; what came before was the drawing of the set."""
        asked = super().queries(*arguments)
        self.clock.lap("coordinates")
        return asked

    def combine(self, queries: Any, base_loss: float, losses: Tensor) -> Any:
        """Take the differences; what came before was the evaluation."""
        self.clock.lap("inference")
        return super().combine(queries, base_loss, losses)


def zoestim_step(kept: Kept, problem: Problem, n: int, seed: int) -> Clock:
    """Take one step by zoestim, on n coordinates of the set, and return its clock."""
    clock = Clock(str(problem.X.device))
    asked = redrawn(problem, seed).sample(n, seed)
    clock.lap("coordinates")
    values = kept(asked, TimedEstimator(clock))
    at = kept.objective.parameters.flatten(asked.coordinates).to(values.device)
    flat = values.new_zeros(kept.objective.parameters.size)
    kept.objective.write_gradient(flat.index_put((at,), values))
    clock.lap("other")
    return clock


Step = Callable[[int], Clock]


def measure(steps: dict[str, tuple[Step, int]], repeats: int) -> list[dict[str, Any]]:
    """Return the seconds of each stage of each method, in interleaved rounds."""
    clocks: dict[str, list[Clock]] = {name: [] for name in steps}
    for seed in range(repeats + 1):
        for name, (step, _) in steps.items():
            clocks[name].append(step(seed))
    return [
        {
            "method": name,
            "n_coordinates": steps[name][1],
            "stages": {
                stage: {
                    "runs": (runs := [clock.seconds[stage] for clock in clocks[name][1:]]),
                    "median": statistics.median(runs),
                    "min": min(runs),
                }
                for stage in STAGES
            },
        }
        for name in steps
    ]


def line(row: dict[str, Any]) -> dict[str, Any]:
    """Return one row of the table: milliseconds a coordinate, and shares of the whole."""
    medians = {stage: figures["median"] for stage, figures in row["stages"].items()}
    whole = sum(medians.values())
    cells: dict[str, Any] = {"ms a coordinate": row["method"], "timed": row["n_coordinates"]}
    shares: dict[str, float] = {}
    for stage, seconds in medians.items():
        apart = row["method"] == "loop" or stage != "perturbation"
        cells[stage] = 1000 * seconds / row["n_coordinates"] if apart else "(inference)"
        shares[f"{stage} %"] = round(100 * seconds / whole, 1)
    return cells | {"all": 1000 * whole / row["n_coordinates"]} | shares


def operations(step: Step) -> list[dict[str, Any]]:
    """Return the share of each kind of operation in the CPU time of one step, by the profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step(0)
    totals: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        if event.key.startswith("aten::"):
            totals[kind_of(event.key.removeprefix("aten::"))] += event.self_cpu_time_total
    whole = sum(totals.values())
    ordered = sorted(totals.items(), key=lambda item: -item[1])
    return [{"operations": kind, "%": round(100 * time / whole, 1)} for kind, time in ordered]


def kind_of(operation: str) -> str:
    """Return the kind of an operation by its name."""
    for kind, parts in KINDS.items():
        if any(part in operation for part in parts):
            return kind
    return "pointwise and the rest"


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Print both tables and return the rows of the first."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", choices=CASES, default="resnet90")
    parser.add_argument("--n-coordinates", type=int, default=400, help="zoestim; 0 for all")
    parser.add_argument("--n-loop", type=int, default=40, help="timed with the loop")
    add_problem_options(parser)
    add_options(parser)
    options = parser.parse_args(arguments)

    start(options)
    case = load_case(options.case, options)
    print(f"{case.name}: {case.n_coordinates:,} coordinates, batch {len(case.X)}; {case.data}")
    moved = replace(case, module=copy.deepcopy(case.module))
    n_ours = options.n_coordinates or case.n_coordinates
    ours = partial(zoestim_step, Kept(case), case, n_ours)
    steps: dict[str, tuple[Step, int]] = {
        "loop": (partial(loop_step, moved, options.n_loop), options.n_loop),
        "zoestim": (ours, n_ours),
    }
    rows = measure(steps, options.repeats)
    print_table([line(row) for row in rows])
    shares = operations(ours)
    print("\nzoestim's step by operation (torch.profiler, CPU time of the operation itself)")
    print_table(shares)
    write_json(options, {"case": case.name, "data": case.data, "rows": rows, "operations": shares})
    return rows


if __name__ == "__main__":
    main()
