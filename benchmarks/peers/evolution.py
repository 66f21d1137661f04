"""Evolution strategies and their like: pycma, nevergrad, EvoTorch; a generation has one batch."""

import logging
import warnings
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.search import BATCH_SIZE, Method, Search

POPULATION = 100  # of PGPE; the others choose by the number of parameters


def cma_es(
    search: Search, sigma: float, diagonal: bool, batch_size: int | None = BATCH_SIZE
) -> None:
    """Run CMA-ES until the budget is spent: its own tests of convergence do not end it."""
    import cma

    options = {"CMA_diagonal": diagonal, "seed": search.seed + 1, "verbose": -9}
    strategy = cma.CMAEvolutionStrategy(search.start.double().numpy(), sigma, options)
    search.follow(lambda: strategy.mean)
    while True:
        batch, thetas = search.batch(batch_size), strategy.ask()
        strategy.tell(thetas, [search.loss(theta, batch) for theta in thetas])


def nevergrad(
    search: Search, optimizer: str, sigma: float, batch_size: int | None = BATCH_SIZE
) -> None:
    """Run an optimizer of nevergrad by its name."""
    import nevergrad as ng
    import numpy as np

    given = ng.p.Array(init=search.start.double().numpy()).set_mutation(sigma=sigma)
    given.random_state = np.random.RandomState(search.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chosen = ng.optimizers.registry[optimizer](given, budget=search.budget, num_workers=1)
        search.follow(lambda: chosen.recommend().value if chosen.num_tell else search.start)
        while True:
            asked = chosen.ask()
            chosen.tell(asked, search.loss(asked.value, search.batch(batch_size)))


def evotorch_problem(search: Search, batch_size: int | None) -> Any:
    """Return the loss of a search as a problem of EvoTorch."""
    from evotorch import Problem

    logging.getLogger("evotorch").setLevel(logging.WARNING)

    def losses(thetas: Tensor) -> Tensor:
        batch = search.batch(batch_size)
        return torch.tensor([search.loss(theta, batch) for theta in thetas])

    # Of the first values all but the length is replaced by `center_init`.
    about = {"solution_length": len(search.start), "initial_bounds": (-1.0, 1.0)}
    return Problem("min", losses, **about, vectorized=True, seed=search.seed, dtype=torch.float32)


def snes(search: Search, stdev: float, batch_size: int | None = BATCH_SIZE) -> None:
    """Run SNES with its own rates."""
    from evotorch.algorithms import SNES

    problem = evotorch_problem(search, batch_size)
    evolve(search, SNES(problem, stdev_init=stdev, center_init=search.start))


def pgpe(search: Search, stdev: float, lr: float, batch_size: int | None = BATCH_SIZE) -> None:
    """Run PGPE with pairs of opposite directions and ClipUp, as its authors do."""
    from evotorch.algorithms import PGPE

    searcher = PGPE(
        evotorch_problem(search, batch_size),
        popsize=POPULATION,
        center_learning_rate=lr,
        stdev_learning_rate=0.1,
        stdev_init=stdev,
        center_init=search.start,
    )
    evolve(search, searcher)


def evolve(search: Search, searcher: Any) -> None:
    """Step until the budget is spent."""
    centers = [search.start]
    search.follow(lambda: centers[-1])
    while True:
        searcher.step()
        centers[:] = [torch.as_tensor(searcher.status["center"]).clone()]


def widths(name: str, **settings: Any) -> list[dict[str, Any]]:
    """Return settings that differ in the first width of the search, one of them on all samples."""
    some = [{**settings, name: width} for width in (0.1, 0.03, 0.3)]
    return [*some, {**settings, name: 0.1, "batch_size": None}]


# A (1+1) keeps what was best on its own batch: it wants the same samples each time.
ELITIST = [{"sigma": sigma, "batch_size": None} for sigma in (0.1, 0.03, 0.3)] + [{"sigma": 0.1}]

METHODS = {
    "CMA-ES": Method(cma_es, widths("sigma", diagonal=False)),
    "CMA-ES (diagonal)": Method(cma_es, widths("sigma", diagonal=True)),
    "nevergrad OnePlusOne": Method(nevergrad, [{"optimizer": "OnePlusOne", **s} for s in ELITIST]),
    "nevergrad NGOpt": Method(nevergrad, [{"optimizer": "NGOpt", **s} for s in ELITIST]),
    "EvoTorch SNES": Method(snes, widths("stdev")),
    "EvoTorch PGPE": Method(
        pgpe, [{"stdev": stdev, "lr": lr} for stdev in (0.1, 0.03) for lr in (0.1, 0.3)]
    ),
}
