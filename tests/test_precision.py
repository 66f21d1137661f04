"""How many digits of a gradient are left in short floating types, on networks of some depth."""

import copy
from collections.abc import Callable
from functools import cache, partial

import pytest
import torch
from torch import Tensor, nn

import reference
from zoestim import estimate_gradient
from zoestim.models import MLP, SimpleCNN, resnet20

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (partial(MLP, 64, 10, hidden=32), (32, 64)),
    "simple_cnn": (partial(SimpleCNN, 2), (16, 3, 16, 16)),
    "resnet20": (resnet20, (8, 3, 16, 16)),
}
every_network = pytest.mark.parametrize("name", NETWORKS)
LOSS = nn.CrossEntropyLoss()


def problem(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network in train mode and a batch, all in float32."""
    build, shape = NETWORKS[name]
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(shape, generator=generator)
    y = torch.randint(10, shape[:1], generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().train(), X, y


@cache
def chosen(name: str) -> dict[str, Tensor]:
    """Return some 40 to 60 coordinates, as many of each parameter."""
    sizes = {key: p.numel() for key, p in problem(name)[0].named_parameters()}
    generator, each = torch.Generator().manual_seed(0), max(1, 40 // len(sizes))
    return {
        key: torch.randperm(n, generator=generator)[:each].sort().values for key, n in sizes.items()
    }


def flat(name: str) -> Tensor:
    """Return the chosen coordinates as flat indices into all parameters."""
    start, found = 0, []
    for key, parameter in problem(name)[0].named_parameters():
        found.append(chosen(name)[key] + start)
        start += parameter.numel()
    return torch.cat(found)


@cache
def estimated(name: str, smoothing: float, precision: str) -> Tensor:
    """Return what the package estimates."""
    module, X, y = problem(name)
    options = {"coordinates": chosen(name), "smoothing": smoothing, "precision": precision}
    return estimate_gradient(module, LOSS, X, y, **options).gradient.values


@cache
def looped(name: str, smoothing: float, kind: torch.dtype) -> Tensor:
    """Return the differences of a loop: one forward pass of a query, in some type."""
    module, X, y = problem(name)
    module, X = copy.deepcopy(module).to(kind), X.to(kind)
    loss = reference.module_loss(module, LOSS, X, y, torch.get_rng_state())
    gradient = reference.cge(loss, reference.flat_parameters(module), flat(name), smoothing)
    return gradient[flat(name)].double()


@cache
def true_gradient(name: str) -> Tensor:
    """Return the partial derivatives by autograd in float64."""
    module, X, y = problem(name)
    module = copy.deepcopy(module).double()
    LOSS(module(X.double()), y).backward()
    return torch.cat([p.grad.flatten() for p in module.parameters()])[flat(name)]


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_deep_float32_differences_are_within_a_thousandth_of_float64():
    exact = looped("resnet20", 5e-3, torch.float64)
    assert error(estimated("resnet20", 5e-3, "float32"), exact) < 1e-3


def test_deep_bfloat16_differences_are_within_a_twentieth_of_float64():
    exact = looped("resnet20", 5e-3, torch.float64)
    found = estimated("resnet20", 5e-3, "bfloat16")
    assert error(found, exact) < 5e-2
    assert error(found, estimated("resnet20", 5e-3, "float32")) > 1e-5  # it is another arithmetic


@every_network
def test_a_tiny_step_in_float32_gives_the_true_gradient_within_a_hundredth(name: str):
    assert error(estimated(name, 1e-5, "float32"), true_gradient(name)) < 1e-2


@every_network
def test_plain_float32_differences_are_ten_times_worse_at_a_tiny_step(name: str):
    plain = error(looped(name, 1e-5, torch.float32), true_gradient(name))
    assert plain > 10 * error(estimated(name, 1e-5, "float32"), true_gradient(name))
