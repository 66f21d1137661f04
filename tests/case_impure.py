"""Networks of the table in cases.py with side effects, or whose samples see each other."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def around(layer: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return a factory of networks with the layer, which keeps four features, in the middle."""

    def network() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), layer(), nn.Linear(4, 3))

    network.__doc__ = layer.__doc__
    return network


# --- Writing in place


class InplaceResidual(nn.Module):
    """`out += x` and nn.ReLU(inplace=True) write into values that are live."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.relu, self.head = nn.ReLU(inplace=True), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv1(x))
        out = self.conv2(x)
        out += x
        return self.head(self.relu(out).mean((2, 3)))


class DiscardedInplace(nn.Module):
    """The result of relu_ is dropped: in the graph nobody uses it, yet two branches see it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.branch = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 1)
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        F.relu_(x)
        return self.head((self.branch(x) + x).mean((2, 3)))


class WritesThroughView(nn.Module):
    """A slice is written: the value it was cut from changes after it was computed."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        before = 2 * h
        h[:, :2].mul_(3.0)
        return self.head(h + before)


class AssignsItem(nn.Module):
    """Overwrites a column: torch.fx has no item assignment."""

    def forward(self, x: Tensor) -> Tensor:
        h = x.clone()
        h[:, 2] = x[:, 0] * x[:, 1]
        return h


# --- Randomness


def dropout() -> nn.Module:
    """Base and perturbed queries must see the same draws, whatever is run again."""
    hidden = nn.Linear(5, 4), nn.Tanh(), nn.Dropout(0.3)
    return nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.3), *hidden, nn.Linear(4, 3))


def dropout2d() -> nn.Module:
    """Whole channels drop, in place, before BatchNorm in train mode."""
    conv = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Dropout2d(0.3, inplace=True), nn.BatchNorm2d(3))
    return nn.Sequential(conv, nn.ReLU(), nn.Conv2d(3, 3, 3), nn.Flatten())


class AdditiveNoise(nn.Module):
    """Draws from the global generator without any input: a trace keeps one draw for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) + torch.randn(3)


class StochasticDepth(nn.Module):
    """A draw decides a Python `if`: a trace keeps one branch for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        if torch.rand(()) < 0.5:
            h = h + torch.tanh(self.second(h))
        return self.head(h)


class AlwaysDropout(nn.Module):
    """F.dropout drops in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.dropout(torch.tanh(self.fc(x)), 0.5))


# --- What torch.fx cannot read


class Halving(nn.Module):
    """The root loops on its data."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc(x)
        while h.norm() > 2:
            h = h / 2
        return self.head(torch.tanh(h))


class Branch(nn.Module):
    """One layer decides on its data; the network around it can be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sin() if x.sum() > 0 else x.cos()


class NumpySoftplus(nn.Module):
    """Leaves torch and comes back: no trace, no autograd, no vmap."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.logaddexp(0.0, x.detach().numpy()))


class Quantise(nn.Module):
    """Piecewise constant: most differences are exactly zero, some are large."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(16 * x) / 16


# --- Samples that see each other


class Centre(nn.Module):
    """Subtracts the mean of the batch: folded perturbations would see each other."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0)


def batch_softmax() -> nn.Module:
    """Softmax over the samples: each one's output depends on all."""
    return nn.Softmax(dim=0)


class FixedBatch(nn.Module):
    """The size of the batch is written in the code: a folded batch does not fit."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(6, -1)


class ReturnsLoss(nn.Module):
    """The output is the loss of the batch already: there is no sample left to average over."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x).square().mean().sqrt()


# --- Modules that change themselves


class MovingMean(nn.Module):
    """Updates a buffer in place, and the output depends on it: fx runs the update to trace it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ema", torch.linspace(-1, 1, 4))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.ema.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return x - self.ema


class ReassignedMean(MovingMean):
    """Reassigns the buffer: fx leaves a Proxy in its place."""

    def forward(self, x: Tensor) -> Tensor:
        self.ema = 0.9 * self.ema + 0.1 * x.detach().mean(0)
        return x - self.ema


class Remembers(nn.Module):
    """Keeps its last activation: a query must not leave one behind, nor a trace a Proxy."""

    def forward(self, x: Tensor) -> Tensor:
        self.last = torch.tanh(x)
        return self.last


class Counts(nn.Module):
    """Counts its calls in a Python integer, which the output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(x)
