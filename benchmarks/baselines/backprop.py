"""Backprop, dense and sparse: the first-order training of DeepZero, Fig. 4.

Sparse gradients are what DeepZero's are with exact values: the coordinates are drawn as in Alg. 1,
anew for each batch. Sparse weights are a pruned network, trained by backprop: baseline (2) of
Fig. 4, whose mask comes from GraSP's scores by backprop (Wang et al., "Picking winning tickets
before training by preserving gradient flow", ICLR 2020).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from benchmarks.baselines.training import Rule
from zoestim.sparsity import draw_coordinates


def backprop(module: nn.Module, X: Tensor, y: Tensor) -> float:
    """Write the gradient of the mean cross entropy, by autograd, and return the loss."""
    module.zero_grad()
    loss = nn.functional.cross_entropy(module(X), y)
    loss.backward()
    return loss.item()


class Backprop(Rule):
    """The exact gradient."""

    def __call__(self, module: nn.Module, X: Tensor, y: Tensor) -> float:
        """Write the gradient by autograd."""
        return backprop(module, X, y)


class SparseGradients(Rule):
    """The exact gradient at random coordinates, drawn for each batch, and zero elsewhere.

    As in zoestim the parameters of two or more dimensions are sparse; biases and the scales of
    normalisations stay dense.

    Parameters
    ----------
    sparsity : float in [0, 1)
        The fraction of each layer's weights that is left out.
    ratios : mapping from parameter name to float, default=None
        Layer-wise pruning ratios, as :func:`zoestim.sparsity.layer_ratios` gives them. By
        default, and for layers that are not named, all layers are pruned by `sparsity`.
    seed : int, default=0
        Draws the coordinates.
    """

    def __init__(
        self, sparsity: float, ratios: Mapping[str, float] | None = None, seed: int = 0
    ) -> None:
        self.sparsity = sparsity
        self.ratios = ratios or {}
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, module: nn.Module, X: Tensor, y: Tensor) -> float:
        """Write the gradient by autograd, then zero all coordinates that were not drawn."""
        loss = backprop(module, X, y)
        mask_gradients(module, drawn_masks(module, self.sparsity, self.ratios, self._generator))
        return loss


class SparseWeights(Rule):
    """Backprop of a pruned network: the weights outside a fixed mask are zero from the start.

    Parameters
    ----------
    sparsity : float in [0, 1)
        The fraction of each layer's weights that is zero.
    ratios : mapping from parameter name to float, default=None
        Layer-wise pruning ratios, as of :class:`SparseGradients`.
    coordinates : mapping from parameter name to Tensor of int64, default=None
        The weights that are kept, as :func:`zoestim.sparsity.top_coordinates` gives them for
        GraSP's scores; parameters that are not named stay dense. By default they are drawn.
    seed : int, default=0
        Draws the mask.
    """

    def __init__(
        self,
        sparsity: float,
        ratios: Mapping[str, float] | None = None,
        coordinates: Mapping[str, Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        self.sparsity = sparsity
        self.ratios = ratios or {}
        self.coordinates = coordinates
        self.masks: dict[str, Tensor] | None = None
        self._generator = torch.Generator().manual_seed(seed)

    def start(self, module: nn.Module, X: Tensor) -> list[nn.Parameter]:
        """Choose the mask, and zero the weights outside it."""
        if self.coordinates is None:
            self.masks = drawn_masks(module, self.sparsity, self.ratios, self._generator)
        else:
            self.masks = masks_of(module, self.coordinates)
        with torch.no_grad():
            _multiply(dict(module.named_parameters()), self.masks)
        return []

    def __call__(self, module: nn.Module, X: Tensor, y: Tensor) -> float:
        """Write the gradient of the weights in the mask; SGD leaves the others at zero."""
        if self.masks is None:
            self.start(module, X)
        loss = backprop(module, X, y)
        mask_gradients(module, self.masks)
        return loss


def drawn_masks(
    module: nn.Module, sparsity: float, ratios: Mapping[str, float], generator: torch.Generator
) -> dict[str, Tensor]:
    """Return a mask of each parameter of two or more dimensions: 1 at random coordinates."""
    weights = {name: weight for name, weight in module.named_parameters() if weight.ndim > 1}
    drawn = draw_coordinates(
        {name: ratios.get(name, sparsity) for name in weights},
        {name: weight.numel() for name, weight in weights.items()},
        generator,
    )
    return masks_of(module, drawn)


def masks_of(module: nn.Module, coordinates: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a mask of each parameter that has coordinates: 1 at them."""
    return {name: _mask(module.get_parameter(name), kept) for name, kept in coordinates.items()}


def mask_gradients(module: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Zero the gradients outside of masks; parameters that have none keep theirs."""
    _multiply({name: weight.grad for name, weight in module.named_parameters()}, masks)


def _mask(weight: Tensor, kept: Tensor) -> Tensor:
    """Return 1 at flat indices and 0 elsewhere, in the shape of the weight."""
    mask = torch.zeros(weight.numel(), dtype=weight.dtype, device=weight.device)
    return mask.index_fill_(0, kept.to(weight.device), 1.0).view_as(weight)


def _multiply(tensors: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    for name, mask in masks.items():
        tensors[name].mul_(mask)
