"""The true flows of ``python -m benchmarks.paper.fig6``, and how far a roll-out is from them.

A fine grid is simulated and each frame is coarsened; what a coarse grid should have given is the
truth. No frame is stored in the repository: ``--data-dir`` keeps them between runs.
"""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from zoestim.solvers import Burgers1D, Simulations, WakeFlow2D

# Um et al. (2020): six to train on, and five between them, which no corrector ever sees.
REYNOLDS_TRAIN = 97.65625 * 2.0 ** np.arange(6)
REYNOLDS_TEST = 146.484375 * 2.0 ** np.arange(5)
N_WAVES = 32  # simulations of Burgers' equation, to train on and to test on
VISCOSITIES = (0.005, 0.06)
FORCE = 0.5  # beside waves of about that height
N_STARTS = 5  # roll-outs of a simulation of the wake


@dataclass(frozen=True)
class Truth:
    """Trajectories on the coarse grid, the first frame of each included.

    Parameters
    ----------
    train, test : ndarray of shape (n_simulations, n_steps + 1, n_channels, *grid)
        Frames.
    train_conditions, test_conditions : dict of str to ndarray of shape (n_simulations, ...)
        What distinguishes simulations.
    about : dict
        How they were made, as it comes back from a JSON file.
    seconds : float
        How long that took, when it was done.
    """

    train: np.ndarray
    test: np.ndarray
    train_conditions: dict[str, np.ndarray]
    test_conditions: dict[str, np.ndarray]
    about: dict[str, Any]
    seconds: float

    def held_out(self, every: int) -> "Truth":
        """Return the training simulations alone: each `every`-th, from the second, is to test."""
        to_test = np.arange(len(self.train)) % every == 1
        kept = {name: values[~to_test] for name, values in self.train_conditions.items()}
        held = {name: values[to_test] for name, values in self.train_conditions.items()}
        about = {**self.about, "held_out": every}
        return replace(
            self,
            train=self.train[~to_test],
            test=self.train[to_test],
            train_conditions=kept,
            test_conditions=held,
            about=about,
        )

    def training(self, length: int | None = None) -> tuple[Simulations, np.ndarray]:
        """Return what a corrector is fitted to, X and y: whole trajectories, or cut to a length.

        A piece of as many frames as are unrolled is a single window, so that an epoch of pieces
        sees each frame once.
        """
        n_steps = self.train.shape[1] - 1
        starts = range(0, n_steps - length + 1, length) if length else (0,)
        return _from(self.train, self.train_conditions, starts, length or n_steps)

    def rollouts(self, starts: Sequence[int], n_steps: int) -> tuple[Simulations, np.ndarray]:
        """Return X and y of a roll-out from each start of each test simulation."""
        return _from(self.test, self.test_conditions, starts, n_steps)


def _from(
    frames: np.ndarray, conditions: Mapping[str, np.ndarray], starts: Sequence[int], n_steps: int
) -> tuple[Simulations, np.ndarray]:
    """Return, for each start, the states of all trajectories and the frames after them."""
    X = np.concatenate([frames[:, at] for at in starts])
    y = np.concatenate([frames[:, at + 1 : at + 1 + n_steps] for at in starts])
    repeated = {name: np.concatenate([each] * len(starts)) for name, each in conditions.items()}
    return Simulations(X, repeated), y


# --- Making them


def wake(resolution: int, factor: int, skip: int, n_frames: int) -> Truth:
    """Return wakes at `resolution`, coarsened; steps up to frame `skip` are thrown away."""
    fine = WakeFlow2D(resolution * factor)
    both = np.concatenate([REYNOLDS_TRAIN, REYNOLDS_TEST])
    start = time.perf_counter()
    states = fine.initial_states(len(both))
    frames = _simulated(fine, states, {"Re": both}, factor, skip, n_frames)
    n = len(REYNOLDS_TRAIN)
    return Truth(
        frames[:n],
        frames[n:],
        {"Re": both[:n]},
        {"Re": both[n:]},
        {"fine": fine.resolution, "factor": factor, "skip": skip, "n_frames": n_frames},
        time.perf_counter() - start,
    )


