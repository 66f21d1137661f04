"""Small solvers, what they should have given, and a loop of a roll-out that is plainly right."""

import copy
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoestim import SolverInTheLoop
from zoestim.models import CorrectorCNN
from zoestim.solvers import Burgers1D, FunctionSolver, Simulations, WakeFlow2D, simulate

CELLS, N_STEPS = 8, 7
N_PARAMETERS = 21  # of `small_corrector`
LIMIT = 2.5  # beyond all states of the bare solver, within reach of large perturbations
QUICK = {"n_unroll": 3, "batch_size": 4, "lr": 1e-2, "check_gradient": False, "random_state": 0}


def advect(state: Any, conditions: Mapping[str, Any]) -> Any:
    """Return one state a step later: upwind, a little nonlinear; numpy or torch."""
    roll = torch.roll if isinstance(state, Tensor) else np.roll
    back = roll(state, 1, -1)
    return state - conditions["speed"] * (state - back) * (1 + state / 10)


def advect_all(states: Any, conditions: Mapping[str, Any]) -> Any:
    """Return many states a step later."""
    return advect(states, {"speed": torch.as_tensor(conditions["speed"])[:, None, None]})


class Counting:
    """Advection of one state that counts how often it was asked; not copied, so that it can."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, state: np.ndarray, conditions: Any) -> np.ndarray:
        self.calls += 1
        return advect(state, conditions)

    def __deepcopy__(self, memo: Any) -> "Counting":
        return self


ONE_BY_ONE = FunctionSolver(advect)
IN_TORCH = FunctionSolver(advect_all, batched=True, native="torch")


def data(n_sims: int = 6, n_steps: int = N_STEPS, dtype: Any = np.float32) -> tuple[Any, Any]:
    """Return initial states with speeds, and what a solver of larger speeds gives."""
    rng = np.random.default_rng(0)
    at = np.linspace(0, 2 * np.pi, CELLS, endpoint=False)
    phases = rng.uniform(0, 6, size=(n_sims, 1, 1))
    states = np.sin(at + phases).astype(dtype)
    speeds = np.linspace(0.2, 0.5, n_sims).astype(dtype)
    y = simulate(ONE_BY_ONE, states, {"speed": speeds * dtype(1.2)}, n_steps=n_steps)
    return Simulations(states, {"speed": speeds}), np.asarray(y, dtype=dtype)


def small_corrector(zero_init: bool = True, seed: int = 0, **given: Any) -> nn.Module:
    """Return a corrector of 21 parameters, for the ring of 8 cells."""
    sizes = {"hidden": (2,), "kernel_size": 3, "n_dims": 1, "padding": "circular", **given}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CorrectorCNN(1, 1, zero_init=zero_init, **sizes)


def loop_of(solver: Any = IN_TORCH, **given: Any) -> SolverInTheLoop:
    """Return an estimator that is soon fitted, with a corrector of 21 parameters."""
    given.setdefault("corrector", small_corrector())
    return SolverInTheLoop(solver, **{**QUICK, "sparsity": 0.0, "gradient": "cge", **given})


def parameters_of(fitted: SolverInTheLoop) -> np.ndarray:
    """Return the parameters of the fitted corrector, as one array."""
    values = [each.detach().flatten() for each in fitted.corrector_.parameters()]
    return torch.cat(values).cpu().numpy().copy()


def as_dicts(X: Simulations) -> list[dict[str, Any]]:
    """Return simulations as a list of dicts."""
    return [
        {"state": state, **{name: values[i] for name, values in X.conditions.items()}}
        for i, state in enumerate(X.states)
    ]


# --- Other flows


def burgers() -> tuple[Any, Any, Any]:
    """Return a solver of 16 cells, states with viscosities, and 4 times finer trajectories."""
    coarse, fine = Burgers1D(16, order=1), Burgers1D(64)
    viscosity = np.array([0.02, 0.05, 0.1], dtype=np.float32)
    states = fine.initial_states(3, random_state=0)
    frames = simulate(fine, states, {"viscosity": viscosity}, n_steps=4)
    y = np.stack([fine.coarsen(frames[:, t], 4) for t in range(4)], axis=1)
    return coarse, Simulations(fine.coarsen(states, 4), {"viscosity": viscosity}), y


def wake() -> tuple[Any, Any, Any]:
    """Return a wake of 12 x 24 cells, states with Reynolds numbers, and finer trajectories."""
    coarse, fine = WakeFlow2D(12), WakeFlow2D(24)
    reynolds = np.array([97.7, 390.6, 1562.5], dtype=np.float32)
    frames = simulate(fine, fine.initial_states(3), {"Re": reynolds}, n_steps=5, skip=20)
    frames = np.stack([fine.coarsen(frames[:, t], 2) for t in range(5)], axis=1)
    return coarse, Simulations(frames[:, 0], {"Re": reynolds}), frames[:, 1:]


# --- The loop


@dataclass(frozen=True)
class Reference:
    """A roll-out through a torch solver, in float64, one step after the other.

    `mode` is what a gradient sees of the solver: ``"sol"`` all, ``"nog"`` nothing (the state that
    goes in is cut off), ``"ste"`` the identity.
    """

    solver: Any
    corrector: nn.Module
    scale: Tensor
    condition_scale: float
    mode: str = "sol"

    def later(self, states: Tensor, name: str, values: Tensor) -> Tensor:
        """Return the corrected states one step later."""
        if self.mode == "nog":
            states = states.detach()
        p = self.solver.step(states if self.mode == "sol" else states.detach(), {name: values})
        if self.mode == "ste":
            p = states + (p - states).detach()
        features = self.solver.to_features(p) / self.scale
        channel = (values / self.condition_scale).reshape(-1, *[1] * (features.ndim - 1))
        seen = torch.cat([features, channel.expand_as(features[:, :1])], dim=1)
        return self.solver.apply_correction(p, self.corrector(seen) * self.scale)

    def loss(self, states: Any, y: Any, name: str, values: Any) -> Tensor:
        """Return the mean square of what the states are apart, in units of the scale."""
        states, y, values = (torch.as_tensor(each).double() for each in (states, y, values))
        apart = []
        for t in range(y.shape[1]):
            states = self.later(states, name, values)
            apart.append(((states - y[:, t]) / self.scale).square())
        return torch.stack(apart).mean()


def exact_gradient(fitted: Any, solver: Any, before: nn.Module, X: Any, y: Any, mode: str) -> Any:
    """Return the gradient of the loss where `before` is, by autograd in float64."""
    (name,) = X.conditions
    corrector = small_copy(before)
    scale = torch.as_tensor(np.asarray(fitted.scale_, dtype=float))
    scale = scale.reshape(-1, *[1] * (X.states.ndim - 2))
    over = float(np.ravel(_value(fitted.condition_scale_, name))[0])
    reference = Reference(solver, corrector, scale, over, mode)
    reference.loss(X.states, y, name, X.conditions[name]).backward()
    return torch.cat([each.grad.flatten() for each in corrector.parameters()]).numpy()


def small_copy(corrector: nn.Module) -> nn.Module:
    """Return a copy in float64, all of whose parameters train."""
    return copy.deepcopy(corrector).double().requires_grad_(True)


def _value(scales: Any, name: str) -> Any:
    return scales[name] if isinstance(scales, Mapping) else scales


# --- Solvers that fail


@dataclass(frozen=True)
class Fussy:
    """Advection that cannot bear large states, as a function of one state.

    `how` says what it does about them: "raises", "hangs", "nan", "diverges" or "dies", with its
    process, unless that is the process `parent`.
    """

    how: str
    parent: int = -1

    def __call__(self, state: np.ndarray, conditions: Mapping[str, Any]) -> np.ndarray:
        if np.abs(state).max() <= LIMIT:
            return advect(state, conditions)
        if self.how == "raises":
            raise FloatingPointError("the flow is too fast")
        if self.how == "hangs":
            time.sleep(2)
        if self.how == "dies" and os.getpid() != self.parent:
            os._exit(1)
        fill = 1e38 if self.how == "diverges" else np.nan
        return advect(state, conditions) if self.how == "hangs" else np.full_like(state, fill)
