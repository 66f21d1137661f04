"""Random shapes, and random changes of a tensor, for hypothesis."""

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from zoestim.propagation import Dense, Entry, RankOne, Slab, Value

quick = settings(deadline=None, derandomize=True, max_examples=40)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(shape, dtype=torch.float64, generator=generator)


@st.composite
def shapes(draw: st.DrawFn, min_dims: int = 1, max_dims: int = 4) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(1, 4), min_size=min_dims, max_size=max_dims)))


@st.composite
def slabs(draw: st.DrawFn, base: Tensor, dims: list[int] | None = None) -> Value:
    """Slabs of any width along an axis, starting at one place or at one for each lane."""
    dim = draw(st.sampled_from(dims if dims is not None else list(range(base.ndim))))
    size, n_lanes = base.shape[dim], draw(st.integers(1, 4))
    width = draw(st.integers(1, size))
    starts = st.integers(0, size - width)
    if draw(st.booleans()):
        chosen = [draw(starts)] * n_lanes
    else:
        chosen = draw(st.lists(starts, min_size=n_lanes, max_size=n_lanes))
    rest = [s for axis, s in enumerate(base.shape) if axis != dim]
    values = draw(steps(n_lanes, width, *rest))
    return Value(base, Slab(values, torch.tensor(chosen), dim))


@st.composite
def steps(draw: st.DrawFn, *shape: int) -> Tensor:
    """Steps of one scale, some of them exactly zero."""
    values = normal(*shape, seed=draw(st.integers(0, 99)), scale=draw(st.sampled_from((0.01, 1.0))))
    return values * (values > -values.abs().mean()) if draw(st.booleans()) else values


@st.composite
def denses(draw: st.DrawFn, base: Tensor) -> Value:
    return Value(base, Dense(draw(steps(draw(st.integers(1, 4)), *base.shape))))


@st.composite
def rank_ones(draw: st.DrawFn, base: Tensor) -> Value:
    n_lanes, n_features = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    features = draw(st.lists(st.integers(0, n_features - 1), min_size=n_lanes, max_size=n_lanes))
    column = draw(steps(n_lanes, *base.shape[:-1]))
    table = normal(n_features, base.shape[-1], seed=draw(st.integers(0, 99)))
    return Value(base, RankOne(column, torch.tensor(features), table))


@st.composite
def entries(draw: st.DrawFn, parameter: Tensor) -> Value:
    n_lanes = draw(st.integers(1, 5))
    index = st.integers(0, parameter.numel() - 1)
    indices = draw(st.lists(index, min_size=n_lanes, max_size=n_lanes))
    return Value(parameter, Entry(torch.tensor(indices), draw(steps(n_lanes))))


def changes(base: Tensor) -> st.SearchStrategy[Value]:
    """Any change of an activation."""
    forms = [slabs(base), denses(base)]
    return st.one_of(*forms, rank_ones(base)) if base.ndim > 1 else st.one_of(*forms)


@st.composite
def moved(draw: st.DrawFn, shape: tuple[int, ...], seed: int = 1) -> Value:
    """A value of a shape, changed in any way; some of its elements are exactly zero."""
    base = normal(*shape, seed=seed)
    return draw(changes(base * (base < 1.2)))
