"""The wake of a cylinder in two dimensions: DeepZero, Sec. 6.2 and Appendix H."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, pad

from zoestim.solvers._batch import as_batch, each_simulation, like
from zoestim.solvers._pressure import PressureSolve

WIDTH = 100.0  # of the domain, across the flow; it is twice as long
CENTRE = 50.0  # of the cylinder, along and across
RADIUS = 10.0
SPEED = 1.0  # of the inflow, and along both sides
STEP = 1.0  # of time
SPEED_TIMES_LENGTH = 1e5 / 128**2  # which the viscosity is divided by, to give Re
SMALLEST = 12  # cells across, below which the first disturbance lies outside
CELLS_AT_ONCE = 2**17  # more do not stay in a CPU's cache


@dataclass(frozen=True)
class WakeFlow2D:
    """Flow past a cylinder: the wake behind it sheds vortices, which a coarse grid gets wrong.

    It solves the incompressible Navier-Stokes equations

        du/dt + (u . grad) u = nu laplace(u) - grad(p),    div(u) = 0

    for many simulations at once, with a Reynolds number each, and pushes nothing through an
    iteration: two equal calls give equal bits. With tensors, a step is differentiable.

    Parameters
    ----------
    resolution : int, default=32
        The number of cells across the flow, an even number of at least 12; along it there are
        twice as many. The paper trains on 32 and takes a finer one for the truth.

    Attributes
    ----------
    state_shape : tuple of int
        ``(2, 2 * resolution + 1, resolution + 1)``, see Notes.
    feature_shape : tuple of int
        ``(2, 2 * resolution, resolution)``, what `to_features` gives for a state.
    batched, deterministic : bool
        True: `step` takes many states, and repeats itself.
    max_batch : None
        Any number of states will do.
    native : str
        ``"torch"``: tensors are as good as arrays.

    Notes
    -----
    The domain has a width of 100 and a length of 200, the inflow a speed of 1, a step lasts 1,
    and the cylinder has a diameter of 20 and stands 50 behind the inlet, in the middle.

    Velocities stand on the faces of cells (a staggered or MAC grid). For h = 2 * resolution
    cells along and w = resolution cells across, a state holds

    ======= ==================== ============== =============================
    channel velocity             faces          not a face, always 0
    ======= ==================== ============== =============================
    0       along the flow       (h + 1, w)     the last column
    1       across the flow      (h, w + 1)     the last row
    ======= ==================== ============== =============================

    A step has four parts, as in the code of Um et al. (karman-2d, PhiFlow 1.5.1):

    1. explicit diffusion; beyond an edge, a velocity goes on as it is there;
    2. the velocity along the flow is 1 in the first two rows and in the first and last columns;
    3. semi-Lagrangian advection: one Euler step back, then bilinear interpolation;
    4. faces of closed cells, those with their centre in the cylinder, get 0, and the pressure,
       0 around the domain, removes the divergence exactly.

    **Reynolds numbers** are those of Um et al.: nu = 1e5 / (128² Re), at every resolution. By
    its diameter and the speed of the inflow, the cylinder has 3.28 Re. They train on
    97.65625 * 2**k for k from 0 to 5, and test on 146.484375 * 2**k for k from 0 to 4. At low
    resolutions, the interpolation's own viscosity is larger, so that Re matters little.

    After 100 steps, results are those of PhiFlow 3.4.0's diffusion, advection and pressure, but
    for rounding, where it is told to diffuse and to close cells as 1.5.1 did.

    References
    ----------
    Um, Brand, Fei, Holl and Thuerey, Solver-in-the-loop: learning from differentiable physics
    to interact with iterative PDE-solvers, NeurIPS 2020, Appendix B.1.

    Examples
    --------
    >>> from zoestim.solvers import WakeFlow2D, simulate
    >>> flow = WakeFlow2D(resolution=16)
    >>> states = flow.initial_states(3)
    >>> states.shape
    (3, 2, 33, 17)
    >>> conditions = {"Re": [97.7, 390.6, 1562.5]}
    >>> states = flow.step(states, conditions)
    >>> simulate(flow, states, conditions, n_steps=5).shape
    (3, 5, 2, 33, 17)
    >>> bool(abs(flow.divergence(states)).max() < 1e-5)
    True
    """

    resolution: int = 32

    batched: ClassVar[bool] = True
    deterministic: ClassVar[bool] = True
    max_batch: ClassVar[int | None] = None
    native: ClassVar[str] = "torch"

    def __post_init__(self) -> None:
        given = self.resolution
        if not isinstance(given, Integral) or given < SMALLEST or given % 2:
            raise ValueError(
                f"resolution, the number of cells across the flow, must be an even integer of at "
                f"least {SMALLEST}; got {given!r}. The paper's is 32; 16 is quick."
            )

    @property
    def state_shape(self) -> tuple[int, int, int]:
        """Return the shape of a state."""
        return (2, 2 * self.resolution + 1, self.resolution + 1)

    @property
    def feature_shape(self) -> tuple[int, int, int]:
        """Return the shape of what a corrector sees of a state."""
        return (2, 2 * self.resolution, self.resolution)

    def initial_states(self, n_simulations: int = 1) -> np.ndarray:
        """Return float32 states before the first step: the inflow's speed, and a disturbance.

        Without the disturbance, a jet across the flow behind the cylinder, the flow would stay
        symmetric. At resolutions of 64 and more, vortices are shed after 1,000 to 1,500 steps;
        at 16 and 32 the grid is too viscous for that, and states to learn from are those of a
        finer grid, by `coarsen`.
        """
        rows, middle = self.resolution, self.resolution // 2
        states = np.zeros((n_simulations, *self.state_shape), dtype=np.float32)
        states[:, 0, :, :-1] = SPEED
        states[:, 1, rows + 10 : min(rows + 20, 2 * rows), middle - 2 : middle + 2] = 1
        return states

    def step(self, states: Any, conditions: Mapping[str, Any]) -> Any:
        """Return the states one unit of time later.

        Parameters
        ----------
        states : ndarray or Tensor of shape (n_simulations, *state_shape)
            Of float32 or float64. They are not written to.
        conditions : mapping
            With ``"Re"``: the Reynolds number, or one for each simulation.

        Returns
        -------
        ndarray or Tensor
            As the states, in memory of its own.

        Raises
        ------
        TypeError, ValueError
            If states are of another kind or shape, or there is no Reynolds number above 0 for
            each, large enough for explicit diffusion at this resolution.
        """
        batch = as_batch(states, self.state_shape, "WakeFlow2D")
        numbers = self._diffusion(each_simulation(conditions, "Re", batch, "WakeFlow2D"))
        at_once = CELLS_AT_ONCE // (2 * self.resolution**2) if batch.device.type == "cpu" else 0
        size = max(at_once, 1) if at_once else max(len(batch), 1)
        grid = _lay_out(self.resolution, batch.dtype, batch.device)
        later = [
            _advance(part, number[:, None, None], grid)
            for part, number in zip(batch.split(size), numbers.split(size), strict=True)
        ]
        return like(torch.cat(later) if len(later) > 1 else later[0], states)

    def _diffusion(self, reynolds: Tensor) -> Tensor:
        """Return nu dt / dx²; ValueError if explicit diffusion cannot take it."""
        least = 4 * SPEED_TIMES_LENGTH * STEP * (self.resolution / WIDTH) ** 2
        if not bool((reynolds >= least).all()):
            raise ValueError(
                f"WakeFlow2D needs Reynolds numbers of at least {least:.4g} at resolution "
                f"{self.resolution}, for explicit diffusion to be stable; got "
                f"{float(reynolds.min()):g}. Take larger ones, or a lower resolution."
            )
        return least / 4 / reynolds

    def divergence(self, states: Any) -> Any:
        """Return how much flows out of each cell, of shape (n_simulations, h, w), per cell."""
        batch = as_batch(states, self.state_shape, "WakeFlow2D")
        return like(_divergence(batch[:, 0, :, :-1], batch[:, 1, :-1, :]), states)

    def coarsen(self, states: Any, factor: int = 2) -> Any:
        """Return the states of a grid with `factor` times fewer cells across, and along.

        As by the `downsample2x` of PhiFlow, again and again: of the faces along its own axis a
        velocity keeps each `factor`-th, across it takes the mean of `factor` faces.

        Raises
        ------
        ValueError
            If the resolution is no multiple of `factor`.
        """
        if not isinstance(factor, Integral) or factor < 1 or self.resolution % factor:
            raise ValueError(
                f"factor must be an integer that divides the resolution, {self.resolution}; got "
                f"{factor!r}. Powers of two will do."
            )
        batch = as_batch(states, self.state_shape, "WakeFlow2D")
        n, (_, h, w) = len(batch), self.feature_shape
        along = batch[:, 0, ::factor, :-1].reshape(n, h // factor + 1, -1, factor).mean(3)
        across = batch[:, 1, :-1, ::factor].reshape(n, -1, factor, w // factor + 1).mean(2)
        return like(_join(along, across), states)

    def to_features(self, states: Any) -> Any:
        """Return what a corrector sees: without the last row and column, (n, *feature_shape)."""
        return states[..., :-1, :-1]

    def apply_correction(self, states: Any, correction: Any) -> Any:
        """Return the states plus a correction of shape (n, *feature_shape).

        The outermost faces at the outlet and at one side, which a corrector does not see, stay.
        """
        if isinstance(states, np.ndarray):
            return states + np.pad(correction, ((0, 0), (0, 0), (0, 1), (0, 1)))
        return states + pad(correction, (0, 1, 0, 1))  # which torch.fx can trace


@dataclass(frozen=True)
class _Grid:
    """What a step looks up: masks of faces, where they stand, and the pressure's matrices."""

    imposed: Tensor
    open_along: Tensor
    open_across: Tensor
    at_along: Tensor
    at_across: Tensor
    courant: float
    pressure: PressureSolve


