"""The table of rules: for each operation, what becomes of a change that reaches it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from zoestim.propagation._change import Value
from zoestim.propagation._lowering import Call

Rule = Callable[..., Any]
RULES: dict[Any, Rule] = {}


@dataclass(frozen=True)
class Site:
    """Where a rule is applied.

    Attributes
    ----------
    out : Value, or a tuple of Value
        What the operation gave in the unperturbed pass.
    replay : callable
        ``replay(function)`` calls it with the random numbers that the operation drew.
    matrix_type : torch.dtype or None
        The type in which matrix units multiply changes; None for their own.
    shared : set of int, optional
        The addresses of memory that other operations still read; None where all of it may be.
    """

    out: Any
    replay: Callable[[Callable[[], Any]], Any]
    matrix_type: torch.dtype | None = None
    shared: frozenset[int] | set[int] | None = None

    def may_overwrite(self, values: Tensor) -> bool:
        """Return whether nobody else reads the memory of a change: it may be written to."""
        memory = values.untyped_storage()
        whole = memory.nbytes() == values.numel() * values.element_size()
        return self.shared is not None and whole and memory.data_ptr() not in self.shared

    def multiply(self, product: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
        """Return a product that is linear in both tensors, by the matrix units."""
        if self.matrix_type is None:
            return product(a, b)
        return product(a.to(self.matrix_type), b.to(self.matrix_type)).to(a.dtype)


def rule(*operations: Any) -> Callable[[Rule], Rule]:
    """Enter a rule into the table for functions, and for methods of Tensor by their names.

    A rule is called as its operation is, with the :class:`Site` before the arguments and a
    :class:`Value` for each tensor. It returns the change of the result (for a tuple of
    tensors, a tuple of changes), None where nothing changes, or NotImplemented where it
    does not cover the case; the operation itself is then run, lane by lane.
    """

    def enter(function: Rule) -> Rule:
        for operation in operations:
            if operation in RULES:
                raise ValueError(f"{operation} has a rule already: {RULES[operation].__name__}.")
            RULES[operation] = function
        return function

    return enter


def rule_of(call: Call) -> Rule | None:
    """Return the rule of a call, if there is one that takes all its keywords."""
    found = RULES.get(call.function)
    if found is None or not call.kwargs:
        return found
    names, takes_all = _keywords(found)
    return found if takes_all or call.kwargs.keys() <= names else None


@cache
def _keywords(found: Rule) -> tuple[frozenset[str], bool]:
    taken = inspect.signature(found).parameters
    return frozenset(taken), any(p.kind is p.VAR_KEYWORD for p in taken.values())


def moves(*values: Any) -> int:
    """Return how many of some arguments change."""
    return sum(isinstance(value, Value) and value.change is not None for value in values)
