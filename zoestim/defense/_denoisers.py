"""The white-box part of the defence: noise, a denoiser, and an autoencoder's two halves."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoestim.defense._layout import Layout
from zoestim.evaluation import as_tensor, unchanged_generators
from zoestim.models import MLP, DnCNN

DEPTHS = {"dncnn": 17, "mlp": 3}
WIDTH = 64  # of both
ENCODER_WIDTH = 32
SMALLEST_MAP = 4  # pixels along a side, below which an encoder halves no further


class Noise(nn.Module):
    """Adds Gaussian noise, of standard deviation `noise_std`, anew in each pass."""

    def __init__(self, noise_std: float):
        super().__init__()
        self.noise_std = noise_std

    def forward(self, x: Tensor) -> Tensor:
        return x + self.noise_std * torch.randn_like(x)


class ResidualMLP(nn.Module):
    """A denoiser of rows: it finds their noise and subtracts it; at first it finds none."""

    def __init__(self, n_features: int, depth: int, width: int):
        super().__init__()
        self.net = MLP(n_features, n_features, (width,) * (depth - 1), nn.ReLU)
        *_, weight, _ = self.net.parameters()  # and a bias, which is zero already
        nn.init.zeros_(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.net(x)


def build_denoiser(given: Any, layout: Layout, depth: int | None, width: int | None) -> nn.Module:
    """Return a fresh denoiser: one of the two by name, a copy of a module, or one of its class.

    Parameters
    ----------
    given : {"auto", "dncnn", "mlp"}, nn.Module or class of modules
        What the user asked for.
    layout : Layout
        What is denoised.
    depth, width : int or None
        Of the two that have names.
    """
    if isinstance(given, nn.Module):
        return copy.deepcopy(given)
    if isinstance(given, type):
        if not issubclass(given, nn.Module):
            raise TypeError(
                f"denoiser={given!r} is a class, but none of modules; expected one of nn.Module, "
                "or an object that can be called."
            )
        return given()
    kind = given if given != "auto" else "mlp" if layout.image is None else "dncnn"
    depth, width = depth or DEPTHS[kind], width or WIDTH
    if kind == "mlp":
        if layout.image is not None:
            raise ValueError(
                "denoiser='mlp' is for the rows of a table, and these are images; expected "
                "'dncnn', a module, or rows without image_shape."
            )
        return ResidualMLP(layout.shape[0], depth, width).double()
    if layout.image is None:
        raise ValueError(
            "denoiser='dncnn' is for images, and X holds rows of a table; expected 'mlp', or "
            "image_shape=(height, width) of the images that the rows are."
        )
    return DnCNN(depth, width, layout.image[0])


def build_autoencoder(layout: Layout, latent_dim: int, like: nn.Module) -> nn.Sequential:
    """Return an encoder to `latent_dim` numbers and its decoder, of the type of a module."""
    halves = _of_rows if layout.image is None else _of_images
    encoder, decoder = halves(layout.item, latent_dim)
    first = next(like.parameters(), None)
    halves = nn.Sequential(encoder, decoder)
    return halves if first is None else halves.to(first.dtype)


def _of_rows(item: tuple[int, ...], latent_dim: int) -> tuple[nn.Module, nn.Module]:
    (size,) = item
    return MLP(size, latent_dim, WIDTH, nn.ReLU), MLP(latent_dim, size, WIDTH, nn.ReLU)


def _of_images(item: tuple[int, ...], latent_dim: int) -> tuple[nn.Module, nn.Module]:
    """Return convolutions that halve an image while its sides are even, and their mirror."""
    channels, height, width = item
    down: list[nn.Module] = []
    up: list[nn.Module] = []
    n_in, n_out = channels, ENCODER_WIDTH
    while min(height, width) >= 2 * SMALLEST_MAP and height % 2 == 0 and width % 2 == 0:
        down += [nn.Conv2d(n_in, n_out, 4, stride=2, padding=1), nn.ReLU()]
        up = [nn.ReLU(), nn.ConvTranspose2d(n_out, n_in, 4, stride=2, padding=1), *up]
        height, width, n_in, n_out = height // 2, width // 2, n_out, 2 * n_out
    size = n_in * height * width
    encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(size, latent_dim))
    unflatten = nn.Unflatten(1, (n_in, height, width))
    return encoder, nn.Sequential(nn.Linear(latent_dim, size), unflatten, *up)


def trainable_names(denoiser: nn.Module, trainable: Any) -> set[str]:
    """Return what is trained of a denoiser: everything, its last layer, or some by name."""
    named = dict(denoiser.named_parameters())
    if isinstance(trainable, str):
        return set(named) if trainable != "last" else set(_last_layer(denoiser))
    chosen = set(trainable)
    unknown = sorted(map(str, chosen - set(named)))
    if unknown or not chosen:
        raise ValueError(
            f"trainable names {unknown or 'no parameter'}; expected some of {list(named)}, "
            "'last', 'all' or 'zo-grasp'."
        )
    return chosen


def refuse_other_shape(denoiser: nn.Module, X: np.ndarray) -> None:
    """Raise ValueError if a denoiser gives samples back in another shape."""
    like = next(denoiser.parameters(), None)
    data, training = as_tensor(X), denoiser.training
    with torch.no_grad(), unchanged_generators(torch.device("cpu")):
        found = denoiser.eval()(data if like is None else data.to(like.device, like.dtype))
    denoiser.train(training)
    if found.shape != data.shape:
        raise ValueError(
            f"The denoiser returned {tuple(found.shape)} for samples of shape "
            f"{tuple(data.shape)}; expected the same shape, with the channels first."
        )


def _last_layer(denoiser: nn.Module) -> list[str]:
    parts = dict(denoiser.named_modules())
    layers = [name for name, part in parts.items() if list(part.parameters(False))]
    if not layers:
        return []
    prefix = f"{layers[-1]}." if layers[-1] else ""
    return [f"{prefix}{n}" for n, _ in parts[layers[-1]].named_parameters()]
