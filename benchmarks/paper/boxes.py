"""The black boxes, and what only their owner can do: train them, and pass gradients through."""

import copy
import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.speed.problems import built

N_CLASSES = 10


def digits_cnn() -> nn.Module:
    """Return a CNN for rows of 64 pixels."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64, N_CLASSES)),
    )


def cifar10_cnn() -> nn.Module:
    """Return a CNN for images of 32 x 32 pixels in three channels."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(1024, N_CLASSES)),
    )


def trained(
    network: nn.Module, X: np.ndarray, y: np.ndarray, *, epochs: int, lr: float, seed: int
) -> nn.Module:
    """Return a network trained on clean samples, by backprop, with Adam in batches of 64."""
    data, target = torch.as_tensor(X, dtype=torch.float32), torch.as_tensor(y)
    optimizer = torch.optim.Adam(network.parameters(), lr)
    n_steps = epochs * math.ceil(len(data) / 64)
    for rows in batches(len(data), 64, n_steps, torch.Generator().manual_seed(seed)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(data[rows]), target[rows]).backward()
        optimizer.step()
    return network.eval().requires_grad_(False)


def box_for(name: str, X: np.ndarray, y: np.ndarray, *, epochs: int, seed: int) -> nn.Module:
    """Return one of the two CNNs, trained; the seed draws its weights and its batches."""
    lr = {"digits": 2e-3, "cifar10": 1e-3}[name]
    network = built({"digits": digits_cnn, "cifar10": cifar10_cnn}[name], seed)
    return trained(network, X, y, epochs=epochs, lr=lr, seed=seed)


def first_order(
    denoiser: nn.Module,
    box: nn.Module,
    X: np.ndarray,
    *,
    image: tuple[int, int, int],
    noise_std: float,
    last_only: bool,
    n_steps: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> nn.Module:
    """Finetune a denoiser by backprop through the black box: FO-DS, Salman et al. (2020).

    What differs from ZODenoiserDefense is where the gradient comes from. The objective (the box's
    class of the clean image), fresh noise, Adam, the cosine and BatchNorm's frozen statistics
    are the same. It needs a box that gives its gradient, so it is no part of the package.

    Parameters
    ----------
    denoiser : DnCNN
        Where to start; it is left as it is.
    box : nn.Module
        The classifier, which takes samples shaped as in X.
    X : ndarray of shape (n, ...)
        Clean samples.
    image : tuple of int
        Channels, height and width, as the denoiser takes a sample.
    noise_std : float
        The standard deviation of the noise.
    last_only : bool
        Whether only the last convolution moves, rather than all weights.
    n_steps, batch_size, lr, seed
        Of the optimizer; the seed draws batches and noise.
    """
    denoiser = copy.deepcopy(denoiser).eval()
    weights = list((denoiser.net[-1] if last_only else denoiser).parameters())
    denoiser.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    clean = torch.as_tensor(X, dtype=torch.float32)
    with torch.no_grad():
        target = box(clean).argmax(1)
    optimizer = torch.optim.Adam(weights, lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    generator = torch.Generator().manual_seed(seed)
    for rows in batches(len(clean), batch_size, n_steps, generator):
        x = clean[rows].view(-1, *image)
        noisy = x + noise_std * torch.randn(x.shape, generator=generator)
        optimizer.zero_grad()
        outputs = box(denoiser(noisy).view(len(x), *clean.shape[1:]))
        nn.functional.cross_entropy(outputs, target[rows]).backward()
        optimizer.step()
        cosine.step()
    return denoiser


def batches(n: int, size: int, n_steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Give the rows of so many batches, in a new order each epoch."""
    while n_steps > 0:
        parts = torch.randperm(n, generator=generator).split(size)[:n_steps]
        yield from parts
        n_steps -= len(parts)
