"""Methods that see more than function values, or search in another way, as cells of a figure."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from benchmarks.baselines import pattern_search
from benchmarks.baselines.training import Rule, accuracy, settle, train
from benchmarks.paper.figure import RECIPE, Images


@dataclass(frozen=True)
class ByRule:
    """SGD along what a rule calls the gradient.

    Parameters
    ----------
    name : str
        The rule's name.
    rule : callable
        Gives a fresh rule, for a module, its images and a seed.
    settings : mapping
        Parameters of `train`, beside the recipe of the paper.
    """

    name: str
    rule: Callable[[nn.Module, Images, int], Rule]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def about(self) -> dict[str, Any]:
        """Return the rule and the parameters."""
        return {"by": self.name, **RECIPE, **self.settings}

    def fit(self, module: nn.Module, images: Images, seed: int, device: str) -> dict[str, Any]:
        """Train the module by the rule."""
        module = module.to(device)
        start = time.perf_counter()
        rule = self.rule(module, images, seed)
        given = {**RECIPE, "epochs": 1, **self.settings}
        accuracies: list[float] = []

        def test() -> None:
            accuracies.append(accuracy(module, images.X_test, images.y_test))

        losses = train(module, images.X, images.y, rule, **given, seed=seed, on_epoch=test)
        seconds = time.perf_counter() - start
        return {
            "accuracy": accuracies[-1],
            "train_loss": losses[-1],
            "accuracies": accuracies,
            "losses": losses,
            "queries": None,
            "seconds": round(seconds, 2),
        }


@dataclass(frozen=True)
class BySearch:
    """Pattern Search.

    Parameters
    ----------
    settings : mapping
        Parameters of `pattern_search.fit`.
    """

    settings: Mapping[str, Any]

    def about(self) -> dict[str, Any]:
        """Return the parameters."""
        return {"by": "pattern search", **self.settings}

    def fit(self, module: nn.Module, images: Images, seed: int, device: str) -> dict[str, Any]:
        """Search from the module as it is; BatchNorm normalises by the batch meanwhile."""
        module = module.to(device).train()
        start = time.perf_counter()
        found = pattern_search.fit(module, images.X, images.y, **self.settings, seed=seed)
        seconds = time.perf_counter() - start
        settle(module, images.X)
        return {
            "accuracy": accuracy(module, images.X_test, images.y_test),
            "train_loss": found["losses"][-1],
            "queries": found["n_queries"],
            "seconds": round(seconds, 2),
        }
