"""PhiFlow as a solver: without PhiFlow by a stand-in for it, and with it if it is installed."""

import contextlib
import copy
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from zoestim.solvers import PhiFlowSolver, check_solver, simulate
from zoestim.solvers._faces import Faces

# --- Components and states

OPEN = Faces(("y", "x"), (4, 3), ((5, 3), (4, 4)), ("y", "x"), True)
CLOSED = Faces(("y", "x"), (4, 3), ((3, 3), (4, 2)), ("y", "x"), True)
CENTERED = Faces(("y", "x"), (4, 3), ((4, 3),), (), False)


@pytest.mark.parametrize(
    ("faces", "state", "feature"),
    [
        (OPEN, (2, 5, 4), (2, 4, 3)),
        (CLOSED, (2, 4, 3), (2, 4, 3)),
        (CENTERED, (1, 4, 3), (1, 4, 3)),
    ],
)
def test_components_go_into_states_and_come_out(faces, state, feature):
    assert (faces.state_shape, faces.feature_shape) == (state, feature)
    parts = [np.random.default_rng(0).normal(size=(2, *size)) for size in faces.sizes]
    states = faces.join(parts)
    assert states.shape == (2, *state)
    for i, (part, size) in enumerate(zip(parts, faces.sizes, strict=True)):
        assert np.array_equal(faces.split(states)[i], part)
        assert np.array_equal(states[:, i, : size[0], : size[1]], part)
        assert faces.mask[i].sum() == np.prod(size)
    assert np.count_nonzero(states[:, ~faces.mask]) == 0


# --- A stand-in for PhiFlow: tensors that know what their dimensions are called


class Shape(dict):
    names = property(lambda self: tuple(self))
    get_size = dict.__getitem__


class Named:
    def __init__(self, array, names):
        self.array, self.names = array, tuple(names)
        self.shape = Shape(zip(self.names, np.shape(array), strict=True))
        self.shape.channel = types.SimpleNamespace(rank=0)

    def numpy(self, dims):
        assert dims.split(",") == list(self.names)
        return np.asarray(self.array)

    def like(self, array):
        return Named(array, self.names)


class Stacked(dict):
    dual = property(lambda self: self)
    vector = property(lambda self: self)


class Grid:
    def __init__(self, values, staggered):
        self.values, self.is_staggered = values, staggered
        self.resolution = Shape(y=4, x=3)

    def with_values(self, values):
        return Grid(values, self.is_staggered)


@pytest.fixture
def compiled(monkeypatch):
    """Put the stand-in where `phi.math` is; return what was compiled, and in what precision."""
    asked = []

    def jit_compile(function):
        def run(grid, **conditions):
            first = next(iter(grid.values.values())) if grid.is_staggered else grid.values
            assert isinstance(first.array, torch.Tensor)
            asked.append((len(first.array), first.array.dtype))
            return function(grid, **conditions)

        return run

    def named(names=None, **sizes):
        return names.split(",") if names else list(sizes.items())

    def expand(value, dims):
        ((name, n),) = dims
        return Named(np.broadcast_to(value.array, (n, *value.array.shape)), (name, *value.names))

    math = types.ModuleType("phi.math")
    math.wrap = lambda array, *dims: Named(array, [name for dim in dims for name in dim])
    math.stack = lambda parts, dim: Stacked(parts)
    math.batch = math.spatial = math.dual = math.channel = named
    math.expand, math.jit_compile = expand, jit_compile
    math.precision = lambda bits: contextlib.nullcontext()
    math.choose_backend = lambda tensor: contextlib.nullcontext()
    phi = types.ModuleType("phi")
    phi.math = math
    monkeypatch.setitem(sys.modules, "phi", phi)
    monkeypatch.setitem(sys.modules, "phi.math", math)
    return asked


def halve(grid, by):
    """Divide, and add one to the component along y."""
    y, x = grid.values["y"], grid.values["x"]
    factor = 1 / by.array[:, None, None]
    return Grid(Stacked(y=y.like(y.array * factor + 1), x=x.like(x.array * factor)), True)


def staggered():
    sizes = zip(OPEN.names, OPEN.sizes, strict=True)
    return Grid(Stacked({name: Named(np.zeros(size), "yx") for name, size in sizes}), True)


def states_of(n, faces=OPEN, dtype=np.float32):
    rng = np.random.default_rng(1)
    return (rng.normal(size=(n, *faces.state_shape)) * faces.mask).astype(dtype)


