"""Black boxes for the tests of the defense: they record, count and fail."""

from __future__ import annotations

import threading

import numpy as np

from zoestim import BlackBox, ZODenoiserDefense

SMALL = {
    "image_shape": (4, 4),
    "depth": 2,
    "width": 4,
    "pretrain_epochs": 2,
    "max_epochs": 2,
    "batch_size": 16,
    "n_samples": 15,
    "random_state": 0,
    "max_retries": 0,
    "space": "params",
}
IMAGES = np.random.default_rng(2).normal(size=(40, 16)).clip(-2, 2) / 2
N_LAST = 4 * 9  # weights of the last layer

WEIGHT = np.random.default_rng(0).normal(size=(64, 3))


def scores(X: np.ndarray) -> np.ndarray:
    """Return three logits of samples of at most 64 numbers."""
    rows = np.asarray(X, dtype=np.float64).reshape(len(X), -1)
    return np.tanh(rows @ WEIGHT[: rows.shape[1]]) * 2


def proba(X: np.ndarray) -> np.ndarray:
    """Return three probabilities."""
    powers = np.exp(scores(X))
    return powers / powers.sum(1, keepdims=True)


def labels(X: np.ndarray) -> np.ndarray:
    """Return integers."""
    return scores(X).argmax(1)


def words(X: np.ndarray) -> np.ndarray:
    """Return strings."""
    return np.array(["ant", "bee", "cicada"])[labels(X)]


class Client:
    """A client of an API: it has a lock, counts images, keeps them, and fails when told to."""

    def __init__(self, function=scores, fails_from=None, fails_until=None, error="cut"):
        self.function = function
        self.fails_from, self.fails_until, self.error = fails_from, fails_until, error
        self.lock = threading.Lock()
        self.n_calls = self.n_images = 0
        self.largest = 0
        self.seen: list[np.ndarray] = []

    def __call__(self, X: np.ndarray) -> np.ndarray:
        with self.lock:
            self.n_calls += 1
            call = self.n_calls
            self.n_images += len(X)
            self.largest = max(self.largest, len(X))
            self.seen.append(X.copy())
        late = self.fails_until is not None and call >= self.fails_until
        if self.fails_from is not None and call >= self.fails_from and not late:
            if self.error is None:
                return np.full((len(X), 3), np.nan)
            raise OSError(self.error) if isinstance(self.error, str) else self.error
        return self.function(X)


def defense(box, **settings) -> ZODenoiserDefense:
    """Return a small defense of images of 4 x 4 pixels, given as rows."""
    return ZODenoiserDefense(boxed(box), **{**SMALL, **settings})


def boxed(box):
    """Return a client as what scikit-learn can clone."""
    return BlackBox(box) if isinstance(box, Client) else box


def weights(model: ZODenoiserDefense) -> list[np.ndarray]:
    """Return what was learned."""
    return [value.detach().cpu().numpy().copy() for value in model.white_.state_dict().values()]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    """Return whether two lots of weights are equal to the last bit."""
    return len(one) == len(other) and all(map(np.array_equal, one, other))
