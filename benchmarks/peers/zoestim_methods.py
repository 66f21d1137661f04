"""zoestim's own settings, through the public parameters of ZOClassifier alone."""

import contextlib
from typing import Any

import torch
from skorch.callbacks import Callback

from benchmarks.peers.search import BATCH_SIZE, Method, Search, flat
from zoestim import QueryError, ZOClassifier

# The budget ends a fit; its learning rate falls to zero over the budget.
ENDLESS = 10**7


class Counting(Callback):
    """Tells the search after each step what ZOClassifier has asked, and shows its module.

    Its engine answers the queries of a step together, so that they are not counted one by one.

    Parameters
    ----------
    search : Search
        What counts.
    """

    def __init__(self, search: Search) -> None:
        self.search = search
        self.seen = 0

    def on_batch_end(self, net: Any, batch: Any = None, **kwargs: Any) -> None:
        """Count the step, and the scores of pruning before it."""
        self.count(net.zo_step.n_queries, len(batch[0]))
        self.search.follow(lambda: flat(net.module_))
        self.search.look()

    def count(self, n_queries: int, n_samples: int = BATCH_SIZE) -> None:
        """Count what was asked since the last count."""
        self.search.spend(n_queries - self.seen, n_samples)
        self.seen = n_queries


def fit(
    search: Search,
    module: Any = None,
    budget: int | None = None,
    batch_size: int | None = BATCH_SIZE,
    **settings: Any,
) -> Any:
    """Fit a ZOClassifier, from a module or the search's own, and return its module.

    A batch size of None is all samples.
    """
    counting = Counting(search)
    model = ZOClassifier(
        search.module if module is None else module,
        max_queries=search.budget if budget is None else budget,
        callbacks=[counting],
        batch_size=len(search.X) if batch_size is None else batch_size,
        max_epochs=ENDLESS,
        random_state=search.seed,
        **settings,
    )
    search.look()
    with contextlib.suppress(QueryError):  # it diverged, and the module stands where it did
        model.fit(search.images.X, search.images.y)
    counting.count(model.n_queries_)  # the queries of a step that failed too
    search.follow(lambda: flat(model.module_))
    return model.module_


def rge_then_cge(search: Search, share: float, rge_lr: float, cge_lr: float) -> None:
    """Spend a share of the budget on few random directions, the rest on all coordinates."""
    module = fit(search, budget=round(share * search.budget), **RGE, lr=rge_lr)
    left = search.budget - search.n_queries
    if left > len(search.start):  # one step, at least
        fit(search, module, budget=left, sparsity=0, lr=cge_lr)


def rates(*lrs: float, **settings: Any) -> list[dict[str, Any]]:
    """Return settings that differ in the learning rate alone."""
    return [{**settings, "lr": lr} for lr in lrs]


RGE = {"gradient": "rge", "n_directions": 16, "sparsity": 0}
BY_BATCH = {"sparsity": 0.99, "mask_interval": "batch"}
# Rprop steps by signs alone, each coordinate by its own width: with all samples in each batch they
# are not noise, and few steps do much. Its widths do not fall with a schedule.
RPROP = {"optimizer": torch.optim.Rprop, "lr_schedule": "constant", "batch_size": None}
# A new set for each batch, and Adam, which goes on moving what is not asked this time.
ADAM = {
    "optimizer": torch.optim.Adam,
    "optimizer__betas": (0.9, 0.99),
    "sparsity": 0.9,
    "mask_interval": "batch",
    "update": "all",
}

METHODS = {
    "zoestim CGE": Method(fit, rates(1.0, 0.1, 0.3, 3.0, sparsity=0)),
    "zoestim CGE + Rprop": Method(fit, rates(0.05, 0.01, 0.02, 0.1, sparsity=0, **RPROP)),
    "zoestim CGE 90 % by epoch": Method(fit, rates(1.0, 0.1, 0.3, 3.0, sparsity=0.9)),
    "zoestim CGE 90 % by epoch (all move)": Method(
        fit, rates(0.3, 0.1, 1.0, 3.0, sparsity=0.9, update="all")
    ),
    "zoestim CGE 90 % + Rprop": Method(
        fit, rates(0.05, 0.01, 0.02, 0.1, sparsity=0.9, mask_interval=5, **RPROP)
    ),
    "zoestim CGE 90 % + Adam": Method(
        fit, [*rates(0.05, 0.02, **ADAM, batch_size=None), *rates(0.05, 0.02, **ADAM)]
    ),
    "zoestim CGE 99 % by batch": Method(
        fit, [*rates(3.0, 0.3, 1.0, **BY_BATCH), {**BY_BATCH, "lr": 3.0, "batch_size": None}]
    ),
    "zoestim CGE 99 % by batch (all move)": Method(
        fit,
        [
            *rates(1.0, 0.1, 0.3, **BY_BATCH, update="all"),
            {**BY_BATCH, "update": "all", "lr": 1.0, "batch_size": None},
        ],
    ),
    "zoestim RGE 16": Method(fit, rates(0.01, 0.003, 0.03, 0.1, **RGE)),
    "zoestim RGE 16 then CGE": Method(
        rge_then_cge,
        [
            {"share": share, "rge_lr": 0.02, "cge_lr": lr}
            for share in (0.5, 0.2)
            for lr in (0.3, 1.0)
        ],
    ),
}