@lru_cache(maxsize=8)
def _lay_out(resolution: int, dtype: torch.dtype, device: torch.device) -> _Grid:
    """Return the grid of a resolution, in a precision and on a device."""
    h, w, size = 2 * resolution, resolution, WIDTH / resolution
    rows, columns = ((np.arange(n) + 0.5) * size - CENTRE for n in (h, w))
    closed = rows[:, None] ** 2 + columns**2 < RADIUS**2
    free = np.pad(~closed, 1, constant_values=True)
    imposed = np.zeros((h + 1, w), dtype=bool)
    imposed[:2] = imposed[:, 0] = imposed[:, -1] = True

    def on(values: np.ndarray, kind: torch.dtype = dtype) -> Tensor:
        return torch.from_numpy(values).to(device, kind)

    return _Grid(
        imposed=on(imposed, torch.bool),
        open_along=on(free[1:, 1:-1] & free[:-1, 1:-1]),
        open_across=on(free[1:-1, 1:] & free[1:-1, :-1]),
        at_along=on(_places(h + 1, w)),
        at_across=on(_places(h, w + 1)),
        courant=STEP / size,
        pressure=PressureSolve(closed, dtype, device),
    )


def _places(n_rows: int, n_columns: int) -> np.ndarray:
    """Return (column, row) of each point, from -1 to 1, as `grid_sample` counts them."""
    both = np.meshgrid(np.linspace(-1, 1, n_columns), np.linspace(-1, 1, n_rows))
    return np.stack(both, axis=-1)


