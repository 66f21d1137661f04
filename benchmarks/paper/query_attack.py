"""An L2 attack that only queries: it knows probabilities, and no gradient."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Probabilities = Callable[[np.ndarray], np.ndarray]  # from (n, d) to (n, n_classes)
STEP = 0.05  # of the differences: a tenth of the noise
AT_A_TIME = 8192  # rows that are asked about


class MeanUnderNoise:
    """The mean probabilities of samples under a fixed bank of noise.

    With the same noise for all, the difference of two samples shows what moving does, and no
    luck of the draw. Means move more smoothly than votes, and with them.

    Parameters
    ----------
    probabilities : callable
        The classifier to which noisy samples go.
    noise : ndarray of shape (n_draws, d)
        The bank; a row of zeros for the classifier as it is.

    Attributes
    ----------
    n_queries : int
        Noisy samples that were asked about so far.
    """

    def __init__(self, probabilities: Probabilities, noise: np.ndarray):
        self.probabilities = probabilities
        self.noise = noise
        self.n_queries = 0

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """Return the mean probabilities of samples, (n, n_classes)."""
        self.n_queries += len(X) * len(self.noise)
        size = max(1, AT_A_TIME // len(self.noise))
        parts = np.array_split(X, range(size, len(X), size))
        return np.concatenate([self._means(part) for part in parts])

    def _means(self, X: np.ndarray) -> np.ndarray:
        rows = (X[:, None] + self.noise).reshape(-1, X.shape[1])
        return self.probabilities(rows).reshape(len(X), len(self.noise), -1).mean(1)


@dataclass(frozen=True)
class Effort:
    """How hard the attack tries.

    Parameters
    ----------
    n_steps : int
        Steps of one start.
    n_directions : int
        Random directions of one gradient.
    n_starts : int
        The first start is the sample, the others are at random in its ball.
    """

    n_steps: int
    n_directions: int
    n_starts: int


def attacked(
    means: MeanUnderNoise, X: np.ndarray, classes: np.ndarray, radii: np.ndarray,
    effort: Effort, rng: np.random.Generator,
) -> np.ndarray:  # fmt: skip
    """Return, within a ball around each sample, where its class had the smallest margin.

    Projected gradient steps against the margin, with gradients of random directions (as NES has
    them): half the radius long at first, shorter towards the end.

    Parameters
    ----------
    means : MeanUnderNoise
        What is asked.
    X : ndarray of shape (n, d)
        The samples.
    classes : ndarray of int, of shape (n,)
        The column of the class that is to be left.
    radii : ndarray of shape (n,)
        Of the balls.
    effort : Effort
        How hard to try.
    rng : Generator
        Draws starts and directions.

    Returns
    -------
    ndarray of shape (n, d)
    """
    best, lowest = X.copy(), margins(means, X[None], classes)[0]
    for start in range(effort.n_starts):
        moved = X.copy() if start == 0 else in_ball(X, rng.standard_normal(X.shape), radii)
        for step in range(effort.n_steps + 1):
            directions = rng.standard_normal((effort.n_directions, *X.shape))
            around = np.concatenate([moved[None], moved + STEP * directions])
            found = margins(means, around, classes)
            better = found[0] < lowest
            best[better], lowest[better] = moved[better], found[0, better]
            slopes = ((found[1:] - found[0])[..., None] * directions).mean(0)
            norms = np.linalg.norm(slopes, axis=1, keepdims=True)
            length = radii[:, None] / 2 * (1 - step / (effort.n_steps + 1))
            moved = in_ball(X, moved - X - length * slopes / np.maximum(norms, 1e-12), radii)
    return best


def margins(means: MeanUnderNoise, X: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return by how much the class leads the next one, for (k, n, d) samples: (k, n)."""
    found = means(X.reshape(-1, X.shape[-1])).reshape(*X.shape[:2], -1)
    rows = np.arange(X.shape[1])
    own = found[:, rows, classes]
    found[:, rows, classes] = -np.inf
    return own - found.max(2)


def in_ball(X: np.ndarray, moves: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Return samples moved, each no farther than its radius."""
    lengths = np.linalg.norm(moves, axis=1)
    return X + moves * np.minimum(1, radii / np.maximum(lengths, 1e-12))[:, None]
