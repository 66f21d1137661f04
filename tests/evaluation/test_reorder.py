"""Pooling before cutting off: the same values, and only where nothing else reads what is cut."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import reference
from zoestim import estimate_gradient
from zoestim.evaluation import RandomState
from zoestim.evaluation._reorder import pool_before_cutting
from zoestim.evaluation._trace import trace


def nodes(module: nn.Module) -> list[str]:
    """Return what the operations of a module's graph are, in their order."""
    graph, root, _ = trace(module)
    found = [node for node in graph.nodes if node.op.startswith("call_")]
    return [_name(node, root) for node in found]


def _name(node: fx.Node, root: nn.Module) -> str:
    if node.op == "call_module":
        return type(root.get_submodule(str(node.target))).__name__
    return str(getattr(node.target, "__name__", node.target))


def exchanged(module: nn.Module, x: Tensor) -> Tensor:
    """Return what a module's graph gives after the exchange."""
    graph, root, _ = trace(module)
    graph.lint()
    return fx.GraphModule(root, graph)(x)


def images(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return torch.where(x.abs() < 0.2, torch.zeros(()).double(), x)  # ties, and zeros


class Called(nn.Module):
    """A function of one input, as a module; a convolution before it gives it parameters."""

    def __init__(self, function: Callable[..., Any], channels: int = 2):
        super().__init__()
        self.function = function
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Conv2d(channels, 3, 3, padding=1).double()

    def forward(self, x: Tensor) -> Any:
        return self.function(self.first(x))


RISING = {
    "relu": (nn.ReLU(), "ReLU"),
    "relu6": (nn.ReLU6(), "ReLU6"),
    "hardtanh": (nn.Hardtanh(-0.1, 0.4), "Hardtanh"),
}
POOLS = {
    "plain": nn.MaxPool2d(2),
    "overlapping": nn.MaxPool2d(3, 2, padding=1),
    "rounded up": nn.MaxPool2d(3, ceil_mode=True),
    "dilated": nn.MaxPool2d(2, 1, dilation=2),
    "adaptive": nn.AdaptiveMaxPool2d(3),
}


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
@pytest.mark.parametrize(("rise", "name"), RISING.values(), ids=RISING)
def test_modules_are_exchanged_and_give_the_same_bits(rise: nn.Module, name: str, pool: nn.Module):
    module = nn.Sequential(rise, pool)
    assert nodes(module) == [type(pool).__name__, name]
    x = images(3, 2, 7, 8)
    assert torch.equal(exchanged(module, x), module(x))


FUNCTIONS: dict[str, tuple[Callable[[Tensor], Any], list[str]]] = {
    "functions": (lambda x: F.max_pool2d(F.relu(x), 2), ["max_pool2d", "relu"]),
    "method": (lambda x: F.max_pool2d(x.relu(), 2), ["max_pool2d", "relu"]),
    "torch's": (lambda x: torch.max_pool2d(torch.relu(x), 2), ["max_pool2d", "relu"]),
    "keywords": (
        lambda x: F.max_pool2d(F.hardtanh(x, max_val=0.3), 3, stride=2, padding=1),
        ["max_pool2d", "hardtanh"],
    ),
}


@pytest.mark.parametrize(("function", "names"), FUNCTIONS.values(), ids=FUNCTIONS)
def test_functions_and_methods_are_exchanged_too(function: Callable, names: list[str]):
    module, x = Called(function), images(3, 2, 7, 8)
    assert nodes(module) == ["Conv2d", *names]
    assert torch.equal(exchanged(module, x), module(x))


@pytest.mark.parametrize("n_axes", [1, 3])
def test_lines_and_volumes_are_exchanged(n_axes: int):
    pool = {1: nn.MaxPool1d, 3: nn.MaxPool3d}[n_axes](2)
    module, x = nn.Sequential(nn.ReLU(), pool), images(2, 3, *[5] * n_axes)
    assert nodes(module) == [type(pool).__name__, "ReLU"]
    assert torch.equal(exchanged(module, x), module(x))


def test_each_pooling_passes_the_function_before_it():
    module = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.ReLU6(), nn.MaxPool2d(2))
    assert nodes(module) == ["MaxPool2d", "ReLU", "MaxPool2d", "ReLU6"]
    x = images(2, 3, 8, 8)
    assert torch.equal(exchanged(module, x), module(x))


def test_infinities_and_nans_are_the_same():
    module, x = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), images(2, 3, 8, 8)
    x[0, 0, 0, 0], x[0, 1], x[1, 0, 3, 3] = torch.nan, -torch.inf, torch.inf
    torch.testing.assert_close(exchanged(module, x), module(x), rtol=0, atol=0, equal_nan=True)


