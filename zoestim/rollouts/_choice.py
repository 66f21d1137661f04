"""What a fit finds out before it trains: the cheaper gradient, and whether its step is right."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from sklearn.base import clone
from torch import Tensor

from zoestim.evaluation import (
    Asking,
    Batch,
    Objective,
    RandomState,
    draw_seed,
    evaluate,
)
from zoestim.gradients import CoordinateQueries
from zoestim.rollouts._step import make_pull
from zoestim.rollouts._unrolled import Unrolled

N_TIMED = 3  # of which the median counts
LONG = 1.0  # seconds, beyond which one time tells enough
N_CHECKED = 32  # coordinates
SMALLER = 4  # by what the other step is smaller
AGREEMENT = 0.9  # a cosine below which two steps are said to disagree
DIFFERENCE = 0.5  # and a difference above which they are, relative to the smaller step's


@dataclass(frozen=True)
class GradientCheck:
    """Two finite-difference estimates of one gradient, with different steps.

    Attributes
    ----------
    steps : (float, float)
        The step of the fit, and a smaller one.
    cosine : float
        Of the angle between the two estimates: 1 where they agree, 0 if one of them is zero, or
        both are.
    difference : float
        The length of their difference, relative to the estimate of the smaller step; infinity
        if that is zero.
    n_coordinates : int
        How many coordinates were looked at.
    n_queries : int
        What that took.
    n_failed : int
        How many of them failed; their coordinates are left out.
    """

    steps: tuple[float, float]
    cosine: float
    difference: float
    n_coordinates: int
    n_queries: int
    n_failed: int

    @property
    def agrees(self) -> bool:
        """Whether nothing speaks against the step."""
        return self.cosine >= AGREEMENT and self.difference <= DIFFERENCE

    def complaint(self) -> str:
        """Return what speaks against the step, and what to do."""
        if not math.isfinite(self.difference):
            return (
                f"vanishes with a finite-difference step of {self.steps[1]:g}: so small a change "
                "does not reach the loss. Take a larger smoothing; check_solver proposes one."
            )
        return (
            f"depends on the finite-difference step: estimates with {self.steps[0]:g} and "
            f"{self.steps[1]:g} have a cosine of {self.cosine:.3f} and differ by "
            f"{self.difference:.2g} times the second. Take a smaller smoothing if the step is too "
            "coarse, or scheme='central' with a larger one if the solver is noisy; check_solver "
            "tells which."
        )


def takes_less(unrolled: Unrolled, rows: Tensor, n_active: int) -> tuple[str, str]:
    """Return the cheaper gradient, ``"cge"`` or ``"solver-vjp"``, and a sentence that says why.

    Differences at the solver's input take a solver step for each number of a state, those of the
    weights a step of solver and corrector for each weight that is queried.

    Parameters
    ----------
    unrolled : Unrolled
        Solver and corrector.
    rows : Tensor of shape (n, width)
        What they are timed on, where the counts do not decide.
    n_active : int
        How many weights a step queries.
    """
    width = unrolled.rows.n_state
    why = f"a state has {width} numbers, a step queries {n_active} weights"
    if width <= n_active:
        return "solver-vjp", why
    channels, states = unrolled.channels(rows), unrolled.rows.states(rows)
    # One by one, two rows tell as much. As copies of one row each: one that fails does not raise.
    few = rows if unrolled.box.function.solver.batched else rows[:2]
    solver = _seconds(lambda: unrolled.box.call((), few[:, None], ())) * len(rows) / len(few)
    with unrolled.in_use():
        network = _seconds(lambda: unrolled.correct(states, channels))
    why += f", and the corrector takes {network / solver:.3g} times as long as the solver"
    return ("solver-vjp" if width * solver < n_active * (solver + network) else "cge"), why


@torch.no_grad()
def _seconds(run: Callable[[], Any]) -> float:
    found = []
    for _ in range(1 + N_TIMED):
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
        if found[0] > LONG:
            return found[0]
    return median(found[1:])  # the first time is often slower


def check_step(
    unrolled: Unrolled,
    objective: Objective,
    batch: Batch,
    strategy: Any,
    generator: torch.Generator,
    asking: Asking,
    most: float = math.inf,
) -> GradientCheck | None:
    """Compare the estimate of a strategy with that of a smaller step, on some coordinates.

    Parameters
    ----------
    unrolled : Unrolled
        Solver and corrector.
    objective : Objective
        The loss of the roll-outs.
    batch : Batch
        Some rows, and what is to come of them.
    strategy : GradientEstimator
        How gradients are estimated.
    generator : torch.Generator
        Draws the coordinates and directions.
    asking : Asking
        Where to ask.
    most : float, default=inf
        The queries that are left for it.

    Returns
    -------
    GradientCheck or None
        None where a strategy has no step that could be changed.

    Raises
    ------
    ValueError
        If it would take more queries than are left, before the first.
    """
    if "smoothing" not in getattr(strategy, "get_params", dict)():
        return None
    if unrolled.slope == "queries":
        objective, batch = _through_solver(unrolled, objective, batch, generator)
    size = objective.parameters.size
    coordinates = _some_of_each(objective, generator)
    if (cost := 2 * (1 + strategy.n_queries(len(coordinates)))) > most:
        raise ValueError(
            f"max_queries leaves {most:g} queries for the gradient check beside one step of "
            f"training; it takes {cost}. Raise max_queries by {cost - most:g}, or set "
            "check_gradient=False."
        )
    seed, random = draw_seed(generator), RandomState.seeded(draw_seed(generator), batch.X.device)
    step, found, n_queries, n_failed = float(strategy.smoothing), [], 0, 0
    kept = torch.ones(size, dtype=torch.float64)
    for smoothing in (step, step / SMALLER):
        own = clone(strategy).set_params(smoothing=smoothing)
        drawn = torch.Generator().manual_seed(seed)  # the same directions
        queries = own.queries(coordinates, objective.parameters.segments(coordinates), drawn)
        answers = evaluate(objective, batch, queries, random, asking)
        found.append(own.combine(queries, answers.base_loss, answers.losses).dense(size))
        n_queries, n_failed = n_queries + 1 + len(queries), n_failed + len(answers.lost)
        if isinstance(queries, CoordinateQueries):
            kept[queries.indices[[failure.position for failure in answers.lost]]] = 0
    first, second = (each * kept for each in found)
    lengths = float(first.norm()), float(second.norm())
    cosine = float(first @ second) / math.prod(lengths) if all(lengths) else 0.0
    difference = float((first - second).norm()) / lengths[1] if lengths[1] else math.inf
    steps = step, step / SMALLER
    return GradientCheck(steps, cosine, difference, len(coordinates), n_queries, n_failed)


def _some_of_each(objective: Objective, generator: torch.Generator) -> Tensor:
    """Return some coordinates of each parameter: of a new corrector, only the last layer's act."""
    sizes = objective.parameters.sizes
    share = math.ceil(N_CHECKED / len(sizes))
    drawn = {name: torch.randperm(n, generator=generator)[:share] for name, n in sizes.items()}
    return objective.parameters.flatten({name: part.sort().values for name, part in drawn.items()})


def _through_solver(
    unrolled: Unrolled, like: Objective, batch: Batch, generator: torch.Generator
) -> tuple[Objective, Batch]:
    """Return a random product with the solver's result, as a function of its input."""
    objective, unit = make_pull(unrolled, len(batch.X), like)
    factors = torch.randn(len(batch.X), len(unit), generator=generator).to(batch.X)
    objective.loss.per_sample = False
    rows = torch.cat([batch.X, factors], 1)
    return objective, Batch(rows, rows[:, :1], None, batch.label)
