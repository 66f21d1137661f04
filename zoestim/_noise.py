"""The noise of equally spaced losses, read off a table of their differences: ECnoise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LEVELLED = 4.0  # so many times may three levels in a row differ, Moré and Wild (2011), Sec. 4


@dataclass(frozen=True)
class Reading:
    """What a table of differences says.

    Attributes
    ----------
    noise : float
        The standard deviation of the losses; where the spacing is large, no more than this.
    spacing : {"right", "small", "large"}
        Whether the noise could be read at this spacing, or if not, what the spacing is.
    """

    noise: float
    spacing: Literal["right", "small", "large"]


def read_noise(losses: Tensor) -> Reading:
    """Read the noise of losses at equally spaced points, at least five of them.

    The k-th differences of a smooth function vanish with the k-th power of the spacing; those
    of independent noise of standard deviation s have a mean square of s² (2k)! / (k!)². Each
    order k thus gives a level of the noise. The first of three orders whose levels agree up to
    a factor of four has left the function behind, provided that its differences have both signs.

    - Half of the losses equal their neighbours: the losses are rounded, or a step does
      nothing. The spacing is small.
    - No three levels agree: the function itself is still seen. The spacing is large.

    ECnoise also calls a spacing large where losses differ by more than a tenth of their size.
    Measured losses may have more noise than that, so it is left out.

    References
    ----------
    Moré and Wild, Estimating computational noise, SIAM J. Sci. Comput. 33 (2011), Sec. 3 to 5.

    Examples
    --------
    >>> import torch
    >>> from zoestim._noise import read_noise
    >>> t = torch.linspace(0, 0.06, 7, dtype=torch.float64)
    >>> noise = torch.tensor([3, -1, 2, -4, 1, 0, -2], dtype=torch.float64) * 1e-6
    >>> reading = read_noise(torch.exp(t) + noise)
    >>> reading.spacing, 1e-6 < reading.noise < 4e-6
    ('right', True)
    """
    size = math.ldexp(
        1.0, math.frexp(float(losses.abs().max()))[1] - 1
    )  # dividing by it rounds nothing
    table, levels, both_signs, ratio = losses / size, [], [], 1.0
    for order in range(1, len(losses)):
        table = table.diff()
        if order == 1 and 2 * int((table == 0).sum()) >= len(table):
            return Reading(0.0, "small")
        ratio *= order / (2 * (2 * order - 1))  # (k!)² / (2k)!
        levels.append((ratio * float(table.square().mean())) ** 0.5)
        both_signs.append(bool(table.min() < 0 < table.max()) or not table.any())
    for order in range(len(levels) - 2):
        three = levels[order : order + 3]
        if both_signs[order] and max(three) <= LEVELLED * min(three):
            return Reading(size * three[0], "right")
    return Reading(size * min(levels), "large")


def resolution(losses: Tensor) -> float:
    """Return the noise of losses that are rounded to multiples of what they differ by."""
    first = losses.diff()
    differences = torch.cat([first, first.diff()]).abs()
    floor = 64 * torch.finfo(losses.dtype).eps * float(losses.abs().max())
    return float(min(differences[differences > floor], default=0.0)) / 12**0.5


def rounding(loss: float) -> float:
    """Return the standard deviation of a loss that is rounded to a float64."""
    return (
        max(abs(loss) * torch.finfo(torch.float64).eps, torch.finfo(torch.float64).tiny) / 12**0.5
    )
