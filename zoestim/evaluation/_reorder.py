"""A cheaper order of a graph's nodes: pool first, then cut off at zero what is left."""

from __future__ import annotations

import torch
from torch import fx, nn
from torch.nn import functional as F

# Functions that never decrease, bit for bit: the largest of their values is that of the largest.
_RISING = {nn.ReLU, nn.ReLU6, nn.Hardtanh, F.relu, F.relu6, F.hardtanh, torch.relu, "relu"}
_LARGEST = {
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, F.max_pool1d, F.max_pool2d, F.max_pool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, torch.max_pool2d),
}


def pool_before_cutting(graph: fx.Graph, root: nn.Module) -> None:
    """Exchange each ReLU whose one reader is a max pooling with that pooling.

    The outputs are the same, bit for bit, and the ReLU sees a quarter of the elements or less.
    """
    for pool in graph.nodes:
        if _kind(pool, root) not in _LARGEST or len(pool.all_input_nodes) != 1:
            continue
        (rise,) = pool.all_input_nodes
        if _kind(rise, root) in _RISING and len(rise.users) == 1 and not _wants_indices(pool, root):
            _exchange(rise, pool)


def _kind(node: fx.Node, root: nn.Module) -> object:
    """Return what a node does: the type of its module, its function, or its method's name."""
    if node.op != "call_module":
        return node.target if node.op in ("call_function", "call_method") else None
    module = root.get_submodule(str(node.target))
    return None if module._forward_hooks or module._forward_pre_hooks else type(module)


def _wants_indices(pool: fx.Node, root: nn.Module) -> bool:
    if pool.op == "call_module":
        return bool(getattr(root.get_submodule(str(pool.target)), "return_indices", False))
    return len(pool.args) > 6 or bool(pool.kwargs.get("return_indices", False))


def _exchange(first: fx.Node, second: fx.Node) -> None:
    """Let the second operation run on the first one's input, and the first on its result."""
    if not (first.args and second.args):
        return
    operations = [(n.op, n.target, n.args[1:], n.kwargs) for n in (second, first)]
    for node, (op, target, rest, kwargs) in zip((first, second), operations, strict=True):
        node.op, node.target, node.kwargs = op, target, kwargs
        node.args = (node.args[0], *rest)
    first.name, second.name = second.name, first.name
