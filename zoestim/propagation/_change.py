"""What the queries of one fold change of a value: one element, one slab, or all of it.

A fold is K queries, its *lanes*. A change is what lane k adds to the unperturbed value, never
the perturbed value itself: differences of differences keep the digits that a small step needs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Entry:
    """Lane k adds ``steps[k]`` to one element of a parameter: a coordinate of CGE.

    Parameters
    ----------
    indices : Tensor of shape (k,), int64
        Flat indices into the parameter, on the host.
    steps : Tensor of shape (k,)
        In the parameter's type, on its device.
    """

    indices: Tensor
    steps: Tensor

    def dense(self, shape: torch.Size) -> Tensor:
        """Return the change as a tensor of shape (k, *shape)."""
        full = self.steps.new_zeros(len(self.steps), shape.numel())
        full.scatter_(1, self.indices.to(full.device)[:, None], self.steps[:, None])
        return full.view(-1, *shape)

    def lanes(self, part: slice | list[int]) -> Entry:
        """Return the change of some of the lanes."""
        return Entry(self.indices[part], self.steps[part])

    def stretch(self, parameter: Tensor) -> Tensor:
        """Return by how much each step is longer than what adding it moves the parameter by.

        Large values and short floating types round it.
        """
        at = parameter.flatten()[self.indices.to(parameter.device)]
        moved = (at + self.steps) - at
        if not moved.all():
            lost = int((moved == 0).nonzero()[0])
            raise ValueError(
                f"a step of {float(self.steps[lost]):g} is lost in the rounding of a parameter "
                f"that is {float(at[lost]):g} in {at.dtype}; raise smoothing, or pass "
                'precision="float64"'
            )
        return self.steps / moved


@dataclass(frozen=True)
class Slab:
    """Lane k changes ``[starts[k], starts[k] + width)`` along one axis, and nothing else.

    Parameters
    ----------
    values : Tensor of shape (k, width, *rest)
        What is added. The changed axis comes first: `rest` is the shape without it.
    starts : Tensor of shape (k,), int64
        Where each slab starts, on the host.
    dim : int
        The axis of the unperturbed value, counted from 0.
    """

    values: Tensor
    starts: Tensor
    dim: int

    def with_values(self, values: Tensor) -> Slab:
        """Return slabs of the same places with other values."""
        return Slab(values, self.starts, self.dim)

    @property
    def width(self) -> int:
        """How many positions along the axis change."""
        return self.values.shape[1]

    @cached_property
    def start(self) -> int | None:
        """Where the slabs start, if it is the same for all lanes."""
        first = int(self.starts[0])
        return first if bool((self.starts == first).all()) else None

    @property
    def order(self) -> tuple[int, ...]:
        """The axes of `rest` in the order in which they lie in memory."""
        strides = self.values.stride()[2:]
        return tuple(sorted(range(len(strides)), key=lambda axis: -strides[axis]))

    def of(self, planes: Tensor) -> Tensor:
        """Return what the slabs cover of a tensor whose first axis is the changed one."""
        if self.start is not None:
            return planes.narrow(0, self.start, self.width)[None]
        return rows_of(planes, self.positions())

    def positions(self) -> Tensor:
        """Return the changed positions along the axis, (k, width), on the host."""
        steps = torch.arange(self.width)
        return self.starts[:, None] + steps

    def dense(self, shape: torch.Size) -> Tensor:
        """Return the change as a tensor of shape (k, *shape)."""
        full = self.values.new_zeros(len(self.values), *shape)
        self.add_to(full)
        return full

    def add_to(self, full: Tensor) -> None:
        """Add the change to a tensor of shape (k, *shape), in place."""
        planes = full.movedim(self.dim + 1, 1)
        if self.start is not None:
            planes[:, self.start : self.start + self.width] += self.values
            return
        lanes = torch.arange(len(self.values), device=full.device)[:, None]
        positions = self.positions().to(full.device)
        planes[lanes, positions] = planes[lanes, positions] + self.values


@dataclass(frozen=True)
class Dense:
    """Every element may change.

    Parameters
    ----------
    values : Tensor of shape (k, *shape)
        What is added. Images are kept with their channels last in memory.
    """

    values: Tensor

    @property
    def strides(self) -> tuple[int, ...]:
        """How the elements of a lane lie in memory."""
        return self.values.stride()[1:]

    def with_values(self, values: Tensor) -> Dense:
        """Return other values of every element."""
        return Dense(values)

    def lanes(self, part: slice | list[int]) -> Dense:
        """Return the change of some of the lanes."""
        return Dense(self.values[part])

    def dense(self, shape: torch.Size) -> Tensor:
        """Return the values."""
        return self.values


class RankOne(Dense):
    """The outer product of one changed feature and a row of weights; dense when asked.

    Parameters
    ----------
    column : Tensor of shape (k, *rest)
        The change of each lane's feature.
    features : Tensor of shape (k,), int64
        Which feature that is, on the host.
    table : Tensor of shape (n_features, n_outputs)
        Row by row, what the outputs on the last axis weigh a feature by.
    """

    column: Tensor
    features: Tensor
    table: Tensor

    def __init__(self, column: Tensor, features: Tensor, table: Tensor):
        for name, value in (("column", column), ("features", features), ("table", table)):
            object.__setattr__(self, name, value)

    @cached_property
    def rows(self) -> Tensor:
        """Each lane's row of the table, (k, n_outputs)."""
        return rows_of(self.table, self.features)

    @cached_property
    def values(self) -> Tensor:  # type: ignore[override]
        """What is added, (k, *rest, n_outputs)."""
        flat = self.column.reshape(len(self.column), -1, 1) * self.rows[:, None, :]
        return flat.view(*self.column.shape, -1)


