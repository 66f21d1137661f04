"""One gradient, by zoestim and its rivals: ``python -m benchmarks.speed.gradient``.

The loop and the authors' code do one coordinate after another, so a sample tells what a
coordinate costs; vmap and zoestim handle coordinates of a layer together, and each larger sample
is in their favour. How many were timed stands in the table. A sample takes from each layer in
proportion. Whatever is done once a gradient (the base loss) is counted. "zoestim" is a step of a
training, "zoestim, once" a call of `estimate_gradient`, which traces the module and proves its
folds: a fixed cost, that weighs on a small sample.

`times zoestim` compares the cost of a coordinate. `error` is the largest difference to the loop
in float64, relative to the largest partial derivative, on the smallest sample.
"""

import argparse
import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.measure import (
    Runs,
    add_options,
    duration,
    interleaved,
    print_table,
    start,
    version_of,
    write_json,
)
from benchmarks.speed.problems import CASES, Problem, load_case
from benchmarks.speed.problems import add_options as add_problem_options
from benchmarks.speed.rivals import (
    AuthorsWorker,
    Estimate,
    Kept,
    Torchzero,
    Vmapped,
    chunk_sizes,
    double_loop,
    loop,
    zoestim,
)

# How many coordinates are timed by default, 0 for all: (zoestim, vmap, one after another).
SAMPLES = {"mlp": (0, 0, 0), "cnn": (0, 200, 100), "res": (400, 200, 100)}


@dataclass(frozen=True)
class Method:
    """A way to estimate, and the coordinates that it is timed on."""

    name: str
    estimate: Estimate
    problem: Problem


def methods(case: Problem, options: argparse.Namespace) -> list[Method]:
    """Return zoestim and the rivals that can do a case; print why another cannot."""
    defaults = SAMPLES[case.name[:3]]
    given = (options.n_coordinates, options.n_vmap, options.n_rivals)
    numbers = [n if n is not None else default for n, default in zip(given, defaults, strict=True)]
    ours, batched, slow = (case.sample(n, options.seed) for n in numbers)
    own = replace(slow, module=copy.deepcopy(case.module))  # moved in place
    found = [Method("zoestim", Kept(ours), ours), Method("zoestim, once", zoestim, ours)]
    if "loop" in options.rivals:
        found.append(Method("loop", loop, own))
    if "vmap" in options.rivals:
        best = tuned(batched, options.device)
        found.append(Method(f"vmap, chunks of {best.chunk_size}", best, batched))
    if "deepzero" in options.rivals:
        found += authors_methods(slow, options.deepzero)
    if "torchzero" in options.rivals:
        found += torchzero_methods(own)
    return found


def tuned(problem: Problem, device: str) -> Vmapped:
    """Return vmap with the fastest of its chunk sizes."""
    tried = {}
    for size in chunk_sizes(problem):
        try:
            tried[size] = duration(partial(Vmapped(size), problem), device)
        except torch.OutOfMemoryError:
            print(f"  vmap: chunks of {size} do not fit into memory")
    print("  vmap, seconds by chunk size: ", {size: round(s, 2) for size, s in tried.items()})
    return Vmapped(min(tried, key=tried.__getitem__, default=1))


def authors_methods(problem: Problem, path: Path | None) -> list[Method]:
    """Return the authors' worker with and without its feature reuse, where it can be had."""
    if path is None:
        print("  DeepZero's authors: skipped, --deepzero names no checkout of their code")
        return []
    if not problem.name.startswith("resnet"):
        print("  DeepZero's authors: skipped, their worker runs their ResNet-20 only")
        return []
    return [
        Method("authors, reuse", AuthorsWorker(path, problem, True), problem),
        Method("authors, no reuse", AuthorsWorker(path, problem, False), problem),
    ]


def torchzero_methods(problem: Problem) -> list[Method]:
    """Return torchzero, where it is installed and can be asked."""
    if version_of("torchzero") is None:
        print("  torchzero: skipped, not installed (pip install torchzero)")
        return []
    if not Torchzero.can_do(problem):
        print("  torchzero: skipped, it has no sparse gradient and --n-rivals is a sample")
        return []
    return [Method("torchzero", Torchzero(), problem)]


def errors(found: list[Method]) -> dict[str, float]:
    """Return each method's largest relative difference to the loop in float64.

    It is taken on the smallest sample.
    """
    asked = min((method.problem for method in found), key=lambda p: p.n_coordinates)
    exact = double_loop(asked)
    result = {}
    for method in found:
        problem = replace(method.problem, coordinates=asked.coordinates)
        result[method.name] = relative_difference(method.estimate(problem), exact)
    return result


def relative_difference(values: Tensor, exact: Tensor) -> float:
    """Return the largest difference over the largest value."""
    exact = exact.cpu()
    return float((values.cpu().double() - exact).abs().max() / exact.abs().max())


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Print the table of one case and return its figures."""
    case = load_case(name, options)
    print(f"\n{name}: {case.n_coordinates:,} coordinates, batch {len(case.X)}; {case.data}")
    found = methods(case, options)
    error = errors(found)
    calls = {m.name: (partial(m.estimate, m.problem), m.problem.n_coordinates) for m in found}
    runs = interleaved(calls, options.repeats, options.device)
    print_table([line(each, runs["zoestim"], error[each.method]) for each in runs.values()])
    return {
        "case": name,
        "n_coordinates": case.n_coordinates,
        "batch_size": len(case.X),
        "data": case.data,
        "methods": [
            each.as_row()
            | {"times_zoestim": each.ratio_to(runs["zoestim"]), "error": error[each.method]}
            for each in runs.values()
        ],
    }


def line(runs: Runs, ours: Runs, error: float) -> dict[str, Any]:
    """Return one row of the table."""
    return {
        "method": runs.method,
        "timed": runs.n_coordinates,
        "s": runs.median,
        "ms a coordinate": 1000 * runs.median / runs.n_coordinates,
        "times zoestim": runs.ratio_to(ours),
        "error": error,
    }


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Print a table for each case and return their figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    known = ("loop", "vmap", "deepzero", "torchzero")
    parser.add_argument("--cases", type=lambda text: text.split(","), default=list(CASES))
    parser.add_argument("--rivals", type=lambda text: text.split(","), default=list(known))
    parser.add_argument("--n-coordinates", type=int, help="timed with zoestim, 0 for all")
    parser.add_argument("--n-vmap", type=int, help="timed with vmap")
    parser.add_argument("--n-rivals", type=int, help="timed with the loop and the authors' code")
    parser.add_argument("--deepzero", type=Path, help="checkout of OPTML-Group/DeepZero")
    add_problem_options(parser)
    add_options(parser)
    options = parser.parse_args(arguments)
    for text in (*set(options.cases) - set(CASES), *set(options.rivals) - set(known)):
        parser.error(f"{text!r} is none of {[*CASES]} and none of {[*known]}")

    start(options)
    rows = [measure(name, options) for name in options.cases]
    write_json(options, {"torchzero": version_of("torchzero"), "cases": rows})
    return rows


if __name__ == "__main__":
    main()
