"""The wake flow: against PhiFlow, against a dense solve, and against what flows must obey."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from zoestim.solvers import WakeFlow2D, simulate

PHIFLOW = np.load(Path(__file__).with_name("phiflow.npz"))
CASES = [("coarse", 16, 97.65625), ("fine", 32, 1562.5)]


def developed(resolution=16, n=3, dtype=np.float64, n_steps=30):
    flow = WakeFlow2D(resolution)
    conditions = {"Re": np.geomspace(100, 3000, n)}
    states = flow.initial_states(n).astype(dtype)
    return flow, simulate(flow, states, conditions, n_steps=1, skip=n_steps - 1)[:, 0], conditions


# --- Against PhiFlow (benchmarks/phiflow_reference.py)


@pytest.mark.parametrize(("name", "resolution", "reynolds"), CASES)
@pytest.mark.parametrize(("dtype", "within"), [(np.float64, 1e-6), (np.float32, 1e-4)])
def test_same_as_phiflow_after_20_steps(name, resolution, reynolds, dtype, within):
    flow, frames = WakeFlow2D(resolution), PHIFLOW[name].astype(dtype)
    found = simulate(flow, frames[-2:-1], {"Re": reynolds}, n_steps=20)[0, -1]
    assert found.dtype == dtype
    assert np.abs(frames[-1] - frames[-2]).max() > 0.1  # the flow has changed
    assert np.abs(found - frames[-1]).max() < within


def test_same_as_phiflow_from_the_first_state_on():
    start = PHIFLOW["coarse"][:1]
    assert np.array_equal(WakeFlow2D(16).initial_states(1), start)
    found = simulate(WakeFlow2D(16), start, {"Re": 97.65625}, n_steps=80)[0]
    assert np.abs(found[[19, 79]] - PHIFLOW["coarse"][1:3]).max() < 1e-4


# --- Against loops and a dense solve


def reference_step(state, resolution, reynolds):
    """Return the next state cell by cell, by the words of WakeFlow2D's notes."""
    h, w, size = 2 * resolution, resolution, 100 / resolution
    along, across = state[0, :, :-1], state[1, :-1, :]

    def at(field, i, j):
        """Interpolate between entries; beyond the edge, the field goes on as it is there."""
        i, j = np.clip(i, 0, field.shape[0] - 1), np.clip(j, 0, field.shape[1] - 1)
        i0, j0 = min(int(i), field.shape[0] - 2), min(int(j), field.shape[1] - 2)
        a, b = i - i0, j - j0
        upper = (1 - b) * field[i0, j0] + b * field[i0, j0 + 1]
        return (1 - a) * upper + a * ((1 - b) * field[i0 + 1, j0] + b * field[i0 + 1, j0 + 1])

    def each(field, rule):
        return np.array([[rule(i, j) for j in range(field.shape[1])] for i in range(len(field))])

    number = 1e5 / 128**2 / reynolds / size**2

    def diffused(f):
        def rule(i, j):
            around = at(f, i - 1, j) + at(f, i + 1, j) + at(f, i, j - 1) + at(f, i, j + 1)
            return f[i, j] + number * (around - 4 * f[i, j])

        return each(f, rule)

    along, across = diffused(along), diffused(across)
    along[:2] = along[:, 0] = along[:, -1] = 1

    def before_along(i, j):  # a face along the flow is half a cell before a face across, ...
        return at(along, i - along[i, j] / size, j - at(across, i - 0.5, j + 0.5) / size)

    def before_across(i, j):  # ... and the other way round
        return at(across, i - at(along, i + 0.5, j - 0.5) / size, j - across[i, j] / size)

    along, across = each(along, before_along), each(across, before_across)
    centre = [(np.arange(n) + 0.5) * size for n in (h, w)]
    closed = (centre[0][:, None] - 50) ** 2 + (centre[1] - 50) ** 2 < 100
    # One row of the matrix for each cell, one unknown pressure for each open one.
    matrix, flow_out = np.eye(h * w), np.zeros(h * w)
    faces = []
    for i in range(h + 1):
        for j in range(w):
            faces.append((along, (i, j), (i - 1, j), (i, j)))
    for i in range(h):
        for j in range(w + 1):
            faces.append((across, (i, j), (i, j - 1), (i, j)))

    def inside(i, j):
        return 0 <= i < h and 0 <= j < w

    matrix[~closed.ravel()] = 0
    for field, face, *cells in faces:
        if any(inside(*cell) and closed[cell] for cell in cells):
            field[face] = 0
            continue
        for cell, other, sign in ((cells[0], cells[1], 1), (cells[1], cells[0], -1)):
            if inside(*cell):
                row = cell[0] * w + cell[1]
                flow_out[row] += sign * field[face]
                matrix[row, row] -= 1
                if inside(*other):
                    matrix[row, other[0] * w + other[1]] += 1
    pressure = np.linalg.solve(matrix, flow_out).reshape(h, w)
    for field, face, before, after in faces:
        if not any(inside(*cell) and closed[cell] for cell in (before, after)):
            p = [pressure[cell] if inside(*cell) else 0 for cell in (before, after)]
            field[face] -= p[1] - p[0]
    found = np.zeros_like(state)
    found[0, :, :-1], found[1, :-1, :] = along, across
    return found


