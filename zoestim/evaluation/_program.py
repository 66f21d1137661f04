"""Feature reuse, Eq. (4): run a module's graph once, then only what a parameter changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.node import map_arg
from torch.nn import functional as F
from torch.nn.modules.batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d

from zoestim.evaluation._black_box import BlackBox
from zoestim.evaluation._random import RandomState
from zoestim.propagation import draws_nothing, max_pool

_BATCH_NORMS = (BatchNorm1d, BatchNorm2d, BatchNorm3d)


class Known(NamedTuple):
    """What a node gave in a pass, for passes elsewhere that must not ask its black box again.

    Parameters
    ----------
    value : Any
        Its result.
    kept, tensors : dict from name to Tensor
        Its own tensors, by local name, as it found them, and by full name as it left them.
    """

    value: Any
    kept: dict[str, Tensor]
    tensors: dict[str, Tensor]


@dataclass
class Pass:
    """What one pass over the whole graph left behind, for the queries to start from.

    Attributes
    ----------
    values : dict from node to value
        The features: every node's result at the unperturbed parameters.
    tensors : dict from name to Tensor
        The parameters and buffers as the pass left them; the module's own are untouched.
    random : dict from node to RandomState
        The generators' states before each node that drew from them: queries draw the same.
    kept : dict from node to dict of Tensor
        The tensors as each node that writes to its own (running averages) found them.
    """

    values: dict[fx.Node, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    random: dict[fx.Node, RandomState] = field(default_factory=dict)
    kept: dict[fx.Node, dict[str, Tensor]] = field(default_factory=dict)

    @property
    def output(self) -> Any:
        """What the module returned."""
        return next(reversed(self.values.values()))


class Program:
    """A module as a graph whose parts can be run again on their own.

    Parameters
    ----------
    module : nn.Module
        The module; it is only read.
    graph : fx.Graph
        Its graph, without in-place operations.
    traced : nn.Module
        The copy that was traced: it holds the graph's constants and those activations
        whose in-place form was switched off.
    in_place : bool, default=False
        Whether modules run with parameters written into them, and put back, rather than
        swapped for a call: for modules that reach their parameters by other ways than
        their names.

    Attributes
    ----------
    tensors : dict from node to dict of str
        The tensors each node reads of the module: local name to first full name.
    """

    def __init__(
        self, module: nn.Module, graph: fx.Graph, traced: nn.Module, in_place: bool = False
    ):
        self.module = module
        self.in_place = in_place
        self.nodes = tuple(graph.nodes)
        self.traced = traced
        self._canonical = _first_names(module.named_parameters(remove_duplicate=False))
        self._canonical |= _first_names(module.named_buffers(remove_duplicate=False))
        self.tensors = {node: self._names_of(node) for node in self.nodes}
        self._buffers = frozenset(name for name, _ in module.named_buffers())
        self._boxes = {
            str(node.target): self._boxes_in(str(node.target))
            for node in self.nodes
            if node.op == "call_module"
        }
        self.has_boxes = any(self._boxes.values())
        self._dependents: dict[frozenset[str], tuple[fx.Node, ...]] = {}
        self.modules: dict[fx.Node, nn.Module] = {}
        self._schedules: dict[tuple[fx.Node, ...], Any] = {}

    def _names_of(self, node: fx.Node) -> dict[str, str]:
        """Return the tensors a node reads of the module: local name to first full name."""
        if node.op == "get_attr":
            name = str(node.target)
            return {name: self._canonical[name]} if name in self._canonical else {}
        if node.op != "call_module":
            return {}
        prefix, names = f"{node.target}." if node.target else "", {}
        # Each module once, whatever its names: a place can be given one tensor only.
        for path, owner in self.module.get_submodule(str(node.target)).named_modules():
            for attribute in (*owner._parameters, *owner._buffers):
                local = f"{path}.{attribute}" if path else attribute
                if prefix + local in self._canonical:
                    names[local] = self._canonical[prefix + local]
        return names

    def dependents(self, names: Iterable[str]) -> tuple[fx.Node, ...]:
        """Return, in order, the nodes whose value changes with the named parameters.

        What they read besides is the live set of the cut.
        """
        key = frozenset(names)
        if key not in self._dependents:
            changed: dict[fx.Node, None] = {}
            for node in self.nodes:
                reads = not key.isdisjoint(self.tensors[node].values())
                if reads or any(source in changed for source in node.all_input_nodes):
                    changed[node] = None
            self._dependents[key] = tuple(changed)
        return self._dependents[key]

    def schedule(self, names: Iterable[str]) -> tuple[tuple[fx.Node, tuple[fx.Node, ...]], ...]:
        """Return the dependents in order, each with those whose value nobody reads after it."""
        nodes = self.dependents(names)
        if nodes not in self._schedules:
            last_reader = {source: node for node in nodes for source in node.all_input_nodes}
            self._schedules[nodes] = tuple(
                (
                    node,
                    tuple(s for s in node.all_input_nodes if s in nodes and last_reader[s] is node),
                )
                for node in nodes
            )
        return self._schedules[nodes]

    def boxes(self, nodes: Iterable[fx.Node]) -> list[BlackBox]:
        """Return the black boxes that running some nodes asks."""
        if not self.has_boxes:
            return []
        asked = (str(node.target) for node in nodes if node.op == "call_module")
        return [box for target in asked for box in self._boxes[target]]

    def _boxes_in(self, target: str) -> list[BlackBox]:
        parts = self.module.get_submodule(target).modules()
        return [part for part in parts if isinstance(part, BlackBox)]

    def run(
        self,
        x: Tensor,
        known: Mapping[str, Known] | None = None,
        random: Mapping[str, RandomState] | None = None,
    ) -> Pass:
        """Run the whole graph at the module's own parameters.

        Parameters
        ----------
        x : Tensor
            The input.
        known : dict from node name to Known, optional
            What some nodes gave before, which are not run again.
        random : dict from node name to RandomState, optional
            The states of the generators before each node that drew then.
        """
        known, random = known or {}, random or {}
        own = [*self.module.named_parameters(), *self.module.named_buffers()]
        done = Pass(tensors={name: tensor.detach().clone() for name, tensor in own})
        state = None
        for node in self.nodes:
            if node.op == "placeholder":  # the second and further ones have a default
                done.values[node] = node.args[0] if node.args else x
                continue
            if node.name in known:
                done.values[node] = known[node.name].value
                if known[node.name].kept:
                    done.kept[node] = known[node.name].kept
                done.tensors |= known[node.name].tensors
                if node.name in random:
                    done.random[node] = random[node.name]
                continue
            if node.name in random:
                random[node.name].restore()
                state = None
            operation = type(self.submodule(node)) if node.op == "call_module" else node.target
            if node.op in ("get_attr", "output") or draws_nothing(operation):
                done.values[node] = self._run_first(node, done)
                continue
            before = state or RandomState.current(x.device)
            done.values[node] = self._run_first(node, done)
            state = RandomState.current(x.device)
            if state != before:
                done.random[node] = before
        return done

    def _run_first(self, node: fx.Node, done: Pass) -> Any:
        names = self.tensors[node]
        tensors = {local: done.tensors[name] for local, name in names.items()}
        if node.op == "get_attr":
            return next(iter(tensors.values())).clone() if tensors else self._constant(node)
        args, kwargs = _arguments(node, done.values, {})
        found = _copied(tensors, names)
        versions = _versions(tensors)
        result = self.call(node, tensors, args, kwargs, first=True)
        after = {names[local]: tensor for local, tensor in tensors.items()}
        replaced = any(after[name] is not done.tensors[name] for name in after)
        if replaced or _versions(tensors) != versions:
            done.kept[node] = found
            done.tensors |= after
        elif buffers := {local: t for local, t in found.items() if names[local] in self._buffers}:
            done.kept[node] = buffers  # a query may write where this pass did not
        return result

    def rerun(self, done: Pass, parameters: Mapping[str, Tensor]) -> Any:
        """Return the module's output at other values of some parameters.

        Only the nodes that depend on them are run; the rest is read from the pass. The
        same random numbers are drawn, and no buffer of the pass or the module changes.
        """
        values: dict[fx.Node, Any] = {}
        for node in self.dependents(parameters):
            if node in done.random:
                done.random[node].restore()
            tensors = {
                local: parameters[name]
                for local, name in self.tensors[node].items()
                if name in parameters
            }
            if node.op == "get_attr":
                values[node] = next(iter(tensors.values()))
                continue
            kept = _copied(done.kept.get(node, {}), self.tensors[node])
            args, kwargs = _arguments(node, done.values, values)
            values[node] = self.call(node, {**kept, **tensors}, args, kwargs)
        return values.get(self.nodes[-1], done.output)

    def call(
        self,
        node: fx.Node,
        tensors: dict[str, Tensor],
        args: Any,
        kwargs: Any,
        first: bool = False,
    ) -> Any:
        """Run one node, given the values of its tensors by local name."""
        if node.op == "output":
            return args[0]
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        module = self.submodule(node)
        own_code = node.target == "" or not type(module).__module__.startswith("torch.nn")
        if own_code and not isinstance(module, BlackBox):
            # Code of the user's may write to its input, which the next query needs.
            args = tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in args)
        if not first and _normalizes_by_batch(module) and not kwargs:
            return _batch_norm(module, tensors, *args)
        if type(module) is nn.MaxPool2d and len(args) == 1 and not kwargs:
            found = max_pool(module, args[0])
            if found is not None:
                return found
        if self.in_place:
            return call_in_place(module, tensors, args, kwargs)
        return _call_with(module, tensors, args, kwargs)

    def submodule(self, node: fx.Node) -> nn.Module:
        """Return the module that a node calls, never in place."""
        if node not in self.modules:
            traced = self.traced.get_submodule(str(node.target))
            own = self.module.get_submodule(str(node.target))
            self.modules[node] = traced if getattr(own, "inplace", False) else own
        return self.modules[node]

    def _constant(self, node: fx.Node) -> Any:
        path, _, attribute = str(node.target).rpartition(".")
        return getattr(self.traced.get_submodule(path), attribute)


def call_in_place(module: nn.Module, tensors: dict[str, Tensor], args: Any, kwargs: Any) -> Any:
    """Run a module with values written into its parameters, which come back bit for bit.

    Buffers are swapped for the call as ever. What the call writes is left in `tensors`.
    """
    own = {name: p.detach() for name, p in module.named_parameters()}
    before = {name: value.clone() for name, value in own.items()}
    # The values come back, so a graph of the caller's that holds them stays valid.
    with torch.autograd._unsafe_preserve_version_counter(tuple(own.values())):
        try:
            for name in own.keys() & tensors.keys():
                own[name].copy_(tensors[name])
            buffers = {name: tensor for name, tensor in tensors.items() if name not in own}
            result = _call_with(module, buffers, args, kwargs)
            moved = {n: own[n].clone() for n in own if n in tensors}
            changed = {n: value for n, value in moved.items() if not value.equal(tensors[n])}
            tensors.update({**buffers, **changed})
            return result
        finally:
            for name, value in before.items():
                own[name].copy_(value)


def _call_with(module: nn.Module, tensors: dict[str, Tensor], args: Any, kwargs: Any) -> Any:
    if not tensors:
        return module(*args, **kwargs)
    # Every place that holds a tensor is named, so there is nothing left to tie.
    return functional_call(module, tensors, args, kwargs, tie_weights=False)


def _first_names(named: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """Return, for each name of a tensor, the first name it goes by (weight tying)."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in named}


