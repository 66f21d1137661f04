"""What a SolverInTheLoop learns from: simulations and their frames, as rows and in units."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoestim.evaluation import as_input
from zoestim.rollouts import Rows, Unrolled
from zoestim.solvers import Simulations

# A deviation of less than this, relative to the numbers, is none.
ROUNDING = 1e-7


def as_trajectories(X: Any, y: Any) -> tuple[Simulations, list[np.ndarray]]:
    """Return simulations, and the frames of each, which belong to them and are finite."""
    simulations = Simulations.of(X)
    if y is None:
        raise ValueError("SolverInTheLoop needs y: the frames behind each state of X; got None.")
    trajectories = [np.asarray(each) for each in y]
    if len(trajectories) != len(simulations):
        raise ValueError(
            f"y has {len(trajectories)} trajectories for {len(simulations)} simulations in X; "
            "expected one for each, of shape (n_steps, n_channels, *grid)."
        )
    state = simulations.states.shape[1:]
    for number, frames in enumerate(trajectories):
        if frames.shape[1:] != state or not len(frames):
            raise ValueError(
                f"The trajectory {number} of y has shape {frames.shape}; expected "
                f"(n_steps, {', '.join(map(str, state))}), frames of the shape of the states in X."
            )
        if not np.isfinite(frames).all():
            broken = int(np.flatnonzero(~np.isfinite(frames.reshape(len(frames), -1)).all(1))[0])
            raise ValueError(
                f"The trajectory {number} of y has NaN or infinite numbers from its frame {broken} "
                "on; expected finite frames. End it before, or leave it out."
            )
    if not np.isfinite(simulations.states).all():
        raise ValueError("X has states with NaN or infinite numbers; expected finite ones.")
    return simulations, trajectories


def warn_of_first_frames(simulations: Simulations, trajectories: Sequence[np.ndarray]) -> None:
    """Warn if the frames begin with the states that they are to follow."""
    pairs = zip(simulations.states, trajectories, strict=True)
    if trajectories and all(np.array_equal(state, frames[0]) for state, frames in pairs):
        warnings.warn(
            "The first frame of y equals X in all simulations: y should hold the states after each "
            "step, the initial ones not among them. Pass y[:, 1:], or let split_trajectories make "
            "both.",
            stacklevel=4,
        )


def frames_of(
    layout: Rows, simulations: Simulations, trajectories: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of all frames, the first state of each among them, and whose they are."""
    rows = []
    for number, frames in enumerate(trajectories):
        states = np.concatenate([simulations.states[number : number + 1], frames])
        own = {
            n: np.repeat(c[number : number + 1], len(states), 0)
            for n, c in simulations.conditions.items()
        }
        rows.append(layout.pack(states, own))
    return np.concatenate(rows), np.repeat(np.arange(len(rows)), [len(part) for part in rows])


def rows_of(unrolled: Unrolled, simulations: Simulations) -> Tensor:
    """Return the rows of simulations, which have to be like those of the fit."""
    layout, own = unrolled.rows, Rows.of(simulations.states, simulations.conditions)
    if own.state != layout.state:
        raise ValueError(f"X has states of shape {own.state}; expected {layout.state}, as in fit.")
    if dict(own.conditions) != dict(layout.conditions):
        raise ValueError(
            f"X has the conditions {dict(own.conditions)}, by name and shape; expected "
            f"{dict(layout.conditions)}, as in fit."
        )
    rows = as_input(layout.pack(simulations.states, simulations.conditions), unrolled)
    return rows.to(unrolled.scale.device)


def deviations(values: Tensor, scaler: str | None) -> Tensor:
    """Return the standard deviation of each channel; 1 where there is none, or none is wanted."""
    if scaler is None:
        return torch.ones(values.shape[1])
    channels = values.double().movedim(1, 0).flatten(1)
    found = channels.std(1)
    return torch.where(found > ROUNDING * channels.abs().amax(1), found, 1.0)


def condition_units(layout: Rows, frames: np.ndarray, owners: np.ndarray) -> dict[str, float]:
    """Return the standard deviation of each condition over the simulations, or 1."""
    first = np.unique(owners, return_index=True)[1]
    each = layout.each_condition(frames[first].astype(np.float64))
    found = {}
    for name, values in each.items():
        deviation = float(values.std())
        found[name] = deviation if deviation > ROUNDING * np.abs(values).max() else 1.0
    return found
