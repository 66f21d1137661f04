"""What is differentiated: networks, batches and coordinate sets, the same for every method."""

import argparse
import copy
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoestim import estimate_gradient
from zoestim.datasets import load_cifar10
from zoestim.models import MLP, SimpleCNN, resnet20
from zoestim.sparsity import draw_coordinates, grasp_scores, layer_ratios

SMOOTHING = 5e-3
BATCH_SIZE = 128
IMAGE = (3, 32, 32)
Coordinates = dict[str, Tensor]
_SCORES: dict[str, dict[str, Tensor]] = {}  # of this process, by what they were made from


@dataclass(frozen=True)
class Problem:
    """One gradient to estimate.

    Parameters
    ----------
    name : str
        As `--cases` has it.
    module : Module
        In train mode, so that BatchNorm normalises by the batch, as in a training step.
    X, y : Tensor
        The batch.
    coordinates : dict from parameter name to Tensor of int64
        The flat indices to estimate, ascending, in `named_parameters` order.
    data : str
        Where batch and coordinates come from, in words.
    """

    name: str
    module: nn.Module
    X: Tensor
    y: Tensor
    coordinates: Coordinates
    data: str
    criterion: Callable[[Any, Any], Any] = nn.functional.cross_entropy

    @property
    def n_coordinates(self) -> int:
        """Return how many coordinates are estimated."""
        return sum(len(indices) for indices in self.coordinates.values())

    def at(self, coordinates: Coordinates) -> "Problem":
        """Return the problem with other coordinates."""
        return replace(self, coordinates=coordinates)

    def sample(self, n: int, seed: int) -> "Problem":
        """Return the problem at n of its coordinates, from each layer in proportion; 0 is all.

        The coordinates in order are cut into n parts of one length; each gives one at random.
        """
        total = self.n_coordinates
        if n == 0 or n >= total:
            return self
        generator = torch.Generator().manual_seed(seed)
        places = torch.rand(n, generator=generator, dtype=torch.float64) + torch.arange(n)
        kept = torch.zeros(total, dtype=torch.bool)
        kept[(places * total / n).long().clamp(max=total - 1)] = True
        parts = kept.split([len(indices) for indices in self.coordinates.values()])
        pairs = zip(self.coordinates.items(), parts, strict=True)
        chosen = {name: indices[part] for (name, indices), part in pairs}
        return self.at({name: indices for name, indices in chosen.items() if len(indices)})


def every_coordinate(module: nn.Module) -> Coordinates:
    """Return all flat indices of all parameters."""
    return {name: torch.arange(p.numel()) for name, p in module.named_parameters()}


