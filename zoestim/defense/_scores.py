"""From the answers of a black-box classifier to scores, of which the loss is -score[target]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax
from torch import nn

from zoestim.defense._black_box import Responder, missing, one_column
from zoestim.defense._layout import Layout
from zoestim.evaluation import Patience

# What a probability of zero counts as: trees give them, and log 0 is no loss.
LEAST_PROBABILITY = 1e-3


@dataclass
class Classifier:
    """The black box behind everything that is done to a sample before it is asked.

    It is a function from samples, as a denoiser returns them, to scores; the loss of a sample is
    minus the score of its target: the cross-entropy of probabilities and logits, and of labels
    whether they differ.

    Parameters
    ----------
    respond : Responder
        The black box.
    kind : {"proba", "logits", "labels"}
        What it returns.
    classes : ndarray of shape (n_classes,)
        The classes, in the order of its columns.
    layout : Layout
        How it takes samples.
    input_range : (float, float) or None
        To which samples are clipped.
    quantize : bool
        Whether they are rounded to 256 levels of that range.
    batch_size : int
        How many samples are asked about at a time.
    penalize : bool
        Whether an answer that failed counts as the worst rather than as an error.
    patience : Patience
        How long and often is asked where errors are penalised; else who trains sees to that.
    decoder : nn.Module or None
        What makes samples of latent ones.
    dtype : numpy.dtype
        The type in which it takes samples.
    """

    respond: Responder
    kind: str
    classes: np.ndarray
    layout: Layout
    input_range: tuple[float, float] | None
    quantize: bool
    batch_size: int
    penalize: bool
    patience: Patience
    decoder: nn.Module | None = None
    dtype: Any = np.float64

    def __call__(self, Z: np.ndarray) -> np.ndarray:
        """Return the scores of samples with any leading axes, (..., n_classes)."""
        ndim = 1 if self.decoder is not None else len(self.layout.item)
        lead = Z.shape[: Z.ndim - ndim]
        rows = Z.reshape(-1, *Z.shape[Z.ndim - ndim :])
        found = [self._scores(self.values(self.finish(part))) for part in self._parts(rows)]
        return np.concatenate(found).reshape(*lead, len(self.classes))

    def finish(self, Z: np.ndarray) -> np.ndarray:
        """Return the samples that the black box gets for what a denoiser returned."""
        if self.decoder is not None:
            with torch.no_grad():
                like = next(self.decoder.parameters())
                latent = torch.from_numpy(np.ascontiguousarray(Z)).to(like.device, like.dtype)
                Z = self.decoder(latent).cpu().numpy()
        X = self.layout.to_user(Z).astype(self.dtype, copy=False)
        if self.input_range is None:
            return X
        low, high = self.input_range
        X = np.clip(X, low, high)
        if self.quantize:
            X = low + np.round((X - low) * (255 / (high - low))) * (high - low) / 255
        return X.astype(self.dtype, copy=False)

    def labels(self, X: np.ndarray) -> np.ndarray:
        """Return the index of the class of samples as the user has them; -1 where it failed."""
        found = []
        for part in self._parts(X):
            found.append(self.best(self.values(part)))
        return np.concatenate(found)

    def best(self, values: np.ndarray) -> np.ndarray:
        """Return the index of the class of each row, -1 where it failed or is none of them."""
        voted = np.isfinite(values).all(1)
        if self.kind == "labels":
            voted &= values.any(1)
        return np.where(voted, values.argmax(1), -1)

    def values(self, X: np.ndarray) -> np.ndarray:
        """Ask once, and return a column a class; a row of NaN where that failed.

        Labels become rows with a single one, or of zeros where a label is not among the classes.
        """
        if not self.penalize:
            answers = self.respond(X)
        else:
            reply = self.patience.ask(lambda: self.respond(X))
            if reply.cause is not None:
                return np.full((len(X), len(self.classes)), np.nan)
            answers = reply.value
        return self.read(answers)

    def read(self, answers: np.ndarray) -> np.ndarray:
        """Return a column a class for what the black box returned."""
        return self._one_hot(answers) if self.kind == "labels" else self._columns(answers)

    def about(self) -> str:
        """Return what, beside the black box itself, makes the scores what they are."""
        done = (self.input_range, self.quantize, self.penalize, self.layout, str(self.dtype))
        return repr((self.kind, self.classes.tolist(), *done))

    def _parts(self, X: np.ndarray) -> list[np.ndarray]:
        return np.array_split(X, range(self.batch_size, len(X), self.batch_size))

    def _one_hot(self, answers: np.ndarray) -> np.ndarray:
        labels = answers.reshape(len(answers))
        found = (labels[:, None] == self.classes).astype(np.float64)
        found[missing(labels)] = np.nan
        return found

    def _columns(self, answers: np.ndarray) -> np.ndarray:
        values, n_classes = np.asarray(answers, dtype=np.float64), len(self.classes)
        if one_column(values) and n_classes == 2:  # of the second class
            values = values.reshape(len(values))
            first = 1 - values if self.kind == "proba" else np.zeros_like(values)
            values = np.stack([first, values], axis=1)
        if values.ndim != 2 or values.shape[1] != n_classes:
            raise ValueError(
                f"The black box returned an array of shape {answers.shape}; expected "
                f"{n_classes} columns, one a class. Pass classes=... with as many as it has, or "
                "response_method='labels' if it returns labels."
            )
        return values

    def _scores(self, values: np.ndarray) -> np.ndarray:
        if self.kind == "labels":
            scores = values - 1
        elif self.kind == "proba":
            scores = np.log(np.clip(values, LEAST_PROBABILITY, None))
        else:
            scores = log_softmax(values, axis=1)
        if self.penalize:
            worst = -1.0 if self.kind == "labels" else np.log(LEAST_PROBABILITY)
            scores[~np.isfinite(scores).all(1)] = worst
        return scores
