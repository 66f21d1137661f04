"""Random networks of the operations that have rules, against the loop over all coordinates."""

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import reference
from cases import roughen
from propagation.strategies import normal
from zoestim.evaluation import Batch, Objective, RandomState, evaluate
from zoestim.gradients import CoordinateEstimator

MAX_FOLD = "zoestim.evaluation._cost.MAX_FOLD"
MU = 5e-3
# To shrink a network that fails would take longer than a test may.
QUICK = {"deadline": None, "derandomize": True, "phases": [Phase.generate]}
CPU = torch.device("cpu")
Shape = tuple[int, ...]


class Chain(nn.Module):
    """One block after the other."""

    def __init__(self, *blocks: nn.Module):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Residual(nn.Module):
    """A branch is added to, or taken from, what it branches off."""

    def __init__(self, branch: nn.Module, sign: int):
        super().__init__()
        self.branch, self.sign = branch, sign

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.sign > 0 else x - self.branch(x)


class Cat(nn.Module):
    """Two branches side by side."""

    def __init__(self, first: nn.Module, second: nn.Module):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.first(x), self.second(x)], 1)


class Gate(nn.Module):
    """Two branches multiplied."""

    def __init__(self, first: nn.Module, second: nn.Module):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) * torch.sigmoid(self.second(x))


class Twice(nn.Module):
    """One layer at two places: both move at once."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.tanh(self.layer(x)))


class Scale(nn.Module):
    """A parameter of the user's own for each channel."""

    def __init__(self, n_channels: int):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(n_channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.ELU, nn.GELU, nn.LeakyReLU, nn.Hardtanh, nn.SiLU, nn.Softplus)


@st.composite
def convolutions(draw: st.DrawFn, n_channels: int, same: bool = False) -> nn.Module:
    """A convolution; with `same`, one that keeps channels and sizes."""
    if same:
        kernel = draw(st.sampled_from((1, 3)))
        groups = draw(st.sampled_from((1, n_channels)))
        return nn.Conv2d(n_channels, n_channels, kernel, padding=kernel // 2, groups=groups)
    groups = draw(st.sampled_from((1, n_channels)))
    return nn.Conv2d(
        n_channels,
        groups * draw(st.integers(1, 2)),
        draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        stride=draw(st.integers(1, 2)),
        padding=draw(st.integers(1, 2)),
        groups=groups,
        bias=draw(st.booleans()),
    )


@st.composite
def normalisations(draw: st.DrawFn, n_channels: int) -> nn.Module:
    groups = draw(st.sampled_from((1, n_channels)))
    affine = draw(st.booleans())
    makers = (
        lambda: nn.BatchNorm2d(n_channels, affine=affine),
        lambda: nn.BatchNorm2d(n_channels, affine=affine).eval(),
        lambda: nn.GroupNorm(groups, n_channels, affine=affine),
        lambda: nn.InstanceNorm2d(n_channels, affine=affine),
    )
    return draw(st.sampled_from(makers))()


POOLINGS = (
    lambda: nn.MaxPool2d(2, padding=1),
    lambda: nn.MaxPool2d(3, stride=1, padding=1),
    lambda: nn.AvgPool2d(2, padding=1),
    lambda: nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False),
    lambda: nn.AdaptiveAvgPool2d(2),
)


@st.composite
def blocks(draw: st.DrawFn, n_channels: int, depth: int = 1) -> nn.Module:
    """Anything that takes images of some channels."""
    kinds = ["convolution", "convolution", "normalisation", "activation", "pooling", "scale"]
    if depth:
        kinds += ["residual", "cat", "gate", "twice"]
    kind = draw(st.sampled_from(kinds))
    same = convolutions(n_channels, same=True)
    if kind == "convolution":
        return draw(convolutions(n_channels))
    if kind == "normalisation":
        return draw(normalisations(n_channels))
    if kind == "activation":
        return draw(st.sampled_from(ACTIVATIONS))()
    if kind == "pooling":
        return draw(st.sampled_from(POOLINGS))()
    if kind == "scale":
        return Scale(n_channels)
    if kind == "twice":
        return Twice(draw(same))
    if kind == "residual":
        branch = Chain(draw(same), draw(normalisations(n_channels)), draw(activations))
        return Residual(branch, draw(st.sampled_from((1, -1))))
    if kind == "cat":
        return Cat(draw(same), draw(st.one_of(same, activations)))
    return Gate(draw(same), draw(same))


