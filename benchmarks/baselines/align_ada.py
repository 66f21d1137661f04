"""Align-ada: the error of today's network goes back through the network as it was at the start.

Wide networks that are trained by gradient descent hardly leave their first weights, so that an
error that is carried back by the first weights, and by the derivatives of the first activities, is
nearly the true one. A layer's update is the correlation of that error with the layer's inputs.
Align-zero takes the inputs of the first network; Align-ada, the better one and the one in DeepZero,
takes today's.

References
----------
A. Boopathy, I. Fiete. "How to train your wide neural network without backprop: an input-weight
alignment perspective", ICML 2022. What the paper leaves open is as in the authors' program for
CIFAR-10 (github.com/FieteLab/Wide-Network-Alignment, train_cifar.py).

Notes
-----
Of the authors' recipe, these are not of the rule and not here: the squared error to one-hot targets
less 0.1 in place of cross entropy, NTK parametrization (weights of variance 1, divided by the root
of the fan-in at each pass), and plain SGD at rates of 1 to 5 for it, in batches of 100 for 150
epochs. What DeepZero changed of it for its Table 1, if anything, is not known.
"""

import copy

import torch
from torch import Tensor, nn

from benchmarks.baselines.training import Rule


class AlignAda(Rule):
    """Align-ada, for an nn.Sequential whose children are the blocks.

    The outputs of the blocks are the places where the error is taken from the first network.
    Inside of a block it goes back as in autograd, through today's weights: a block has one layer
    with weights, and may have its normalisation. In train mode both networks normalise by the
    batch.
    """

    def __init__(self) -> None:
        self.first: nn.Sequential | None = None

    def start(self, module: nn.Module, X: Tensor) -> list[nn.Parameter]:
        """Keep the module as it is now."""
        if not isinstance(module, nn.Sequential):
            raise TypeError(f"AlignAda needs an nn.Sequential of blocks; got {type(module)}.")
        self.first = copy.deepcopy(module).requires_grad_(False)
        return []

    def __call__(self, module: nn.Module, X: Tensor, y: Tensor) -> float:
        """Write the correlations of the error and the inputs of each block."""
        if self.first is None:
            self.start(module, X)
        module.zero_grad()
        outputs, x = [], X
        for block in module:
            x = block(x.detach())
            outputs.append(x)
        loss = nn.functional.cross_entropy(x, y)
        (error,) = torch.autograd.grad(loss, x, retain_graph=True)
        learning = [
            (output, back)
            for output, back in zip(outputs, self._errors(X, error), strict=True)
            if output.requires_grad  # not those of blocks without parameters
        ]
        torch.autograd.backward(*zip(*learning, strict=True))
        return loss.item()

    def _errors(self, X: Tensor, error: Tensor) -> list[Tensor]:
        """Return the error at the output of each block, carried back by the first network."""
        first, *rest = self.first
        outputs = [first(X).requires_grad_()]
        for block in rest:
            outputs.append(block(outputs[-1]))
        return [*torch.autograd.grad(outputs[-1], outputs[:-1], error), error] if rest else [error]