def _copied(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Return copies by local name; places that share a tensor share its copy."""
    copies = {names[local]: tensor.clone() for local, tensor in tensors.items()}
    return {local: copies[names[local]] for local in tensors}


def _arguments(
    node: fx.Node, features: Mapping[fx.Node, Any], changed: Mapping[fx.Node, Any]
) -> tuple[Any, Any]:
    def value(source: fx.Node) -> Any:
        return changed[source] if source in changed else features[source]

    return map_arg(node.args, value), map_arg(node.kwargs, value)


def _versions(value: Any) -> tuple[int, ...]:
    leaves = torch.utils._pytree.tree_leaves(value)
    return tuple(
        leaf._version for leaf in leaves if isinstance(leaf, Tensor) and not leaf.is_inference()
    )


def _normalizes_by_batch(module: nn.Module) -> bool:
    return (
        type(module) in _BATCH_NORMS
        and (module.training or module.running_mean is None)
        and not module._forward_hooks
        and not module._forward_pre_hooks
    )


def _batch_norm(module: nn.Module, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Normalise by the batch without touching the running statistics, as queries must."""
    weight = tensors.get("weight", module.weight)
    bias = tensors.get("bias", module.bias)
    return F.batch_norm(x, None, None, weight, bias, training=True, eps=module.eps)  # type: ignore[arg-type]
