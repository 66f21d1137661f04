"""What of a state is looked at: one channel of it, its speed or its vorticity."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np

Channel = int | str | Callable[[np.ndarray], Any]


def to_field(states: np.ndarray, channel: Channel, staggered: bool) -> np.ndarray:
    """Return one number for each place, of shape (n_frames, *grid).

    Parameters
    ----------
    states : ndarray of shape (n_frames, n_channels, *grid)
    channel : int, "speed", "vorticity" or callable
        A callable is given the states.
    staggered : bool
        Whether the channels stand on faces, with a last row and column that are none; then
        they are taken to the centres of cells.

    Raises
    ------
    ValueError
        If there is no such channel, or no grid of 1 to 3 dimensions.
    """
    if callable(channel):
        field = np.asarray(channel(states))
        if len(field) != len(states):
            raise ValueError(
                f"channel, as a function of states of shape {states.shape}, must return an array "
                f"with a first axis of {len(states)} frames; got shape {field.shape}."
            )
    else:
        with np.errstate(all="ignore"):  # of a roll-out that diverged
            field = _named(_to_centres(states) if staggered else states, channel)
    if field.ndim == 4:
        field = field[..., field.shape[-1] // 2]
    if field.ndim not in (2, 3):
        raise ValueError(
            "Only grids of 1, 2 or 3 dimensions can be drawn; got states of shape "
            f"{states.shape[1:]}, channels first. ErrorCurveDisplay takes any."
        )
    return field


def _named(states: np.ndarray, channel: Any) -> np.ndarray:
    if channel in ("speed", "vorticity"):
        return _speed(states) if channel == "speed" else _vorticity(states)
    n_channels = states.shape[1]
    if not isinstance(channel, Integral) or not -n_channels <= channel < n_channels:
        raise ValueError(
            f"channel must be an integer below {n_channels}, 'speed', 'vorticity' or a function "
            f"of states; got {channel!r}."
        )
    return states[:, int(channel)]


def _speed(states: np.ndarray) -> np.ndarray:
    """Return the length of the first channels, one for each axis of the grid."""
    return np.sqrt((states[:, : states.ndim - 2].astype(np.float64) ** 2).sum(1))


def _vorticity(states: np.ndarray) -> np.ndarray:
    """Return the curl of velocities in the plane, per width of a cell."""
    if states.ndim != 4 or states.shape[1] < 2 or min(states.shape[2:]) < 2:
        raise ValueError(
            "channel='vorticity' needs two channels, the velocities along both axes of a grid of "
            f"two dimensions; got states of shape {states.shape[1:]}. Pass the number of a channel."
        )
    return np.gradient(states[:, 1], axis=1) - np.gradient(states[:, 0], axis=2)


def is_staggered(states: np.ndarray) -> bool:
    """Return whether velocities in the plane stand on faces: where no face is, all is 0.

    Where the other ends are 0, too, it is the boundary that is.
    """
    return bool(
        states.ndim == 4
        and states.shape[1] == 2
        and min(states.shape[2:]) > 2
        and not states[:, 0, :, -1].any()
        and not states[:, 1, -1, :].any()
        and (states[:, 0, :, 0].any() or states[:, 1, 0, :].any())
    )


def _to_centres(states: np.ndarray) -> np.ndarray:
    """Return velocities on faces as their means in the cells between them."""
    along, across = states[:, 0, :, :-1], states[:, 1, :-1, :]
    return np.stack([along[:, 1:] + along[:, :-1], across[..., 1:] + across[..., :-1]], 1) / 2


def find_obstacle(states: np.ndarray, staggered: bool) -> np.ndarray | None:
    """Return where nothing ever moves, of shape grid; None if that is nowhere or everywhere.

    The first frame does not count: before the first step, a solver may not know its obstacles.
    """
    if states.ndim != 4 or states.shape[1] < 2 or len(states) < 2:
        return None
    at_centres = _to_centres(states[1:]) if staggered else states[1:]
    still = np.asarray(~at_centres.any(axis=(0, 1)))
    return still if still.any() and not still.all() else None