def test_functions_that_are_exchanged_are_called_by_their_own_names():
    graph, root, _ = trace(Called(lambda x: F.max_pool2d(F.relu(x), 2)))
    functions = [node for node in graph.nodes if node.op == "call_function"]
    assert [node.name for node in functions] == [_name(node, root) for node in functions]


# --- Where it is left alone

LEFT: dict[str, Callable[[Tensor], Any]] = {
    "two readers": lambda x: F.max_pool2d(r := F.relu(x), 2).sum() + r.sum(),
    "read before": lambda x: (r := F.relu(x)).mean() + F.max_pool2d(r, 2).sum(),
    "two poolings": lambda x: F.max_pool2d(r := F.relu(x), 2).sum() - F.max_pool2d(r, 3).sum(),
    "returned": lambda x: (r := F.relu(x), F.max_pool2d(r, 2)),
    "negative slope": lambda x: F.max_pool2d(F.leaky_relu(x, -0.2), 2),
    "falling": lambda x: F.max_pool2d(torch.neg(x), 2),
    "not monotone": lambda x: F.max_pool2d(F.gelu(x), 2),
    "pooled first": lambda x: F.leaky_relu(F.max_pool2d(x, 2), -0.2),
    "average": lambda x: F.avg_pool2d(F.relu(x), 2),
    "adaptive average": lambda x: F.adaptive_avg_pool2d(F.relu(x), 2),
    "indices": lambda x: F.max_pool2d(F.relu(x), 2, return_indices=True)[1],
    "between": lambda x: F.max_pool2d(F.relu(x) * -1, 2),
}


@pytest.mark.parametrize("function", LEFT.values(), ids=LEFT)
def test_other_graphs_keep_their_order(function: Callable, monkeypatch):
    module, x = Called(function), images(3, 2, 7, 8)
    found, result = nodes(module), exchanged(module, x)
    monkeypatch.setattr("zoestim.evaluation._trace.pool_before_cutting", lambda *_: None)
    assert found == nodes(module)
    torch.testing.assert_close(result, module(x), rtol=0, atol=0)


def test_a_pooling_that_returns_its_indices_keeps_its_place():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(2, return_indices=True)

        def forward(self, x: Tensor) -> Tensor:
            largest, where = self.pool(self.relu(x))
            return largest + where

    assert nodes(Both())[:2] == ["ReLU", "MaxPool2d"]


@pytest.mark.parametrize("hooked", [0, 1], ids=["relu", "pool"])
@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook"])
def test_modules_that_a_hook_watches_keep_their_place(kind: str, hooked: int):
    module = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))
    getattr(module[hooked], kind)(lambda *_: None)
    assert "MaxPool2d" not in nodes(module)[:1]


def test_a_subclass_may_do_anything_and_keeps_its_place():
    class Absolute(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            return -x.relu()

    module, x = nn.Sequential(Absolute(), nn.MaxPool2d(2)), images(2, 3, 6, 6)
    assert torch.equal(exchanged(module, x), module(x))


def test_an_input_given_by_keyword_is_left_alone():
    graph = fx.Graph()
    x = graph.placeholder("x")
    relu = graph.call_function(F.relu, (), {"input": x})
    graph.output(graph.call_function(F.max_pool2d, (relu, 2)))
    pool_before_cutting(graph, nn.Module())
    assert [node.target for node in graph.nodes][1:3] == [F.relu, F.max_pool2d]


# --- Gradients


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.max_pool2d(F.relu(x), 2).flatten(1),
        lambda x: F.max_pool2d(F.hardtanh(x, -0.2, 0.3), 3, 2, 1).flatten(1),
        lambda x: (F.max_pool2d(r := F.relu(x), 2) - r[..., ::2, ::2]).flatten(1),
        lambda x: F.max_pool2d(F.leaky_relu(x, -0.2), 2).flatten(1),
    ],
    ids=["relu", "overlapping", "two readers", "negative slope"],
)
def test_gradients_are_those_of_the_loop(function: Callable):
    module, X, y = Called(function), images(3, 2, 6, 6), torch.tensor([0, 1, 2])
    found = estimate_gradient(module, nn.CrossEntropyLoss(), X, y)
    state = RandomState.seeded(0, torch.device("cpu")).cpu
    loss = reference.module_loss(module, nn.CrossEntropyLoss(), X, y, state)
    theta = reference.flat_parameters(module)
    expected = reference.cge(loss, theta, range(len(theta)), 5e-3)
    torch.testing.assert_close(found.gradient.dense(len(theta)), expected, rtol=1e-8, atol=1e-11)
    assert found.loss == loss(theta)
