"""A black box that goes wrong on purpose, in whatever process, and counts what it is asked."""

import os
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np

FAULTS = ("exception", "nan", "hang", "kill")


class Faulty:
    """A linear model that fails on the first of its calls that reach some number.

    Every process of the host shares its counts, which are lines of files.

    Parameters
    ----------
    folder : Path
        Where the files are.
    fault : str
        One of `FAULTS`, or ``""`` for none.
    at : int
        At which call it happens.
    times : int
        At how many calls in a row.
    """

    def __init__(self, folder: Path, fault: str = "", at: int = 9, times: int = 1):
        self.folder, self.fault, self.at, self.times = Path(folder), fault, at, times

    def __call__(self, params: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """Return the outputs, or go wrong."""
        name = params.tobytes().hex()
        number = self._note("asked", name)
        if self.at <= number < self.at + self.times:
            if self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "hang":
                time.sleep(60)
            if self.fault == "exception":
                raise OSError("the wire is cut")
            if self.fault == "nan":
                return np.full((len(inputs), params.shape[1]), np.nan)
        time.sleep(0.002)
        outputs = inputs @ params
        self._note("answered", name)
        return outputs

    def _note(self, what: str, name: str) -> int:
        """Append a line and return how many there are."""
        file = os.open(self.folder / what, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(file, (name + "\n").encode())
            return os.lseek(file, 0, os.SEEK_CUR) // (len(name) + 1)
        finally:
            os.close(file)

    def counts(self, what: str) -> Counter:
        """Return how often each set of parameters was asked, or answered."""
        path = self.folder / what
        return Counter(path.read_text().splitlines() if path.exists() else [])


class Flaky(Faulty):
    """A linear model of which one call in twenty fails, each time in another way."""

    def __call__(self, params: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        """Return the outputs, or go wrong."""
        number = self._note("asked", params.tobytes().hex())
        if number % 20 == 7:
            raise OSError("the wire is cut")
        if number % 20 == 17:
            return np.full((len(inputs), params.shape[1]), np.nan)
        return inputs @ params