@pytest.mark.parametrize("resolution", [12, 16])
def test_same_as_loops_and_a_dense_solve(resolution):
    flow, states, conditions = developed(resolution)
    found = flow.step(states, conditions)
    expected = [
        reference_step(state, resolution, reynolds)
        for state, reynolds in zip(states, conditions["Re"], strict=True)
    ]
    assert np.abs(found - expected).max() < 1e-12


# --- What flows must obey


@pytest.mark.parametrize("resolution", [16, 32])
def test_nothing_is_lost_in_a_cell(resolution):
    flow, states, _ = developed(resolution)
    assert np.abs(flow.divergence(states)).max() < 1e-10


def test_nothing_flows_through_the_cylinder():
    _, states, _ = developed(32)
    size = 100 / 32
    rows, columns = (np.arange(64) + 0.5) * size - 50, (np.arange(32) + 0.5) * size - 50
    closed = rows[:, None] ** 2 + columns**2 < 100
    assert closed.sum() == 32
    for faces in (states[:, 0, :-1, :-1], states[:, 0, 1:, :-1], states[:, 1, :-1, :-1]):
        assert not faces[:, closed].any()


def test_a_mirrored_flow_stays_mirrored():
    flow, states, conditions = developed()
    mirrored = states.copy()
    mirrored[:, 0, :, :-1] = states[:, 0, :, -2::-1]
    mirrored[:, 1] = -states[:, 1, :, ::-1]
    found, expected = flow.step(mirrored, conditions), flow.step(states, conditions)
    assert np.abs(found[:, 0, :, :-1] - expected[:, 0, :, -2::-1]).max() < 1e-12
    assert np.abs(found[:, 1] + expected[:, 1, :, ::-1]).max() < 1e-12


def test_a_symmetric_flow_sheds_no_vortices():
    flow = WakeFlow2D(16)
    states = flow.initial_states(1).astype(np.float64)
    states[:, 1] = 0
    across = simulate(flow, states, {"Re": 1000.0}, n_steps=50)[0, -1, 1, :-1]
    assert np.abs(across + across[:, ::-1]).max() < 1e-12


def test_the_disturbed_flow_sheds_vortices_on_a_fine_grid():
    flow = WakeFlow2D(64)
    path = simulate(flow, flow.initial_states(1), {"Re": 3000.0}, n_steps=100, skip=1400)
    behind = path[0, :, 1, 44, 32]  # across the flow, behind the cylinder
    assert behind.min() < -0.1 < 0.1 < behind.max()


def test_the_inflow_is_steady():
    flow = WakeFlow2D(16)
    path = simulate(flow, flow.initial_states(1), {"Re": 1000.0}, n_steps=50, skip=50)
    # The pressure leaves the imposed speed, which the next step imposes again, by little.
    assert np.abs(path[:, :, 0, 0, :-1] - 1).max() < 0.1
    through = path[:, :, 0, 0, :-1].sum(-1)
    assert np.ptp(through) < 0.02 * through.mean()


def test_what_is_not_a_face_is_zero():
    _, states, _ = developed()
    assert not states[:, 0, :, -1].any()
    assert not states[:, 1, -1].any()


# --- Batches, kinds and gradients


def test_a_state_is_the_same_in_any_batch():
    flow, states, conditions = developed()
    many = flow.step(np.repeat(states, 100, axis=0), {"Re": np.repeat(conditions["Re"], 100)})
    alone = np.concatenate(
        [flow.step(states[i : i + 1], {"Re": conditions["Re"][i]}) for i in range(3)]
    )
    assert np.abs(many[::100] - alone).max() < 1e-13


