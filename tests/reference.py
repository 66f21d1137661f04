"""What the fast paths are judged by: loops over Eqs. (1) and (3), one forward for each query."""

import copy
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor], float]


def difference(
    loss: Loss, theta: Tensor, direction: Tensor, smoothing: float, scheme: str
) -> float:
    """Return the finite difference of the loss along the direction."""
    step = smoothing * direction
    if scheme == "forward":
        return (loss(theta + step) - loss(theta)) / smoothing
    if scheme == "central":
        return (loss(theta + step) - loss(theta - step)) / (2 * smoothing)
    raise ValueError(f"scheme must be 'forward' or 'central'. Got {scheme!r} instead.")


def cge(
    loss: Loss,
    theta: Tensor,
    coordinates: Iterable[int],
    smoothing: float,
    scheme: str = "forward",
) -> Tensor:
    """Return the coordinate-wise estimate of Eq. (1); coordinates not asked for are zero."""
    gradient = torch.zeros_like(theta)
    for i in coordinates:
        direction = torch.zeros_like(theta)
        direction[i] = 1.0
        gradient[i] = difference(loss, theta, direction, smoothing, scheme)
    return gradient


def rge(
    loss: Loss,
    theta: Tensor,
    directions: Iterable[Tensor],
    smoothing: float,
    scheme: str = "forward",
) -> Tensor:
    """Return the randomised estimate of Eq. (1): the mean of difference * direction."""
    terms = []
    for direction in directions:
        terms.append(difference(loss, theta, direction, smoothing, scheme) * direction)
    return torch.stack(terms).mean(0)


def grasp_scores(theta: Tensor, gradient: Callable[[Tensor], Tensor], smoothing: float) -> Tensor:
    """Return the ZO-GraSP scores of Eq. (3): -theta * (g(theta + mu g) - g) / mu."""
    g = gradient(theta)
    return -theta * (gradient(theta + smoothing * g) - g) / smoothing


def flat_parameters(module: nn.Module) -> Tensor:
    """Return a copy of the trainable parameters: `named_parameters` order, each one row-major."""
    parameters = [p for _, p in module.named_parameters() if p.requires_grad]
    return torch.cat([p.detach().reshape(-1) for p in parameters])


@torch.no_grad()
def write_parameters(module: nn.Module, theta: Tensor) -> None:
    """Write what `flat_parameters` reads."""
    parameters = [p for _, p in module.named_parameters() if p.requires_grad]
    chunks = theta.split([p.numel() for p in parameters])
    for parameter, chunk in zip(parameters, chunks, strict=True):
        parameter.copy_(chunk.reshape(parameter.shape))


def module_loss(
    module: nn.Module,
    criterion: Callable[..., Tensor | float],
    X: Tensor,
    y: Tensor,
    rng_state: Tensor,
) -> Loss:
    """Return theta -> loss; every query starts from the same module, batch and random numbers."""

    def loss(theta: Tensor) -> float:
        perturbed = copy.deepcopy(module)
        write_parameters(perturbed, theta)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.set_rng_state(rng_state)
            losses = criterion(perturbed(X.clone()), y.clone())
        return losses.mean().item() if isinstance(losses, Tensor) else float(losses)

    return loss
