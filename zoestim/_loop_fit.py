"""One fit of a SolverInTheLoop: frames, scales, a corrector, the gradient, and what it is worth."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoestim._finetuning import UnrolledTraining, keep_trained
from zoestim._loop_data import (
    as_trajectories,
    condition_units,
    deviations,
    frames_of,
    warn_of_first_frames,
)
from zoestim._loop_gradient import (
    STATE_STEPS,
    check_gradient,
    chosen_gradient,
    slope_of,
    smoothing_of,
)
from zoestim._loop_parameters import SHARED
from zoestim._loop_score import judge, tell_times
from zoestim._modules import build_module
from zoestim.evaluation import (
    PRECISIONS,
    Asking,
    Meter,
    as_input,
    draw_seed,
    first_parameter,
    shared_generator,
)
from zoestim.models import CorrectorCNN
from zoestim.rollouts import (
    Curriculum,
    Rows,
    SolverBox,
    SolverSteps,
    Unrolled,
    n_channels,
)
from zoestim.solvers import as_solver
from zoestim.training import asking_of, same_setting

# What a fit that goes on keeps, beside what its trainer keeps.
BUILT_FROM = (
    "solver",
    "corrector",
    "n_unroll",
    "unroll_schedule",
    "mode",
    "gradient",
    "scaler",
    "condition_channels",
    "solver_batch",
)


def fit(loop: Any, X: Any, y: Any, *, continued: bool, epochs: int | None) -> None:
    """Fit a SolverInTheLoop, and keep on it what was learned if a query fails.

    Parameters
    ----------
    loop : SolverInTheLoop
        Its parameters; the fitted attributes are set on it.
    X : Simulations, or what it takes
        Initial states, with conditions.
    y : ndarray or list of ndarray
        The frames behind them.
    continued : bool
        Whether to go on with the last fit.
    epochs : int or None
        How many; None is one at a constant rate.
    """
    started = time.perf_counter() - (loop._seconds if continued else 0.0)
    loop._check_extras()
    simulations, trajectories = as_trajectories(X, y)
    warn_of_first_frames(simulations, trajectories)
    layout = Rows.of(simulations.states, simulations.conditions)
    if continued:
        layout = layout.in_order_of(loop.trainer_.module_.rows)
    _refuse_bad_settings(loop, trajectories, epochs)
    frames, owners = frames_of(layout, simulations, trajectories)
    if continued:
        trainer, found = _go_on(loop, layout)
    else:
        with asking_of(loop) as asking:
            trainer, found = _start(loop, layout, frames, owners, asking)
    try:
        trainer._fit(frames, owners, None, continued, epochs)
    except ValueError as error:
        if trainer._n_queries_before and "max_queries" in str(error):
            error.add_note("These were for the gradient check; check_gradient=False saves them.")
        raise
    finally:
        if hasattr(trainer, "net_"):
            vars(loop).update(found)
            _keep(loop, trainer, max(map(len, trajectories)))
            tell_times(loop, started)
    judge(loop, simulations, trajectories)
    tell_times(loop, started)


# --- What a fit is made of


def _start(
    loop: Any, layout: Rows, frames: np.ndarray, owners: np.ndarray, asking: Asking
) -> tuple[UnrolledTraining, dict[str, Any]]:
    """Return a new trainer, and what was found on the way to it, by attribute."""
    generator = shared_generator(loop.random_state, asking.backend)
    weights, training = (draw_seed(generator) for _ in range(2))
    unrolled = _unroll(loop, layout, frames, owners, weights)
    rows = as_input(frames[: unrolled.box.at_once], unrolled)
    gradient, why = chosen_gradient(loop, unrolled, rows, asking)
    unrolled.slope = slope_of(loop, gradient)
    given = _training_parameters(loop, unrolled, gradient)
    check = None
    if loop.check_gradient and unrolled.slope in (None, "queries"):
        check = check_gradient(loop, unrolled, frames, owners, given, asking, generator)
    trainer = UnrolledTraining(unrolled, **given, random_state=training % 2**32)
    trainer._n_queries_before = 0 if check is None else check.n_queries
    found = {"gradient_": gradient, "gradient_reason_": why, "gradient_check_": check}
    return _ready(loop, trainer), found


def _go_on(loop: Any, layout: Rows) -> tuple[UnrolledTraining, dict[str, Any]]:
    """Return the trainer of the last fit, with the parameters as they are now."""
    trainer = loop.trainer_
    unrolled: Unrolled = trainer.module_
    if layout != unrolled.rows:
        raise ValueError(
            f"X has states and conditions of shapes {layout.state} and {dict(layout.conditions)}; "
            f"expected {unrolled.rows.state} and {dict(unrolled.rows.conditions)}, as in the fit "
            "that is to go on."
        )
    before, now = loop._built_from, _built_from(loop)
    changed = [name for name in before | now if not same_setting(before.get(name), now.get(name))]
    if changed:
        raise ValueError(
            f"{sorted(changed)} changed since the fit that is to go on; expected them as they "
            "were. Set warm_start=False to start anew, from corrector=corrector_ if you like."
        )
    # What was predicted since is no part of a fit.
    unrolled.box.meter = Meter(loop.fit_time_solver_, loop.n_solver_steps_)
    given = _training_parameters(loop, unrolled, loop.gradient_)
    trainer.set_params(**given)
    return _ready(loop, trainer), {}


def _built_from(loop: Any) -> dict[str, Any]:
    """Return the parameters that a fit which goes on keeps."""
    given = loop.get_params(deep=False).items()
    return {n: value for n, value in given if n in BUILT_FROM or n.startswith("corrector__")}


def _ready(loop: Any, trainer: UnrolledTraining) -> UnrolledTraining:
    trainer._forgiving = loop.on_failure != "raise"
    trainer._failure_penalty = loop.failure_penalty if loop.on_failure == "penalize" else None
    return trainer


def _unroll(loop: Any, layout: Rows, frames: np.ndarray, owners: np.ndarray, seed: int) -> Unrolled:
    """Return the solver with a fresh corrector, in the units of the frames."""
    solver, states = as_solver(loop.solver), torch.from_numpy(layout.states(frames))
    features = solver.to_features(states)
    grid = tuple(features.shape[2:])
    scale = deviations(features, loop.scaler)
    state_scale = scale if len(scale) == layout.state[0] else deviations(states, loop.scaler)
    units = condition_units(layout, frames, owners) if loop.condition_channels else {}
    shapes = dict(layout.conditions)
    sizes = {
        "n_channels": len(scale),
        "n_conditions": sum(n_channels(shapes[name], grid)[0] for name in units),
        "n_dims": len(grid),
        "zero_init": loop.zero_init,
    }
    if loop.corrector is None and not grid:
        raise ValueError(
            f"X has states of shape {layout.state}, channels without a grid, which the default "
            "corrector cannot take; expected X of shape (n_simulations, n_channels, *grid). For "
            "states on a grid add the axis of channels, X[:, None] and y[:, :, None]; for others "
            "pass a corrector."
        )
    given = loop.corrector if loop.corrector is not None else CorrectorCNN
    arguments = loop._prefixed("corrector")
    corrector = build_module(given, None, arguments, sizes, seed, "corrector")
    if loop.precision != "auto":
        corrector = corrector.to(PRECISIONS[loop.precision])
    if (kind := first_parameter(corrector).dtype) not in STATE_STEPS:
        raise ValueError(
            f"The corrector has parameters of {kind}; expected float32 or float64, in which the "
            "solver is asked too. Convert it, as by corrector.float(), or set precision='float32'."
        )
    unrolled = Unrolled(
        corrector,
        SolverBox(solver, layout, loop.batch_size, loop.solver_batch),
        tuple(_schedule(loop)),
        scale.to(kind),
        state_scale.to(kind),
        units,
    )
    _refuse_other_shape(unrolled, as_input(frames[:2], unrolled))
    return unrolled


@torch.no_grad()
def _refuse_other_shape(unrolled: Unrolled, rows: Tensor) -> None:
    """Refuse a corrector that returns something else than a correction."""
    states, channels = unrolled.rows.states(rows), unrolled.channels(rows)
    expected = unrolled.to_features(states)
    seen = expected if channels is None else torch.cat([expected, channels], 1)
    try:
        with unrolled.in_use():
            found = unrolled.corrector(seen)
    except RuntimeError as error:
        raise ValueError(
            f"The corrector cannot take features and conditions of shape {tuple(seen.shape)}: "
            f"{expected.shape[1]} channels of features, and then those of the conditions "
            f"{list(unrolled.condition_scale)}; it raises {error}. Build it for "
            f"{seen.shape[1]} channels, or pass a class or factory that is told n_channels."
        ) from error
    if not isinstance(found, Tensor) or found.shape != expected.shape:
        got = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            f"The corrector returned {got} for features and conditions of shape "
            f"{tuple(seen.shape)}; expected a correction of shape {tuple(expected.shape)}."
        )


def _schedule(loop: Any) -> Sequence[int]:
    """Return how many steps are unrolled, one number after the other."""
    return (1,) if loop.mode == "non" else loop.unroll_schedule or (loop.n_unroll,)


def _training_parameters(loop: Any, unrolled: Unrolled, gradient: Any) -> dict[str, Any]:
    """Return the parameters of the training that may change between fits."""
    given = loop.get_params(deep=False)
    found = {name: given[name] for name in SHARED if name != "random_state"}
    found |= {f"optimizer__{name}": value for name, value in loop._prefixed("optimizer").items()}
    asks = gradient in ("cge", "rge")
    found |= {
        "gradient": gradient if asks or not isinstance(gradient, str) else "cge",
        "smoothing": smoothing_of(loop, unrolled),
        "lr": loop.lr,
        "batch_size": loop.batch_size,
    }
    if unrolled.slope is not None:
        found["pruning"] = None  # all weights have their slope
    more = [SolverSteps(unrolled.box.meter)] if loop.checkpoint is not None else []
    if len(unrolled.schedule) > 1:
        more.append(Curriculum())
    if more:
        found["callbacks"] = [*(loop.callbacks or []), *more]
    return found


# --- What is kept


def _keep(loop: Any, trainer: UnrolledTraining, n_steps: int) -> None:
    """Set the fitted attributes from the trainer as it stands."""
    keep_trained(loop, trainer)
    unrolled, step = trainer.module_, trainer.net_.zo_step
    loop.trainer_, loop.corrector_ = trainer, unrolled.corrector
    loop.scale_ = unrolled.scale.flatten().numpy(force=True)
    loop.condition_scale_ = dict(unrolled.condition_scale)
    loop.n_features_in_, loop.grid_shape_ = unrolled.rows.state[0], unrolled.rows.state[1:]
    loop.n_updates_ = step.n_steps
    check = loop.gradient_check_
    loop.n_failed_queries_ = step.n_failed + (0 if check is None else check.n_failed)
    loop.n_solver_steps_ = unrolled.box.meter.read().n_rows
    loop._built_from = _built_from(loop)
    loop._n_steps = n_steps


# --- Refusals


def _refuse_bad_settings(loop: Any, trajectories: Sequence[np.ndarray], epochs: int | None) -> None:
    for number in _schedule(loop):
        if not isinstance(number, int | np.integer) or number < 1:
            raise ValueError(
                f"unroll_schedule={loop.unroll_schedule!r} must hold integers of at least 1."
            )
    needed, longest = max(_schedule(loop)), max(map(len, trajectories))
    if longest < needed:
        raise ValueError(
            f"n_unroll={needed} needs trajectories of at least {needed} frames behind the initial "
            f"state; the longest in y has {longest}. Lower n_unroll, or record longer ones."
        )
    n_usable = sum(len(frames) >= needed for frames in trajectories)
    if loop.early_stopping and n_usable == 1:
        raise ValueError(
            f"early_stopping holds out whole simulations, and there is one of {needed} frames or "
            "more; expected at least two. Cut it into several, or set early_stopping=False."
        )
    solver = as_solver(loop.solver)
    if loop.mode == "sol" and loop.gradient == "autograd" and solver.native != "torch":
        raise ValueError(
            f"gradient='autograd' goes through the solver, and {type(solver).__name__} has "
            f"native={solver.native!r}; expected a solver of torch tensors, native='torch'. Take "
            "'solver-vjp', which asks for values alone."
        )
    if loop.checkpoint is not None and loop.random_state is None:
        raise ValueError(
            "checkpoint needs a random_state: without one another run starts from another "
            "corrector and cannot go on; expected an integer, such as random_state=0."
        )
    if loop.checkpoint is not None and loop.mode == "sol" and loop.gradient == "auto":
        raise ValueError(
            "gradient='auto' measures times, and a run that goes on from the checkpoint could "
            "choose otherwise; expected the name of one, such as 'cge' or 'solver-vjp'."
        )
