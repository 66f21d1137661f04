"""Figs. 3 and A2: what a query costs: ``python -m benchmarks.paper.fig3``.

CGE without feature reuse (Fig. 3) and RGE with q = d (Fig. A2), in units of CGE with it, on the
CNN of Fig. 2: the paper's hours in proportion, as all take the same queries. Each ratio is the
median of interleaved rounds, over a sample of the coordinates. Table A1, the stages of a step, is
``python -m benchmarks.speed.stages``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from benchmarks.paper.figure import Cell, Figure, Images, Sizes, main
from benchmarks.speed.measure import interleaved
from benchmarks.speed.problems import SMOOTHING, Problem, every_coordinate, n_parameters
from benchmarks.speed.rivals import Kept, loop
from zoestim.evaluation import Batch, evaluate
from zoestim.gradients import resolve_estimator
from zoestim.models import SimpleCNN

HOURS = {
    "CGE with feature reuse": (0.99, 5.11, 11.39, 18.91, 28.94),
    "CGE without feature reuse": (1.66, 12.08, 28.03, 45.22, 70.32),
    "RGE": (3.02, 27.18, 66.12, 144.92, 206.28),
}
BASE = "CGE with feature reuse"
DEPTHS = {"smoke": (1,), "cpu": (1, 2, 3, 4, 5), "paper": (1, 2, 3, 4, 5)}
SAMPLED = {"smoke": (8, 2), "cpu": (256, 16), "paper": (1024, 64)}  # coordinates, and directions
REPEATS = {"smoke": 1, "cpu": 5, "paper": 5}
BATCH_SIZE = 128


@dataclass(frozen=True)
class Cost:
    """The time of a query in units of that of CGE with feature reuse.

    Parameters
    ----------
    kind : str
        A key of `HOURS`, or ``"loop"``: CGE as a loop of forward passes.
    n_coordinates, n_directions : int
        How many are timed; of the loop as many as directions.
    repeats : int
        Rounds.
    """

    kind: str
    n_coordinates: int
    n_directions: int
    repeats: int

    def about(self) -> dict[str, Any]:
        """Return the parameters."""
        return vars(self)

    def fit(self, module: nn.Module, images: Images, seed: int, device: str) -> dict[str, Any]:
        """Time both."""
        X, y = (torch.as_tensor(each[:BATCH_SIZE]).to(device) for each in (images.X, images.y))
        module = module.to(device)
        whole = Problem(self.kind, module, X, y, every_coordinate(module), images.about)
        problem = whole.sample(self.n_coordinates, seed)
        n = problem.n_coordinates
        base = partial(Kept(problem), problem)
        runs = interleaved({BASE: (base, n), **self._rival(problem, n)}, self.repeats, device)
        base_runs, rival = runs[BASE], runs[self.kind]
        return {
            "ratio": rival.ratio_to(base_runs),
            "ms_per_query": 1000 * rival.median / rival.n_coordinates,
            "base_ms_per_query": 1000 * base_runs.median / n,
        }

    def _rival(self, problem: Problem, n: int) -> dict[str, tuple[Callable[[], Any], int]]:
        if self.kind == "loop":
            few = problem.sample(self.n_directions, 0)
            return {self.kind: (partial(loop, few), few.n_coordinates)}
        kept = Kept(problem, feature_reuse=self.kind == BASE)
        if self.kind != "RGE":
            return {self.kind: (partial(kept, problem), n)}
        return {"RGE": (partial(self._directions, kept, problem), self.n_directions)}

    def _directions(self, kept: Kept, problem: Problem) -> torch.Tensor:
        estimator = resolve_estimator("rge", SMOOTHING, "forward", self.n_directions)
        parameters = kept.objective.parameters
        every = torch.arange(parameters.size)
        generator = torch.Generator().manual_seed(0)
        queries = estimator.queries(every, parameters.segments(every), generator)
        found = evaluate(kept.objective, Batch(problem.X, problem.y), queries)
        return estimator.combine(queries, found.base_loss, found.losses).values


def cells(scale: str) -> Sequence[Cell]:
    """Return a cell for each method and depth."""
    found = []
    for place, depth in enumerate(DEPTHS[scale]):
        make = partial(SimpleCNN, depth)
        size = n_parameters(make())
        for kind in ("CGE without feature reuse", "RGE", "loop"):
            paper = HOURS[kind][place] / HOURS[BASE][place] if kind in HOURS else None
            method = Cost(kind, *SAMPLED[scale], REPEATS[scale])
            found.append(Cell(kind, size, make, method, paper=paper and round(paper, 2)))
    return found


FIGURE = Figure(
    name="fig3",
    title="the time of a query, in units of CGE with feature reuse",
    axis="parameters",
    cells=cells,
    sizes={
        "smoke": Sizes(128, 128, 8),
        "cpu": Sizes(512, 128, 32),
        "paper": Sizes(512, 128, 32),
    },
    value="ratio",
    unit=1.0,
    notes={
        "cpu": (
            "loop: one forward pass after the other. The base runs many coordinates at a time",
            "here, and does not in the paper.",
        )
    },
)

if __name__ == "__main__":
    main(FIGURE)