def test_one_state_that_is_not_finite_spoils_no_other():
    flow, states, conditions = developed()
    expected = flow.step(states, conditions)
    states[1, 0, 5, 5] = np.nan
    found = flow.step(states, conditions)
    assert np.isnan(found[1]).any()
    assert np.array_equal(found[[0, 2]], expected[[0, 2]])


def test_tensors_and_read_only_arrays_give_the_same():
    flow, states, conditions = developed()
    expected = flow.step(states, conditions)
    assert torch.equal(
        flow.step(torch.tensor(states), conditions), torch.from_numpy(expected.copy())
    )
    states.flags.writeable = False
    assert np.array_equal(flow.step(states, conditions), expected)


def test_gradient_is_that_of_differences():
    flow, states, conditions = developed(12, n=1)
    states = torch.tensor(states, requires_grad=True)
    weights = torch.randn(states.shape, dtype=states.dtype, generator=torch.Generator())
    (gradient,) = torch.autograd.grad((weights * flow.step(states, conditions)).sum(), states)
    for place in [(0, 0, 10, 3), (0, 1, 15, 6), (0, 0, 20, 5)]:
        change = torch.zeros_like(states)
        change[place] = 1e-7
        with torch.no_grad():
            ends = [flow.step(states + sign * change, conditions) for sign in (1, -1)]
        slope = float((weights * (ends[0] - ends[1])).sum() / 2e-7)
        assert slope == pytest.approx(float(gradient[place]), rel=1e-5, abs=1e-6)


# --- What surrounds a step


def test_coarsen_keeps_faces_along_and_averages_across():
    flow, states, _ = developed(32, n=1)
    coarse = flow.coarsen(states, 2)
    assert coarse.shape == (1, *WakeFlow2D(16).state_shape)
    assert coarse[0, 0, 3, 4] == pytest.approx(states[0, 0, 6, 8:10].mean())
    assert coarse[0, 1, 3, 4] == pytest.approx(states[0, 1, 6:8, 8].mean())
    # Flow through the faces of a coarse cell is that of the fine ones: nothing is lost in it.
    assert np.abs(WakeFlow2D(16).divergence(coarse)).max() < 1e-10
    twice = WakeFlow2D(16).coarsen(coarse)
    assert np.allclose(twice, flow.coarsen(states, 4), rtol=0, atol=1e-15)


def test_correction_is_added_where_features_are():
    flow, states, _ = developed()
    features = flow.to_features(states)
    assert features.shape[1:] == flow.feature_shape
    found = flow.apply_correction(states, np.ones_like(features))
    assert np.array_equal(flow.to_features(found), features + 1)
    assert np.array_equal(found[:, :, -1], states[:, :, -1])
    assert np.array_equal(found[..., -1], states[..., -1])


def test_solver_is_compared_and_pickled_by_its_resolution():
    assert pickle.loads(pickle.dumps(WakeFlow2D(16))) == WakeFlow2D(16) != WakeFlow2D(32)
    assert len(pickle.dumps(WakeFlow2D(32))) < 200


# --- Refusals


@pytest.mark.parametrize("resolution", [10, 17, 16.0, "16"])
def test_resolution_is_refused(resolution):
    with pytest.raises(ValueError, match=r"resolution.*even integer of at least 12; got"):
        WakeFlow2D(resolution)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({}, r"needs the condition 'Re'.*got \[\]"),
        ({"Re": [100.0, 200.0]}, r"shape \(\) or \(3,\).*got \(2,\)"),
        ({"Re": [100.0, np.nan, 1.0]}, "finite; got nan"),
        ({"Re": 0.1}, "at least 0.625 at resolution 16.*got 0.1"),
        ({"Re": -5.0}, "at least 0.625"),
    ],
)
def test_conditions_are_refused(conditions, message):
    flow, states, _ = developed(n_steps=1)
    with pytest.raises(ValueError, match=message):
        flow.step(states, conditions)


def test_states_are_refused():
    flow, states, conditions = developed(n_steps=1)
    with pytest.raises(ValueError, match=r"\(n_simulations, 2, 33, 17\); got \(2, 33, 17\)"):
        flow.step(states[0], conditions)
    with pytest.raises(TypeError, match="float32 or float64; got ndarray of int64"):
        flow.step(states.astype(np.int64), conditions)
    with pytest.raises(ValueError, match="divides the resolution, 16; got 3"):
        flow.coarsen(states, 3)
