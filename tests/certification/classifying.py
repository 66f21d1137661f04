"""What the tests of votes send to workers: it has to have a name there."""

import numpy as np


def by_thirds(rows: np.ndarray) -> np.ndarray:
    """Return class 0, 1 or 2 by the mean of a row, whatever rows are beside it."""
    means = np.array([row.sum() / row.size for row in rows])
    return np.digitize(means, [-0.3, 0.3])


def failing_above(rows: np.ndarray) -> np.ndarray:
    """Return class 0, and fail for rows whose first number is above 0."""
    return np.where(rows.reshape(len(rows), -1)[:, 0] > 0, -1, 0)


class Recorder:
    """Gives class 0 and keeps the rows that it saw, call by call."""

    def __init__(self) -> None:
        self.calls: list[np.ndarray] = []

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        self.calls.append(rows)
        return np.zeros(len(rows), dtype=np.int64)


class Placed:
    """A classifier that is another one on each device, as a network would be."""

    def __init__(self, device: str = "nowhere"):
        self.device = device

    def at(self, device: object) -> "Placed":
        return Placed(str(device))

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        if self.device == "nowhere":
            raise RuntimeError("this one was not moved")
        return by_thirds(rows)
