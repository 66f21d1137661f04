"""Networks of the table in cases.py; each docstring says what the network is trouble for."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

# --- Stock layers


def linear() -> nn.Module:
    """The root is itself the layer: no dot in the names of its parameters."""
    return nn.Linear(4, 3)


def mlp() -> nn.Module:
    """Nothing: the plain case."""
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def frozen() -> nn.Module:
    """Frozen parameters before and between the trainable ones."""
    network = mlp()
    network[0].requires_grad_(False)
    network[2].weight.requires_grad_(False)
    return network


def hooked() -> nn.Module:
    """A forward hook squares what a Linear gives: the layer is more than its formula."""
    network = mlp()
    network[2].register_forward_hook(square)
    return network


def square(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """The hook: what it returns replaces the output."""
    return output.square()


def weight_normed() -> nn.Module:
    """The weight is computed from two parameters, and the layer is still a Linear by type."""
    return nn.Sequential(weight_norm(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3))


def input_relu() -> nn.Module:
    """Writes into the caller's X: the second query would see another batch."""
    return nn.Sequential(nn.LeakyReLU(0.5, inplace=True), nn.Linear(4, 3))


def cnn() -> nn.Module:
    """BatchNorm: per-query statistics and updates in train mode, an affine map in eval mode."""
    conv1, conv2 = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 2, 3, bias=False)
    norms = nn.BatchNorm2d(3), nn.BatchNorm2d(2)
    pool, head = nn.MaxPool2d(2, stride=1), nn.Sequential(nn.Flatten(), nn.Linear(8, 3))
    return nn.Sequential(conv1, norms[0], nn.ReLU(), conv2, norms[1], nn.ReLU(), pool, head)


def batch_statistics() -> nn.Module:
    """BatchNorm without running statistics mixes the samples in eval mode too."""
    norm = nn.BatchNorm1d(3, track_running_stats=False)
    return nn.Sequential(nn.Conv1d(5, 3, 2), norm, nn.Flatten(), nn.Linear(9, 3))


def grouped_dilated() -> nn.Module:
    """An input channel reaches one group only; the kernel has holes."""
    grouped = nn.Conv2d(2, 4, 3, groups=2, padding=1)
    dilated = nn.Conv2d(4, 2, 2, dilation=2, stride=(1, 2))
    return nn.Sequential(grouped, nn.SiLU(), dilated, nn.Flatten(), nn.Linear(12, 3))


def padding_modes() -> nn.Module:
    """Padding that is no zero, and one given as a string; PReLU has one slope a channel."""
    reflected = nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")
    same = nn.Conv2d(2, 2, 3, padding="same", bias=False)
    pooled = nn.AvgPool2d(3, 2), nn.Flatten(), nn.Linear(8, 3)
    return nn.Sequential(reflected, nn.PReLU(2), same, *pooled)


def conv_transpose() -> nn.Module:
    """Weights are (in, out, a, b); the output is one row of logits a pixel."""
    up = nn.ConvTranspose2d(2, 3, 2, stride=2)
    return nn.Sequential(up, nn.Tanh(), nn.Conv2d(3, 3, 1))


def conv1d() -> nn.Module:
    """One spatial dimension, and a softmax over channels: one changed channel changes all."""
    conv = nn.Conv1d(5, 3, 3, padding=2)
    return nn.Sequential(
        conv, nn.Softmax(dim=1), nn.AdaptiveAvgPool1d(2), nn.Flatten(), nn.Linear(6, 3)
    )


def layer_norm() -> nn.Module:
    """LayerNorm spreads one feature's change to all of a sample."""
    return nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3))


def group_norm() -> nn.Module:
    """One channel's change reaches the other channels of its group."""
    norm = nn.GroupNorm(2, 4)
    return nn.Sequential(
        nn.Conv2d(2, 4, 2), norm, nn.Hardtanh(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(4, 3)
    )


def instance_norm() -> nn.Module:
    """Normalises each channel of each sample: the bias before it has no effect."""
    norm = nn.InstanceNorm2d(3, affine=True)
    pooled = nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)
    return nn.Sequential(nn.Conv2d(2, 3, 2), norm, nn.ELU(), *pooled)


def embedding_bag() -> nn.Module:
    """Integer input, and a mean over tokens inside the first layer."""
    return nn.Sequential(nn.EmbeddingBag(5, 4, mode="mean"), nn.Tanh(), nn.Linear(4, 3))


def embedding_padding() -> nn.Module:
    """Autograd leaves the padding row at zero; the loss depends on it."""
    return nn.Sequential(nn.Embedding(5, 2, padding_idx=0), nn.Flatten(), nn.Linear(8, 3))


def embedding_max_norm() -> nn.Module:
    """Forward renormalises the rows that it looks up, in the Parameter itself."""
    return nn.Sequential(nn.Embedding(5, 2, max_norm=1.0), nn.Flatten(), nn.Linear(8, 3))


