"""The same graph somewhere else: on a module of another thread, process or device."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

from torch import fx, nn
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from zoestim.evaluation._program import Known, Pass, Program

Row = tuple[str, str, Any, Any, Any]


class Sent(NamedTuple):
    """A program on its way to another process, where nothing is traced.

    torch.fx patches ``nn.Module`` for all threads while it traces, and workers may have several.

    Parameters
    ----------
    rows : tuple of Row
        The nodes: name, operation, target, and arguments in which `_Name` stands for a node.
    traced : nn.Module
        Holds the graph's constants.
    in_place : bool
        See :class:`Program`.
    """

    rows: tuple[Row, ...]
    traced: nn.Module
    in_place: bool


class _Name(NamedTuple):
    name: str


def sent(program: Program) -> Sent:
    """Return a program in a form that can be pickled."""

    def named(node: fx.Node) -> Any:
        return _Name(node.name)

    rows = tuple(
        (n.name, n.op, n.target, map_arg(n.args, named), map_arg(n.kwargs, named))
        for n in program.nodes
    )
    return Sent(rows, program.traced, program.in_place)


def arrived(given: Sent, module: nn.Module) -> Program:
    """Return the program that was sent, on a module."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for name, op, target, args, kwargs in given.rows:
        args, kwargs = pytree.tree_map_only(
            _Name, lambda value: nodes[value.name], (args, kwargs), is_leaf=_is_name
        )
        nodes[name] = graph.create_node(op, target, args, kwargs, name)
    return Program(module, graph, given.traced, given.in_place)


def _is_name(value: Any) -> bool:
    return isinstance(value, _Name)


def apart(program: Program) -> Program:
    """Return the same graph on a module of its own, which shares the tensors.

    A call swaps parameters in the module: two threads need two modules.
    """
    other = copy.copy(program)
    other.module = copy.deepcopy(program.module) if program.in_place else _alias(program.module)
    other.modules = {}
    return other


def known_nodes(program: Program, done: Pass) -> dict[str, Known]:
    """Return what the nodes gave that ask black boxes."""
    known = {}
    for node in program.nodes:
        if program.boxes((node,)):
            kept, names = done.kept.get(node, {}), program.tensors[node]
            left = {names[local]: done.tensors[names[local]] for local in kept}
            known[node.name] = Known(done.values[node], kept, left)
    return known


def _alias(module: nn.Module) -> nn.Module:
    """Return a module that shares tensors and attributes, but not the places that hold them."""
    aliases: dict[int, nn.Module] = {}

    def alias(own: nn.Module) -> nn.Module:
        if id(own) not in aliases:
            other = aliases[id(own)] = own.__new__(type(own))
            for name, value in vars(own).items():
                place = isinstance(value, list | dict)
                other.__dict__[name] = copy.copy(value) if place else value
            other._modules = {n: m and alias(m) for n, m in own._modules.items()}
        return aliases[id(own)]

    return alias(module)
