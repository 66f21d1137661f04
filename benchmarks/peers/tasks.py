"""What is trained: networks of 700 to 4,000 parameters and real images, the same for all methods.

T1 and T2 are the digits of scikit-learn, 1,347 to train on and 450 to test on; T3a and T3b the
first 10,000 and 2,000 images of CIFAR-10, shuffled.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from benchmarks.paper.figure import Images, Sizes, load_images
from zoestim.models import MLP, SimpleCNN

CIFAR10 = Sizes(10_000, 2_000, 32)


@dataclass(frozen=True)
class Task:
    """A network and its images.

    Parameters
    ----------
    name : str
        As ``--tasks`` has it.
    title : str
        What it is.
    make : callable
        Gives a fresh module.
    load : callable
        Gives its images, from the folder or file of ``--data``.
    """

    name: str
    title: str
    make: Callable[[], nn.Module]
    load: Callable[[Path | None], Images]


def digits_cnn() -> nn.Module:
    """Return a small CNN with BatchNorm, 1,466 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def digits(shape: tuple[int, ...], data: Path | None = None) -> Images:
    """Return the digits in units of their pixels' deviation, each image of the given shape."""
    pixels, y = load_digits(return_X_y=True)
    X = pixels.astype(np.float32).reshape(-1, *shape)
    X, X_test, y, y_test = train_test_split(X, y, test_size=0.25, stratify=y, random_state=0)
    mean, deviation = X.mean(), X.std()
    about = f"{len(X):,} + {len(X_test)} digits"
    return Images((X - mean) / deviation, y, (X_test - mean) / deviation, y_test, about)


def cifar10(data: Path | None) -> Images:
    """Return a slice of CIFAR-10."""
    if data is None:
        raise SystemExit("T3a and T3b need CIFAR-10: pass --data, see zoestim.datasets.")
    return load_images(data, CIFAR10)


TASKS = {
    each.name: each
    for each in (
        Task("T1", "digits, MLP 64-32-10", partial(MLP, 64, 10, 32), partial(digits, (64,))),
        Task("T2", "digits, CNN with BatchNorm", digits_cnn, partial(digits, (1, 8, 8))),
        Task("T3a", "CIFAR-10, CNN of one block", partial(SimpleCNN, 1), cifar10),
        Task("T3b", "CIFAR-10, CNN of two blocks", partial(SimpleCNN, 2), cifar10),
    )
}
