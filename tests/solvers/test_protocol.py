"""Functions as solvers, and trajectories."""

import numpy as np
import pytest
import torch

from zoestim.solvers import Burgers1D, FunctionSolver, as_solver, simulate

STATES = np.arange(12, dtype=np.float32).reshape(3, 2, 2)


def scaled(state, conditions):
    return state * conditions["by"]


@pytest.mark.parametrize("native", ["numpy", "torch"])
@pytest.mark.parametrize("given", ["numpy", "torch"])
@pytest.mark.parametrize("max_batch", [None, 1, 2, 5])
def test_one_by_one_and_batched_give_the_same(native, given, max_batch):
    asked = []

    def batched(states, conditions):
        asked.append(len(states))
        assert isinstance(states, torch.Tensor) == (native == "torch")
        by = torch.as_tensor(conditions["by"]) if native == "torch" else conditions["by"]
        return (
            states * by.astype(np.float32)[:, None, None]
            if native == "numpy"
            else (states * by.float()[:, None, None])
        )

    def single(state, conditions):
        assert state.shape == (2, 2)
        return state * float(conditions["by"])

    states = torch.tensor(STATES) if given == "torch" else STATES
    many = FunctionSolver(batched, batched=True, native=native, max_batch=max_batch)
    one = FunctionSolver(single, native=native)
    found = [solver.step(states, {"by": [1.0, 2.0, 3.0]}) for solver in (many, one)]
    for answer in found:
        assert isinstance(answer, type(states))
        assert np.array_equal(np.asarray(answer), STATES * np.array([[[1]], [[2]], [[3]]]))
        assert np.asarray(answer).dtype == np.float32
    assert asked == {None: [3], 1: [1, 1, 1], 2: [2, 1], 5: [3]}[max_batch]


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("batched", [False, True])
def test_memory_that_a_function_uses_again_is_copied(kind, batched):
    native = "numpy" if kind is np.asarray else "torch"
    states = kind(STATES)
    same = kind(np.zeros_like(STATES[:1] if batched else STATES[0]))

    def doubled(state, conditions):
        same[...] = 2 * state
        return same

    solver = FunctionSolver(doubled, batched=batched, native=native, max_batch=1)
    assert np.array_equal(solver.step(states, {}), 2 * STATES)


def test_one_condition_holds_for_all():
    found = FunctionSolver(scaled).step(STATES, {"by": np.float32(2)})
    assert np.array_equal(found, 2 * STATES)


def test_conditions_may_be_arrays():
    field = np.ones((3, 2, 2), dtype=np.float32)
    found = FunctionSolver(scaled).step(STATES, {"by": field})
    assert np.array_equal(found, STATES)


def test_wrong_number_of_conditions_is_refused():
    with pytest.raises(ValueError, match=r"'by' must have one value for each of 3 simul.*got 2"):
        FunctionSolver(scaled).step(STATES, {"by": [1.0, 2.0]})
    with pytest.raises(ValueError, match="at least one state; got none"):
        FunctionSolver(scaled).step(STATES[:0], {})


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"function": 3}, TypeError, "needs a function .* got 3"),
        ({"function": scaled, "native": "jax"}, ValueError, "'numpy' or 'torch'; got 'jax'"),
        ({"function": scaled, "max_batch": 0}, ValueError, "above 0; got 0"),
    ],
)
def test_parameters_are_refused(parameters, error, message):
    with pytest.raises(error, match=message):
        FunctionSolver(**parameters)


def test_as_solver_wraps_functions_only():
    burgers = Burgers1D(16)
    assert as_solver(burgers) is burgers
    assert as_solver(scaled) == FunctionSolver(scaled)
    with pytest.raises(TypeError, match=r"step.states, conditions.* got int"):
        as_solver(3)


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_simulate_returns_the_frames_after_those_skipped(kind):
    burgers, conditions = Burgers1D(16), {"viscosity": [0.1, 0.2]}
    start = kind(burgers.initial_states(2, random_state=0))
    path = simulate(burgers, start, conditions, n_steps=3, skip=2)
    assert tuple(path.shape) == (2, 3, 1, 16)
    states = start
    for _ in range(3):
        states = burgers.step(states, conditions)
    assert bool((path[:, 0] == states).all())


def test_simulate_refuses_no_steps():
    with pytest.raises(ValueError, match="n_steps must be an integer of at least 1; got 0"):
        simulate(scaled, STATES, {"by": 1}, n_steps=0)
    with pytest.raises(ValueError, match="skip must be an integer of at least 0; got -1"):
        simulate(scaled, STATES, {"by": 1}, n_steps=1, skip=-1)


def test_features_of_a_function_are_its_states():
    solver = FunctionSolver(scaled)
    assert solver.to_features(STATES) is STATES
    assert np.array_equal(solver.apply_correction(STATES, STATES), 2 * STATES)