def _advance(states: Tensor, diffusion: Tensor, grid: _Grid) -> Tensor:
    """Return the states after the four parts of a step; `diffusion` is of shape (n, 1, 1)."""
    along = _diffuse(states[:, 0, :, :-1], diffusion)
    across = _diffuse(states[:, 1, :-1, :], diffusion)
    along = torch.where(grid.imposed, SPEED, along)
    along, across = _advect(along, across, grid)
    along, across = along * grid.open_along, across * grid.open_across
    p = pad(grid.pressure(_divergence(along, across)), (1, 1, 1, 1))
    along = torch.addcmul(along, p[:, 1:, 1:-1] - p[:, :-1, 1:-1], grid.open_along, value=-1)
    across = torch.addcmul(across, p[:, 1:-1, 1:] - p[:, 1:-1, :-1], grid.open_across, value=-1)
    return _join(along, across)


def _diffuse(field: Tensor, number: Tensor) -> Tensor:
    """Return a component after an Euler step of diffusion."""
    wide = pad(field[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
    along = wide[:, 2:, 1:-1] + wide[:, :-2, 1:-1]
    across = wide[:, 1:-1, 2:] + wide[:, 1:-1, :-2]
    return torch.addcmul(field, torch.sub(along + across, field, alpha=4), number)


def _advect(along: Tensor, across: Tensor, grid: _Grid) -> tuple[Tensor, Tensor]:
    """Return both components as they were where the flow comes from."""
    across_there = _average(across, 2, 1)
    along_there = _average(along, 1, 2)
    return (
        _look_back(along, along, across_there, grid.at_along, grid.courant),
        _look_back(across, along_there, across, grid.at_across, grid.courant),
    )


def _average(field: Tensor, inward: int, outward: int) -> Tensor:
    """Return a component on the faces of the other: the mean of the four that are nearest."""
    n, m = field.shape[inward] - 1, field.shape[outward]
    pairs = field.narrow(inward, 1, n) + field.narrow(inward, 0, n)
    inside = pairs.narrow(outward, 1, m - 1) + pairs.narrow(outward, 0, m - 1)
    first, last = pairs.narrow(outward, 0, 1), pairs.narrow(outward, m - 1, 1)
    return torch.cat([2 * first, inside, 2 * last], dim=outward) / 4


def _look_back(
    field: Tensor, along: Tensor, across: Tensor, places: Tensor, courant: float
) -> Tensor:
    """Return the field at its places minus the way that the velocity goes in a step."""
    rows, columns = field.shape[1] - 1, field.shape[2] - 1
    before = (
        torch.sub(places[..., 0], across, alpha=2 * courant / columns),
        torch.sub(places[..., 1], along, alpha=2 * courant / rows),
    )
    found = grid_sample(
        field[:, None],
        torch.stack(before, dim=-1),
        mode="bilinear",
        padding_mode="border",
        align_corners=True,
    )
    return found[:, 0]


def _divergence(along: Tensor, across: Tensor) -> Tensor:
    return along[:, 1:] - along[:, :-1] + across[:, :, 1:] - across[:, :, :-1]


def _join(along: Tensor, across: Tensor) -> Tensor:
    """Return states of the two components."""
    return torch.stack([pad(along, (0, 1)), pad(across, (0, 0, 0, 1))], dim=1)