def burgers(n_cells: int, factor: int, skip: int, n_frames: int) -> Truth:
    """Return waves on a ring, each with its own viscosity and forcing, coarsened to `n_cells`."""
    fine, n = Burgers1D(n_cells * factor), 2 * N_WAVES
    viscosities = np.random.default_rng(0).uniform(*VISCOSITIES, size=n)
    start = time.perf_counter()
    states = fine.initial_states(n, random_state=0)
    # Without a force, the waves would be gone after some seconds, and errors with them.
    force = FORCE * fine.initial_states(n, random_state=1)
    conditions = {"viscosity": viscosities, "forcing": force[:, 0]}
    frames = _simulated(fine, states, conditions, factor, skip, n_frames)
    conditions["forcing"] = fine.coarsen(force, factor)[:, 0]
    return Truth(
        frames[:N_WAVES],
        frames[N_WAVES:],
        {name: values[:N_WAVES] for name, values in conditions.items()},
        {name: values[N_WAVES:] for name, values in conditions.items()},
        {"fine": fine.n_cells, "factor": factor, "skip": skip, "n_frames": n_frames},
        time.perf_counter() - start,
    )


def _simulated(
    fine: Any, states: np.ndarray, conditions: Any, factor: int, skip: int, n_frames: int
) -> np.ndarray:
    """Return frames `skip` to ``skip + n_frames``; fine frames are not kept, they are many."""
    found = []
    for number in range(skip + n_frames + 1):
        if number:
            states = fine.step(states, conditions)
        if number >= skip:
            found.append(fine.coarsen(states, factor))
    return np.stack(found, axis=1)


def kept(folder: Path | None, make: Callable[..., Truth], **sizes: int) -> Truth:
    """Return a truth from its file, or make it, and write the file if there is a folder."""
    if folder is None:
        return make(**sizes)
    name = "_".join([make.__name__, *(f"{key}{value}" for key, value in sizes.items())])
    path = folder / f"{name}.npz"
    if not path.exists():
        made = make(**sizes)
        folder.mkdir(parents=True, exist_ok=True)
        conditions = {f"train_{k}": v for k, v in made.train_conditions.items()}
        conditions |= {f"test_{k}": v for k, v in made.test_conditions.items()}
        about = json.dumps({"about": made.about, "seconds": made.seconds})
        np.savez_compressed(path, train=made.train, test=made.test, text=about, **conditions)
        return made
    with np.load(path) as stored:
        text = json.loads(str(stored["text"]))
        names = {key.partition("_")[2] for key in stored.files if "_" in key}
        train, test = ({k: stored[f"{part}_{k}"] for k in names} for part in ("train", "test"))
        return Truth(stored["train"], stored["test"], train, test, **text)


# --- How far off


def errors(found: np.ndarray, truth: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Return the mean absolute error of each frame, of shape (n_rollouts, n_steps).

    Parameters
    ----------
    found, truth : ndarray of shape (n_rollouts, n_steps, n_channels, *grid)
        Frames. A roll-out that left the finite numbers has an endless error from there on.
    counted : ndarray of bool of shape (n_channels, *grid)
        Which numbers of a state are there: a staggered grid pads its components.
    """
    apart = np.abs(found[..., counted].astype(np.float64) - truth[..., counted])
    return np.where(np.isfinite(apart), apart, np.inf).mean(axis=-1)


def standard_error(values: np.ndarray) -> float:
    """Return the standard error of a mean; NaN of less than two values."""
    if len(values) < 2 or not np.isfinite(values).all():
        return math.nan
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def gap_closed(mae: np.ndarray, bare: np.ndarray) -> tuple[float, float]:
    """Return 1 - mean(mae) / mean(bare), and its standard error.

    Roll-outs are paired: the error is that of a ratio of means, by its linear expansion. Those
    of one simulation, or at one time, resemble each other, which it does not know.
    """
    ratio = mae.mean() / bare.mean()
    return float(1 - ratio), standard_error((mae - ratio * bare) / bare.mean())
