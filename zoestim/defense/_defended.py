"""The defended classifier as a function: denoise, then ask."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from zoestim.defense._layout import Layout
from zoestim.defense._scores import Classifier
from zoestim.evaluation import Patience, as_tensor


@dataclass
class Defended:
    """From samples, as the user has them, to the indices of classes.

    Parameters
    ----------
    white : nn.Module or None
        From samples to what the black box is given, in evaluation mode; None leaves them.
    classifier : Classifier
        The black box.
    patience : Patience
        How long and often it is asked.
    """

    white: nn.Module | None
    classifier: Classifier
    patience: Patience

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """Return the index of the class of each sample, -1 where the black box failed."""
        given = self.denoise(X)
        if self.classifier.penalize:  # it has patience itself, and raises nothing
            return replace(self.classifier, patience=self.patience).labels(given)
        return self.patience.insist(lambda: self.classifier.labels(given))

    def denoise(self, X: np.ndarray) -> np.ndarray:
        """Return what the black box is given for samples, laid out as they are."""
        layout = self.classifier.layout
        if self.white is None:
            plain = replace(self.classifier, decoder=None)
            return plain.finish(layout.to_denoiser(X))
        like = next(self.white.parameters(), None)
        data = as_tensor(layout.to_denoiser(X))
        with torch.no_grad():
            found = self.white(data if like is None else data.to(like.device, like.dtype))
        return self.classifier.finish(found.cpu().numpy())

    def at(self, device: torch.device) -> Defended:
        """Return the same on another device."""
        return replace(self, white=None if self.white is None else _on(self.white, device))


def _on(module: nn.Module, device: torch.device) -> nn.Module:
    return copy.deepcopy(module).to(device)


class FunctionDenoiser(nn.Module):
    """A denoiser that somebody else has made, as a module; nothing in it is trained."""

    def __init__(self, function: Callable[[np.ndarray], Any], layout: Layout):
        super().__init__()
        self.function = function
        self.layout = layout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = self.layout.to_user(x.cpu().numpy())
        found = np.asarray(self.function(given.copy()))  # it may write to it
        if found.shape != given.shape:
            raise ValueError(
                f"The denoiser returned an array of shape {found.shape} for samples of shape "
                f"{given.shape}; expected the same shape."
            )
        return torch.from_numpy(self.layout.to_denoiser(found)).to(x)
