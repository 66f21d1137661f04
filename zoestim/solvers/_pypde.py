"""Equations of py-pde as a solver, compiled once."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch

from zoestim.solvers._batch import as_batch, each_simulation, like


class PyPDESolver:
    """Make a solver of an equation of py-pde.

    Parameters
    ----------
    equation : pde.PDE
        The equation, with a variable for each channel of a state and for each of `conditions`.
    grid : pde.grids.GridBase
        Where it is solved.
    t_step : float
        How long a step lasts.
    dt : float
        The time step of the scheme, which divides `t_step`.
    conditions : sequence of str, default=()
        The variables of the equation that are conditions: they differ between simulations, and
        the equation must say that they do not change, see Examples. A condition is a number, or
        a field on the grid. So one compiled equation serves all of their values.
    scheme : {"euler", "rk4"}, default="euler"
        The explicit scheme: Euler's, or the Runge-Kutta scheme of order 4.
    backend : str, default="auto"
        What computes, by py-pde's names. ``"numba"`` compiles, which takes 10 to 30 seconds, and
        is then the fastest; ``"numpy"`` does not compile the loop over time.
    deterministic : bool, default=True
        Whether equal questions get equal answers, bit by bit.

    Attributes
    ----------
    state_shape, feature_shape : tuple of int
        ``(n_channels, *grid.shape)``: the variables in the order of the equation, without the
        conditions.
    batched : bool
        False: simulations are solved one after the other.
    max_batch : None
        Any number of states will do.
    native : str
        ``"numpy"``.

    Notes
    -----
    ``equation.solve`` compiles in each call, for seconds. Here, py-pde makes its stepper once
    for each object, at the first step, and it is used for all simulations. It computes in
    float64; each step begins at the time 0.

    An explicit scheme that is not stable for `dt` gives numbers that are not finite.

    Needs py-pde 0.59: ``pip install "zoestim[pypde]"``.

    Examples
    --------
    Burgers' equation with a viscosity for each simulation:

    >>> import numpy as np
    >>> from zoestim.solvers import PyPDESolver
    >>> from pde import PDE, CartesianGrid  # doctest: +SKIP
    >>> equation = PDE({"u": "nu * laplace(u) - u * d_dx(u)", "nu": "0"})  # doctest: +SKIP
    >>> grid = CartesianGrid([[0, 2 * np.pi]], 64, periodic=True)  # doctest: +SKIP
    >>> solver = PyPDESolver(
    ...     equation, grid, t_step=0.1, dt=0.001, conditions=["nu"]
    ... )  # doctest: +SKIP
    >>> states = np.sin(grid.axes_coords[0]) * np.ones((2, 1, 1))  # doctest: +SKIP
    >>> solver.step(states, {"nu": [0.05, 0.1]}).shape  # doctest: +SKIP
    (2, 1, 64)
    """

    batched = False
    max_batch: int | None = None
    native = "numpy"

    def __init__(
        self,
        equation: Any,
        grid: Any,
        *,
        t_step: float,
        dt: float,
        conditions: Sequence[str] = (),
        scheme: str = "euler",
        backend: str = "auto",
        deterministic: bool = True,
    ):
        self.equation, self.grid = equation, grid
        self.t_step, self.dt = t_step, dt
        self.conditions = (conditions,) if isinstance(conditions, str) else tuple(conditions)
        self.scheme, self.backend, self.deterministic = scheme, backend, deterministic
        _check(self)
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._made: tuple[Any, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was compiled."""
        ours = ("_lock", "_made")
        return {name: value for name, value in vars(self).items() if name not in ours}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    @property
    def channels(self) -> tuple[str, ...]:
        """Return the variables that are channels of a state."""
        return tuple(name for name in self.equation.variables if name not in self.conditions)

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Return the shape of a state."""
        return (len(self.channels), *self.grid.shape)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Return the shape of what a corrector sees: the state."""
        return self.state_shape

    def step(self, states: Any, conditions: Mapping[str, Any] | None = None) -> Any:
        """Return the states one step later, as arrays or tensors like those given.

        Parameters
        ----------
        states : ndarray or Tensor of shape (n_simulations, *state_shape)
            Of float32 or float64. They are not written to.
        conditions : mapping, optional
            With each of the `conditions` of the solver: a number, one for each simulation, or
            a field for each.

        Raises
        ------
        TypeError, ValueError
            If states are of another kind or shape, or a condition is missing.
        """
        batch = as_batch(states, self.state_shape, "PyPDESolver")
        shape = tuple(self.grid.shape)
        values = {name: _fields(conditions, name, batch, shape) for name in self.conditions}
        given, found = batch.detach().cpu().numpy(), np.empty(batch.shape)
        with self._lock:  # there is one state to work on
            for i, state in enumerate(given):
                each = dict(zip(self.channels, state, strict=True))
                each |= {name: fields[i] for name, fields in values.items()}
                after = self._advance([each[name] for name in self.equation.variables])
                found[i] = [after[name] for name in self.channels]
        answer = torch.from_numpy(found).to(device=batch.device, dtype=batch.dtype)
        return like(answer, states)

    def _advance(self, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
        """Return each variable one step later."""
        names = self.equation.variables
        if self._made is None:
            self._made = self._make()
        stepper, state = self._made
        state.data[...] = arrays[0] if len(names) == 1 else arrays
        stepper(state, 0.0, self.t_step)  # in place
        return dict(zip(names, [state.data] if len(names) == 1 else state.data, strict=True))

    def _make(self) -> tuple[Any, Any]:
        """Return py-pde's stepper, and the state that it works on."""
        pde = _pde()
        fields = [
            pde.ScalarField(self.grid, np.zeros(self.grid.shape)) for _ in self.equation.variables
        ]
        state = fields[0] if len(fields) == 1 else pde.FieldCollection(fields)
        kind = {"euler": pde.EulerSolver, "rk4": pde.RungeKuttaSolver}[self.scheme]
        solver = kind(self.equation, backend=self.backend)
        return solver.make_stepper(state, dt=self.dt), state

    def to_features(self, states: Any) -> Any:
        """Return what a corrector sees: the states."""
        return states

    def apply_correction(self, states: Any, correction: Any) -> Any:
        """Return the states plus a correction of the same shape."""
        return states + correction


def _fields(
    conditions: Mapping[str, Any] | None, name: str, batch: torch.Tensor, shape: tuple[int, ...]
) -> np.ndarray:
    """Return a condition as a field for each simulation."""
    given = np.shape((conditions or {}).get(name, 0.0))
    is_field = given == (len(batch), *shape) or (given == shape and given != (len(batch),))
    of_one = shape if is_field else ()
    values = each_simulation(conditions, name, batch, "PyPDESolver", of_one).cpu().numpy()
    if not is_field:
        values = values.reshape(-1, *[1] * len(shape))
    return np.broadcast_to(values, (len(batch), *shape))


def _check(solver: PyPDESolver) -> None:
    """Refuse parameters that cannot work."""
    for name in ("t_step", "dt"):
        value = getattr(solver, name)
        if not isinstance(value, Real) or not 0 < float(value) < math.inf:
            raise ValueError(f"{name} must be a finite number above 0, in time; got {value!r}.")
    times = solver.t_step / solver.dt
    if abs(times - round(times)) > 1e-6 * times or times < 1:
        raise ValueError(
            f"dt must divide t_step; got dt={solver.dt!r} and t_step={solver.t_step!r}. Take "
            f"dt={solver.t_step / max(1, math.ceil(times)):g}."
        )
    if solver.scheme not in ("euler", "rk4"):
        raise ValueError(f"scheme must be 'euler' or 'rk4'; got {solver.scheme!r}.")
    variables = getattr(solver.equation, "variables", None)
    if variables is None:
        raise TypeError(
            "equation must name its variables, as pde.PDE does: PDE({'u': 'laplace(u)'}); got "
            f"{type(solver.equation).__name__}."
        )
    missing = [name for name in solver.conditions if name not in variables]
    if missing or len(solver.conditions) >= len(variables):
        raise ValueError(
            f"conditions must be some of the variables of the equation, {sorted(variables)}, with "
            f"the rate '0' each, and not all; got {list(solver.conditions)}."
        )


def _pde() -> Any:
    """Return py-pde."""
    try:
        import pde
    except ImportError as error:
        raise ImportError(
            "PyPDESolver needs py-pde 0.59, which is not installed. Run: pip install "
            '"zoestim[pypde]"'
        ) from error
    return pde
