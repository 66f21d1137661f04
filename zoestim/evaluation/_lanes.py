"""Operations without a rule: run at the changed values, all lanes at once or one by one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree as pytree

from zoestim.propagation import Lanes, Value

# An operation without a rule is run at base and changed values; in this type the difference
# of its results keeps its digits.
WIDER = {torch.float32: torch.float64, torch.complex64: torch.complex128}
Attempt = tuple[Callable[[Callable[[list[Any]], Any], list[Any]], Any], bool]


class Ways:
    """How operations without a rule are run at changed values, found by trying.

    Parameters
    ----------
    slow : dict from name to str
        Filled with the operations that are run one lane after the other, and why.
    """

    def __init__(self, slow: dict[str, str]):
        self.slow = slow
        self._left: dict[str, list[Attempt]] = {}

    def run(
        self,
        operation: Callable[[list[Any], bool], Any],
        leaves: list[Any],
        name: str,
        *,
        wide: bool = True,
        once: bool = False,
        expected: Any = None,
    ) -> tuple[Any, bool]:
        """Run an operation lane by lane, in the first way that works.

        Parameters
        ----------
        operation : callable
            Takes the leaves of one lane, and whether they are in a wider type.
        leaves : list
            Each :class:`Value` among them becomes a tensor; what else there is stays.
        name : str
            Whose ways these are.
        wide : bool, default=True
            Whether to try a wider type, in which the digits of a difference survive.
        once : bool, default=False
            Whether each run is paid for: then there is one try, and no lane but the queries.
            Otherwise the unperturbed values are the first lane, so that the rounding of the
            same kernels cancels.
        expected : tree of Value, optional
            What the first lane has to be: torch may draw other random numbers for a fold.

        Returns
        -------
        found : tree of Tensor
            What the operation returned, the lanes along a new first axis.
        wide : bool
            Whether that was in the wider type.
        """
        types = (True, False) if wide else (False,)
        ways: list[Attempt] = [(way, kind) for way in (_at_once, _one_by_one) for kind in types]
        left = self._left.setdefault(name, ways[:1] if once else ways)
        while True:
            mapper, is_wide = left[0]
            try:
                found = mapper(
                    lambda lanes: operation(lanes, is_wide),  # noqa: B023
                    [_stacked(leaf, is_wide, not once) for leaf in leaves],
                )
                if expected is not None:
                    pytree.tree_map(_check_first, found, expected)
                return found, is_wide
            except Exception as error:
                if len(left) == 1 or out_of_memory(error):
                    raise
                del left[0]
                if left[0][0] is _one_by_one:
                    self.slow.setdefault(name, in_brief(error))


def in_brief(reason: Exception | str) -> str:
    """Return the beginning of an error's text, in one line."""
    return " ".join(str(reason).split())[:160]


def out_of_memory(error: Exception) -> bool:
    """Return whether an error says that memory is full: torch has no type for it on a CPU."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error)


def widen(tensor: Tensor) -> Tensor:
    """Return a copy in the wider type of a tensor's, where it has one."""
    return tensor.to(WIDER.get(tensor.dtype, tensor.dtype), copy=True)


class _Stack:
    """What differs between lanes, lane by lane along the first axis."""

    def __init__(self, lanes: Tensor):
        self.lanes = lanes


def _stacked(leaf: Any, wide: bool, with_base: bool) -> Any:
    """Return a leaf as the operation takes it: a stack where it changes, else a tensor."""
    if not isinstance(leaf, Value):
        return leaf
    kind = WIDER.get(leaf.base.dtype, leaf.base.dtype) if wide else leaf.base.dtype
    base = leaf.base.to(kind)
    if leaf.change is None:
        return base
    own = isinstance(leaf.change, Lanes)
    lanes = leaf.change.values if own else base + leaf.dense().to(kind)
    return _Stack(torch.cat([base[None], lanes]) if with_base else lanes)


def _at_once(operation: Callable[[list[Any]], Any], leaves: list[Any]) -> Any:
    dims = [0 if isinstance(leaf, _Stack) else None for leaf in leaves]
    plain = [leaf.lanes if isinstance(leaf, _Stack) else leaf for leaf in leaves]
    with warnings.catch_warnings():
        # Torch warns where it would run a fold one by one: then so do we.
        warnings.filterwarnings("error", message="There is a performance drop")
        return vmap(lambda *lanes: operation(list(lanes)), tuple(dims), randomness="same")(*plain)


def _one_by_one(operation: Callable[[list[Any]], Any], leaves: list[Any]) -> Any:
    size = next(len(leaf.lanes) for leaf in leaves if isinstance(leaf, _Stack))
    results = [
        operation([leaf.lanes[k] if isinstance(leaf, _Stack) else leaf for leaf in leaves])
        for k in range(size)
    ]
    return pytree.tree_map(lambda *lanes: _joined(lanes), *results)


def _joined(lanes: tuple[Any, ...]) -> Any:
    if isinstance(lanes[0], Tensor):
        return torch.stack(lanes)
    if any(lane != lanes[0] for lane in lanes):
        raise TypeError(f"an operation gave {lanes[0]!r} in one query, another value in the next")
    return lanes[0]


def _check_first(lanes: Any, out: Any) -> None:
    if isinstance(lanes, Tensor):
        torch.testing.assert_close(lanes[0], out.base, rtol=1e-3, atol=1e-3, equal_nan=True)
