"""Roll-outs beside the truth: asked for, checked and compared, step by step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from zoestim.solvers import Simulations

SOLVER = "solver"  # what roll-outs without correction are called


def step_errors(y_true: Any, y_pred: Any, name: str) -> np.ndarray:
    """Return the mean absolute error of each simulation at each step.

    Parameters
    ----------
    y_true, y_pred : ndarray of shape (n_simulations, n_steps, ...) or list of ndarray
        Of a prediction that is longer than the truth, the first steps are taken.
    name : str
        What the prediction is called, for messages.

    Returns
    -------
    ndarray of shape (n_simulations, n_steps)
        Inf where a prediction diverged, NaN where there is no truth: it ended, or is not finite.

    Raises
    ------
    ValueError
        If shapes differ, or there is no simulation.
    """
    if not len(y_true) or len(y_true) != len(y_pred):
        raise ValueError(
            f"y_true and the prediction {name!r} must have the same simulations, at least one; "
            f"got {len(y_true)} and {len(y_pred)}."
        )
    errors = np.full((len(y_true), max(len(frames) for frames in y_true)), np.nan)
    for i, (true, given) in enumerate(zip(y_true, y_pred, strict=True)):
        truth = np.asarray(true, dtype=np.float64)
        predicted = np.asarray(given, dtype=np.float64)[: len(truth)]
        if truth.shape != predicted.shape or truth.ndim < 2:
            raise ValueError(
                "A prediction must have the shape of the truth, (n_steps, n_channels, *grid) for "
                f"each simulation; got {truth.shape} for the truth and {predicted.shape} for "
                f"{name!r}, in simulation {i}."
            )
        errors[i, : len(truth)] = _mean_errors(truth, predicted)
    return errors


def _mean_errors(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    each = tuple(range(1, truth.ndim))
    with np.errstate(all="ignore"):
        means = np.abs(predicted - truth).mean(each)
    means[~np.isfinite(means)] = np.inf
    means[~np.isfinite(truth).all(each)] = np.nan
    return means


def predict_both(
    estimator: Any, X: Any, n_steps: int, name: str, baseline: bool = True
) -> dict[str, Any]:
    """Return an estimator's roll-outs by name: those of the solver alone, and the corrected ones.

    Raises
    ------
    TypeError
        If the estimator cannot make any.
    ValueError
        If both had the same name.
    """
    if not hasattr(estimator, "predict"):
        raise TypeError(
            f"{type(estimator).__name__} has no method predict(X, n_steps=, correct=); expected a "
            "fitted estimator such as SolverInTheLoop. Use from_predictions for roll-outs from "
            "elsewhere."
        )
    if name == SOLVER:
        raise ValueError(f"name must not be {SOLVER!r}: so are the roll-outs without correction.")
    wanted = {SOLVER: False, name: True} if baseline else {name: True}
    return {
        called: estimator.predict(X, n_steps=n_steps, correct=correct)
        for called, correct in wanted.items()
    }


def as_named(y_pred: Any, name: str) -> dict[str, Any]:
    """Return predictions by name; a single one gets the name given."""
    if not isinstance(y_pred, Mapping):
        return {name: y_pred}
    if not y_pred:
        raise ValueError("At least one prediction is needed; got an empty mapping.")
    return dict(y_pred)


def number_of_steps(y: Sequence[Any]) -> int:
    """Return the most steps that a trajectory has; ValueError if there is none."""
    most = max((len(frames) for frames in y), default=0)
    if not most:
        raise ValueError(f"y must hold frames; got {len(y)} trajectories without any.")
    return most


def pick(X: Any, y: Any, simulation: int) -> tuple[Simulations, np.ndarray]:
    """Return one simulation as an X, and its frames, the initial state first."""
    simulations = Simulations.of(X)
    number_of_steps(y)
    if len(simulations) != len(y):
        raise ValueError(
            f"X and y must have the same simulations; got {len(simulations)} and {len(y)}."
        )
    if not isinstance(simulation, Integral) or not -len(y) <= simulation < len(y):
        raise ValueError(
            f"simulation must be an integer below {len(y)}, the number of simulations; got "
            f"{simulation!r}."
        )
    one, frames = simulations[[simulation]], np.asarray(y[simulation])
    if frames.shape[1:] != simulations.shape[1:] or not len(frames):
        raise ValueError(
            "y must hold frames of the shape of a state, "
            f"(n_steps, {', '.join(map(str, simulations.shape[1:]))}) for each simulation; got "
            f"{frames.shape}."
        )
    return one, np.concatenate([one.states, frames])


def as_steps(given: Any, truth: np.ndarray, name: str) -> np.ndarray:
    """Return a roll-out of as many steps as the truth has."""
    frames = np.asarray(given)[: len(truth) - 1]
    if frames.shape != truth[1:].shape:
        raise ValueError(
            f"The prediction {name!r} must have the shape of the truth, {truth[1:].shape}, for one "
            f"simulation; got {frames.shape}."
        )
    return frames
