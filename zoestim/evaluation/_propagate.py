"""Carry the changes of a fold through a graph: by rules, or by the operations themselves."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from zoestim.evaluation._lanes import Ways
from zoestim.evaluation._program import Pass, Program
from zoestim.propagation import (
    Call,
    Change,
    Dense,
    Entry,
    Lanes,
    Site,
    Value,
    addresses,
    joined,
    lower,
    nbytes,
    rule_of,
    settled,
)

Schedule = tuple[tuple[fx.Node, tuple[fx.Node, ...]], ...]


class Fold(NamedTuple):
    """In which pieces the lanes of a fold go through the first nodes.

    Parameters
    ----------
    pieces : tuple of int
        How many lanes each has.
    cut : int
        How many nodes they go through on their own. Behind these nodes, where changes are
        small, the lanes go together.
    """

    pieces: tuple[int, ...]
    cut: int


class Visit(NamedTuple):
    """What became of a change at one node.

    Parameters
    ----------
    name : str
        The module's name, or that of the node.
    shape : tuple of int
        The shape of its result, or of the first of them.
    kind : type or None
        That of the change of its result, or of the first of them.
    width, dim : int or None
        Of a slab, how many positions change, and along which axis.
    by_rule : bool
        Whether a rule gave it, rather than the operation itself at the changed values.
    nbytes : int
        How many bytes it takes.
    alive : int
        How many bytes all changes take that are still to be read, this one among them.
    """

    name: str
    shape: tuple[int, ...]
    kind: type | None
    width: int | None
    dim: int | None
    by_rule: bool
    nbytes: int
    alive: int


class Propagation:
    """The queries on one batch, a fold at a time.

    Parameters
    ----------
    program : Program
        The graph.
    done : Pass
        What its unperturbed pass left behind.
    ways : Ways
        How operations without a rule have been found to run.
    matrix_type : torch.dtype or None
        The type in which matrix units multiply changes; None for their own.
    """

    def __init__(
        self, program: Program, done: Pass, ways: Ways, matrix_type: torch.dtype | None = None
    ):
        self.program = program
        self.done = done
        self.ways = ways
        self.matrix_type = matrix_type
        own = {name: p.detach() for name, p in program.module.named_parameters()}
        self._tensors = {name: Value(tensor) for name, tensor in (done.tensors | own).items()}
        self._own: dict[fx.Node, dict[str, Value]] = {}
        self._features: dict[fx.Node, Any] = {}
        self.visits: list[Visit] | None = None  # filled if set to a list
        self._ran: set[fx.Node] = set()  # the nodes that have been run at changed values
        self._shared: set[int] = set()  # the memory of changes that several nodes read

    def run(self, changes: Mapping[str, Entry | Dense], fold: Fold | None = None) -> Any:
        """Return the module's output, each tensor in it as a :class:`Value`.

        Parameters
        ----------
        changes : dict from parameter name to Entry or Dense
            What each lane adds to the parameters.
        fold : Fold, optional
            In which pieces to go through the first nodes; by default in one.
        """
        self._ran = set()
        schedule = self.program.schedule(changes)
        moved: dict[fx.Node, Any] = {}
        if fold is not None and len(fold.pieces) > 1:
            parts, at = [], 0
            for size in fold.pieces:
                piece = {n: c.lanes(slice(at, at + size)) for n, c in changes.items()}
                parts.append(self._through(schedule[: fold.cut], piece, {}))
                at += size
            moved = {n: joined([part[n] for part in parts], fold.pieces) for n in parts[0]}
            schedule = schedule[fold.cut :]
        moved = self._through(schedule, changes, moved)
        last = self.program.nodes[-1]
        return moved[last] if last in moved else self._feature(last)

    def _through(
        self, schedule: Schedule, changes: Mapping[str, Change], moved: dict[fx.Node, Any]
    ) -> dict[fx.Node, Any]:
        """Run some nodes and return the values that are still to be read."""
        tensors = {name: self._tensors[name].changed(change) for name, change in changes.items()}
        self._shared = {address for value in tensors.values() for address in addresses(value)}
        for node, value in moved.items():
            self._share(node, value)
        for node, done_with in schedule:
            moved[node] = self._share(node, self._result(node, moved, tensors))
            if self.visits is not None:
                self.visits.append(self._visit(node, moved))
            for source in done_with:
                del moved[source]
        return moved

    def _visit(self, node: fx.Node, moved: Mapping[fx.Node, Any]) -> Visit:
        sizes = {n: sum(map(nbytes, pytree.tree_leaves(value))) for n, value in moved.items()}
        values = [v for v in pytree.tree_leaves(moved[node]) if isinstance(v, Value)]
        first = values[0] if values else Value(torch.empty(0))
        name = str(node.target) if node.op == "call_module" else node.name
        ruled = node not in self._ran and node.op not in ("get_attr", "output")
        kind = None if first.change is None else type(first.change)
        form = (kind, getattr(first.change, "width", None), getattr(first.change, "dim", None))
        shape, alive = tuple(first.base.shape), sum(sizes.values())
        if node.op == "output":  # a criterion may ask for all that a rank-one change says
            alive = max(alive, sum(v.base.nbytes for v in values if v.change is not None))
        return Visit(name, shape, *form, ruled, sizes[node], alive)

    def _share(self, node: fx.Node, value: Any) -> Any:
        """Protect what several nodes read from being written to."""
        if len(node.users) > 1:
            value = pytree.tree_map_only(Value, settled, value)
            for leaf in pytree.tree_leaves(value):
                self._shared |= set(addresses(leaf))
        return value

    def _feature(self, node: fx.Node) -> Any:
        """Return the unperturbed result of a node, each tensor in it as a Value."""
        if node not in self._features:
            self._features[node] = pytree.tree_map_only(Tensor, Value, self.done.values[node])
        return self._features[node]

    def _result(
        self, node: fx.Node, moved: Mapping[fx.Node, Any], changed: Mapping[str, Value]
    ) -> Any:
        tensors = self._tensors_of(node, changed)
        if node.op == "get_attr":
            return next(iter(tensors.values()))

        def value(source: fx.Node) -> Any:
            return moved[source] if source in moved else self._feature(source)

        args, kwargs = map_arg(node.args, value), map_arg(node.kwargs, value)
        if node.op == "output":
            return args[0]
        if node.target is operator.getitem and not isinstance(args[0], Value):
            return args[0][args[1]]  # type: ignore[index]
        sources = [moved[source] for source in node.all_input_nodes if source in moved]
        changes = [change for v in (*sources, *tensors.values()) for change in _changes(v)]
        out = self._feature(node)
        if not changes:
            return out
        if not any(isinstance(change, Lanes) for change in changes):
            change = self._by_rule(node, out, self._lowered(node, args, kwargs, tensors))
            if change is not NotImplemented:
                return _with_changes(out, change)
        return self._by_lanes(node, out, tensors, args, kwargs)

    def _tensors_of(self, node: fx.Node, changed: Mapping[str, Value]) -> dict[str, Value]:
        """Return the parameters and buffers that a node reads, by local name."""
        names = self.program.tensors[node]
        if node not in self._own:
            self._own[node] = {local: self._tensors[name] for local, name in names.items()}
        if changed.keys().isdisjoint(names.values()):
            return self._own[node]
        return {local: changed.get(name, self._tensors[name]) for local, name in names.items()}

    def _lowered(self, node: fx.Node, args: Any, kwargs: Any, tensors: Any) -> Call | None:
        if node.op != "call_module":
            return Call(node.target, args, kwargs)  # type: ignore[arg-type]
        if kwargs or len(args) != 1 or not isinstance(args[0], Value):
            return None
        return lower(self.program.submodule(node), args[0], tensors)

    def _by_rule(self, node: fx.Node, out: Any, call: Call | None) -> Any:
        rule = None if call is None else rule_of(call)
        if rule is None:
            return NotImplemented

        def replay(function: Callable[[], Any]) -> Any:
            if node in self.done.random:
                self.done.random[node].restore()
            return function()

        return rule(Site(out, replay, self.matrix_type, self._shared), *call.args, **call.kwargs)  # type: ignore[union-attr]

    def _by_lanes(self, node: fx.Node, out: Any, tensors: Any, args: Any, kwargs: Any) -> Any:
        """Run the operation itself at the changed values, and subtract what it gave before."""
        self._ran.add(node)
        kept = self.done.kept.get(node, {})
        kept = {local: kept[local] for local in kept if tensors[local].change is None}
        leaves, spec = pytree.tree_flatten((tensors, args, kwargs))
        asks_box = bool(self.program.boxes((node,)))

        def operation(lanes: list[Any], wide: bool) -> Any:
            tensors, args, kwargs = pytree.tree_unflatten(lanes, spec)
            found = {local: tensor.clone().to(tensors[local]) for local, tensor in kept.items()}
            if node in self.done.random:
                self.done.random[node].restore()
            return self.program.call(node, {**tensors, **found}, args, kwargs)

        whole = node.target == ""  # a wider type would double the work of all of it
        wide = not (asks_box or whole or node in self.done.random)  # draws depend on the type
        name = str(node.target) if node.op == "call_module" else node.name
        expected = out if node in self.done.random and not asks_box else None
        found, wide = self.ways.run(
            operation, leaves, name, wide=wide, once=asks_box, expected=expected
        )
        stretch = 1.0 if wide else _stretch(leaves)
        return pytree.tree_map(lambda f, o: _difference(f, o, asks_box, stretch), found, out)


def _changes(value: Any) -> list[Any]:
    """Return the changes of a value, or of those in a tree."""
    leaves = [value] if isinstance(value, Value) else pytree.tree_leaves(value)
    return [v.change for v in leaves if isinstance(v, Value) and v.change is not None]


def _stretch(leaves: list[Any]) -> Tensor | float:
    """Return by how much the steps of a parameter are longer than what is left of them."""
    for leaf in leaves:
        if isinstance(leaf, Value) and isinstance(leaf.change, Entry):
            return leaf.change.stretch(leaf.base)
    return 1.0


def _difference(lanes: Any, out: Any, without_base: bool, stretch: Tensor | float) -> Any:
    if not isinstance(lanes, Tensor):
        return out
    if not (lanes.is_floating_point() or lanes.is_complex()):
        return out.changed(Lanes(lanes if without_base else lanes[1:]))
    change = lanes - out.base if without_base else lanes[1:] - lanes[0]
    if isinstance(stretch, Tensor):
        change = change * stretch.view(-1, *[1] * (change.ndim - 1))
    return out.changed(Dense(change.to(out.base.dtype)))


def _with_changes(out: Any, change: Any) -> Any:
    if change is None:
        return out
    if isinstance(out, Value):
        return out.changed(change)
    return type(out)(value.changed(each) for value, each in zip(out, change, strict=True))
