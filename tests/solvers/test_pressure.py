"""The pressure against a dense solve, with obstacles of several shapes."""

import numpy as np
import pytest
import torch

from zoestim.solvers._pressure import PressureSolve


def obstacle(name):
    closed = np.zeros((14, 9), dtype=bool)
    if name in ("one", "two"):
        closed[3, 4] = True
    if name in ("block", "two"):
        closed[6:11, 2:6] = True
    return closed


def neighbours(cell):
    row, column = cell
    return [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]


def residual(p, closed, divergence):
    """Return by how much the pressure misses its equation, in open cells."""
    found = []
    for cell in np.argwhere(~closed):
        flow = 0.0
        for there in neighbours(cell):
            inside = 0 <= there[0] < closed.shape[0] and 0 <= there[1] < closed.shape[1]
            if not inside:
                flow -= p[tuple(cell)]
            elif not closed[there]:
                flow += p[there] - p[tuple(cell)]
        found.append(flow - divergence[tuple(cell)])
    return np.array(found)


@pytest.mark.parametrize("name", ["one", "block", "two"])
def test_every_open_cell_obeys_the_equation(name):
    closed = obstacle(name)
    divergence = np.random.default_rng(0).normal(size=(3, *closed.shape)) * ~closed
    solve = PressureSolve(closed, torch.float64, torch.device("cpu"))
    for p, given in zip(solve(torch.from_numpy(divergence)).numpy(), divergence, strict=True):
        assert np.abs(residual(p, closed, given)).max() < 1e-12
        assert np.abs(p[closed]).max() < 1e-12


def test_float32_is_rounded_from_float64():
    closed = obstacle("block")
    divergence = torch.randn(2, *closed.shape, generator=torch.Generator(), dtype=torch.float64)
    exact, rounded = (
        PressureSolve(closed, dtype, torch.device("cpu"))(divergence.to(dtype))
        for dtype in (torch.float64, torch.float32)
    )
    assert rounded.dtype == torch.float32
    assert torch.allclose(exact, rounded.double(), atol=1e-5)
