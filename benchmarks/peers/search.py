"""The one counter of all methods: a search that may ask so often, and what was found meanwhile."""

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from benchmarks.baselines.training import accuracy, settle
from benchmarks.paper.figure import Images
from benchmarks.speed.problems import built

BATCH_SIZE = 128
N_CHECKPOINTS = 10
# In place of a loss that is not finite, which some libraries refuse.
DIVERGED = 1e6

Batch = tuple[Tensor, Tensor]


class BudgetSpent(Exception):
    """A method asked once more than it may."""


class Method(NamedTuple):
    """A way to train.

    Parameters
    ----------
    run : callable
        ``run(search, **settings)``: it asks `search.loss`, or counts by `search.spend` what it
        asks otherwise, and tells `search.follow` where it stands. It ends by itself or by
        `BudgetSpent`.
    settings : sequence of mapping
        What is tried by ``--tune``; the first is taken without.
    by_queries : bool
        Whether it sees function values alone; if not, its row is a ceiling.
    """

    run: Callable[..., None]
    settings: Sequence[Mapping[str, Any]]
    by_queries: bool = True


class Search:
    """A module to be trained by a number of losses, each on one mini-batch.

    Parameters
    ----------
    make : callable
        Gives a fresh module.
    images : Images
        What it is trained and tested on.
    budget : int
        How many losses may be asked.
    seed : int
        Of the first parameters, the batches, and what a method draws.

    Attributes
    ----------
    module : nn.Module
        In train mode: BatchNorm normalises by the batch. A method may train it in place.
    start : Tensor of shape (d,)
        Its first parameters.
    n_queries : int
        How many losses were asked.
    n_samples : int
        On how many samples in all.
    curve : list of dict
        Accuracy, loss and CPU seconds at some ten counts of queries.
    """

    def __init__(self, make: Callable[[], nn.Module], images: Images, budget: int, seed: int):
        self.module = built(make, seed)
        self.images = images
        self.budget = budget
        self.seed = seed
        self.start = flat(self.module)
        self.generator = torch.Generator().manual_seed(seed)
        self.X, self.y = torch.as_tensor(images.X), torch.as_tensor(images.y)
        self.n_queries = self.n_samples = 0
        self.curve: list[dict[str, float]] = []
        self._standing: Callable[[], Any] = self.start.clone
        self._shown = copy.deepcopy(self.module)
        self._due = 0.0
        self._began = time.process_time()

    def batch(self, size: int | None = BATCH_SIZE) -> Batch:
        """Draw a mini-batch; None is all samples, as they are."""
        if size is None or size >= len(self.X):
            return self.X, self.y
        rows = torch.randint(len(self.X), (size,), generator=self.generator)
        return self.X[rows], self.y[rows]

    @torch.no_grad()
    def loss(self, theta: Any, batch: Batch) -> float:
        """Answer a query: the mean cross entropy of parameters on a mini-batch."""
        self.look()
        self.spend(n_samples=len(batch[0]))
        vector_to_parameters(as_vector(theta), self.module.parameters())
        return finite(nn.functional.cross_entropy(self.module(batch[0]), batch[1]).item())

    def spend(self, n: int = 1, n_samples: int = BATCH_SIZE) -> None:
        """Count queries, each on so many samples; one more than the budget is refused."""
        if self.n_queries + n > self.budget:
            raise BudgetSpent
        self.n_queries += n
        self.n_samples += n * n_samples

    def cosine(self) -> float:
        """Return the factor of a step size that falls from 1 to 0 over the budget."""
        return (1 + math.cos(math.pi * self.n_queries / self.budget)) / 2

    # --- What was found

    def follow(self, standing: Callable[[], Any]) -> None:
        """Take what a function returns as the parameters that a method has arrived at."""
        self._standing = standing

    def look(self) -> None:
        """Add to the curve if that is due: where the method stands between two queries."""
        if not self.curve:  # what is imported and set up before the first query does not count
            self._began = time.process_time()
        if self.n_queries >= self._due:
            self.curve.append(self.found())
            step = self.budget / N_CHECKPOINTS
            self._due = step * (self.n_queries // step + 1)

    def found(self) -> dict[str, float]:
        """Return the figures of the parameters as they are now; their seconds do not count."""
        seconds, images = time.process_time() - self._began, self.images
        vector_to_parameters(as_vector(self._standing()).clone(), self._shown.parameters())
        settle(self._shown, self.X)
        figures = {
            "queries": self.n_queries,
            "samples": self.n_samples,
            "seconds": round(seconds, 3),
            "accuracy": accuracy(self._shown, images.X_test, images.y_test),
            "train_loss": mean_loss(self._shown, self.X, self.y),
            "test_loss": mean_loss(self._shown, images.X_test, images.y_test),
        }
        self._began = time.process_time() - seconds
        return figures


def flat(module: nn.Module) -> Tensor:
    """Return a copy of all parameters, one after the other."""
    return parameters_to_vector(module.parameters()).detach().clone()


def as_vector(theta: Any) -> Tensor:
    """Return parameters, from whatever library, as a tensor of float32."""
    if isinstance(theta, Tensor):
        return theta.detach().to(torch.float32)
    return torch.as_tensor(np.asarray(theta, dtype=np.float32))


def finite(loss: float) -> float:
    """Return a loss that every library takes."""
    return min(loss, DIVERGED) if math.isfinite(loss) else DIVERGED


@torch.no_grad()
def mean_loss(module: nn.Module, X: Any, y: Any) -> float:
    """Return the mean cross entropy over all samples, in eval mode."""
    module.eval()
    X, y = torch.as_tensor(X), torch.as_tensor(y)
    pairs = zip(X.split(1000), y.split(1000), strict=True)
    sums = [nn.functional.cross_entropy(module(a), b, reduction="sum").item() for a, b in pairs]
    return finite(sum(sums) / len(X))