@pytest.mark.parametrize("jit", [True, False])
@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.tensor])
def test_a_step_goes_through_grids(compiled, jit, kind):
    solver = PhiFlowSolver(halve, staggered(), jit=jit)
    assert (solver.state_shape, solver.feature_shape) == ((2, 5, 4), (2, 4, 3))
    states = kind(states_of(3))
    by = np.array([1.0, 2.0, 4.0])
    found = solver.step(states, {"by": by})
    assert isinstance(found, type(states))
    assert found.dtype == states.dtype
    expected = np.asarray(states) / by.astype(np.float32)[:, None, None, None]
    expected[:, 0, :, :3] += 1
    assert np.allclose(np.asarray(found), expected, rtol=1e-6)
    assert np.array_equal(solver.step(states, {"by": 2}), solver.step(states, {"by": [2] * 3}))
    assert bool(compiled) == jit


@pytest.mark.parametrize(
    ("pad", "most", "sizes"),
    [(True, 64, [8]), (True, 3, [3, 2]), (False, 64, [5]), (False, 2, [2, 2, 1])],
)
def test_few_batch_sizes_are_compiled(compiled, pad, most, sizes):
    solver = PhiFlowSolver(halve, staggered(), pad_batch=pad, max_batch=most)
    states = states_of(5)
    found = solver.step(states, {"by": [1, 2, 3, 4, 5]})
    assert np.array_equal(found[4:], solver.step(states[4:], {"by": 5}))
    compiled.clear()
    solver.step(states, {"by": 2})
    assert compiled == [(size, torch.float32) for size in sizes]
    compiled.clear()
    plain = PhiFlowSolver(halve, staggered(), jit=False, pad_batch=pad)
    assert np.array_equal(plain.step(states, {"by": [1, 2, 3, 4, 5]}), found)
    assert compiled == []


def test_a_compiled_step_that_is_another_is_noticed(compiled):
    kept, seen = [], [0]

    def frozen(grid, by):
        """Do as a trace does that has lost its argument: give the first answer for ever."""
        is_compiled, seen[0] = len(compiled) > seen[0], len(compiled)
        kept.append(halve(grid, by))
        return kept[0] if is_compiled else kept[-1]

    with pytest.raises(RuntimeError, match=r"(?s)gives other states.*Set jit=False"):
        PhiFlowSolver(frozen, staggered()).step(states_of(2), {"by": 2})


def test_numbers_in_cells_and_fields_as_conditions(compiled):
    def add(grid, source):
        return grid.with_values(grid.values.like(grid.values.array + source.array))

    solver = PhiFlowSolver(add, Grid(Named(np.zeros((4, 3)), "yx"), False), jit=False)
    assert solver.state_shape == (1, 4, 3)
    states, source = states_of(2, CENTERED), np.ones((2, 4, 3))
    assert np.array_equal(solver.step(states, {"source": source}), states + np.float32(1))
    with pytest.raises(ValueError, match=r"field of the resolution, \(4, 3\); got shape \(3,\)"):
        solver.step(states, {"source": np.ones((2, 3))})

    constant = PhiFlowSolver(lambda grid: Grid(Named(np.ones((4, 3)), "yx"), False), solver.grid)
    constant.jit = False
    assert np.array_equal(constant.step(states), np.ones_like(states))


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_corrections_reach_faces_only(compiled, kind):
    solver, states = PhiFlowSolver(halve, staggered()), kind(states_of(2))
    features = solver.to_features(states)
    assert tuple(features.shape) == (2, 2, 4, 3)
    found = solver.apply_correction(states, kind(np.ones(features.shape, dtype=np.float32)))
    assert isinstance(found, type(states))
    change = np.asarray(found - states)
    assert np.allclose(change[:, :, :4, :3], 1)
    assert np.count_nonzero(change[:, :, 4:]) == np.count_nonzero(change[..., 3:]) == 0
    closed = PhiFlowSolver(halve, staggered())
    closed._faces = CLOSED
    change = closed.apply_correction(np.zeros((1, 2, 4, 3)), np.ones((1, 2, 4, 3)))[0]
    assert np.array_equal(change, CLOSED.mask)


def test_what_cannot_be_is_refused(compiled, monkeypatch):
    with pytest.raises(TypeError, match="function must be callable"):
        PhiFlowSolver(3, staggered())
    with pytest.raises(TypeError, match=r"a CenteredGrid or a StaggeredGrid of PhiFlow.*got list"):
        PhiFlowSolver(halve, [])
    with pytest.raises(ValueError, match="max_batch must be an integer of at least 1; got 0"):
        PhiFlowSolver(halve, staggered(), max_batch=0)
    with pytest.raises(ValueError, match=r"\(n_simulations, 2, 5, 4\); got \(2, 5, 4\)"):
        PhiFlowSolver(halve, staggered()).step(states_of(1)[0], {"by": 1})
    other = PhiFlowSolver(lambda grid: Grid(Named(np.zeros((4, 3)), "yx"), False), staggered())
    with pytest.raises(ValueError, match="must return a grid like the one it is given"):
        other.step(states_of(1))
    solver = PhiFlowSolver(halve, staggered())
    monkeypatch.setitem(sys.modules, "phi", None)
    with pytest.raises(ImportError, match=r'pip install "zoestim\[phiflow\]"'):
        solver.step(states_of(1), {"by": 1})


