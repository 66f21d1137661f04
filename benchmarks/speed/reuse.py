"""What feature reuse saves, layer by layer, Fig. 3: ``python -m benchmarks.speed.reuse``.

For each convolution of a ResNet-20, the time of a coordinate with feature_reuse=True and False.
It is the time of `--n-coordinates` coordinates of that layer less the time of one, divided by
their difference: the base loss and the trace, shared by all layers of a step, are left out.
"""

import argparse
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.speed.measure import Runs, add_options, interleaved, print_table, start, write_json
from benchmarks.speed.problems import Problem, built, images
from benchmarks.speed.rivals import AuthorsWorker, Estimate, Kept
from zoestim.models import ResNet

WITH, WITHOUT = "zoestim, reuse", "zoestim, no reuse"
AUTHORS = "authors, reuse"


def image_problem(options: argparse.Namespace) -> Problem:
    """Return a residual network on a batch, without coordinates."""
    X, y, source = images(options.data, options.batch_size, options.seed)
    module = built(lambda: ResNet(options.depth), options.seed).to(options.device)
    X, y = X.to(options.device), y.to(options.device)
    return Problem(f"resnet{options.depth}", module, X, y, {}, source)


def convolutions(module: nn.Module) -> list[str]:
    """Return the names of the convolutions' weights, in the order of the forward pass."""
    layers = module.named_modules()
    return [f"{name}.weight" for name, layer in layers if isinstance(layer, nn.Conv2d)]


def measure(
    estimates: dict[str, Estimate], problem: Problem, name: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Return the figures of one layer."""
    size = problem.module.get_parameter(name).numel()
    order = torch.randperm(size, generator=torch.Generator().manual_seed(options.seed))
    n = min(options.n_coordinates, size)
    many, one = (problem.at({name: order[:k].sort().values}) for k in (n, 1))
    calls = {}
    for method, estimate in estimates.items():
        calls[method] = (partial(estimate, many), n)
        calls[f"{method}, one coordinate"] = (partial(estimate, one), 1)
    runs = interleaved(calls, options.repeats, options.device)
    cost = {name: difference(runs[name], runs[f"{name}, one coordinate"]) for name in estimates}
    return {
        "layer": name,
        "methods": [each.as_row() for each in runs.values()],
        "seconds_per_coordinate": cost,
        "saved": cost[WITHOUT] / cost[WITH],
    }


def difference(many: Runs, one: Runs) -> float:
    """Return the time of a coordinate without what is done once an estimate, over the rounds."""
    more = many.n_coordinates - one.n_coordinates
    pairs = zip(many.seconds, one.seconds, strict=True)
    return statistics.median((a - b) / more for a, b in pairs)


def line(row: dict[str, Any]) -> dict[str, Any]:
    """Return one row of the table."""
    cells = {f"{method}, ms": 1000 * s for method, s in row["seconds_per_coordinate"].items()}
    return {"layer": row["layer"], "depth": row["depth"], **cells, "no reuse / reuse": row["saved"]}


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the time of a coordinate against the depth of its layer."""
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(6, 3.5), layout="constrained")).subplots()
    depths = [row["depth"] for row in rows]
    for method in rows[0]["seconds_per_coordinate"]:
        seconds = [row["seconds_per_coordinate"][method] for row in rows]
        axes.plot(depths, [1000 * s for s in seconds], marker="o", label=method)
    axes.set_xlabel("depth of the perturbed convolution")
    axes.set_ylabel("ms a coordinate")
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    figure.savefig(path)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Print the table and return its figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--n-coordinates", type=int, default=16, help="of each layer, 2 or more")
    parser.add_argument("--depth", type=int, default=20, help="of the residual network")
    parser.add_argument("--every", type=int, default=1, help="time each n-th convolution only")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--data", type=Path, help="CIFAR-10 (see load_cifar10); else noise")
    parser.add_argument("--deepzero", type=Path, help="checkout of OPTML-Group/DeepZero")
    parser.add_argument("--plot", type=Path, help="write a figure here")
    add_options(parser)
    options = parser.parse_args(arguments)
    if options.n_coordinates < 2:
        parser.error("--n-coordinates must be at least 2")
    if options.deepzero is not None and options.depth != 20:
        parser.error("--deepzero needs --depth 20: the authors' reuse is of ResNet-20 only")

    start(options)
    problem = image_problem(options)
    print(f"{problem.name}, batch {len(problem.X)}, {problem.data}; {options.n_coordinates} each")
    estimates: dict[str, Estimate] = {
        WITH: Kept(problem),
        WITHOUT: Kept(problem, feature_reuse=False),
    }
    if options.deepzero is not None:
        estimates[AUTHORS] = AuthorsWorker(options.deepzero, problem)
    layers = list(enumerate(convolutions(problem.module), 1))[:: options.every]
    rows = [{"depth": d} | measure(estimates, problem, name, options) for d, name in layers]
    print_table([line(row) for row in rows])
    if options.plot is not None:
        plot(rows, options.plot)
    write_json(options, {"data": problem.data, "layers": rows})
    return rows


if __name__ == "__main__":
    main()
