"""A rule against its operation: run at each lane's changed arguments, one after the other."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from zoestim.propagation import RULES, Dense, Entry, Site, Slab, Value

DOUBLE = torch.float64


def dense(base: Tensor, n_lanes: int, scale: float = 0.1, seed: int = 0) -> Value:
    """Return a value all of which changes."""
    generator = torch.Generator().manual_seed(seed)
    moves = torch.randn(n_lanes, *base.shape, dtype=base.dtype, generator=generator)
    return Value(base, Dense(scale * moves))


def slab(
    base: Tensor, dim: int, starts: list[int], width: int = 1, scale: float = 0.1, seed: int = 0
) -> Value:
    """Return a value of which lane k changes `[starts[k], starts[k] + width)` along an axis."""
    generator = torch.Generator().manual_seed(seed)
    rest = [size for axis, size in enumerate(base.shape) if axis != dim % base.ndim]
    moves = torch.randn(len(starts), width, *rest, dtype=base.dtype, generator=generator)
    return Value(base, Slab(scale * moves, torch.tensor(starts), dim % base.ndim))


def entry(parameter: Tensor, indices: list[int], step: float = 0.1) -> Value:
    """Return a parameter of which lane k moves one element."""
    steps = torch.full((len(indices),), step, dtype=parameter.dtype)
    return Value(parameter, Entry(torch.tensor(indices), steps))


def expected_changes(operation: Callable[..., Any], args: tuple, kwargs: dict[str, Any]) -> Any:
    """Return what the operation gives at each lane less what it gives at the base, stacked."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    moved = [leaf for leaf in leaves if isinstance(leaf, Value) and leaf.change is not None]
    n_lanes = len(moved[0].dense())

    def at(lane: int | None) -> Any:
        values = []
        for leaf in leaves:
            value = leaf.base if isinstance(leaf, Value) else leaf
            if lane is not None and isinstance(leaf, Value) and leaf.change is not None:
                value = value + leaf.dense()[lane]
            values.append(value)
        args, kwargs = pytree.tree_unflatten(values, spec)
        return operation(*args, **kwargs)

    base = at(None)
    lanes = [pytree.tree_map(lambda a, b: a - b, at(k), base) for k in range(n_lanes)]
    return base, pytree.tree_map(lambda *each: torch.stack(each), *lanes)


def check(operation: Any, *args: Any, **kwargs: Any) -> Any:
    """Compare the rule of an operation with the operation; return what the rule returned.

    Tensors among the arguments that the rule takes as Values are given as Values; a method is
    named by a string.
    """
    run = operation
    if isinstance(operation, str):
        run = lambda x, *rest, **named: getattr(x, operation)(*rest, **named)  # noqa: E731
    base, expected = expected_changes(run, args, kwargs)
    out = pytree.tree_map(Value, base)
    change = RULES[operation](Site(out, lambda function: function()), *args, **kwargs)
    assert change is not NotImplemented
    pytree.tree_map(_compare, change, expected, out)
    return change


def _compare(change: Any, expected: Tensor, out: Value) -> None:
    found = torch.zeros_like(expected) if change is None else change.dense(out.base.shape)
    torch.testing.assert_close(found.expand(expected.shape), expected, rtol=1e-9, atol=1e-12)
