"""Forward gradients: the slope along a random direction, times that direction.

References
----------
A. Baydin, B. Pearlmutter, D. Syme, F. Wood, P. Torr. "Gradients without backpropagation",
arXiv:2202.08587, 2022: FG-W, in which the weights are perturbed.

M. Ren, S. Kornblith, R. Liao, G. Hinton. "Scaling forward gradient with local losses", ICLR 2023:
LG-FG-A, in which the activities are perturbed, of losses that are local to a block. What the paper
leaves open is as in the authors' program (github.com/google-research/google-research,
local_forward_gradient/train_mixer_supervised.py).

Notes
-----
Of LG-FG-A, two things are not here: the authors' network, LocalMixer, and what belongs to it,
losses replicated over its patches and groups of channels. Each block has one loss for each sample.
Their blocks have two or three layers, each of which is perturbed: here it is the output of a block.
Which network and which settings stand behind the figures of DeepZero's Fig. 1D is not known. In the
FG-W of Ren et al. the last layer has its exact gradient; here, as in Baydin et al., no layer has.
"""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

from benchmarks.baselines.training import Rule

cross_entropy = nn.functional.cross_entropy
Direction = dict[str, Tensor]


def slope(
    module: nn.Module, X: Tensor, y: Tensor, direction: Direction
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the loss, its derivative along a direction of the weights, and the buffers after it.

    The module's own buffers, such as BatchNorm's statistics, are left as they are.
    """
    weights = {name: weight.detach() for name, weight in module.named_parameters()}

    def loss(weights: Direction) -> tuple[Tensor, dict[str, Tensor]]:
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
        return cross_entropy(functional_call(module, weights | buffers, (X,)), y), buffers

    return jvp(loss, (weights,), (direction,), has_aux=True)


def forward_gradient(
    module: nn.Module, X: Tensor, y: Tensor, directions: Iterable[Direction]
) -> tuple[float, Direction]:
    """Return the loss, and the mean over directions of slope times direction.

    The module's buffers are updated once, however many directions there are.
    """
    total = {name: torch.zeros_like(weight) for name, weight in module.named_parameters()}
    n_directions = 0
    for direction in directions:
        loss, along, buffers = slope(module, X, y, direction)
        for name, part in direction.items():
            total[name].add_(along * part)
        n_directions += 1
    for name, buffer in module.named_buffers():
        buffer.copy_(buffers[name])
    return loss.item(), {name: part / n_directions for name, part in total.items()}


class WeightPerturbed(Rule):
    """FG-W: an unbiased gradient from directions of all weights, drawn from N(0, I).

    Parameters
    ----------
    n_directions : int, default=1
        Of each batch.
    seed : int, default=0
        Draws the directions.
    """

    def __init__(self, n_directions: int = 1, seed: int = 0) -> None:
        self.n_directions = n_directions
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, module: nn.Module, X: Tensor, y: Tensor) -> float:
        """Write the mean over the directions."""
        weights = dict(module.named_parameters())
        directions = (
            {
                name: _noise(weight.shape, weight, self._generator)
                for name, weight in weights.items()
            }
            for _ in range(self.n_directions)
        )
        loss, gradient = forward_gradient(module, X, y, directions)
        for name, weight in weights.items():
            weight.grad = gradient[name]
        return loss


class LocalHead(nn.Module):
    """A linear classifier of a block's output: of its activation, averaged over all pixels.

    Parameters
    ----------
    n_features, n_classes : int
        Channels or features of the block, and classes.
    activation : callable
        Where blocks end before their activation.
    """

    def __init__(
        self, n_features: int, n_classes: int, activation: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.activation = activation
        self.linear = nn.utils.skip_init(nn.Linear, n_features, n_classes)

    def forward(self, z: Tensor) -> Tensor:
        """Return the logits."""
        activity = self.activation(z)
        return self.linear(activity.flatten(2).mean(2) if activity.ndim > 2 else activity)


class LocalGreedy(Rule):
    """LG-FG-A: every block has a loss of its own, whose gradient at its output is a forward one.

    The blocks are the children of an nn.Sequential, and no gradient passes between them. That of
    a block's local loss with respect to its output activity is estimated sample by sample: each
    sample has its own directions, and its own slope along them. The block's weights then get it
    by the block's own backward pass. Local heads, and the last block, whose loss is the network's,
    have exact gradients.

    Parameters
    ----------
    n_directions : int, default=1
        Of each sample and block.
    activation : callable, default=None
        What the local heads apply to the output of a block, for blocks that end before their
        activation, as the authors' do. Units at which it is flat are not perturbed.
    seed : int, default=0
        Draws the directions and the local heads.

    Attributes
    ----------
    heads : dict from name to LocalHead
        Of all children of the nn.Sequential but the last, where they have parameters.
    """

    def __init__(
        self,
        n_directions: int = 1,
        activation: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        self.n_directions = n_directions
        self.activation = activation or nn.Identity()
        self.heads: dict[str, LocalHead] | None = None
        self._generator = torch.Generator().manual_seed(seed)

    def start(self, module: nn.Module, X: Tensor) -> list[nn.Parameter]:
        """Make the local heads, which are trained with the module, and return their parameters."""
        if not isinstance(module, nn.Sequential):
            raise TypeError(f"LocalGreedy needs an nn.Sequential of blocks; got {type(module)}.")
        outputs, x = {}, X
        with torch.no_grad():
            for name, block in copy.deepcopy(module).eval().named_children():
                x = outputs[name] = block(x)
        *hidden, _ = module.named_children()
        learning = [name for name, block in hidden if next(block.parameters(), None) is not None]
        self.heads = {name: self._head(outputs[name], x.shape[1]) for name in learning}
        return [weight for head in self.heads.values() for weight in head.parameters()]

    def _head(self, output: Tensor, n_classes: int) -> LocalHead:
        head = LocalHead(output.shape[1], n_classes, self.activation).to(output)
        weight = head.linear.weight
        with torch.no_grad():
            weight.copy_(_noise(weight.shape, weight, self._generator) / output.shape[1] ** 0.5)
            head.linear.bias.zero_()
        return head

    def __call__(self, module: nn.Module, X: Tensor, y: Tensor) -> float:
        """Write the gradients of the local losses; return the loss of the last block."""
        if self.heads is None:
            self.start(module, X)
        module.zero_grad()
        x = X
        for name, block in module.named_children():
            x = block(x.detach())
            if name in self.heads:
                x.backward(self._learned(self.heads[name], x.detach(), y))
        loss = cross_entropy(x, y)
        loss.backward()
        return loss.item()

    def _learned(self, head: LocalHead, z: Tensor, y: Tensor) -> Tensor:
        """Write the exact gradient of a head; return the estimated one of the block's output."""
        head.zero_grad()
        cross_entropy(head(z), y).backward()
        with torch.no_grad():
            noise = _noise((self.n_directions, *z.shape), z, self._generator)
            directions = noise * (jvp(head.activation, (z,), (torch.ones_like(z),))[1] != 0)
            return activity_gradient(head, z, y, directions)


def activity_gradient(
    head: Callable[[Tensor], Tensor], z: Tensor, y: Tensor, directions: Tensor
) -> Tensor:
    """Return the forward gradient of the mean loss of a head with respect to what it takes in.

    Parameters
    ----------
    head : callable
        It takes samples one by one, so that the loss of one has its own slope.
    z, y : Tensor
        What the head takes in, and the classes.
    directions : Tensor of shape (n_directions, *z.shape)
        The perturbations.
    """

    def losses(z: Tensor) -> Tensor:
        return cross_entropy(head(z), y, reduction="none")

    slopes = vmap(lambda direction: jvp(losses, (z,), (direction,))[1])(directions)
    return torch.einsum("kn,kn...->n...", slopes, directions) / (len(directions) * len(y))


def _noise(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator).to(like)
