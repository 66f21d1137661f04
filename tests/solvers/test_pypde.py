"""Equations of py-pde as solvers: by a stand-in for it, and with it if it is installed."""

import copy
import pickle
import sys
import types

import numpy as np
import pytest
import torch

from zoestim.solvers import PyPDESolver, check_solver

GRID = types.SimpleNamespace(shape=(4,))
STEP = {"t_step": 0.2, "dt": 0.1}


class Equation:
    """A rate for each variable: what it is called, times it; for `nu`, 0."""

    def __init__(self, *variables):
        self.variables = variables


class Field:
    def __init__(self, grid, data):
        assert data.dtype == np.float64
        self.data = data


class Fields(Field):
    def __init__(self, fields):
        super().__init__(None, np.stack([field.data for field in fields]))


@pytest.fixture
def made(monkeypatch):
    """Put a stand-in where py-pde is; return which steppers were made."""
    made = []

    def scheme(name):
        def solver(equation, backend):
            def make_stepper(state, dt):
                made.append((name, backend, dt))

                def stepper(state, t_start, t_end):
                    u = state.data if state.data.ndim == 1 else state.data[0]
                    rate = 1.0 if state.data.ndim == 1 else state.data[-1]
                    for _ in range(round((t_end - t_start) / dt)):
                        u += dt * rate

                return stepper

            return types.SimpleNamespace(make_stepper=make_stepper)

        return solver

    pde = types.ModuleType("pde")
    pde.ScalarField, pde.FieldCollection = Field, Fields
    pde.EulerSolver, pde.RungeKuttaSolver = scheme("euler"), scheme("rk4")
    monkeypatch.setitem(sys.modules, "pde", pde)
    return made


@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.tensor])
def test_one_stepper_serves_all_simulations_and_conditions(made, kind):
    solver = PyPDESolver(Equation("u", "nu"), GRID, **STEP, conditions=["nu"], scheme="rk4")
    assert (solver.channels, solver.state_shape, solver.feature_shape) == (("u",), (1, 4), (1, 4))
    states = kind(np.arange(12, dtype=np.float32).reshape(3, 1, 4))
    before = np.asarray(states).copy()
    found = solver.step(states, {"nu": [1, 2, 3]})
    assert isinstance(found, type(states))
    assert found.dtype == states.dtype
    expected = before + 0.2 * np.array([1, 2, 3]).reshape(3, 1, 1)
    assert np.allclose(np.asarray(found), expected, rtol=1e-6)
    assert np.array_equal(np.asarray(states), before)
    assert np.allclose(np.asarray(solver.step(states, {"nu": 5})), before + 1)
    assert made == [("rk4", "auto", 0.1)]
    assert solver.to_features(states) is states
    assert np.array_equal(np.asarray(solver.apply_correction(states, states)), 2 * before)
    other = copy.deepcopy(solver)
    assert np.array_equal(np.asarray(other.step(states, {"nu": [1, 2, 3]})), np.asarray(found))
    assert len(made) == 2


def test_conditions_may_be_fields(made):
    solver = PyPDESolver(Equation("u", "v", "nu"), GRID, **STEP, conditions="nu")
    assert solver.state_shape == (2, 4)
    field, states = np.arange(4.0), np.zeros((3, 2, 4))
    for given in (field, np.stack([field] * 3)):
        found = solver.step(states, {"nu": given})
        assert np.allclose(found[:, 0], 0.2 * field)
        assert np.array_equal(found[:, 1], states[:, 1])
    assert np.allclose(solver.step(states, {"nu": [1.0, 2.0, 3.0]})[2, 0], 0.6)


def test_an_equation_of_one_variable(made):
    solver = PyPDESolver(Equation("u"), GRID, **STEP)
    assert np.allclose(solver.step(np.zeros((2, 1, 4))), 0.2)
    assert (solver.batched, solver.native, solver.max_batch) == (False, "numpy", None)


def test_what_cannot_be_is_refused(made, monkeypatch):
    equation = Equation("u", "nu")
    for parameters, message in (
        ({"dt": 0}, "dt must be a finite number above 0, in time; got 0"),
        ({"dt": 0.15}, r"dt must divide t_step; got dt=0.15 and t_step=0.2. Take dt=0.1."),
        ({"scheme": "leapfrog"}, "scheme must be 'euler' or 'rk4'; got 'leapfrog'"),
        ({"conditions": ["mu"]}, r"variables of the equation, \['nu', 'u'\].*got \['mu'\]"),
        ({"conditions": ["u", "nu"]}, "and not all"),
    ):
        with pytest.raises(ValueError, match=message):
            PyPDESolver(equation, GRID, **{**STEP, **parameters})
    with pytest.raises(TypeError, match=r"must name its variables.*got list"):
        PyPDESolver([], GRID, **STEP)
    solver = PyPDESolver(equation, GRID, **STEP, conditions=["nu"])
    with pytest.raises(ValueError, match="needs the condition 'nu'"):
        solver.step(np.zeros((1, 1, 4)))
    with pytest.raises(ValueError, match=r"\(n_simulations, 1, 4\); got \(1, 4\)"):
        solver.step(np.zeros((1, 4)))
    monkeypatch.setitem(sys.modules, "pde", None)
    with pytest.raises(ImportError, match=r'pip install "zoestim\[pypde\]"'):
        solver.step(np.zeros((1, 1, 4)), {"nu": 1})


@pytest.mark.filterwarnings("default")
def test_burgers_equation_of_py_pde():
    pde = pytest.importorskip("pde")
    equation = pde.PDE({"u": "nu * laplace(u) - u * d_dx(u)", "nu": "0"})
    grid = pde.CartesianGrid([[0, 2 * np.pi]], 32, periodic=True)
    parameters = {"t_step": 0.1, "dt": 0.01, "conditions": ["nu"], "backend": "numpy"}
    solver = PyPDESolver(equation, grid, **parameters)
    x = grid.axes_coords[0]
    states = np.stack([np.sin(x), np.cos(2 * x), 1 + np.sin(x)])[:, None]
    nu = np.array([0.05, 0.1, 0.2])
    found = solver.step(states, {"nu": nu})

    u, size = states[:, 0], 2 * np.pi / 32
    for _ in range(10):
        right, left = np.roll(u, -1, axis=1), np.roll(u, 1, axis=1)
        rate = nu[:, None] * (right - 2 * u + left) / size**2 - u * (right - left) / (2 * size)
        u = u + 0.01 * rate
    assert np.allclose(found[:, 0], u, atol=1e-12)
    assert check_solver(solver, states, {"nu": nu}).expected_error < 1e-4
    other = pickle.loads(pickle.dumps(solver))
    assert np.array_equal(other.step(states[:1], {"nu": nu[:1]}), found[:1])
