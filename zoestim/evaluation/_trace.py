"""The graph of a module by ``torch.fx``, with opaque nodes for what cannot be traced."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import fx, nn

from zoestim.evaluation._black_box import BlackBox
from zoestim.evaluation._in_place import Untraceable, functionalize
from zoestim.evaluation._random import RandomState, unchanged_generators
from zoestim.evaluation._reorder import pool_before_cutting


class _Tracer(fx.Tracer):
    """A tracer that stops at black boxes and at submodules known to be untraceable."""

    # Arithmetic on buffers must stay in the graph: baked in, it would go stale.
    proxy_buffer_attributes = True

    def __init__(self, opaque: dict[str, str], device: torch.device):
        super().__init__()
        self.opaque = opaque
        self.device = device
        self.failed: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            isinstance(m, BlackBox)
            or module_qualified_name in self.opaque
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        before = RandomState.current(self.device)
        try:
            result = super().call_module(m, forward, args, kwargs)
            _refuse_draws(before)
        except Exception:
            # The innermost module that fails sees the exception first.
            self.failed = self.failed or self.path_of_module(m)
            raise
        return result


def trace(module: nn.Module) -> tuple[fx.Graph, nn.Module, dict[str, str]]:
    """Return the graph of a module, the traced copy, and why some submodules are opaque.

    The module itself is not touched: a copy is traced, since code in `forward` may store
    what it sees. Raises `Untraceable` when the module's own `forward` has no graph.
    """
    opaque: dict[str, str] = {}
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    while True:
        try:
            root = copy.deepcopy(module)
        except Exception as error:
            raise Untraceable(f"it cannot be copied ({error})") from error
        tracer = _Tracer(opaque, device)
        try:
            graph = _trace_purely(tracer, root)
        except Exception as error:
            if tracer.failed and tracer.failed not in opaque:
                opaque[tracer.failed] = _reason(error)
                continue
            if isinstance(error, Untraceable):
                raise
            raise Untraceable(_reason(error)) from error
        functionalize(graph, root)
        pool_before_cutting(graph, root)
        return graph, root, opaque


def whole() -> fx.Graph:
    """Return the graph of one node that runs the whole module."""
    graph = fx.Graph()
    graph.output(graph.call_module("", (graph.placeholder("x"),)))
    return graph


def _trace_purely(tracer: _Tracer, root: nn.Module) -> fx.Graph:
    """Trace, leaving the global generators alone."""
    parameters = list(inspect.signature(root.forward).parameters.values())
    defaults = {
        p.name: p.default for p in parameters[1:] if p.default is not inspect.Parameter.empty
    }
    with unchanged_generators(tracer.device):
        before = RandomState.current(tracer.device)
        graph = tracer.trace(root, concrete_args=defaults)
        _refuse_draws(before)
    return graph


def _refuse_draws(before: RandomState) -> None:
    """Refuse a graph into which a random draw was baked as a constant."""
    if RandomState.current(before.device) != before:
        raise Untraceable("it draws random numbers that do not depend on its input")


def _reason(error: Exception) -> str:
    if isinstance(error, Untraceable):
        return str(error)
    text = " ".join(str(error).split())
    return f"torch.fx could not trace it ({text if len(text) <= 160 else text[:157] + '...'})"
