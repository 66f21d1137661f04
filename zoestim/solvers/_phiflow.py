"""Simulations of PhiFlow as a solver: its grids are made of states, and states of its grids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch

from zoestim.solvers._batch import as_batch, conditions_of_each, like
from zoestim.solvers._faces import Faces

SIMULATIONS = "simulations"  # PhiFlow's name of the first axis


class PhiFlowSolver:
    """Make a solver of a step written with PhiFlow.

    Parameters
    ----------
    function : callable
        ``(grid, **conditions) -> grid``: a step of time, from and to a ``CenteredGrid`` or a
        ``StaggeredGrid``. Its values have a batch dimension ``simulations``, and so do
        conditions: tensors with one value for each simulation, or a field of them.
    grid : CenteredGrid or StaggeredGrid
        Says how the grids of a step are: resolution, bounds, boundary. Its values do not matter.
    jit : bool, default=True
        Whether PhiFlow compiles the step, with PyTorch: it takes seconds for each batch size,
        and is then 4 to 20 times as fast on small grids. Otherwise NumPy computes.
    pad_batch : bool, default=True
        Whether a batch is filled up to the next power of two with copies of its last state, so
        that few batch sizes are compiled. Without `jit`, nothing is filled up.
    max_batch : int, default=64
        The most simulations at once; more are asked in several calls.
    deterministic : bool, default=True
        Whether equal questions get equal answers, bit by bit.

    Attributes
    ----------
    state_shape : tuple of int
        Of a state, see Notes.
    feature_shape : tuple of int
        Of what a corrector sees of it.
    batched : bool
        True.
    native : str
        ``"numpy"``: no gradient goes through a step.

    Notes
    -----
    For a grid of h x w cells, axes and channels come in the order of the grid's own:

    ========= =================== ============ ===============================================
    grid      boundary            state        not a face, always 0
    ========= =================== ============ ===============================================
    centered  any, a number       (1, h, w)
    centered  any, a vector       (2, h, w)
    staggered open                (2, h + 1,   along the first axis: the last column;
                                  w + 1)       along the second axis: the last row
    staggered periodic            (2, h, w)
    staggered closed (velocity 0) (2, h, w)    along the first axis: the last row;
                                               along the second axis: the last column
    ========= =================== ============ ===============================================

    A corrector sees ``(n_channels, h, w)``, without the outermost faces at the far ends, which
    stay as they are. What it says of places that are no faces is ignored.

    Compiled, a step must do the same for all values. PhiFlow's tracing can lose what a step depends
    on, silently, so each batch size is compared with the step as it is, for other states.

    The step is computed in the precision of the states. Let a pressure solve begin from the same
    guess each time (no ``x0`` from an earlier step), and to a tolerance well below the change of
    a finite difference: see `check_solver`. Where PhiFlow raises ``Diverged`` or
    ``NotConverged``, so does `step`, for all simulations that it was asked about.

    Needs phiflow 3.4: ``pip install "zoestim[phiflow]"``.

    Examples
    --------
    >>> import numpy as np
    >>> from zoestim.solvers import PhiFlowSolver
    >>> from phi.flow import CenteredGrid, diffuse, extrapolation  # doctest: +SKIP
    >>> def step(grid, viscosity):
    ...     return diffuse.explicit(grid, viscosity, dt=0.1)
    >>> grid = CenteredGrid(0, extrapolation.PERIODIC, x=32, y=16)  # doctest: +SKIP
    >>> solver = PhiFlowSolver(step, grid)  # doctest: +SKIP
    >>> states = np.random.default_rng(0).normal(size=(3, 1, 32, 16))
    >>> solver.step(states, {"viscosity": [0.1, 0.2, 0.3]}).shape  # doctest: +SKIP
    (3, 1, 32, 16)
    """

    batched = True
    native = "numpy"

    def __init__(
        self,
        function: Callable[..., Any],
        grid: Any,
        *,
        jit: bool = True,
        pad_batch: bool = True,
        max_batch: int = 64,
        deterministic: bool = True,
    ):
        _check(function, max_batch)
        self.function, self.grid = function, grid
        self.jit, self.pad_batch, self.max_batch = jit, pad_batch, max_batch
        self.deterministic = deterministic
        self._compiled: dict[int, Callable[..., Any]] = {}
        self._checked: set[tuple[int, int]] = set()
        self._faces = _faces(grid)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what was compiled."""
        return {**vars(self), "_compiled": {}, "_checked": set()}

    @property
    def state_shape(self) -> tuple[int, ...]:
        """Return the shape of a state."""
        return self._faces.state_shape

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Return the shape of what a corrector sees of a state."""
        return self._faces.feature_shape

    def step(self, states: Any, conditions: Mapping[str, Any] | None = None) -> Any:
        """Return the states one step later, as arrays or tensors like those given.

        Parameters
        ----------
        states : ndarray or Tensor of shape (n_simulations, *state_shape)
            Of float32 or float64. They are not written to.
        conditions : mapping, optional
            What `function` takes: one value for all, one for each simulation, or a field for
            each.

        Raises
        ------
        TypeError, ValueError
            If states are of another kind or shape, a condition has another number of values, or
            `function` gives another grid.
        RuntimeError
            If what is compiled is not what `function` does, which is checked for each batch size.
        """
        batch = as_batch(states, self.state_shape, "PhiFlowSolver")
        each = conditions_of_each(conditions or {}, len(batch))
        given = batch.detach().cpu().numpy()
        found = np.empty_like(given)
        for rows, padded in self._chunks(len(given)):
            found[rows] = self._advance(
                given[padded], {name: np.asarray(value)[padded] for name, value in each.items()}
            )[: rows.stop - rows.start]
        return like(torch.from_numpy(found).to(batch.device), states)

    def _chunks(self, n: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Give which simulations to ask about at once, and the same filled up with the last."""
        for start in range(0, n, self.max_batch):
            stop = min(n, start + self.max_batch)
            size = stop - start
            if self.jit and self.pad_batch:
                size = min(1 << (size - 1).bit_length(), self.max_batch)
            yield slice(start, stop), np.minimum(np.arange(start, start + size), stop - 1)

    def _advance(self, states: np.ndarray, conditions: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the next states of one batch."""
        math, bits = _phi_math(), states.itemsize * 8
        # Unless PyTorch is what PhiFlow 3.4 computes with by default, a pressure solve that it has
        # compiled gives the first answer for ever.
        backend = math.choose_backend(math.wrap(torch.ones(()) if self.jit else np.ones(())))
        with math.precision(bits), backend:
            fields = {
                name: self._tensor(np.asarray(value, dtype=states.dtype), name)
                for name, value in conditions.items()
            }

            def ask(function: Callable[..., Any], states: np.ndarray) -> np.ndarray:
                return self.to_states(function(self.to_grid(states), **fields), len(states))

            if not self.jit:
                return ask(self.function, states)
            if bits not in self._compiled:
                self._compiled[bits] = math.jit_compile(self.function)
            found = ask(self._compiled[bits], states)
            if (bits, len(states)) not in self._checked:
                other = states * states.dtype.type(1.1)
                truth = ask(self.function, other)
                _check_compiled(ask(self._compiled[bits], other), truth, found)
                self._checked.add((bits, len(states)))
            return found

    def _tensor(self, values: np.ndarray, name: str) -> Any:
        """Return a condition as a tensor of PhiFlow."""
        math, axes = _phi_math(), self._faces.axes
        native = torch.tensor(values) if self.jit else values
        if values.ndim == 1:
            return math.wrap(native, math.batch(SIMULATIONS))
        if values.shape[1:] != self._faces.resolution:
            raise ValueError(
                f"The condition {name!r} must be one number for each simulation, or a field of the "
                f"resolution, {self._faces.resolution}; got shape {values.shape[1:]} for each."
            )
        return math.wrap(native, math.batch(SIMULATIONS), math.spatial(",".join(axes)))

    def to_grid(self, states: Any) -> Any:
        """Return states of shape (n_simulations, *state_shape) as one grid of PhiFlow."""
        math, faces = _phi_math(), self._faces
        dims = (math.batch(SIMULATIONS), math.spatial(",".join(faces.axes)))
        parts = [
            math.wrap(torch.tensor(part) if self.jit else part, *dims)
            for part in faces.split(np.asarray(states))
        ]
        if len(parts) == 1 and not faces.names:
            return self.grid.with_values(parts[0])
        kind = math.dual if faces.staggered else math.channel
        stacked = math.stack(dict(zip(faces.names, parts, strict=True)), kind("vector"))
        return self.grid.with_values(stacked)

    def to_states(self, grid: Any, n_simulations: int = 1) -> np.ndarray:
        """Return a grid of PhiFlow as states of shape (n_simulations, *state_shape).

        Raises
        ------
        ValueError
            If it is another kind of grid than the one that the solver was made with.
        """
        faces = _faces(grid)
        if faces != self._faces:
            raise ValueError(
                f"function must return a grid like the one it is given, {self._faces}; got {faces}."
            )
        dims = ",".join((SIMULATIONS, *faces.axes))
        values = grid.values
        parts = [values]
        if faces.names:
            by_name = values.vector.dual if faces.staggered else values.vector
            parts = [by_name[name] for name in faces.names]
        return faces.join([_native(part, dims, n_simulations) for part in parts])

    def to_features(self, states: Any) -> Any:
        """Return what a corrector sees: without the far ends, (n, *feature_shape)."""
        return states[(..., *(slice(size) for size in self.feature_shape[1:]))]

    def apply_correction(self, states: Any, correction: Any) -> Any:
        """Return the states plus a correction of shape (n, *feature_shape), on faces only."""
        batch = as_batch(states, self.state_shape, "PhiFlowSolver")
        change = torch.as_tensor(correction, dtype=batch.dtype, device=batch.device)
        missing = [
            size
            for whole, seen in zip(self.state_shape[:0:-1], self.feature_shape[:0:-1], strict=True)
            for size in (0, whole - seen)
        ]
        change = torch.nn.functional.pad(change, missing)
        return like(batch + change * torch.from_numpy(self._faces.mask).to(change), states)


def _check(function: Any, max_batch: Any) -> None:
    """Refuse parameters that cannot work."""
    if not callable(function):
        raise TypeError(
            f"function must be callable, (grid, **conditions) -> grid; got {function!r}."
        )
    if not isinstance(max_batch, Integral) or max_batch < 1:
        raise ValueError(f"max_batch must be an integer of at least 1; got {max_batch!r}.")


def _check_compiled(found: np.ndarray, truth: np.ndarray, before: np.ndarray) -> None:
    """Raise an error if a compiled step is not the step: tracing can lose what it depends on."""
    off, change = np.abs(found - truth).max(), np.abs(truth - before).max()
    if not off <= 0.1 * change:
        raise RuntimeError(
            "Compiled by PhiFlow, function gives other states than it does otherwise: for states "
            f"1.1 times as large they differ by up to {off:.3g}, where the change itself is "
            f"{change:.3g}. Set jit=False, or let function branch on no value."
        )


def _native(part: Any, dims: str, n: int) -> np.ndarray:
    """Return a component as an array with a first axis of simulations."""
    math = _phi_math()
    if SIMULATIONS not in part.shape:  # a step that does not look at its grid
        part = math.expand(part, math.batch(**{SIMULATIONS: n}))
    return np.asarray(part.numpy(dims))


def _faces(grid: Any) -> Faces:
    """Return where a grid has values."""
    if not hasattr(grid, "is_staggered") or not hasattr(grid, "resolution"):
        raise TypeError(
            "grid must be a CenteredGrid or a StaggeredGrid of PhiFlow, as those of a step are; "
            f"got {type(grid).__name__}."
        )
    axes = tuple(grid.resolution.names)
    resolution = tuple(int(grid.resolution.get_size(name)) for name in axes)
    values = grid.values
    if grid.is_staggered:
        shapes = [values.vector.dual[name].shape for name in axes]
        sizes = tuple(tuple(int(shape.get_size(axis)) for axis in axes) for shape in shapes)
        return Faces(axes, resolution, sizes, axes, True)
    channels = values.shape.channel
    names = tuple(channels.item_names[0]) if channels.rank else ()
    return Faces(axes, resolution, (resolution,) * max(len(names), 1), names, False)


def _phi_math() -> Any:
    """Return PhiFlow's module of tensors."""
    try:
        from phi import math
    except ImportError as error:
        raise ImportError(
            'PhiFlowSolver needs phiflow 3.4, which is not installed. Run: pip install "zoestim'
            '[phiflow]"'
        ) from error
    return math
