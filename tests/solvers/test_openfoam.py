"""The example with OpenFOAM: its files, and one step if OpenFOAM is installed."""

import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = runpy.run_path(str(ROOT / "examples" / "openfoam" / "train_cavity.py"))
N = EXAMPLE["N_CELLS"]


def swirl(n):
    """Return two vortices without divergence, which are 0 at the walls."""
    x = (np.arange(n) + 0.5) * np.pi / n
    u = np.sin(x) ** 2 * np.sin(2 * x)[:, None]
    return np.stack([0.3 * u, -0.3 * u.T]) * np.array([1, 0.5]).reshape(2, 1, 1)


def test_fields_are_read_as_they_were_written(tmp_path):
    EXAMPLE["write"](tmp_path, swirl(N), {"Re": 400.0})
    (tmp_path / "0").rename(tmp_path / "0.2")
    assert np.array_equal(EXAMPLE["read"](tmp_path), swirl(N))
    assert "0.0025" in (tmp_path / "constant" / "transportProperties").read_text()


def test_trajectories_are_cut_at_every_tenth_frame():
    n_frames = EXAMPLE["LAST"] - EXAMPLE["FIRST"] + 1
    numbers = np.arange(n_frames, dtype=np.float32).reshape(-1, 1, 1, 1)
    X, y = EXAMPLE["starts"]({1.0: numbers, 2.0: 100 + numbers}, (1.0, 2.0))
    assert np.array_equal(X.states.ravel(), [0, 100, 10, 110, 20, 120, 30, 130])
    assert np.array_equal(X.conditions["Re"], [1.0, 2.0] * 4)
    assert np.array_equal(y[:, :, 0, 0, 0] - X.states[:, 0, 0], [range(1, 11)] * 8)


@pytest.mark.skipif(shutil.which("icoFoam") is None, reason="OpenFOAM is not installed")
def test_a_step_of_openfoam(tmp_path):
    with EXAMPLE["make_solver"](tmp_path, 2) as solver:
        states = np.stack([swirl(N), 0 * swirl(N)])
        found = solver.step(states, {"Re": [100.0, 400.0]})
        assert solver.failures == ()
        assert np.array_equal(solver.step(states[1:], {"Re": 400.0}), found[1:])
        assert np.array_equal(solver.step(states[:1], {"Re": 100.0}), found[:1])
    assert 0.1 < np.abs(found[1, 0, -1]).mean() < 1  # the lid has pulled the row below it along
    assert np.abs(found[1, 0, :4]).max() < 0.02
    assert 0.7 < np.abs(found[0]).sum() / np.abs(states[0]).sum() < 1.5
