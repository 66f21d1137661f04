"""What counts, levels and noise must be, and the sentences for what is not."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

import numpy as np

LARGEST = 2**53  # float64 holds every integer up to here


def check_counts(counts: Any, name: str, least: int = 0) -> np.ndarray:
    """Return counts as float64, which holds them exactly.

    Parameters
    ----------
    counts : int or array-like of int
        Floats that are whole numbers will do.
    name : str
        What the message calls them.
    least : int, default=0
        The smallest that is allowed.

    Raises
    ------
    TypeError
        If they are no numbers.
    ValueError
        If they are no whole numbers, or too small or too large.
    """
    given = np.asarray(counts)
    if given.dtype.kind not in "iuf":
        raise TypeError(f"{name} must be integers, the number of draws; got dtype {given.dtype}.")
    found = given.astype(np.float64)
    wrong = ~((found == np.floor(found)) & (found >= least) & (found <= LARGEST))
    if wrong.any():
        raise ValueError(
            f"{name} must be integers from {least} to 2**53, the number of draws; got "
            f"{found[wrong].flat[0]:g}. Pass counts, not fractions."
        )
    return found


def check_alpha(alpha: Any) -> float:
    """Return the probability of error; ValueError if it is not between 0 and 1."""
    if not isinstance(alpha, Real) or not 0 < float(alpha) < 1:
        raise ValueError(
            f"alpha must be a number above 0 and below 1, the probability that a bound is wrong; "
            f"got {alpha!r}. The usual one is 0.001."
        )
    return float(alpha)


def check_noise_std(noise_std: Any) -> float:
    """Return the standard deviation of the noise; ValueError if it is not above 0."""
    if not isinstance(noise_std, Real) or not 0 < float(noise_std) < math.inf:
        raise ValueError(
            f"noise_std must be a finite number above 0, in the units of X; got {noise_std!r}. "
            "Without noise nothing can be certified."
        )
    return float(noise_std)


def check_integer(value: Any, name: str, least: int) -> int:
    """Return an integer; ValueError if it is none, or too small."""
    if not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}.")
    return int(value)
