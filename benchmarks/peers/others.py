"""Two-point estimates, direct searches, torchzero, and backprop as the ceiling."""

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.baselines import pattern_search
from benchmarks.baselines.backprop import Backprop
from benchmarks.baselines.training import train
from benchmarks.peers.search import BATCH_SIZE, Method, Search, flat

CEILING_STEPS = 1_000  # of backprop, whatever the budget


def mezo(search: Search, lr: float, smoothing: float = 1e-3) -> None:
    """Take a step along one random direction for each two losses, on the same batch.

    References
    ----------
    J. C. Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient
    approximation", IEEE Trans. Automatic Control, 1992; S. Malladi et al., "Fine-tuning language
    models with just forward passes", NeurIPS 2023, whose directions are normal, as here.
    """
    theta = search.start.clone()
    search.follow(lambda: theta)
    while True:
        rate, batch = lr * search.cosine(), search.batch()
        direction = torch.randn(len(theta), generator=search.generator)
        above = search.loss(theta + smoothing * direction, batch)
        below = search.loss(theta - smoothing * direction, batch)
        theta -= rate * (above - below) / (2 * smoothing) * direction


def patterns(search: Search, delta: float, batch_size: int | None = None) -> None:
    """Run Pattern Search: each time the module is called is a query."""
    module, kept = search.module, [search.start]

    def keep() -> None:
        kept[:] = [flat(module)]
        search.look()

    search.follow(lambda: kept[-1])
    search.look()
    module.register_forward_pre_hook(lambda _, given: search.spend(1, len(given[0])))
    pattern_search.fit(
        module,
        search.X,
        search.y,
        max_queries=search.budget,
        batch_size=batch_size,
        delta=delta,
        seed=search.seed,
        on_kept=keep,
    )


def powell(search: Search, width: float, batch_size: int | None = None) -> None:
    """Run scipy's Powell, one line after the other, on the same samples each time."""
    from scipy.optimize import minimize

    batch, best = search.batch(batch_size), [search.start, float("inf")]

    def loss(theta: Any) -> float:
        value = search.loss(theta, batch)
        if value < best[1]:
            best[:] = [theta.copy(), value]
        return value

    search.follow(lambda: best[0])
    start = search.start.double().numpy()
    lines = width * torch.eye(len(start), dtype=torch.float64).numpy()
    limits = {"maxiter": search.budget, "maxfev": 2 * search.budget, "direc": lines}
    minimize(loss, start, method="Powell", options={**limits, "xtol": 0.1})


def torchzero(search: Search, estimator: str, n_samples: int, lr: float, **given: Any) -> None:
    """Run SGD with momentum along an estimate of torchzero."""
    import torchzero as tz

    module = search.module
    parts = [getattr(tz.m, estimator)(n_samples=n_samples, **given), tz.m.HeavyBall(0.9)]
    optimizer = tz.Optimizer(module.parameters(), *parts, tz.m.LR(lr))
    arrived = [search.start]
    search.follow(lambda: arrived[-1])
    while True:
        search.look()
        X, y = search.batch()

        def closure(backward: bool = True, X: Tensor = X, y: Tensor = y) -> Tensor:
            search.spend(1, len(X))
            return nn.functional.cross_entropy(module(X), y)

        optimizer.param_groups[0]["lr"] = lr * search.cosine()
        with torch.no_grad():
            optimizer.step(closure)
        arrived[:] = [flat(module)]


class Counted(Backprop):
    """Backprop that counts a gradient as a query."""

    def __init__(self, search: Search) -> None:
        self.search = search

    def __call__(self, module: nn.Module, X: Tensor, y: Tensor) -> float:
        """Write the gradient by autograd."""
        self.search.look()
        self.search.spend(1, len(X))
        return super().__call__(module, X, y)


def backprop(search: Search, lr: float) -> None:
    """Train by exact gradients: SGD with momentum, at most `CEILING_STEPS`."""
    search.follow(lambda: flat(search.module))
    steps = min(CEILING_STEPS, search.budget)
    about = {"epochs": steps, "max_steps": steps, "batch_size": BATCH_SIZE, "lr": lr}
    train(search.module, search.X, search.y, Counted(search), **about, seed=search.seed)


METHODS = {
    "MeZO": Method(mezo, [{"lr": lr} for lr in (1e-2, 1e-3, 3e-3, 3e-2)]),
    "Pattern Search": Method(
        patterns,
        [
            {"delta": delta, "batch_size": size}
            for size in (None, BATCH_SIZE)
            for delta in (0.1, 1.0)
        ],
    ),
    "scipy Powell": Method(
        powell,
        [
            {"width": width, "batch_size": size}
            for size in (None, BATCH_SIZE)
            for width in (1.0, 0.1)
        ],
    ),
    "torchzero RDSA 16": Method(
        torchzero,
        [
            {"estimator": "RDSA", "n_samples": 16, "formula": "forward2", "h": 5e-3, "lr": lr}
            for lr in (0.01, 0.003, 0.03, 0.1)
        ],
    ),
    "torchzero SPSA 1": Method(
        torchzero,
        [{"estimator": "SPSA", "n_samples": 1, "lr": lr} for lr in (1e-3, 1e-4, 3e-4, 3e-3)],
    ),
    "backprop (1000 steps)": Method(
        backprop, [{"lr": lr} for lr in (0.1, 0.03, 0.3, 1.0)], by_queries=False
    ),
}