def standardised_conv() -> nn.Module:
    """See StandardisedConv."""
    conv = StandardisedConv(2, 3, 3, padding=1)
    return nn.Sequential(conv, nn.Mish(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(3, 3))


def tuple_between() -> nn.Module:
    """Layers hand each other a tuple: spectrum (complex on its way) and sorted features."""
    return nn.Sequential(nn.Linear(4, 4), Fork(), Join(), nn.Linear(7, 3))


def gru_root() -> nn.Module:
    """The root is a torch.nn layer that torch.fx cannot enter, and it returns a tuple."""
    return nn.GRU(4, 2, batch_first=True)


def transformer() -> nn.Module:
    """In eval mode torch takes a fused path; in train mode dropout draws at four places."""
    layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=3, dropout=0.2, batch_first=True)
    return nn.Sequential(layer, nn.AvgPool2d((5, 1)), nn.Flatten(), nn.Linear(4, 3))


# --- Structure: what is live across a cut, and where a parameter is used


class Residual(nn.Module):
    """Two values are live across the cut before `second`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.head(h + torch.tanh(self.second(torch.relu(h))))


class ResNetBlock(nn.Module):
    """ResNet-20's parameterless shortcut: the input is strided, and padded to more channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False)
        self.conv2 = nn.Conv2d(4, 4, 1, bias=False)
        self.bn1, self.bn2, self.head = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        out += F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        return self.head(F.relu(out).mean((2, 3)))


class ConcatGate(nn.Module):
    """Channels are concatenated, then split and multiplied: one changed channel changes place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.mix(torch.cat([self.conv(x), x], dim=1)).chunk(2, dim=1)
        return self.head((value * gate.sigmoid()).amax((-2, -1)))


class ChannelShuffle(nn.Module):
    """View, transpose and reshape permute the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.mix = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1, groups=2)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        n, c, height, width = h.shape
        h = h.view(n, 2, c // 2, height, width).transpose(1, 2).reshape(n, c, height, width)
        return self.head(F.adaptive_avg_pool2d(F.gelu(self.mix(h)), 1).flatten(1))


class Tied(nn.Module):
    """Embedding and decoder are one Parameter under two names: one coordinate, two uses."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(5, 3), nn.Linear(3, 3)
        self.decode = nn.Linear(3, 5, bias=False)
        self.decode.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.tanh(self.mix(self.embed(x).mean(1))))


class Twice(nn.Module):
    """One module is called twice, the second time on what the first time gave."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shared(torch.tanh(self.shared(x))))


class Borrowed(nn.Module):
    """A layer is called, and its weight is read beside it; names are not in order of use."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.encode = nn.Linear(4, 3), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.linear(torch.relu(self.encode(x)), self.encode.weight.t()))


class BareAutoencoder(nn.Module):
    """A Parameter on the root, used plain and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.randn(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.W) @ self.W.T


class Polynomial(nn.Module):
    """Parameters of shape () in a ParameterList, and a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.coefficients = nn.ParameterList(torch.randn(()) for _ in range(3))
        self.temperature = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return sum(c * x**i for i, c in enumerate(self.coefficients)) / self.temperature


class Unused(nn.Module):
    """A parameter that forward never reads (its gradient is zero), one frozen, one transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.randn(2))
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.transposed = nn.Parameter(torch.randn(3, 4).t())

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.transposed + self.frozen


class StandardisedConv(nn.Conv2d):
    """Is a Conv2d by type, yet not by what it computes: its weight is standardised first."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Fork(nn.Module):
    """Hands a tuple to the next layer."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.fft.rfft(x).abs(), x.gather(1, x.argsort(1))


class Join(nn.Module):
    """Takes a tuple from the layer before."""

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return torch.cat(pair, dim=1)


class TransposedOutput(nn.Module):
    """Returns a view that is not contiguous, after a view that needs x.size(0)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 3, 3), nn.Linear(9, 9)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).view(x.size(0), 3, -1)
        return torch.tanh(self.fc(h)).transpose(1, 2)


# --- Sequences


class LastState(nn.Module):
    """A GRU returns a tuple; only the last time step is used."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.gru(x)
        return self.head(states[:, -1])


class Unrolled(nn.Module):
    """A Python loop over x.shape[1] steps, from a state of x.shape[0] rows of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.Linear(4 + 3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], 3, dtype=x.dtype)
        for t in range(x.shape[1]):
            h = torch.tanh(self.cell(torch.cat([x[:, t], h], dim=1)))
        return self.head(h)


class SelfAttention(nn.Module):
    """nn.MultiheadAttention: a tuple again, and products of two perturbed values."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        mixed, _ = self.attention(x, x, x, need_weights=False)
        return self.head(mixed.mean(1))


class TokenAttention(nn.Module):
    """By hand: a learned token expanded to the batch, learned positions, softmax over scores."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 4))
        self.position = nn.Parameter(torch.randn(1, 6, 4))
        self.qkv, self.head = nn.Linear(4, 12, bias=False), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.size(0), -1, -1), x], dim=1) + self.position
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        scores = query @ key.transpose(-2, -1) / x.size(-1) ** 0.5
        return self.head((scores.softmax(dim=-1) @ value)[:, 0])
