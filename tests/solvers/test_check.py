"""Solvers that break a rule are named, good ones pass, and the proposed step is a good one."""

import numpy as np
import pytest
import torch

from zoestim.solvers import Burgers1D, FunctionSolver, WakeFlow2D, check_solver, simulate


def problem(dtype=np.float32, which="wake"):
    if which == "wake":
        flow, conditions = WakeFlow2D(16), {"Re": np.array([200.0, 1500.0])}
        start = flow.initial_states(2)
    else:
        flow, conditions = Burgers1D(32), {"viscosity": np.array([0.02, 0.05])}
        start = flow.initial_states(2, random_state=0)
    states = simulate(flow, start.astype(dtype), conditions, n_steps=1, skip=30)[:, 0]
    return flow, states, conditions


STATES = np.random.default_rng(0).normal(size=(4, 1, 6))
CALLS = []


def relaxed(state):
    """A harmless step: towards the square of the neighbours' mean."""
    mean = (np.roll(state, 1, -1) + np.roll(state, -1, -1)) / 2
    return 0.7 * state + 0.3 * mean**2


def writes(state, conditions):
    state += 1
    return relaxed(state)


def writes_conditions(state, conditions):
    conditions["re"][...] = 0
    return relaxed(state)


def wrong_shape(state, conditions):
    return relaxed(state)[:, 1:]


def wrong_dtype(state, conditions):
    return relaxed(state).astype(np.float32)


def not_finite(state, conditions):
    return relaxed(state) * np.nan


def returns_input(states, conditions):
    return states


def reuses_memory(states, conditions):
    BUFFER_OF_BATCH[: len(states)] = relaxed(states)
    return BUFFER_OF_BATCH[: len(states)]


BUFFER_OF_BATCH = np.zeros((16, 1, 6))


def remembers(state, conditions):
    CALLS.append(0)
    return relaxed(state) + 1e-3 / len(CALLS)


def mixes(states, conditions):
    return relaxed(states) + 1e-3 * states.mean(axis=0, keepdims=True)


def lists(states, conditions):
    return relaxed(states).tolist()


@pytest.mark.parametrize(
    ("function", "batched", "message"),
    [
        (writes, False, "writes to the states"),
        (writes_conditions, True, "writes to the conditions"),
        (wrong_shape, False, r"shape of its states, \(4, 1, 6\); got \(4, 1, 5\)"),
        (wrong_dtype, False, "dtype of its states, float64; got float32"),
        (not_finite, False, "not finite"),
        (returns_input, True, "shares memory with the states"),
        (reuses_memory, True, "next call writes to the answer"),
        (remembers, False, "Asked twice, it gives different answers"),
        (mixes, True, "depends on the states beside it"),
    ],
)
def test_problem_is_named(function, batched, message):
    solver = FunctionSolver(function, batched=batched)
    conditions = {"re": np.ones(4)}
    with pytest.raises(ValueError, match=message):
        check_solver(solver, STATES, conditions)
    report = check_solver(solver, STATES, conditions, raise_problems=False)
    assert len(report.problems) == 1
    assert np.array_equal(conditions["re"], np.ones(4))


def test_answer_of_another_kind_is_named():
    class Lists:
        batched = deterministic = True
        max_batch = None
        step = staticmethod(lists)

    with pytest.raises(
        ValueError, match="Asked about ndarray, it must answer with the same; got l"
    ):
        check_solver(Lists(), STATES)


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("which", ["wake", "burgers"])
def test_built_in_solvers_keep_the_rules(which, dtype, kind):
    flow, states, conditions = problem(dtype, which)
    report = check_solver(flow, kind(states), conditions)
    assert report.problems == ()
    assert report.noise < np.finfo(dtype).eps
    assert report.batch_difference < 4 * np.finfo(dtype).eps
    assert report.scheme == "forward"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("which", ["wake", "burgers"])
def test_differences_by_the_proposed_step_have_about_the_expected_error(which, dtype):
    flow, states, conditions = problem(dtype, which)
    report = check_solver(flow, states, conditions)
    exact = torch.tensor(states[:1], dtype=torch.float64)
    one = {name: values[:1] for name, values in conditions.items()}
    rng, errors, sizes = np.random.default_rng(1), [], []
    base = flow.step(states[:1], one).astype(np.float64)
    for entry in rng.integers(states[0].size, size=30):
        direction = np.zeros(states[0].size)
        direction[entry] = 1
        direction = direction.reshape(states[:1].shape)
        _, derivative = torch.autograd.functional.jvp(
            lambda given: flow.step(given, one), exact, torch.from_numpy(direction)
        )
        changed = (states[:1] + report.step * direction).astype(dtype)
        difference = (flow.step(changed, one) - base) / report.step
        errors.append(np.sum((difference - derivative.numpy()) ** 2))
        sizes.append(np.sum(derivative.numpy() ** 2))
    error = np.sqrt(np.mean(errors) / np.mean(sizes))
    assert error < 5 * report.expected_error
    assert error < 0.02


@pytest.mark.parametrize("loud", [1e-8, 1e-5, 1e-3])
def test_noise_is_measured(loud):
    rng = np.random.default_rng(0)

    def noisy(states, conditions):
        return relaxed(states) + loud * rng.normal(size=states.shape)

    solver = FunctionSolver(noisy, batched=True, deterministic=False)
    report = check_solver(solver, STATES)
    assert report.problems == ()
    assert loud / 2 < report.noise < 2 * loud
    assert report.scheme == ("forward" if loud < 1e-4 else "central")


def test_a_method_step_is_enough():
    class Bare:
        def step(self, states, conditions):
            return relaxed(states)

    assert check_solver(Bare(), STATES).problems == ()


def test_no_more_states_are_asked_at_once_than_allowed():
    asked = []

    def small(states, conditions):
        asked.append(len(states))
        return relaxed(states)

    check_solver(FunctionSolver(small, batched=True, max_batch=2), STATES)
    assert max(asked) == 2


def test_steps_are_counted():
    counted = []

    def counting(state, conditions):
        counted.append(0)
        return relaxed(state)

    assert check_solver(counting, STATES).n_steps == len(counted)


def test_same_seed_gives_the_same_report():
    assert check_solver(lambda state, _: relaxed(state), STATES, random_state=3) == check_solver(
        lambda state, _: relaxed(state), STATES, random_state=3
    )


def test_states_that_tell_nothing_are_refused():
    with pytest.raises(ValueError, match=r"not zero everywhere; got shape \(2, 1, 6\)"):
        check_solver(lambda state, _: relaxed(state), np.zeros((2, 1, 6)))
    with pytest.raises(TypeError, match=r"floating type.* got torch.int64"):
        check_solver(lambda state, _: relaxed(state), np.ones((2, 1, 6), dtype=np.int64))
