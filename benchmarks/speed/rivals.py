"""Other ways to the same finite differences; each is ``estimate(problem) -> values``.

The values are in the order of the problem's coordinates. All take forward differences with the
step `SMOOTHING`.
"""

import copy
import importlib
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, replace_all_batch_norm_modules_, vmap

from benchmarks.speed.problems import SMOOTHING, Coordinates, Problem
from zoestim import estimate_gradient
from zoestim.evaluation import Batch, BatchLoss, Objective, evaluate
from zoestim.gradients import CoordinateEstimator

Estimate = Callable[[Problem], Tensor]

# How many samples vmap may fold into one batch: a chunk has as many perturbations as make these.
FOLDED = {
    ("images", "cpu"): (256, 1_024, 4_096),
    ("images", "cuda"): (1_024, 8_192, 32_768),
    ("rows", "cpu"): (16_384, 65_536, 262_144),
    ("rows", "cuda"): (16_384, 131_072, 1_048_576),
}


class Kept:
    """Keeps what this package learns of the module from step to step, as a training does.

    The first call traces the module, counts costs and proves its folds.

    Parameters
    ----------
    problem : Problem
        On the module and the criterion to keep.
    feature_reuse : bool, default=True
        The option of this name.
    """

    def __init__(self, problem: Problem, feature_reuse: bool = True):
        loss = BatchLoss(problem.criterion)
        self.objective = Objective(problem.module, loss, feature_reuse=feature_reuse)

    def __call__(self, problem: Problem, estimator: CoordinateEstimator | None = None) -> Tensor:
        """Estimate with this package."""
        estimator = estimator or CoordinateEstimator(SMOOTHING)
        queries = estimator.queries(self.objective.parameters.flatten(problem.coordinates))
        found = evaluate(self.objective, Batch(problem.X, problem.y), queries)
        return estimator.combine(queries, found.base_loss, found.losses).values


def zoestim(problem: Problem) -> Tensor:
    """Estimate with this package, once."""
    return estimate_gradient(
        problem.module,
        problem.criterion,
        problem.X,
        problem.y,
        smoothing=SMOOTHING,
        coordinates=problem.coordinates,
    ).gradient.values


@torch.no_grad()
def moved_losses(problem: Problem, smoothing: float) -> tuple[Tensor, list[Tensor]]:
    """Return the loss, and those with one coordinate moved, run and moved back after another."""
    X, y, module = problem.X, problem.y, problem.module
    base, losses = problem.criterion(module(X), y), []
    for name, indices in problem.coordinates.items():
        flat = module.get_parameter(name).view(-1)
        for index in indices.tolist():
            before = flat[index].clone()
            flat[index] += smoothing
            losses.append(problem.criterion(module(X), y))
            flat[index] = before
    return base, losses


def loop(problem: Problem) -> Tensor:
    """Estimate as Eq. (1) is read: for each coordinate move it, run the model, move it back."""
    base, losses = moved_losses(problem, SMOOTHING)
    return (torch.stack(losses) - base) / SMOOTHING


def double_loop(problem: Problem) -> Tensor:
    """Estimate by the loop in float64: what the others are compared with."""
    module = copy.deepcopy(problem.module).double()
    return loop(replace(problem, module=module, X=problem.X.double()))


class Vmapped:
    """`torch.func.vmap` over `functional_call`, one parameter tensor at a time.

    vmap does not batch what comes before the perturbed tensor, so features are reused within a
    chunk. BatchNorm's running statistics are left out, as torch asks for.

    Parameters
    ----------
    chunk_size : int
        How many perturbations run as one batch.
    """

    def __init__(self, chunk_size: int):
        self.chunk_size = chunk_size

    @torch.no_grad()
    def __call__(self, problem: Problem) -> Tensor:
        """Estimate all coordinates, chunk by chunk."""
        module = replace_all_batch_norm_modules_(copy.deepcopy(problem.module))
        X, y = problem.X, problem.y
        base = problem.criterion(module(X), y)
        losses = []
        for name, indices in problem.coordinates.items():
            theta = module.get_parameter(name)
            places = torch.arange(theta.numel(), device=theta.device).view_as(theta)
            one_tensor = vmap(_loss_at(problem, module, name, places), chunk_size=self.chunk_size)
            losses.append(one_tensor(indices.to(theta.device)))
        return (torch.cat(losses) - base) / SMOOTHING


