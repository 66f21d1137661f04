"""An exact pressure: Poisson's equation around an obstacle, by sines and a capacitance matrix."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor


class PressureSolve:
    """Solve for the pressure that removes a divergence, on a grid with closed cells.

    In units of the cell, with the pressure p at the centres and 0 in the cells around the grid,
    the fluid's cells obey

        sum over open faces (p_neighbour - p) = divergence

    Without closed cells, sines of both axes diagonalise this: two small matrix products, a
    division, and two products back. A face between an open and a closed cell changes only the
    rows of these two. With m such cells, ``A = A_0 + E W E^T``, so that

        p = p_0 - A_0^-1 E W (I + C W)^-1 E^T p_0,    A_0 p_0 = divergence,  C = E^T A_0^-1 E

    where E picks the m cells and C is the capacitance matrix (Woodbury's identity). All of it is
    exact but for rounding, takes the same time whatever the flow, iterates nothing, and is
    differentiable.

    Parameters
    ----------
    closed : ndarray of bool of shape (n_rows, n_columns)
        Which cells the obstacle occupies; none of them at the edge of the grid.
    dtype : torch.dtype
        The precision in which pressures are wanted. What is precomputed is so in float64.
    device : torch.device
        Where they are wanted.

    References
    ----------
    Buzbee, Dorr, George and Golub, The direct solution of the discrete Poisson equation on
    irregular regions, SIAM J. Numer. Anal. 8 (1971).

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from zoestim.solvers._pressure import PressureSolve
    >>> closed = np.zeros((6, 4), dtype=bool)
    >>> closed[2:4, 1:3] = True
    >>> divergence = torch.ones(1, 6, 4, dtype=torch.float64)
    >>> p = PressureSolve(closed, torch.float64, torch.device("cpu"))(divergence)
    >>> neighbours = p[0, 1, 0] + p[0, 0, 1]  # the corner has two open cells beside it
    >>> round(float(neighbours - 4 * p[0, 0, 0]), 12)
    1.0
    """

    def __init__(self, closed: np.ndarray, dtype: torch.dtype, device: torch.device) -> None:
        n_rows, n_columns = closed.shape
        rows, columns = _sines(n_rows), _sines(n_columns)
        eigenvalues = _eigenvalues(n_rows)[:, None] + _eigenvalues(n_columns)[None, :]
        cells, change = _change_of_matrix(closed)
        picked = np.zeros((len(cells), n_rows, n_columns))
        picked.reshape(len(cells), -1)[np.arange(len(cells)), cells] = 1
        # Column k of A_0^-1 E is the pressure of a divergence of 1 in the k-th cell.
        responses = rows @ ((rows @ picked @ columns) / eigenvalues) @ columns
        responses = responses.reshape(len(cells), -1)
        capacity = np.eye(len(cells)) + responses[:, cells].T @ change
        # From p_0 in the m cells to what is subtracted everywhere, transposed.
        update = np.linalg.solve(capacity.T, change.T @ responses)
        self.cells = torch.from_numpy(cells).to(device)
        self.rows, self.columns, self.inverse, self.update = (
            torch.from_numpy(each).to(device, dtype)
            for each in (rows, columns, 1 / eigenvalues, update)
        )

    def __call__(self, divergence: Tensor) -> Tensor:
        """Return the pressure, of shape (n_simulations, n_rows, n_columns)."""
        amplitudes = (self.rows @ divergence @ self.columns) * self.inverse
        pressure = (self.rows @ amplitudes @ self.columns).flatten(1)
        pressure = torch.addmm(pressure, pressure[:, self.cells], self.update, alpha=-1)
        return pressure.view_as(divergence)


def _sines(n: int) -> np.ndarray:
    """Return the orthogonal, symmetric matrix of the sine transform (DST-I)."""
    k = np.arange(1, n + 1)
    return np.sqrt(2 / (n + 1)) * np.sin(np.pi * np.outer(k, k) / (n + 1))


def _eigenvalues(n: int) -> np.ndarray:
    """Return the eigenvalues of the second difference with zeros at both ends."""
    return -4 * np.sin(np.pi * np.arange(1, n + 1) / (2 * (n + 1))) ** 2


def _change_of_matrix(closed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the m cells whose rows change, and W, of shape (m, m), the change of A there."""
    index = np.arange(closed.size).reshape(closed.shape)
    one = np.concatenate([index[1:].ravel(), index[:, 1:].ravel()])
    other = np.concatenate([index[:-1].ravel(), index[:, :-1].ravel()])
    shut = closed.ravel()[one] != closed.ravel()[other]
    one, other = one[shut], other[shut]
    cells, place = np.unique(np.concatenate([one, other]), return_inverse=True)
    one, other = place[: len(one)], place[len(one) :]
    change = np.zeros((len(cells), len(cells)))
    for here, there in ((one, other), (other, one)):
        np.add.at(change, (here, here), 1)  # no flow through the face
        np.add.at(change, (here, there), -1)
    for region in _regions(closed):  # its pressure is determined but for a constant: pin it
        pinned = np.flatnonzero(region.ravel()[cells])[0]
        change[pinned, pinned] -= 1
    return cells, change


def _regions(closed: np.ndarray) -> list[np.ndarray]:
    """Return a mask for each connected region of closed cells."""
    labels, number = ndimage.label(closed)
    return [labels == region for region in range(1, number + 1)]
