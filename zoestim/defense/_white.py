"""The white part of a defense, trained as far as backprop can."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoestim.defense._defended import FunctionDenoiser
from zoestim.defense._denoisers import Noise, build_autoencoder, build_denoiser
from zoestim.defense._layout import Layout
from zoestim.defense._pretraining import pretrain
from zoestim.evaluation import drawing_from


def pretrained_white(
    defense: Any, X: np.ndarray, layout: Layout, device: torch.device, seeds: list[int]
) -> tuple[nn.Sequential, nn.Module | None]:
    """Return the white part of a defense, and the decoder behind it if it ends in an encoder.

    Parameters
    ----------
    defense : ZODenoiserDefense
        Its parameters.
    X : ndarray of shape (n, ...)
        Clean samples.
    layout : Layout
        How they are laid out.
    device : torch.device
        Where to train.
    seeds : list of two int
        They draw initial weights, and batches and noise.
    """
    given = defense.denoiser
    if given is None:
        return nn.Sequential(nn.Identity()), None
    if callable(given) and not isinstance(given, nn.Module | type):
        return nn.Sequential(FunctionDenoiser(given, layout)), None
    with drawing_from(seeds[0], torch.device("cpu")):
        denoiser = build_denoiser(given, layout, defense.depth, defense.width)
        halves = None
        if defense.latent_dim is not None:
            halves = build_autoencoder(layout, defense.latent_dim, denoiser)
    noisy: nn.Module | None = nn.Sequential(Noise(defense.noise_std), denoiser)
    if defense.init_denoiser is not None:
        _start_from(denoiser, defense.init_denoiser)
        noisy = None
    for part in (noisy, halves):
        if part is not None and defense.pretrain_epochs:
            pretrain(
                part,
                layout.to_denoiser(X),
                epochs=defense.pretrain_epochs,
                lr=defense.pretrain_lr,
                batch_size=defense.batch_size,
                device=device,
                seed=seeds[1],
            )
    if halves is None:
        return nn.Sequential(denoiser).to(device).eval(), None
    encoder, decoder = halves.to(device).eval()
    return nn.Sequential(denoiser, encoder).to(device).eval(), decoder.requires_grad_(False)


def squared_error(
    inputs: Tensor, x: Tensor, *, weight: float, decoder: nn.Module | None = None
) -> Tensor:
    """Return the weighted mean squared error of what the black box is given."""
    images = inputs if decoder is None else decoder(inputs)
    return weight * ((images - x) ** 2).mean()


def _start_from(denoiser: nn.Module, given: Any) -> None:
    state = given.state_dict() if isinstance(given, nn.Module) else given
    try:
        denoiser.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"init_denoiser does not fit the denoiser: {error}. Expected a module of the same "
            "shape, or its state_dict()."
        ) from error
