"""How many digits of a gradient are left at each step: ``python -m benchmarks.precision``.

The gradient is estimated by forward differences with the steps (smoothing) mu of `SMOOTHINGS`:
by plain differences in float32 (move a coordinate, run the module, subtract the losses), by
zoestim in float32, and by zoestim with `precision="bfloat16"`. Each estimate is compared twice:

- `rounding`, with the same difference in float64: what the arithmetic loses;
- `error`, with the gradient by autograd in float64: rounding and truncation, what a user sees.

Both are ``||g - reference|| / ||reference||`` over a fixed sample of coordinates, as many from each
parameter. Two more rows show truncation alone: differences in float64, and central ones by zoestim
in float32.
"""

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from benchmarks.speed.measure import cpu_model, print_table, write_json
from benchmarks.speed.problems import Problem, built, cnn_problem, images, mlp_problem
from benchmarks.speed.rivals import moved_losses
from zoestim import estimate_gradient
from zoestim.gradients import CoordinateQueries, SparseGradient
from zoestim.models import resnet20

SMOOTHINGS = (1e-1, 1e-2, 5e-3, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
Differences = tuple[Tensor, Tensor]

# --- What is differentiated


def resnet_problem(options: argparse.Namespace) -> Problem:
    """Return a ResNet-20 on a batch of images; its coordinates are drawn by `sampled`."""
    X, y, source = images(options.data, options.batch_size, options.seed)
    return Problem("resnet20", built(resnet20, options.seed), X, y, {}, source)


MODELS: dict[str, Callable[[argparse.Namespace], Problem]] = {
    "mlp": lambda options: mlp_problem(32, options),
    "simple_cnn": lambda options: cnn_problem(2, options, name="simple_cnn"),
    "resnet20": resnet_problem,
}


def sampled(problem: Problem, n: int, seed: int) -> Problem:
    """Return the problem at about n coordinates: as many from each parameter, at least one."""
    sizes = {name: p.numel() for name, p in problem.module.named_parameters()}
    generator = torch.Generator().manual_seed(seed)
    each = max(1, n // len(sizes))
    chosen = {
        name: torch.randperm(size, generator=generator)[:each].sort().values
        for name, size in sizes.items()
    }
    return problem.at(chosen)


def doubled(problem: Problem) -> Problem:
    """Return the problem in float64, at the same parameters."""
    return replace(problem, module=copy.deepcopy(problem.module).double(), X=problem.X.double())


# --- How


def plain(problem: Problem, smoothing: float) -> Tensor:
    """Estimate as Eq. (1) is read, in the type of the module: move, run, subtract."""
    base, losses = moved_losses(problem, smoothing)
    return (torch.stack(losses).double() - base.double()) / smoothing


def gradient(problem: Problem) -> Tensor:
    """Return the true partial derivatives, by autograd in float64."""
    exact = doubled(problem)
    parameters = dict(exact.module.named_parameters())
    loss = exact.criterion(exact.module(exact.X), exact.y)
    grads = torch.autograd.grad(loss, list(parameters.values()))
    found = dict(zip(parameters, grads, strict=True))
    return torch.cat([found[name].flatten()[i] for name, i in exact.coordinates.items()])


class Steps(BaseEstimator):
    """Differences at many steps, both ways, in one estimate: the module is traced but once.

    Parameters
    ----------
    smoothings : sequence of float
        The steps.
    """

    def __init__(self, smoothings: Sequence[float]):
        self.smoothings = smoothings

    def n_queries(self, n_coordinates: int) -> int:
        """Return how many losses are asked for."""
        return 2 * len(self.smoothings) * n_coordinates

    def queries(self, coordinates: Tensor, segments: Any, generator: Any) -> CoordinateQueries:
        """Ask all coordinates, at one step after another."""
        ahead = torch.tensor(self.smoothings, dtype=torch.float64)
        steps = torch.cat([ahead, -ahead])
        repeated = steps.repeat_interleave(len(coordinates))
        return CoordinateQueries(coordinates.repeat(len(steps)), repeated)

    def combine(self, queries: CoordinateQueries, base: float, losses: Tensor) -> SparseGradient:
        """Return the difference of each query."""
        return SparseGradient(queries.indices, (losses - base) / queries.steps)


def by_zoestim(problem: Problem, smoothings: Sequence[float], precision: str) -> Differences:
    """Return forward and central differences by this package, one row a step."""
    found = estimate_gradient(
        problem.module,
        problem.criterion,
        problem.X,
        problem.y,
        method=Steps(smoothings),
        coordinates=problem.coordinates,
        precision=precision,
    )
    ahead, behind = found.gradient.values.view(2, len(smoothings), -1)
    return ahead, (ahead + behind) / 2


def distance(found: Tensor, reference: Tensor) -> float:
    """Return the difference of two gradients, relative to the second."""
    return float((found - reference).norm() / reference.norm())


def measure(problem: Problem, smoothings: Sequence[float]) -> list[dict[str, Any]]:
    """Return the errors of all methods at all steps, a row each."""
    true, exact = gradient(problem), doubled(problem)
    short, central = by_zoestim(problem, smoothings, "float32")
    shorter, _ = by_zoestim(problem, smoothings, "bfloat16")
    rows = []
    for k, smoothing in enumerate(smoothings):
        reference = plain(exact, smoothing)
        found = {
            "plain float32": (plain(problem, smoothing), reference),
            "zoestim float32": (short[k], reference),
            "zoestim bfloat16": (shorter[k], reference),
            "zoestim float32, central": (central[k], None),
            "plain float64": (reference, None),
        }
        for method, (values, at_same_step) in found.items():
            rounding = None if at_same_step is None else distance(values, at_same_step)
            errors = {"rounding": rounding, "error": distance(values, true)}
            rows.append({"model": problem.name, "smoothing": smoothing, "method": method, **errors})
    return rows


# --- What is shown

LINES: dict[str, dict[str, Any]] = {  # what is drawn later lies above
    "plain float64": {"color": "0.8", "linewidth": 5},
    "plain float32": {"color": "tab:red"},
    "zoestim bfloat16": {"color": "tab:orange", "linewidth": 2.5},
    "zoestim float32": {"color": "tab:blue"},
    "zoestim float32, central": {"color": "tab:green"},
}


def curves(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a line of each method on each model, its errors in the order of the steps."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        key = {"model": row["model"], "method": row["method"]}
        curve = found.setdefault(tuple(key.values()), {**key, "rounding": [], "error": []})
        for name in ("rounding", "error"):
            if row[name] is not None:
                curve[name].append(float(f"{row[name]:.3e}"))
    return list(found.values())


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the errors against the step, a panel a model."""
    from matplotlib.figure import Figure

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(3.4 * len(models) + 0.6, 3.6), layout="constrained")
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for panel, model in zip(panels, models, strict=True):
        for method, line in LINES.items():
            own = [row for row in rows if (row["model"], row["method"]) == (model, method)]
            steps = [row["smoothing"] for row in own]
            panel.loglog(steps, [row["error"] for row in own], label=method, **line)
            if own[0]["rounding"] is not None:
                panel.loglog(steps, [row["rounding"] for row in own], "--", **line)
        panel.set(title=model, xlabel="smoothing µ")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("relative error of the gradient")
    panels[0].plot([], [], "k-", label="from the true gradient")
    panels[0].plot([], [], "k--", label="from float64 differences")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, dpi=100)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Print the table and return its rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", default=",".join(MODELS), help=f"some of {', '.join(MODELS)}")
    parser.add_argument("--data", type=Path, help="CIFAR-10 (see load_cifar10); else noise")
    parser.add_argument("--n-coordinates", type=int, default=60, help="of each model, about")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--smoothings", type=float, nargs="+", default=SMOOTHINGS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write all errors and versions to this file")
    parser.add_argument("--plot", type=Path, help="draw the errors to this PNG")
    options = parser.parse_args(arguments)
    options.device = "cpu"
    names = options.models.split(",")
    if unknown := set(names) - MODELS.keys():
        parser.error(f"unknown models {sorted(unknown)}; expected some of {list(MODELS)}")

    print(f"{cpu_model()}, torch {torch.__version__}; relative errors of the gradient")
    problems = [
        sampled(MODELS[name](options), options.n_coordinates, options.seed) for name in names
    ]
    rows = [row for problem in problems for row in measure(problem, options.smoothings)]
    print_table(rows)
    sampled_from = [
        {"model": p.name, "data": p.data.partition(",")[0], "n_coordinates": p.n_coordinates}
        for p in problems
    ]
    write_json(options, {"models": sampled_from, "curves": curves(rows)})
    if options.plot is not None:
        plot(rows, options.plot)
    return rows


if __name__ == "__main__":
    main()
