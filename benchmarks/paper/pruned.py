"""Rules of sparse training by backprop: which weights, by GraSP's scores or by chance."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.baselines.backprop import (
    SparseGradients,
    SparseWeights,
    backprop,
    mask_gradients,
    masks_of,
)
from benchmarks.baselines.training import Rule
from benchmarks.paper.figure import Images
from benchmarks.speed.problems import grasp
from zoestim.sparsity import first_order_grasp_scores, layer_ratios, top_coordinates

SCORED = 128  # images
Scores = Callable[[nn.Module, Images, int], dict[str, Tensor]]


def zeroth_order(n_directions: int) -> Scores:
    """Return what gives ZO-GraSP's scores, Eq. (3)."""

    def scores(module: nn.Module, images: Images, seed: int) -> dict[str, Tensor]:
        X, y = _batch(module, images)
        found = grasp(module, X, y, n_directions, seed, str(X.device))
        return {name: each.to(X.device) for name, each in found.items()}

    return scores


def first_order(module: nn.Module, images: Images, seed: int) -> dict[str, Tensor]:
    """Return GraSP's scores by autograd, Eq. (2)."""
    X, y = _batch(module, images)
    scored = {name: p for name, p in module.named_parameters() if p.ndim > 1}

    def loss(theta: Tensor) -> Tensor:
        parts = theta.split([p.numel() for p in scored.values()])
        named = {n: part.view_as(scored[n]) for n, part in zip(scored, parts, strict=True)}
        buffers = {name: b.clone() for name, b in module.named_buffers()}
        outputs = torch.func.functional_call(module, {**named, **buffers}, (X,))
        return nn.functional.cross_entropy(outputs, y)

    theta = torch.cat([p.detach().flatten() for p in scored.values()])
    parts = first_order_grasp_scores(theta, loss).split([p.numel() for p in scored.values()])
    return {n: part.view_as(scored[n]) for n, part in zip(scored, parts, strict=True)}


def _batch(module: nn.Module, images: Images) -> tuple[Tensor, Tensor]:
    device = next(module.parameters()).device
    return (torch.as_tensor(each[:SCORED]).to(device) for each in (images.X, images.y))


def by_chance(module: nn.Module, images: Images, seed: int) -> dict[str, Tensor]:
    """Return random scores: the same fraction of all layers, about."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(p.shape, generator=generator).to(p.device)
        for name, p in module.named_parameters()
        if p.ndim > 1
    }


def sparse_weights(scores: Scores, sparsity: float) -> Callable[[nn.Module, Images, int], Rule]:
    """Return what makes a rule that trains the weights of the largest scores; others are zero."""

    def make(module: nn.Module, images: Images, seed: int) -> Rule:
        kept = top_coordinates(scores(module, images, seed), sparsity)
        return SparseWeights(sparsity, coordinates=kept, seed=seed)

    return make


def sparse_gradients(scores: Scores, sparsity: float) -> Callable[[nn.Module, Images, int], Rule]:
    """Return what makes a rule of random gradients by the layer-wise ratios of scores."""

    def make(module: nn.Module, images: Images, seed: int) -> Rule:
        ratios = layer_ratios(scores(module, images, seed), sparsity)
        return SparseGradients(sparsity, ratios=ratios, seed=seed)

    return make


class Alternating(Rule):
    """M1 of Sec. 4: dense weights, of which those with the largest scores move, scored anew.

    Parameters
    ----------
    scores : callable
        Scores of the weights as they are.
    sparsity : float
        The fraction that does not move.
    images : Images
        What they are scored on.
    every : int
        Steps between scorings.
    seed : int
        Draws the directions.
    """

    def __init__(self, scores: Scores, sparsity: float, images: Images, every: int, seed: int):
        self.scores = scores
        self.sparsity = sparsity
        self.images = images
        self.every = every
        self.seed = seed
        self._n_steps = 0
        self._masks: dict[str, Tensor] = {}

    def __call__(self, module: nn.Module, X: Tensor, y: Tensor) -> float:
        """Write the gradient of the chosen weights."""
        if self._n_steps % self.every == 0:
            seed = self.seed + self._n_steps // self.every
            scores = self.scores(module, self.images, seed)
            self._masks = masks_of(module, top_coordinates(scores, self.sparsity))
        self._n_steps += 1
        loss = backprop(module, X, y)
        mask_gradients(module, self._masks)
        return loss
