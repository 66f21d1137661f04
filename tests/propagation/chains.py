"""Changes carried through several operations, by rules and by the operations themselves."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from propagation.lanes import check
from propagation.strategies import normal
from zoestim.evaluation import Batch, Objective, Propagation
from zoestim.propagation import RULES, Entry, Site, Value

STEP = 0.05


def differences(
    module: nn.Module, X: Tensor, name: str, indices: list[int]
) -> tuple[Tensor, Tensor]:
    """Return the change of the outputs by the rules, and by the module itself."""
    parameters = {key: value.detach() for key, value in module.named_parameters()}
    steps = torch.full((len(indices),), STEP, dtype=torch.float64)
    with torch.no_grad():
        objective = Objective(module, nn.MSELoss())
        propagation = Propagation(*objective.base(Batch(X, X)), objective.ways)
        found = propagation.run({name: Entry(torch.tensor(indices), steps)}).dense()
        base, lanes = module(X), []
        for index in indices:
            moved = parameters[name].clone()
            moved.view(-1)[index] += STEP
            lanes.append(functional_call(module, parameters | {name: moved}, X) - base)
    return found, torch.stack(lanes)


def seeded(module: nn.Module) -> nn.Module:
    """Return the module in float64, with parameters that are always the same."""
    module = module.double()
    for seed, parameter in enumerate(module.parameters()):
        parameter.data = normal(*parameter.shape, seed=seed, scale=0.5)
    return module


def some_of(module: nn.Module, name: str) -> list[int]:
    """Return coordinates of several channels, one of them twice."""
    size = dict(module.named_parameters())[name].numel()
    return [0, size - 1, size // 2, size // 3, 0]


OPERATIONS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "normalise": (F.batch_norm, (None, None, None, None, True)),
    "relu": (F.relu, ()),
    "hardtanh": (F.hardtanh, (-0.3, 0.4)),
    "relu6": (F.relu6, ()),
    "largest": (F.max_pool2d, (2,)),
    "overlapping": (F.max_pool2d, (3, 2, 1)),
    "average": (F.avg_pool2d, (2,)),
    "convolve": (F.conv2d, (Value(normal(2, 4, 2, 2, seed=9)),)),
    "tanh": (torch.tanh, ()),
}


def site(out: Tensor) -> Site:
    """Return where an operation without random numbers runs."""
    return Site(Value(out), lambda function: function())


def applied(x: Value, name: str) -> Value:
    """Return what an operation gives, its rule compared with itself."""
    operation, args = OPERATIONS[name]
    plain = [arg.base if isinstance(arg, Value) else arg for arg in args]
    return Value(operation(x.base, *plain), check(operation, x, *args))


def unchecked(x: Value, name: str) -> Value:
    """Return what an operation gives by its rule alone: nothing of it is computed yet."""
    operation, args = OPERATIONS[name]
    plain = [arg.base if isinstance(arg, Value) else arg for arg in args]
    out = operation(x.base, *plain)
    return Value(out, RULES[operation](site(out), x, *args))