def built(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return a new network, initialised from the seed."""
    with torch.random.fork_rng():
        torch.random.manual_seed(seed)
        return make().train()


def n_parameters(module: nn.Module) -> int:
    """Return how many parameters a network has."""
    return sum(parameter.numel() for parameter in module.parameters())


def n_queried(module: nn.Module, sparsity: float) -> int:
    """Return how many coordinates a sparse step queries: some weights, all other parameters."""
    sizes = [(p.numel(), p.ndim > 1) for p in module.parameters()]
    layers = [size for size, is_weight in sizes if is_weight]
    dense = sum(size for size, is_weight in sizes if not is_weight)
    return dense + max(len(layers), round((1 - sparsity) * sum(layers)))


# --- Data


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which images and which coordinates."""
    parser.add_argument("--batch-size", type=int, help="instead of each case's own")
    parser.add_argument("--data", type=Path, help="CIFAR-10 (see load_cifar10); else noise")
    parser.add_argument("--grasp-queries", type=int, default=192, help="directions of ZO-GraSP")
    parser.add_argument(
        "--ratios", type=Path, help="JSON of layer-wise ratios: read if it is there, else written"
    )


def images(data: Path | None, n: int, seed: int) -> tuple[Tensor, Tensor, str]:
    """Return n images and classes and what they are: real ones, or noise without `data`."""
    if data is not None:
        X, y = _real_images(data, n, seed)
        return X, y, "CIFAR-10"
    generator = torch.Generator().manual_seed(seed)
    X = torch.rand(n, *IMAGE, generator=generator)
    return X, torch.randint(10, (n,), generator=generator), "random images"


@functools.cache
def _real_images(data: Path, n: int, seed: int) -> tuple[Tensor, Tensor]:
    options = {"n_samples": n, "shuffle": True, "random_state": seed, "return_X_y": True}
    X, y = load_cifar10(data, **options)
    return torch.as_tensor(X), torch.as_tensor(y)


# --- Networks


def mlp_problem(hidden: int, options: argparse.Namespace, name: str = "mlp") -> Problem:
    """Return the dense gradient of an MLP 64-`hidden`-10 on random features."""
    generator = torch.Generator().manual_seed(options.seed)
    n = options.batch_size or BATCH_SIZE
    X, y = torch.randn(n, 64, generator=generator), torch.randint(10, (n,), generator=generator)
    module = built(lambda: MLP(64, 10, hidden=hidden), options.seed)
    return Problem(name, module, X, y, every_coordinate(module), "random features, dense")


def cnn_problem(
    depth: int, options: argparse.Namespace, width: int = 18, name: str | None = None
) -> Problem:
    """Return the dense gradient of a SimpleCNN."""
    X, y, source = images(options.data, options.batch_size or BATCH_SIZE, options.seed)
    module = built(lambda: SimpleCNN(depth, width=width), options.seed)
    name = name or f"cnn{n_parameters(module)}"
    return Problem(name, module, X, y, every_coordinate(module), f"{source}, dense")


def resnet_problem(
    sparsity: float, batch_size: int, options: argparse.Namespace, name: str
) -> Problem:
    """Return the sparse gradient of a ResNet-20, its coordinates drawn as Alg. 1 does.

    The layer-wise ratios come from ZO-GraSP on `BATCH_SIZE` images. They hold for the weights of
    convolutions and of the linear layer; biases and BatchNorm's scales are all estimated.
    """
    size = options.batch_size or batch_size
    X, y, source = images(options.data, size, options.seed)
    module = built(resnet20, options.seed)
    ratios = _ratios(module, sparsity, options)
    sizes = {name: p.numel() for name, p in module.named_parameters()}
    generator = torch.Generator().manual_seed(options.seed)
    chosen = every_coordinate(module) | draw_coordinates(ratios, sizes, generator)
    data = f"{source}, {sparsity:.0%} sparse by ZO-GraSP"
    return Problem(name, module, X, y, {name: chosen[name] for name in sizes}, data)


def _ratios(module: nn.Module, sparsity: float, options: argparse.Namespace) -> dict[str, float]:
    """Return the layer-wise ratios, from the file of `--ratios` where it has them."""
    size = min(BATCH_SIZE, options.batch_size or BATCH_SIZE)
    X, y, source = images(options.data, size, options.seed)
    scored = f"{options.grasp_queries} directions, {size} of {source}, seed {options.seed}"
    key, path = f"sparsity {sparsity:g}, {scored}", options.ratios
    known = json.loads(path.read_text()) if path is not None and path.exists() else {}
    if key not in known:
        if scored not in _SCORES:
            directions, seed, device = options.grasp_queries, options.seed, options.device
            _SCORES[scored] = grasp(module, X, y, directions, seed, device)
        known[key] = layer_ratios(_SCORES[scored], sparsity)
        if path is not None:
            path.write_text(json.dumps(known, indent=1) + "\n")
    return known[key]


def grasp(
    module: nn.Module, X: Tensor, y: Tensor, n_directions: int, seed: int, device: str
) -> dict[str, Tensor]:
    """Return ZO-GraSP's scores of all weights, Eq. (3), from estimates of the public entry."""
    scored = {name: p for name, p in module.named_parameters() if p.ndim > 1}
    asked = {name: torch.arange(p.numel()) for name, p in scored.items()}
    moved = copy.deepcopy(module).to(device)

    def gradient(theta: Tensor) -> Tensor:
        parts = theta.split([p.numel() for p in scored.values()])
        with torch.no_grad():
            for name, part in zip(scored, parts, strict=True):
                moved.get_parameter(name).copy_(part.view_as(scored[name]))
        estimate = estimate_gradient(
            moved,
            nn.CrossEntropyLoss(),
            X,
            y,
            method="rge",
            n_directions=n_directions,
            coordinates=asked,
            random_state=seed,  # the same directions both times
        )
        return estimate.gradient.values.cpu()

    theta = torch.cat([p.detach().double().flatten() for p in scored.values()])
    flat = grasp_scores(theta, gradient, SMOOTHING)
    parts = flat.split([p.numel() for p in scored.values()])
    return {name: part.view_as(p) for (name, p), part in zip(scored.items(), parts, strict=True)}


# --- By name


CASES: dict[str, Callable[[argparse.Namespace], Problem]] = {
    "mlp": lambda options: mlp_problem(32, options),
    "cnn730": lambda options: cnn_problem(1, options),
    "cnn3700": lambda options: cnn_problem(2, options),
    "cnn12610": lambda options: cnn_problem(5, options),
    "resnet90": lambda options: resnet_problem(0.90, 128, options, "resnet90"),
    "resnet99": lambda options: resnet_problem(0.99, 128, options, "resnet99"),
    "resnet90-512": lambda options: resnet_problem(0.90, 512, options, "resnet90-512"),
    "resnet99-512": lambda options: resnet_problem(0.99, 512, options, "resnet99-512"),
}


def load_case(name: str, options: argparse.Namespace) -> Problem:
    """Return a problem by its name, on the device of the options."""
    problem = CASES[name](options)
    device = options.device
    module = copy.deepcopy(problem.module).to(device)
    return replace(problem, module=module, X=problem.X.to(device), y=problem.y.to(device))
