"""Feedback alignment and direct feedback alignment: fixed random matrices carry the error back.

References
----------
T. Lillicrap, D. Cownden, D. Tweed, C. Akerman. "Random synaptic feedback weights support error
backpropagation for deep learning", Nature Communications 7, 2016 (arXiv:1411.0247, 2014).

A. Nøkland. "Direct feedback alignment provides learning in deep neural networks", NIPS 2016.

Notes
-----
The scale of the matrices is that of Boopathy and Fiete (2022), with whose figures DeepZero compares
(Table 1): variance 1 / fan-in of the layer for FA, 1 / size of the activity for DFA.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from benchmarks.baselines.training import Rule

Weighted = nn.Linear | nn.Conv2d


def normal(shape: tuple[int, ...], fan_in: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw from N(0, 1 / fan_in), on the device and in the dtype of another tensor."""
    return torch.randn(shape, generator=generator).to(like).div_(fan_in**0.5)


class FeedbackAlignment(Rule):
    """Backprop in which the error leaves a layer through a fixed matrix in place of its weights.

    Linear layers and 2-d convolutions have such a matrix; all else is as in autograd, the gradient
    of their weights included.

    Parameters
    ----------
    seed : int, default=0
        Draws the matrices.
    feedback : mapping from layer name to Tensor, default=None
        Matrices in the shape of the layer's weight, for layers where they are not to be drawn.
    """

    def __init__(self, seed: int = 0, feedback: Mapping[str, Tensor] | None = None) -> None:
        self.feedback = dict(feedback or {})
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, module: nn.Module, X: Tensor, y: Tensor) -> float:
        """Write what the fixed matrices make of the gradient."""
        module.zero_grad()
        with self._installed(module):
            loss = nn.functional.cross_entropy(module(X), y)
        loss.backward()
        return loss.item()

    @contextmanager
    def _installed(self, module: nn.Module) -> Iterator[None]:
        inputs: dict[nn.Module, Tensor] = {}

        def cut(layer: nn.Module, arguments: tuple[Tensor]) -> Tensor:
            inputs[layer] = arguments[0]
            return arguments[0].detach()

        def join(layer: nn.Module, arguments: tuple[Tensor], output: Tensor) -> Tensor:
            return _Feedback.apply(output, inputs.pop(layer), layer, self.feedback[names[layer]])

        names = {layer: name for name, layer in module.named_modules() if _is_weighted(layer)}
        hooks = []
        for layer, name in names.items():
            if name not in self.feedback:
                weight = layer.weight
                self.feedback[name] = normal(
                    weight.shape, weight[0].numel(), weight.detach(), self._generator
                )
            hooks += [layer.register_forward_pre_hook(cut), layer.register_forward_hook(join)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class _Feedback(torch.autograd.Function):
    """A layer's output as it is; backward, the layer has the feedback matrix for its weight."""

    @staticmethod
    def forward(ctx, output: Tensor, x: Tensor, layer: Weighted, matrix: Tensor) -> Tensor:
        ctx.layer, ctx.matrix, ctx.shape = layer, matrix, x.shape
        return output.clone()

    @staticmethod
    def backward(ctx, error: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.needs_input_grad[1]:  # the data
            return error, None, None, None
        if isinstance(ctx.layer, nn.Linear):
            return error, error @ ctx.matrix, None, None
        layer = ctx.layer
        geometry = (layer.stride, layer.padding, layer.dilation, layer.groups)
        back = torch.nn.grad.conv2d_input(ctx.shape, ctx.matrix, error, *geometry)
        return error, back, None, None


class DirectFeedbackAlignment(Rule):
    """The output's error goes straight to every hidden activity, through a fixed matrix each.

    An activity is what a linear layer or a 2-d convolution takes in: the error is projected there
    and goes back, by autograd, to the layer before and no further. Networks are meant that are a
    chain of layers.

    Parameters
    ----------
    seed : int, default=0
        Draws the matrices.
    feedback : mapping from layer name to Tensor, default=None
        Matrices of shape (n_outputs, number of the layer's inputs) that are not to be drawn. One
        equal to the weight of the last layer, under its name, makes its input's error exact.
    """

    def __init__(self, seed: int = 0, feedback: Mapping[str, Tensor] | None = None) -> None:
        self.feedback = dict(feedback or {})
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, module: nn.Module, X: Tensor, y: Tensor) -> float:
        """Write what the projected errors make of the gradient."""
        module.zero_grad()
        output, activities = _cut_forward(module, X)
        loss = nn.functional.cross_entropy(output, y)
        (error,) = torch.autograd.grad(loss, output, retain_graph=True)
        targets, errors = [output], [error]
        for name, activity in activities.items():
            if activity.requires_grad:  # not the data
                targets.append(activity)
                errors.append(self._project(name, error, activity))
        torch.autograd.backward(targets, errors)
        return loss.item()

    def _project(self, name: str, error: Tensor, activity: Tensor) -> Tensor:
        if name not in self.feedback:
            size = activity[0].numel()
            self.feedback[name] = normal((error.shape[1], size), size, error, self._generator)
        return (error @ self.feedback[name]).view_as(activity)


def _cut_forward(module: nn.Module, X: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the outputs, and what each weighted layer took in, where the graph is cut."""
    activities: dict[str, Tensor] = {}
    names = {layer: name for name, layer in module.named_modules() if _is_weighted(layer)}

    def cut(layer: nn.Module, arguments: tuple[Tensor]) -> Tensor:
        activities[names[layer]] = arguments[0]
        return arguments[0].detach()

    hooks = [layer.register_forward_pre_hook(cut) for layer in names]
    try:
        return module(X), activities
    finally:
        for hook in hooks:
            hook.remove()


def _is_weighted(layer: nn.Module) -> bool:
    return isinstance(layer, Weighted)
