"""Table A1: the stages of a step of RGE and of CGE: ``python -m benchmarks.paper.table_a1``.

Both as loops of forward passes, as the paper times them, with q = d and a look at the clock after
each stage; a sample of the queries is timed. zoestim does not go through these stages one query
after the other: ``python -m benchmarks.speed.stages`` tells where its time goes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.paper.figure import Cell, Figure, Images, Sizes, main
from benchmarks.speed.problems import SMOOTHING, Problem, every_coordinate, n_parameters
from benchmarks.speed.stages import STAGES, Clock
from zoestim.models import SimpleCNN

# Seconds a step by depth, 1 to 5, and stage: directions, perturbation, inference, arithmetic.
PAPER = {
    "RGE": (
        (0.173, 0.152, 0.202, 0.149),
        (1.43, 1.2, 2.11, 1.1),
        (3.49, 2.93, 4.84, 2.68),
        (6.74, 5.47, 8.3, 4.97),
        (10.2, 8.86, 13.1, 8.05),
    ),
    "CGE": (
        (0, 0.026, 0.21, 0.0312),
        (0, 0.0907, 1.98, 0.124),
        (0, 0.159, 4.53, 0.225),
        (0, 0.246, 8.09, 0.336),
        (0, 0.457, 14.6, 0.566),
    ),
}
# What `benchmarks.speed.stages` calls them, and the paper.
NAMES = dict(zip(STAGES, ("directions", "perturbation", "inference", "arithmetic"), strict=True))
DEPTHS = {"smoke": (1,), "cpu": (1, 2, 3, 4, 5), "paper": (1, 2, 3, 4, 5)}
SAMPLED = {"smoke": 2, "cpu": 64, "paper": 256}
BATCH_SIZE = 128


@dataclass(frozen=True)
class Stage:
    """The time that one stage takes in a step of q = d queries.

    Parameters
    ----------
    kind : {"RGE", "CGE"}
        The estimate.
    stage : str
        One of `STAGES`.
    n_timed : int
        How many queries are timed; the time of a step is in proportion.
    """

    kind: str
    stage: str
    n_timed: int

    def about(self) -> dict[str, Any]:
        """Return the parameters."""
        return vars(self)

    def fit(self, module: nn.Module, images: Images, seed: int, device: str) -> dict[str, Any]:
        """Time some queries, after two that do not count."""
        X, y = (torch.as_tensor(each[:BATCH_SIZE]).to(device) for each in (images.X, images.y))
        module = module.to(device)
        problem = Problem(self.kind, module, X, y, every_coordinate(module), images.about)
        ask = directions if self.kind == "RGE" else coordinates
        ask(problem, 2, seed)
        clock = ask(problem, self.n_timed, seed)
        whole = problem.n_coordinates / self.n_timed
        return {"stage_seconds": whole * clock.seconds[self.stage]}


@torch.no_grad()
def directions(problem: Problem, n: int, seed: int) -> Clock:
    """Ask for the first n directions of RGE one after the other, and return the clock."""
    parameters = list(problem.module.parameters())
    generator = torch.Generator(problem.X.device).manual_seed(seed)
    base = problem.criterion(problem.module(problem.X), problem.y)
    estimate = [torch.zeros_like(p) for p in parameters]
    clock = Clock(str(problem.X.device))
    for _ in range(n):
        direction = [_normal(p, generator) for p in parameters]
        clock.lap("coordinates")
        before = [p.clone() for p in parameters]
        for p, u in zip(parameters, direction, strict=True):
            p.add_(u, alpha=SMOOTHING)
        clock.lap("perturbation")
        loss = problem.criterion(problem.module(problem.X), problem.y)
        clock.lap("inference")
        for p, old in zip(parameters, before, strict=True):
            p.copy_(old)
        clock.lap("perturbation")
        for total, u in zip(estimate, direction, strict=True):
            total.add_(u, alpha=float(loss - base) / SMOOTHING / n)
        clock.lap("other")
    return clock


@torch.no_grad()
def coordinates(problem: Problem, n: int, seed: int) -> Clock:
    """Ask for n coordinates of CGE one after the other, and return the clock."""
    sample = problem.sample(n, seed).coordinates
    asked = [(problem.module.get_parameter(name), i) for name in sample for i in sample[name]]
    base = problem.criterion(problem.module(problem.X), problem.y)
    gradients = {p: torch.zeros_like(p).view(-1) for p, _ in asked}
    clock = Clock(str(problem.X.device))
    for p, index in asked:
        flat = p.view(-1)
        before = flat[index].clone()
        flat[index] += SMOOTHING
        clock.lap("perturbation")
        loss = problem.criterion(problem.module(problem.X), problem.y)
        clock.lap("inference")
        flat[index] = before
        clock.lap("perturbation")
        gradients[p][index] = (loss - base) / SMOOTHING
        clock.lap("other")
    return clock


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def cells(scale: str) -> Sequence[Cell]:
    """Return a cell for each stage and depth."""
    found = []
    for kind, papers in PAPER.items():
        for number, (stage, name) in enumerate(NAMES.items()):
            for depth in DEPTHS[scale]:
                make = partial(SimpleCNN, depth)
                method, paper = Stage(kind, stage, SAMPLED[scale]), papers[depth - 1][number]
                row = f"{kind}: {name}"
                found.append(Cell(row, n_parameters(make()), make, method, paper=paper))
    return found


FIGURE = Figure(
    name="table_a1",
    title="seconds of each stage in a step of q = d queries, RGE and CGE as loops",
    axis="parameters",
    cells=cells,
    sizes={
        "smoke": Sizes(128, 128, 8),
        "cpu": Sizes(512, 128, 32),
        "paper": Sizes(512, 128, 32),
    },
    value="stage_seconds",
    unit=1.0,
    notes={
        "cpu": (
            "One thread; the paper's seconds are those of a GPU. 64 queries are timed, in batches",
            "of 128. Where zoestim's time goes: `python -m benchmarks.speed.stages`.",
        )
    },
)

if __name__ == "__main__":
    main(FIGURE)