def test_copies_compile_for_themselves(compiled):
    solver = PhiFlowSolver(halve, staggered())
    solver.step(states_of(1), {"by": 2})
    other = copy.deepcopy(solver)
    assert len(solver._compiled) == 1
    assert other._compiled == {}
    assert np.array_equal(other.step(states_of(1), {"by": 2}), solver.step(states_of(1), {"by": 2}))


# --- PhiFlow itself

FRAMES = Path(__file__).with_name("phiflow.npz")


def wake(velocity, viscosity):
    """Do a step of benchmarks/phiflow_reference.py, for any number of simulations."""
    from phi import flow as phi
    from phi.physics import fluid

    closed = phi.extrapolation.ZERO_GRADIENT
    names, parts = ("y", "x"), {}
    for name in names:
        grid = phi.CenteredGrid(velocity.values.vector.dual[name], closed)  # cells of size 1
        parts[name] = phi.diffuse.explicit(grid, viscosity, 1.0).values
    rows, columns = (parts["y"].shape.get_size(axis) for axis in names)
    imposed = np.zeros((rows, columns), dtype=bool)
    imposed[:2] = imposed[:, 0] = imposed[:, -1] = True
    imposed = phi.math.wrap(imposed, phi.spatial("y,x"))
    parts["y"] = phi.math.where(imposed, 1.0, parts["y"])
    velocity = velocity.with_values(phi.math.stack(parts, phi.dual("vector")))
    velocity = phi.advect.semi_lagrangian(velocity, velocity, 1.0)
    cylinder = phi.Obstacle(phi.Sphere(y=50, x=50, radius=10))
    solve = phi.Solve("CG", 1e-6, 1e-6, max_iterations=2000)
    return fluid.make_incompressible(velocity, cylinder, solve)[0]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("jit", [True, False])
def test_20_steps_of_phiflow(jit, monkeypatch):
    phi = pytest.importorskip("phi.flow")
    from benchmarks.phiflow_reference import fluid, hard_mask

    monkeypatch.setattr(fluid, "apply_boundary_conditions", hard_mask)
    box = phi.Box(y=200, x=100)
    grid = phi.StaggeredGrid(0, phi.extrapolation.ZERO_GRADIENT, box, y=32, x=16)
    solver = PhiFlowSolver(wake, grid, jit=jit)
    frames = np.load(FRAMES)["coarse"]
    states = np.repeat(frames[-2:-1], 2, axis=0)
    reynolds = np.array([97.65625, 400.0])
    # `wake` counts lengths in cells, the reference in units: a cell is 6.25 of them.
    conditions = {"viscosity": 1e5 / 128**2 / reynolds / 6.25**2}
    found = simulate(solver, states, conditions, n_steps=20)
    assert np.abs(frames[-1] - frames[-2]).max() > 0.1
    assert np.abs(found[0, -1] - frames[-1]).max() < 1e-4
    assert np.abs(found[1, -1] - frames[-1]).max() > 1e-3
    if jit:
        assert check_solver(solver, states, conditions).expected_error < 0.01
        other = pickle.loads(pickle.dumps(solver))
        assert np.array_equal(other.step(states, conditions), found[:, 0])


@pytest.mark.filterwarnings("default")
def test_vectors_in_cells_of_phiflow():
    phi = pytest.importorskip("phi.flow")

    def spread(grid, viscosity):
        return phi.diffuse.explicit(grid, viscosity, 0.1)

    grid = phi.CenteredGrid((0, 0), phi.extrapolation.PERIODIC, x=6, y=4)
    states = np.random.default_rng(0).normal(size=(3, 2, 6, 4))
    found = [
        PhiFlowSolver(spread, grid, jit=jit).step(states, {"viscosity": [0, 0.5, 1]})
        for jit in (True, False)
    ]
    around = sum(np.roll(states, shift, axis) for shift in (-1, 1) for axis in (2, 3))
    nu = np.array([0, 0.5, 1]).reshape(3, 1, 1, 1)
    for each in found:
        assert np.allclose(each, states + 0.1 * nu * (around - 4 * states), atol=1e-12)
