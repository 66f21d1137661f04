"""In-place operations in a traced graph: features that are reused must not be overwritten."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

_NAMES = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul"),
    *("lshift", "rshift", "and_", "or_", "xor"),
)
_TWINS: dict[Any, Callable[..., Any]] = {
    getattr(operator, "i" + name.rstrip("_")): getattr(operator, name) for name in _NAMES
}

# Results that may share memory with their input: writing into one writes into the other.
_VIEWS = frozenset(
    """
    view view_as reshape reshape_as flatten unflatten t transpose permute movedim swapaxes
    squeeze unsqueeze expand expand_as chunk split unbind narrow select diagonal detach
    contiguous to float double T mT getitem getattr real imag unfold
    """.split()  # noqa: SIM905
)


class Untraceable(Exception):
    """A module has no graph that can be cut; the message says why."""


def functionalize(graph: fx.Graph, root: nn.Module) -> None:
    """Replace the in-place operations of a graph by twins that return a new tensor.

    `root` is the traced copy of the module, whose in-place activations are switched over.
    Raises `Untraceable` where a later node sees the value that an operation wrote.
    """
    order = {node: position for position, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if not _replace(node, root):
            continue
        written = node.args[0]
        if not isinstance(written, fx.Node) or _shares_memory(written):
            raise Untraceable(f"{node.name} writes in place into a view or an input")
        if any(order[user] > order[node] for user in _readers(written)):
            raise Untraceable(f"{node.name} writes in place into a value that is used again")


def _readers(node: fx.Node) -> set[fx.Node]:
    """Return the nodes that read a value, be it through a view of it."""
    readers = set(node.users)
    for user in node.users:
        if _shares_memory(user):
            readers |= _readers(user)
    return readers


def _shares_memory(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in ("placeholder", "get_attr") or (node.op != "call_module" and name in _VIEWS)


def _replace(node: fx.Node, root: nn.Module) -> bool:
    """Switch one node to its out-of-place twin; return whether it was in place."""
    if node.op == "call_module":
        return _replace_module(root.get_submodule(str(node.target)))
    if node.op == "call_method":
        return _replace_named(node, str(node.target), lambda twin: hasattr(Tensor, twin) and twin)
    if node.op != "call_function":
        return False
    if node.target is operator.setitem or "out" in node.kwargs:
        raise Untraceable(f"{node.name} writes in place into a part of a tensor")
    if node.target in _TWINS:
        node.target = _TWINS[node.target]
        return True
    return _replace_flag(node) or _replace_named(
        node,
        getattr(node.target, "__name__", ""),
        lambda twin: getattr(torch, twin, None) or getattr(F, twin, None),
    )


def _replace_module(module: nn.Module) -> bool:
    if getattr(module, "inplace", False) is not True:
        return False
    module.inplace = False  # type: ignore[assignment]
    return True


def _replace_flag(node: fx.Node) -> bool:
    """Handle ``relu(x, inplace=True)``, the flag by name or by position."""
    try:
        bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    except (TypeError, ValueError):  # a builtin without a signature has no such flag
        return False
    if bound.arguments.get("inplace") is not True:
        return False
    bound.arguments["inplace"] = False
    node.args, node.kwargs = bound.args, bound.kwargs
    return True


def _replace_named(node: fx.Node, name: str, find: Callable[[str], Any]) -> bool:
    """Handle ``relu_``: torch marks what writes in place by one underscore at the end."""
    if not name.endswith("_") or name.endswith("__"):
        return False
    twin = find(name[:-1])
    if not twin:
        raise Untraceable(f"{node.name} writes in place and has no other form")
    node.target = twin
    return True
