"""Burgers' equation against its exact solution, and what its scheme must keep."""

import numpy as np
import pytest
import torch

from zoestim.solvers import Burgers1D, simulate

NU, HEIGHT = 0.1, 0.9


def cole_hopf(n_cells, time):
    """Return means over cells of u = -2 nu (ln phi)', phi = 1 + a exp(-nu t) cos(x)."""
    faces = np.linspace(0, 2 * np.pi, n_cells + 1)
    logarithm = np.log(1 + HEIGHT * np.exp(-NU * time) * np.cos(faces))
    return -2 * NU * np.diff(logarithm)[None, None] * n_cells / (2 * np.pi)


@pytest.mark.parametrize("order", [1, 2])
def test_error_falls_by_the_order(order):
    errors = []
    for n_cells in (64, 128, 256):
        burgers = Burgers1D(n_cells, order=order, n_substeps=n_cells // 4)
        found = simulate(burgers, cole_hopf(n_cells, 0), {"viscosity": NU}, n_steps=10)
        errors.append(np.abs(found[:, -1] - cole_hopf(n_cells, 1)).mean())
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    assert np.all(np.abs(orders - order) < 0.25), orders
    assert errors[-1] < (3e-3 if order == 1 else 1e-4)


@pytest.mark.parametrize("order", [1, 2])
def test_the_mean_is_kept(order):
    burgers = Burgers1D(32, order=order)
    states = burgers.initial_states(4, random_state=0).astype(np.float64) + 0.3
    path = simulate(burgers, states, {"viscosity": [0.0, 0.01, 0.1, 0.2]}, n_steps=50)
    assert np.abs(path.mean(-1)[..., 0] - states.mean(-1)).max() < 1e-14


def test_energy_is_lost_at_shocks_and_never_won():
    burgers = Burgers1D(64)
    states = burgers.initial_states(4, random_state=1).astype(np.float64)
    energy = (simulate(burgers, states, {"viscosity": 0.0}, n_steps=60) ** 2).sum((2, 3))
    assert (np.diff(energy, axis=1) < 1e-12).all()
    assert (energy[:, -1] < 0.8 * energy[:, 0]).all()


def test_a_shock_makes_no_new_extrema():
    burgers = Burgers1D(64)
    states = np.where(np.arange(64) < 32, 1.0, -0.5)[None, None]
    path = simulate(burgers, states, {"viscosity": 0.0}, n_steps=40)
    assert path.max() < 1 + 1e-3
    assert path.min() > -0.5 - 1e-3


def test_forcing_moves_the_mean():
    burgers = Burgers1D(16)
    force = np.full((2, 16), [[1.0], [-2.0]])
    states = burgers.initial_states(2, random_state=0).astype(np.float64)
    found = burgers.step(states, {"viscosity": 0.1, "forcing": force})
    assert found.mean(-1) - states.mean(-1) == pytest.approx(np.array([[0.1], [-0.2]]))


def test_shift_and_mirror_commute_with_a_step():
    burgers, conditions = Burgers1D(32), {"viscosity": 0.02}
    states = burgers.initial_states(3, random_state=0).astype(np.float64)
    found = burgers.step(states, conditions)
    shifted = burgers.step(np.roll(states, 5, axis=-1), conditions)
    mirrored = burgers.step(-states[..., ::-1], conditions)
    assert np.abs(shifted - np.roll(found, 5, axis=-1)).max() < 1e-14
    assert np.abs(mirrored + found[..., ::-1]).max() < 1e-14


def test_a_state_is_the_same_in_any_batch():
    burgers = Burgers1D(32)
    states = burgers.initial_states(50, random_state=0)
    viscosity = np.linspace(0.01, 0.1, 50)
    found = burgers.step(states, {"viscosity": viscosity})
    alone = [burgers.step(states[i : i + 1], {"viscosity": viscosity[i]})[0] for i in (0, 30)]
    assert np.allclose(found[[0, 30]], alone, rtol=0, atol=1e-6)
    states[7] = np.inf
    assert np.array_equal(
        np.delete(burgers.step(states, {"viscosity": viscosity}), 7, axis=0),
        np.delete(found, 7, axis=0),
    )


@pytest.mark.parametrize("order", [1, 2])
def test_gradient_is_that_of_differences(order):
    burgers = Burgers1D(16, order=order)
    states = torch.tensor(burgers.initial_states(2, random_state=0), dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda given: burgers.step(given, {"viscosity": 0.05}), states.requires_grad_()
    )


def test_constant_states_have_a_finite_gradient():
    states = torch.ones(1, 1, 16, requires_grad=True)
    burgers = Burgers1D(16)
    (gradient,) = torch.autograd.grad(burgers.step(states, {"viscosity": 0.05}).sum(), states)
    assert torch.allclose(gradient, torch.ones_like(gradient))


def test_the_same_waves_on_every_grid():
    fine = Burgers1D(64).initial_states(3, random_state=0)
    coarse = Burgers1D(32).initial_states(3, random_state=0)
    assert np.allclose(Burgers1D(64).coarsen(fine), coarse, atol=1e-6)
    assert not np.allclose(coarse, Burgers1D(32).initial_states(3, random_state=1), atol=0.1)


def test_coarsen_keeps_the_mean():
    states = Burgers1D(64).initial_states(3, random_state=0)
    coarse = Burgers1D(64).coarsen(states, 4)
    assert coarse.shape == (3, 1, 16)
    assert np.allclose(coarse.mean(-1), states.mean(-1), atol=1e-6)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_cells": 3}, "n_cells must be an integer of at least 4; got 3"),
        ({"n_substeps": 0}, "n_substeps must be an integer of at least 1; got 0"),
        ({"dt": 0.0}, "dt must be a finite number above 0"),
        ({"order": 3}, "order.*must be 1 or 2; got 3"),
    ],
)
def test_parameters_are_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        Burgers1D(**parameters)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({}, "needs the condition 'viscosity'"),
        ({"viscosity": -0.1}, "viscosities from 0 to"),
        ({"viscosity": 100.0}, "got from 100 to 100. Raise n_substeps"),
        (
            {"viscosity": 0.1, "forcing": np.zeros(5)},
            r"'forcing'.*\(16,\) or \(1, 16\).*got \(5,\)",
        ),
    ],
)
def test_conditions_are_refused(conditions, message):
    burgers = Burgers1D(16)
    with pytest.raises(ValueError, match=message):
        burgers.step(burgers.initial_states(1, 0), conditions)
