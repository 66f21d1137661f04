"""What a gradient estimator asks for and what it gives back, Eq. (1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class CoordinateQueries:
    """One query per entry: the loss at ``theta + steps[k] * e_{indices[k]}``.

    Parameters
    ----------
    indices : Tensor of shape (n_queries,), int64
        The flat coordinate that query k moves.
    steps : Tensor of shape (n_queries,), float64
        How far it moves it, in units of the parameter.
    """

    indices: Tensor
    steps: Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def moves(self, part: Tensor, size: int) -> Tensor:
        """Return how far some queries move each of `size` coordinates, (k, size), float64."""
        moves = torch.zeros(len(part), size, dtype=torch.float64)
        moves[torch.arange(len(part)), self.indices[part]] = self.steps[part]
        return moves


@dataclass(frozen=True)
class DirectionQueries:
    """One query per entry: the loss at ``theta + steps[k] * u_k`` on the given coordinates.

    A direction is kept as its seed and drawn when it is needed, so that a thousand
    directions of a million entries cost a thousand integers.

    Parameters
    ----------
    coordinates : Tensor of shape (n_coordinates,), int64
        The flat coordinates on which the directions live; elsewhere they are zero.
    seeds : Tensor of shape (n_queries,), int64
        The seed of each direction; two queries of one seed share their direction.
    steps : Tensor of shape (n_queries,), float64
        The factor of each direction.
    distribution : {"gaussian", "sphere", "per-tensor"}
        How a direction is drawn, see :class:`RandomizedEstimator`.
    segments : tuple of int
        How many of the coordinates fall into each parameter tensor, in order.
    """

    coordinates: Tensor
    seeds: Tensor
    steps: Tensor
    distribution: str
    segments: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.seeds)

    def direction(self, query: int) -> Tensor:
        """Return the direction of one query, shape (n_coordinates,), float64."""
        generator = torch.Generator().manual_seed(int(self.seeds[query]))
        noise = torch.randn(len(self.coordinates), generator=generator, dtype=torch.float64)
        if self.distribution == "sphere":
            return noise * (len(noise) ** 0.5 / noise.norm())
        if self.distribution == "per-tensor":
            return torch.cat([part / part.norm() for part in noise.split(self.segments)])
        return noise

    def moves(self, part: Tensor, size: int) -> Tensor:
        """Return how far some queries move each of `size` coordinates, (k, size), float64."""
        moves = torch.zeros(len(part), size, dtype=torch.float64)
        for lane, query in enumerate(part.tolist()):
            moves[lane, self.coordinates] = self.steps[query] * self.direction(query)
        return moves


@dataclass(frozen=True)
class RowQueries:
    """Queries of each row of a parameter, asked together: query k moves every row.

    A row is what belongs to one sample, so that the losses of the samples answer the queries of
    all rows at once.

    Parameters
    ----------
    rows : tuple of CoordinateQueries or DirectionQueries
        The queries of each row, equally many, on the coordinates of a row.
    size : int
        The number of coordinates of a row.
    """

    rows: tuple[CoordinateQueries | DirectionQueries, ...]
    size: int

    def __len__(self) -> int:
        return len(self.rows[0])

    @property
    def steps(self) -> Tensor:
        """How far the first row is moved; the others may differ in direction alone."""
        return self.rows[0].steps

    @property
    def segments(self) -> tuple[int, ...]:
        """How many coordinates the parameter has."""
        return (len(self.rows) * self.size,)

    def moves(self, part: Tensor, size: int) -> Tensor:
        """Return how far some queries move each of `size` coordinates, (k, size), float64."""
        found = {id(row): row.moves(part, self.size) for row in self.rows}
        return torch.stack([found[id(row)] for row in self.rows], 1).reshape(len(part), size)


Queries = CoordinateQueries | DirectionQueries | RowQueries


@dataclass(frozen=True)
class SparseGradient:
    """A gradient estimate: values at some coordinates, zero elsewhere.

    Parameters
    ----------
    indices : Tensor of shape (n_coordinates,), int64
        Flat coordinates.
    values : Tensor of shape (n_coordinates,), float64
        Estimated partial derivatives, in units of loss per unit of parameter.
    """

    indices: Tensor
    values: Tensor

    def dense(self, size: int) -> Tensor:
        """Return the estimate as a vector of the given size."""
        return torch.zeros(size, dtype=self.values.dtype).index_put((self.indices,), self.values)


class GradientEstimator(Protocol):
    """What the training loop needs of a gradient strategy.

    ``queries`` asks, the evaluator answers, ``combine`` turns the answers into a
    gradient. Neither sees the model. See the user guide for writing your own.
    """

    def n_queries(self, n_coordinates: int) -> int:
        """Return how many perturbed losses one estimate needs (the base loss apart)."""
        ...

    def queries(
        self, coordinates: Tensor, segments: tuple[int, ...], generator: torch.Generator
    ) -> Queries:
        """Return the queries of one estimate on the given flat coordinates."""
        ...

    def combine(self, queries: Queries, base_loss: float, losses: Tensor) -> SparseGradient:
        """Return the gradient estimate from the loss at theta and those of the queries."""
        ...


SCHEMES = ("forward", "central")


def differences(losses: Tensor, base_loss: float, step: float, scheme: str) -> Tensor:
    """Return the finite differences of Eq. (1), forward, or their central form.

    Central queries come in pairs: all the steps forward, then all the steps back.
    """
    if scheme == "forward":
        return (losses - base_loss) / step
    ahead, behind = losses.chunk(2)
    return (ahead - behind) / (2 * step)


def signed_steps(n: int, step: float, scheme: str) -> Tensor:
    """Return the steps of n differences: n forward ones, or n forward and n back."""
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {list(SCHEMES)}; got {scheme!r}.")
    if not step > 0:
        raise ValueError(f"smoothing must be a positive number; got {step!r}.")
    ahead = torch.full((n,), step, dtype=torch.float64)
    return ahead if scheme == "forward" else torch.cat([ahead, -ahead])