activations = st.sampled_from(ACTIVATIONS).map(lambda make: make())


def shape_after(module: nn.Module, shape: Shape) -> Shape:
    with torch.no_grad():
        return tuple(module(torch.zeros(shape)).shape)


@st.composite
def image_networks(draw: st.DrawFn) -> tuple[nn.Module, Shape]:
    """Some blocks, and a linear layer."""
    shape = draw(st.tuples(st.integers(2, 3), st.integers(1, 2), st.just(4), st.integers(3, 5)))
    layers, now = [draw(convolutions(shape[1]))], shape
    now = shape_after(layers[0], now)
    for _ in range(draw(st.integers(1, 4))):
        layers.append(draw(blocks(now[1])))
        now = shape_after(layers[-1], now)
    head = nn.Linear(now[1] * now[2] * now[3], 3)
    return nn.Sequential(*layers, nn.Flatten(), head), shape


@st.composite
def vector_networks(draw: st.DrawFn) -> tuple[nn.Module, Shape]:
    """Linear layers, each with what may follow it, some of them tied."""
    width = draw(st.integers(2, 4))
    shape = draw(st.sampled_from([(4, width), (3, 2, width)]))
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(("plain", "residual", "twice", "normalised", "wide")))
        linear, activation = nn.Linear(width, width), draw(activations)
        if kind == "plain":
            layers += [linear, activation]
        elif kind == "residual":
            layers.append(Residual(Chain(linear, activation), 1))
        elif kind == "twice":
            layers.append(Twice(linear))
        elif kind == "normalised":
            layers += [linear, nn.LayerNorm(width), activation]
        else:
            layers += [nn.Linear(width, 3), activation, nn.Linear(3, width)]
    if len(shape) == 3:
        layers.append(nn.Flatten())
        width *= shape[1]
    return nn.Sequential(*layers, nn.Linear(width, 3)), shape


def prepared(module: nn.Module) -> nn.Module:
    """Return the module in float64, its parameters drawn from a seed of their own."""
    generator = torch.Generator().manual_seed(5)
    module = module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    roughen(module, generator)
    return module


def rounding_of_the_loop(module: nn.Module, gradient: Tensor, loss: float) -> float:
    """Return by how much rounding moves the loop's differences.

    A sum of m products is that of factors which are off by m eps: the forward pass is exact
    for parameters that are, so two of its losses are off by this much, and one by its own eps.
    """
    theta = reference.flat_parameters(module)
    fan_in = max(p[0].numel() for p in module.parameters())
    off = fan_in * float((theta * gradient).abs().sum()) + abs(loss)
    return 2 * torch.finfo(torch.float64).eps * off / MU


def check_against_the_loop(module: nn.Module, shape: Shape, classify: bool) -> None:
    module, X = prepared(module), normal(*shape, seed=2)
    y = torch.arange(shape[0]) % 3 if classify else normal(shape[0], 3, seed=3)
    criterion: nn.Module = nn.CrossEntropyLoss() if classify else nn.MSELoss()
    theta = reference.flat_parameters(module)
    random = RandomState.seeded(0, CPU)
    loss = reference.module_loss(module, criterion, X, y, random.cpu)
    expected = reference.cge(loss, theta, range(len(theta)), MU)
    assume(expected.isfinite().all())
    allowed = rounding_of_the_loop(module, expected, loss(theta))
    estimator = CoordinateEstimator(MU)
    for max_fold in (1, 3, 1024):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MAX_FOLD, max_fold)
            objective = Objective(module, criterion)
            queries = estimator.queries(torch.arange(len(theta)))
            found = evaluate(objective, Batch(X, y), queries, random)
        assert objective.reuse.unfolded == {}
        gradient = estimator.combine(queries, found.base_loss, found.losses).values
        error = (gradient - expected).abs().max()
        assert error <= 1e-9 * expected.abs().max() + allowed


@given(image_networks(), st.booleans())
@settings(max_examples=10, **QUICK)
def test_images(network: tuple[nn.Module, Shape], classify: bool):
    check_against_the_loop(*network, classify)


@given(vector_networks(), st.booleans())
@settings(max_examples=8, **QUICK)
def test_vectors(network: tuple[nn.Module, Shape], classify: bool):
    check_against_the_loop(*network, classify)
