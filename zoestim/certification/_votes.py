"""Votes for the classes of noisy copies, by any number of workers, in batches."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np

from zoestim.backends import Backend
from zoestim.certification._checks import check_integer, check_noise_std

# The draws of one generator: blocks of them are what workers share, so that one sample has
# work for all. Another number gives other noise.
BLOCK = 1000


def count_votes(
    classify: Callable[[np.ndarray], Any],
    X: Any,
    n_draws: int,
    noise_std: float,
    n_classes: int,
    *,
    rng_seed: int,
    batch_size: int,
    backend: Backend,
    shared: bool = False,
) -> np.ndarray:
    """Count how often each class is given to noisy copies of each sample.

    Parameters
    ----------
    classify : callable
        ``rows -> labels``, from an array of shape (m, ...) of X's type to m integers: indices
        of classes, or -1 for a row that failed, which votes for none. The label of a row must
        not depend on the rows beside it. Workers call it at the same time.
    X : array-like of shape (n_samples, ...), of a floating type
        The samples, as the noise is to be added to them.
    n_draws : int
        How many noisy copies of each sample are classified.
    noise_std : float
        The standard deviation of the noise, in the units of X.
    n_classes : int
        How many classes there are.
    rng_seed : int
        Draws the noise. That of a sample depends on the seed, the sample's index and the number
        of the draw alone; the first draws of more are the same. The votes that choose a class
        and those that bound its probability need two seeds.
    batch_size : int
        The most rows that `classify` gets, and that a worker holds, at a time. Draws of several
        samples fill one batch.
    backend : Backend
        Who classifies; see :mod:`zoestim.backends`.
    shared : bool, default=False
        Whether all samples get the same noise, so that votes depend neither on the order nor on
        the number of samples. Within a sample draws are independent all the same.

    Returns
    -------
    ndarray of int64 of shape (n_samples, n_classes)
        The votes; they add up to `n_draws` less the rows that failed.

    Raises
    ------
    TypeError, ValueError
        If an argument cannot be used, or `classify` returns no labels of that kind.

    Examples
    --------
    >>> import numpy as np
    >>> from zoestim.backends import SerialBackend
    >>> from zoestim.certification import count_votes
    >>> def is_positive(rows):
    ...     return (rows[:, 0] > 0).astype(int)
    >>> settings = {"rng_seed": 0, "batch_size": 64, "backend": SerialBackend()}
    >>> votes = count_votes(is_positive, np.array([[0.25], [-1.0]]), 1000, 0.5, 2, **settings)
    >>> votes.sum(axis=1), votes.argmax(axis=1)
    (array([1000, 1000]), array([1, 0]))
    """
    X = np.asarray(X)
    if X.dtype.kind != "f" or not X.ndim:
        raise TypeError(
            f"X must be an array of floats, to which noise can be added; got {X.dtype} of shape "
            f"{X.shape}. Convert it, with noise_std in the same units: X.astype(float)."
        )
    sampling = _Sampling(
        classify,
        X,
        check_integer(n_draws, "n_draws", 1),
        check_noise_std(noise_std),
        check_integer(n_classes, "n_classes", 1),
        check_integer(rng_seed, "rng_seed", 0),
        check_integer(batch_size, "batch_size", 1),
        shared,
    )
    votes = np.zeros((len(X), sampling.n_classes), dtype=np.int64)
    work = [float(sampling.size(block)) for block in range(sampling.n_blocks)] * len(X)
    for _, (samples, share) in backend.map(_count, sampling, work):
        votes[samples] += share
    return votes


@dataclass(frozen=True)
class _Sampling:
    """What all workers need. A task is a block of draws of a sample."""

    classify: Callable[[np.ndarray], Any]
    X: np.ndarray
    n_draws: int
    noise_std: float
    n_classes: int
    seed: int
    batch_size: int
    shared: bool

    @property
    def n_blocks(self) -> int:
        """How many blocks the draws of a sample make."""
        return math.ceil(self.n_draws / BLOCK)

    def size(self, block: int) -> int:
        """Return how many draws a block has: the last one may have fewer."""
        return min(BLOCK, self.n_draws - block * BLOCK)

    def generator(self, sample: int, block: int) -> np.random.Generator:
        """Return what draws the noise of a block."""
        key = (block,) if self.shared else (sample, block)
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))

    def at(self, device: Any) -> _Sampling:
        """Return the same for a device: its classifier may have a method that moves it there."""
        move = getattr(self.classify, "at", None)
        return self if move is None else replace(self, classify=move(device))

    def digest(self) -> str:
        """Return what ranks of a process group compare: those that differ must not add up."""
        _, X, *settings, _, shared = astuple(replace(self, classify=None))  # type: ignore[arg-type]
        about = repr((X.dtype, X.shape, settings, shared)).encode()
        return hashlib.sha256(about + np.ascontiguousarray(X).tobytes()).hexdigest()


def _count(sampling: _Sampling, tasks: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the samples that tasks belong to, each once, and the votes that they got."""
    samples = np.unique(np.asarray(tasks, dtype=np.int64) // sampling.n_blocks)
    votes = np.zeros((len(samples), sampling.n_classes), dtype=np.int64)
    for rows, owners in _batches(sampling, tasks):
        labels = _labels(sampling, rows)
        voted = labels >= 0
        np.add.at(votes, (np.searchsorted(samples, owners[voted]), labels[voted]), 1)
    return samples, votes


def _batches(sampling: _Sampling, tasks: list[int]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give noisy rows and the samples that they are copies of, as many as fit at a time."""
    X = sampling.X
    left = sum(sampling.size(task % sampling.n_blocks) for task in tasks)
    filled = 0
    for task in tasks:
        sample, block = divmod(task, sampling.n_blocks)
        generator, of_block = sampling.generator(sample, block), sampling.size(block)
        while of_block:
            if not filled:  # new ones, since a classifier may keep what it was given
                rows = np.empty((min(sampling.batch_size, left), *X.shape[1:]), dtype=X.dtype)
                owners = np.empty(len(rows), dtype=np.int64)
            taken = min(of_block, len(rows) - filled)
            noisy = generator.standard_normal((taken, *X.shape[1:]))
            noisy *= sampling.noise_std
            noisy += X[sample]  # rounded to X's type once, as a sum
            rows[filled : filled + taken] = noisy
            owners[filled : filled + taken] = sample
            filled, of_block, left = filled + taken, of_block - taken, left - taken
            if filled == len(rows):
                yield rows, owners
                filled = 0


def _labels(sampling: _Sampling, rows: np.ndarray) -> np.ndarray:
    labels = np.asarray(sampling.classify(rows))
    if labels.shape != (len(rows),) or labels.dtype.kind not in "iu":
        raise TypeError(
            f"classify must return one integer for each of {len(rows)} rows, the index of a class "
            f"or -1; got {labels.dtype} of shape {labels.shape}."
        )
    labels = labels.astype(np.int64)
    if labels.min() < -1 or labels.max() >= sampling.n_classes:
        raise ValueError(
            f"classify must return indices of {sampling.n_classes} classes, or -1; got labels from "
            f"{labels.min()} to {labels.max()}."
        )
    return labels
