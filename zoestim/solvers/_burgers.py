"""Burgers' equation in one dimension: the smallest flow that a coarse grid gets wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from zoestim.solvers._batch import as_batch, each_simulation, like

LENGTH = 2 * math.pi  # of the domain, whose ends are joined
CELLS_PER_SUBSTEP = 8  # with these and a step of 0.1, speeds up to 3.9 go half a cell at most
MODES = 3  # of the states to begin with


@dataclass(frozen=True)
class Burgers1D:
    """Burgers' equation on a ring: waves steepen to shocks, and viscosity rounds them off.

    It solves

        du/dt + d(u² / 2)/dx = nu d²u/dx² + f,    0 <= x < 2 pi, periodic

    by finite volumes, for many simulations at once, with a viscosity nu each. What flows out of
    a cell flows into the next, so that without f the mean of u is kept but for rounding. With
    tensors, a step is differentiable.

    Parameters
    ----------
    n_cells : int, default=64
        The number of cells, at least 4.
    dt : float, default=0.1
        How long a step lasts.
    order : {1, 2}, default=2
        The order of accuracy in space where the flow is smooth. The first order smears shocks,
        which leaves much to correct.
    n_substeps : int, optional
        How many times a step is divided. By default one for every 8 cells: for steps of 0.1
        that is enough for speeds up to 3.9. Too few let the flow blow up.

    Attributes
    ----------
    state_shape, feature_shape : tuple of int
        ``(1, n_cells)``: the mean of u over each cell.
    batched, deterministic : bool
        True: `step` takes many states, and repeats itself.
    max_batch : None
        Any number of states will do.
    native : str
        ``"torch"``: tensors are as good as arrays.

    Notes
    -----
    Through a face flows ``max(l, 0)² / 2 + min(r, 0)² / 2`` (Engquist and Osher), of the values
    l and r on both sides of it, minus ``nu du/dx`` by the central difference. With ``order=2``
    values inside a cell are on a line with the slope of van Albada. Both are smooth, which
    finite differences through the solver need. Time goes by Heun's method, of second order.

    References
    ----------
    Engquist and Osher, One-sided difference approximations for nonlinear conservation laws,
    Mathematics of Computation 36 (1981). van Albada, van Leer and Roberts, A comparative study
    of computational methods in cosmic gas dynamics, Astronomy and Astrophysics 108 (1982).

    Examples
    --------
    >>> from zoestim.solvers import Burgers1D, simulate
    >>> burgers = Burgers1D(n_cells=32)
    >>> states = burgers.initial_states(5, random_state=0)
    >>> trajectories = simulate(burgers, states, {"viscosity": 0.05}, n_steps=10)
    >>> trajectories.shape
    (5, 10, 1, 32)
    >>> bool(abs(trajectories[:, -1].mean() - states.mean()) < 1e-6)
    True
    """

    n_cells: int = 64
    dt: float = 0.1
    order: int = 2
    n_substeps: int | None = None

    batched: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    max_batch: ClassVar[int | None] = None
    native: ClassVar[str] = "torch"

    def __post_init__(self) -> None:
        counts = [("n_cells", self.n_cells, 4)]
        if self.n_substeps is not None:
            counts.append(("n_substeps", self.n_substeps, 1))
        for name, value, least in counts:
            if not isinstance(value, Integral) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}; got {value!r}.")
        if not isinstance(self.dt, Real) or not 0 < float(self.dt) < math.inf:
            raise ValueError(f"dt must be a finite number above 0, in time; got {self.dt!r}.")
        if self.order not in (1, 2):
            raise ValueError(f"order, the order of accuracy, must be 1 or 2; got {self.order!r}.")

    @property
    def state_shape(self) -> tuple[int, int]:
        """Return the shape of a state."""
        return (1, self.n_cells)

    @property
    def feature_shape(self) -> tuple[int, int]:
        """Return the shape of what a corrector sees: the state."""
        return self.state_shape

    def initial_states(self, n_simulations: int = 1, random_state: int | None = None) -> np.ndarray:
        """Return float32 states: sums of a few sine waves with random heights and phases.

        Grids with other numbers of cells get the same waves for the same seed.
        """
        rng = np.random.default_rng(random_state)
        heights = rng.normal(size=(n_simulations, MODES, 1)) / math.sqrt(MODES)
        phases = rng.uniform(0, LENGTH, size=(n_simulations, MODES, 1))
        numbers = np.arange(1, MODES + 1)[:, None]
        faces = np.linspace(0, LENGTH, self.n_cells + 1)
        risen = -np.cos(numbers * faces + phases) / numbers  # the integral of a wave
        means = np.diff(risen, axis=-1) * (self.n_cells / LENGTH)
        return (heights * means).sum(axis=1, keepdims=True).astype(np.float32)

    def step(self, states: Any, conditions: Mapping[str, Any]) -> Any:
        """Return the states a time of `dt` later.

        Parameters
        ----------
        states : ndarray or Tensor of shape (n_simulations, 1, n_cells)
            Of float32 or float64. They are not written to.
        conditions : mapping
            With ``"viscosity"``: nu, or one for each simulation. With ``"forcing"``, if there
            is one: f in each cell during this step, of shape (n_cells,) or
            (n_simulations, n_cells).

        Returns
        -------
        ndarray or Tensor
            As the states, in memory of its own.

        Raises
        ------
        TypeError, ValueError
            If states are of another kind or shape, or a viscosity is missing, negative, or too
            large for the substeps.
        """
        batch = as_batch(states, self.state_shape, "Burgers1D")
        viscosity = each_simulation(conditions, "viscosity", batch, "Burgers1D")
        n_substeps = self.n_substeps or max(1, self.n_cells // CELLS_PER_SUBSTEP)
        short, size = self.dt / n_substeps, LENGTH / self.n_cells
        if not bool(((viscosity >= 0) & (2 * viscosity * short <= size**2)).all()):
            raise ValueError(
                f"Burgers1D needs viscosities from 0 to {size**2 / short / 2:.4g}, for explicit "
                f"diffusion in {n_substeps} substeps to be stable; got from "
                f"{float(viscosity.min()):g} to {float(viscosity.max()):g}. Raise n_substeps."
            )
        u, nu = batch[:, 0], viscosity[:, None] / size
        force = None
        if "forcing" in conditions:
            force = each_simulation(conditions, "forcing", batch, "Burgers1D", (self.n_cells,))
        for _ in range(n_substeps):
            first = self._rate(u, nu, force, size)
            second = self._rate(torch.add(u, first, alpha=short), nu, force, size)
            u = torch.add(u, first + second, alpha=short / 2)
        return like(u[:, None], states)

    def _rate(self, u: Tensor, nu: Tensor, force: Tensor | None, size: float) -> Tensor:
        """Return du/dt; `nu` is divided by the size of a cell."""
        # A cell more on either side, two for slopes: quicker than torch.roll.
        margin = self.order
        wide = torch.cat([u[:, -margin:], u, u[:, :margin]], dim=1)
        rise = wide.diff(dim=1)
        inner = wide[:, margin - 1 : wide.shape[1] - margin + 1]
        left = right = inner
        if margin == 2:
            half = _half_slope(rise[:, :-1], rise[:, 1:])
            left, right = inner + half, inner - half
            rise = rise[:, 1:-1]
        flow = (left[:, :-1].clamp(min=0).square() + right[:, 1:].clamp(max=0).square()) / 2
        rate = torch.addcmul(flow, rise, nu, value=-1).diff(dim=1) / -size
        return rate if force is None else rate + force

    def coarsen(self, states: Any, factor: int = 2) -> Any:
        """Return the states of a grid with `factor` times fewer cells, by means over cells.

        Raises
        ------
        ValueError
            If the number of cells is no multiple of `factor`.
        """
        if not isinstance(factor, Integral) or factor < 1 or self.n_cells % factor:
            raise ValueError(
                f"factor must be an integer that divides the number of cells, {self.n_cells}; "
                f"got {factor!r}."
            )
        batch = as_batch(states, self.state_shape, "Burgers1D")
        return like(batch.reshape(len(batch), 1, -1, factor).mean(-1), states)

    def to_features(self, states: Any) -> Any:
        """Return what a corrector sees: the states."""
        return states

    def apply_correction(self, states: Any, correction: Any) -> Any:
        """Return the states plus a correction of the same shape."""
        return states + correction


def _half_slope(before: Tensor, after: Tensor) -> Tensor:
    """Return half the slope of van Albada of two differences: 0 at extrema, else between them."""
    product = (before * after).clamp(min=0)
    tiny = torch.finfo(before.dtype).tiny ** 0.5
    return product * (before + after) / (2 * (before.square() + after.square()) + tiny)
