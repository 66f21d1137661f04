"""Pattern Search: one weight at a time, up or down by a radius, kept where the loss goes down.

References
----------
P. Chiang et al. "Loss landscapes are all you need: neural network generalization can be explained
without the implicit bias of gradient descent", ICLR 2023. The first radius and the order of the
moves are as in the authors' program (github.com/Ping-C/optimizer, optimizer.py).

Notes
-----
The authors take all samples, at most some hundreds, for each value, and divide the outputs by the
norms of the weights, layer by layer, so that the loss does not fall by mere scale; here the loss is
that of the module as it is. A faster variant of theirs tries many moves at once, on copies of a
LeNet, and takes the best of them. Which of both DeepZero had, and how it took up to 32,000 samples
with ResNet-20 (Fig. 5: 40 "epochs"), is not known.
"""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn


@torch.no_grad()
def fit(
    module: nn.Module,
    X: Any,
    y: Any,
    *,
    max_queries: int,
    batch_size: int | None = None,
    delta: float = 1.0,
    seed: int = 0,
    on_kept: Callable[[], object] | None = None,
) -> dict[str, Any]:
    """Train a module in place by function values alone.

    The moves, each weight up and each down, are tried in random order until one lowers the loss.
    It is kept, and the order is drawn anew. Where none of them does, the radius is halved.

    Parameters
    ----------
    module : Module
        Its mode, train or eval, is left as it is, and decides how BatchNorm normalises.
    X, y : array-like or Tensor
        All samples and their classes.
    max_queries : int
        How many losses may be computed.
    batch_size : int, default=None
        Samples of a loss, drawn anew after each kept move and each halving; the loss to be
        lowered is then computed anew, which is a query. By default all samples, as the authors'.
    delta : float, default=1.0
        The radius at the start.
    seed : int, default=0
        Draws the order of the moves and the batches.
    on_kept : callable, default=None
        Called after each move that is kept, with the module at it.

    Returns
    -------
    dict
        ``losses``: the first, and that of each kept move, on its batch. ``n_queries``: how many
        losses were computed. ``radius``: the last one.
    """
    X, y = torch.as_tensor(X), torch.as_tensor(y)
    generator = torch.Generator().manual_seed(seed)
    weights = _Weights(module)
    losses: list[float] = []
    n_queries, radius, best = 0, delta, None
    while n_queries < max_queries and best != 0:
        if best is None or batch_size is not None:
            batch = _batch(module, X, y, batch_size, generator)
            best = _loss(module, *batch)
            n_queries += 1
            losses = losses or [best]
        # In NumPy, since a loop over a tensor first makes a tensor of each of its elements.
        for move in torch.randperm(2 * weights.size, generator=generator).numpy():
            if n_queries == max_queries:
                break
            index, down = divmod(int(move), 2)
            old = weights.add(index, -radius if down else radius)
            loss = _loss(module, *batch)
            n_queries += 1
            if loss < best:
                best = loss
                losses.append(loss)
                if on_kept is not None:
                    on_kept()
                break
            weights.set(index, old)
        else:
            radius /= 2
    return {"losses": losses, "n_queries": n_queries, "radius": radius}


class _Weights:
    """All weights of a module under one flat index."""

    def __init__(self, module: nn.Module) -> None:
        self._parts = [weight.data.view(-1) for weight in module.parameters()]
        ends = list(accumulate(len(part) for part in self._parts))
        self.size = ends[-1]
        self._ends = torch.tensor(ends)

    def _place(self, index: int) -> tuple[Tensor, int]:
        part = int(torch.searchsorted(self._ends, index, right=True))
        return self._parts[part], index - int(self._ends[part])  # from the end of the part

    def add(self, index: int, change: float) -> Tensor:
        """Move a weight, and return what it was: to add and take away again would round."""
        part, place = self._place(index)
        old = part[place].clone()
        part[place] += change
        return old

    def set(self, index: int, value: Tensor) -> None:
        part, place = self._place(index)
        part[place] = value


def _batch(
    module: nn.Module, X: Tensor, y: Tensor, size: int | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    device = next(module.parameters()).device
    if size is not None:
        rows = torch.randperm(len(X), generator=generator)[:size]
        X, y = X[rows], y[rows]
    return X.to(device), y.to(device)


def _loss(module: nn.Module, X: Tensor, y: Tensor) -> float:
    return nn.functional.cross_entropy(module(X), y).item()