def _loss_at(
    problem: Problem, module: nn.Module, name: str, places: Tensor
) -> Callable[[Tensor], Tensor]:
    theta = module.get_parameter(name)

    def loss(index: Tensor) -> Tensor:
        moved = theta + SMOOTHING * (places == index)
        return problem.criterion(functional_call(module, {name: moved}, problem.X), problem.y)

    return loss


def chunk_sizes(problem: Problem) -> list[int]:
    """Return the chunk sizes that are tried for vmap."""
    kind = "images" if problem.X.ndim == 4 else "rows"
    folded = FOLDED[kind, problem.X.device.type]
    return sorted({max(1, n // len(problem.X)) for n in folded})


class Torchzero:
    """Finite differences of torchzero, which are of all parameters or none."""

    def __init__(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchzero's own, about what it imports
            self.package = importlib.import_module("torchzero")

    def __call__(self, problem: Problem) -> Tensor:
        """Estimate by one step of length 1, taken back afterwards."""
        module, modules = problem.module, self.package.m
        parameters = list(module.parameters())
        before = [p.detach().clone() for p in parameters]
        differences = modules.FDM(h=SMOOTHING, formula="forward")
        optimizer = self.package.Optimizer(parameters, differences, modules.LR(1.0))

        @torch.no_grad()
        def closure(backward: bool = False) -> Tensor:
            return problem.criterion(module(problem.X), problem.y)

        optimizer.step(closure)
        with torch.no_grad():
            values = [(b - p).view(-1) for b, p in zip(before, parameters, strict=True)]
            for p, b in zip(parameters, before, strict=True):
                p.copy_(b)
        return torch.cat(values)

    @staticmethod
    def can_do(problem: Problem) -> bool:
        """Return whether the problem asks for every parameter."""
        return problem.n_coordinates == sum(p.numel() for p in problem.module.parameters())


# --- The authors' code


class Here:
    """Stands for the remote reference that the authors' worker is handed: the value is here."""

    def __init__(self, value: Tensor):
        self.value = value

    def to_here(self) -> Tensor:
        """Return the value."""
        return self.value


class AuthorsWorker:
    """One worker of the authors' code, called in this process, on their own ResNet-20.

    Its features are reused by whole blocks: the outputs of the 12 parts of their ResNet-20 are
    kept once a batch, and a query starts at the part that holds its parameter.

    Parameters
    ----------
    path : Path
        A checkout of github.com/OPTML-Group/DeepZero.
    problem : Problem
        On :func:`zoestim.models.resnet20`, whose state theirs takes over.
    feature_reuse : bool, default=True
        Their option of this name.
    """

    def __init__(self, path: Path, problem: Problem, feature_reuse: bool = True):
        networks, distributed = _authors_modules(path)
        self.worker: Any = distributed.DistributedCGEModel(
            str(problem.X.device),
            networks.resnet20,
            problem.criterion,
            networks.param_name_to_module_id_rn20,
            pruned=False,
            feature_reuse=feature_reuse,
        )
        state = problem.module.state_dict()
        self.worker.network.load_state_dict({_their_name(name): v for name, v in state.items()})

    def __call__(self, problem: Problem) -> Tensor:
        """Give the worker its coordinates and let it calculate."""
        instruction = torch.tensor(_pairs(problem.coordinates), dtype=torch.float32)
        names = [_their_name(name) for name in problem.coordinates]
        self.worker.set_params_to_be_perturbed(Here(instruction), names)
        found = self.worker.calculate_grads(Here(problem.X), Here(problem.y), SMOOTHING)
        return found[:, 2]


def _authors_modules(path: Path) -> tuple[ModuleType, ModuleType]:
    if not (path / "models" / "distributed_model.py").exists():
        raise FileNotFoundError(f"{path} is no checkout of github.com/OPTML-Group/DeepZero.")
    sys.path.insert(0, str(path))
    try:
        networks = importlib.import_module("models.resnet_s")
        return networks, importlib.import_module("models.distributed_model")
    finally:
        sys.path.remove(str(path))


def _their_name(name: str) -> str:
    return name.replace("linear.", "fc.")


def _pairs(coordinates: Coordinates) -> list[tuple[int, int]]:
    """Return (which parameter, which entry) of each coordinate."""
    return [(k, i) for k, indices in enumerate(coordinates.values()) for i in indices.tolist()]
