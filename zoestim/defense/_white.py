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


def initial_white(defense: Any, layout: Layout, seed: int) -> nn.Sequential:
    """Return the denoiser of a defense as it starts, and what is behind it.

    Parameters
    ----------
    defense : ZODenoiserDefense
        Its parameters.
    layout : Layout
        How samples are laid out.
    seed : int
        Draws initial weights.

    Returns
    -------
    nn.Sequential
        The denoiser alone, or denoiser, encoder and decoder.
    """
    given, latent_dim = defense.denoiser, defense.latent_dim
    function = callable(given) and not isinstance(given, nn.Module | type)
    if given is None or function:
        if latent_dim is not None or defense.init_denoiser is not None:
            raise ValueError(
                f"denoiser={given!r} is not trained, and latent_dim and init_denoiser are for one "
                "that is; expected None for both, or a denoiser such as 'auto'."
            )
        return nn.Sequential(FunctionDenoiser(given, layout) if function else nn.Identity())
    with drawing_from(seed, torch.device("cpu")):
        denoiser = build_denoiser(given, layout, defense.depth, defense.width)
        parts = [denoiser]
        if latent_dim is not None:
            parts += build_autoencoder(layout, latent_dim, denoiser)
    _start_from(denoiser, defense.init_denoiser)
    return nn.Sequential(*parts)


def pretrained_white(
    white: nn.Sequential,
    defense: Any,
    X: np.ndarray,
    layout: Layout,
    device: torch.device,
    seed: int,
) -> tuple[nn.Sequential, nn.Module | None]:
    """Train a denoiser, and the autoencoder behind it, to give clean samples back.

    Parameters
    ----------
    white : nn.Sequential
        What :func:`initial_white` returned; it is trained in place.
    defense : ZODenoiserDefense
        Its parameters.
    X : ndarray of shape (n, ...)
        Clean samples.
    layout : Layout
        How they are laid out.
    device : torch.device
        Where to train.
    seed : int
        Draws batches and noise.

    Returns
    -------
    white : nn.Sequential
        What is before the black box, in evaluation mode.
    decoder : nn.Module or None
        What belongs to the black box, if there is an autoencoder.
    """
    denoiser, *halves = white
    noisy = [] if defense.init_denoiser is not None else [Noise(defense.noise_std), denoiser]
    for part in (nn.Sequential(*noisy), nn.Sequential(*halves)):
        if defense.pretrain_epochs and any(p.requires_grad for p in part.parameters()):
            pretrain(
                part,
                layout.to_denoiser(X),
                epochs=defense.pretrain_epochs,
                lr=defense.pretrain_lr,
                batch_size=defense.batch_size,
                device=device,
                seed=seed,
            )
    parts = list(white.to(device).eval())
    decoder = parts[2].requires_grad_(False) if halves else None
    return nn.Sequential(*parts[:2]), decoder


def squared_error(
    inputs: Tensor, x: Tensor, *, weight: float, decoder: nn.Module | None = None
) -> Tensor:
    """Return the weighted mean squared error of what the black box is given."""
    images = inputs if decoder is None else decoder(inputs)
    return weight * ((images - x) ** 2).mean()


def _start_from(denoiser: nn.Module, given: Any) -> None:
    if given is None:
        return
    state = given.state_dict() if isinstance(given, nn.Module) else given
    try:
        denoiser.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"init_denoiser does not fit the denoiser: {error}. Expected a module of the same "
            "shape, or its state_dict()."
        ) from error