def rows_of(table: Tensor, indices: Tensor) -> Tensor:
    """Return copies of some rows, as they lie; the indices are on the host, of any shape."""
    where = indices.flatten().to(table.device, non_blocking=True)
    if table.is_contiguous():
        found = table.index_select(0, where)
    else:
        strides = table.stride()
        axes = [0, *sorted(range(1, table.ndim), key=strides.__getitem__, reverse=True)]
        found = table.permute(axes).index_select(0, where)
        found = found.permute([axes.index(axis) for axis in range(table.ndim)])
    return found.unflatten(0, indices.shape) if indices.ndim != 1 else found


@dataclass(frozen=True)
class Lanes:
    """What has no difference, as the result of a comparison: each lane's own value.

    Parameters
    ----------
    values : Tensor of shape (k, *shape)
        The value itself, of an integer or boolean type.
    """

    values: Tensor


Change = Entry | Slab | Dense


class Value:
    """A tensor of the unperturbed pass, and what the lanes of a fold change of it.

    Parameters
    ----------
    base : Tensor
        The unperturbed value.
    change : Entry, Slab, Dense or None
        None where nothing changes.
    memo : dict, optional
        What rules derived from the base, to be shared by all folds of a pass.
    """

    __slots__ = ("base", "change", "memo")

    def __init__(
        self, base: Tensor, change: Change | Lanes | None = None, memo: dict | None = None
    ):
        self.base = base
        self.change: Any = change  # the types of its values are for the rules to know
        self.memo: dict[Any, Any] = {} if memo is None else memo

    def changed(self, change: Change | Lanes | None) -> Value:
        """Return the same tensor with a change; what is derived from it is shared."""
        return Value(self.base, change, self.memo)

    def derived(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return ``function(base, *args)``, computed once a pass."""
        key = (function, *args)
        if key not in self.memo:
            self.memo[key] = function(self.base, *args)
        return self.memo[key]

    def dense(self) -> Tensor:
        """Return the change as a tensor of shape (k, *shape)."""
        return self.change.dense(self.base.shape)  # type: ignore[union-attr]

    def part(
        self, change: Slab | Dense, function: Callable[..., Tensor] | None = None, *args: Any
    ) -> Tensor:
        """Return what a change covers of the base, or of a tensor of its shape derived from it.

        The result broadcasts against ``change.values`` and lies in memory as they do.
        """
        if isinstance(change, Slab):
            planes = self.derived(_planes, change.dim, change.order, function, *args)
            return change.of(planes)
        return self.derived(_laid_out, change.strides, function, *args)[None]

    def elements(self, change: Slab | Dense, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """Return what a change covers of a function of the base's single elements.

        The function is given a copy that lies in memory as the change does, the changed axis
        of a slab first. It may write to it.
        """
        if isinstance(change, Slab):
            return change.of(self.planes(change, function, *args))
        return self.derived(_elements_laid_out, change.strides, function, *args)[None]

    def planes(self, change: Slab, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """Return :meth:`elements` of all slabs, the changed axis first."""
        return self.derived(_planes_of_elements, change.dim, change.order, function, *args)


def planes_of(base: Tensor, dim: int, order: tuple[int, ...]) -> Tensor:
    """Return a copy with one axis first, the others in memory in some order."""
    planes = base.movedim(dim, 0)
    axes = (0, *(axis + 1 for axis in order))
    copy = planes.permute(axes).clone(memory_format=torch.contiguous_format)
    return copy.permute([axes.index(axis) for axis in range(planes.ndim)])


def channels_last(lanes: Tensor) -> Tensor:
    """Return lanes of images, (k, n, n_channels, *size), with the channels last in memory."""
    return lanes.movedim(2, -1).contiguous().movedim(-1, 2)


def _planes_of_elements(
    base: Tensor, dim: int, order: tuple[int, ...], function: Callable[..., Tensor], *args: Any
) -> Tensor:
    return function(planes_of(base, dim, order), *args)


def _elements_laid_out(
    base: Tensor, strides: tuple[int, ...], function: Callable[..., Tensor], *args: Any
) -> Tensor:
    strides = base.stride() if 0 in strides else strides
    copy = torch.empty_strided(base.shape, strides, dtype=base.dtype, device=base.device)
    return function(copy.copy_(base), *args)


def _planes(
    base: Tensor,
    dim: int,
    order: tuple[int, ...],
    function: Callable[..., Tensor] | None,
    *args: Any,
) -> Tensor:
    """Return a tensor with one axis first, so that a slab of it is one piece of memory."""
    tensor = base if function is None else function(base, *args)
    return planes_of(tensor, dim, order)


def _laid_out(
    base: Tensor, strides: tuple[int, ...], function: Callable[..., Tensor] | None, *args: Any
) -> Tensor:
    tensor = base if function is None else function(base, *args)
    if tensor.stride() == strides or 0 in strides:
        return tensor
    return torch.empty_strided(
        tensor.shape, strides, dtype=tensor.dtype, device=tensor.device
    ).copy_(tensor)
