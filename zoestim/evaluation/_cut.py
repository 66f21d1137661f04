"""Feature reuse, Eq. (4): cut a module's graph, prove that it is the module, or say why not."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from zoestim.evaluation._black_box import BlackBox
from zoestim.evaluation._in_place import Untraceable
from zoestim.evaluation._program import Program, call_in_place
from zoestim.evaluation._random import RandomState
from zoestim.evaluation._trace import trace, whole


class FeatureReuseWarning(UserWarning):
    """Some part of a module has no graph, so that queries run more of it than they need.

    Examples
    --------
    >>> import warnings
    >>> from zoestim import FeatureReuseWarning
    >>> warnings.simplefilter("ignore", FeatureReuseWarning)  # slower queries are fine
    """


@dataclass
class FeatureReuse:
    """What a fit reused between queries, Eq. (4), or why it could not.

    Attributes
    ----------
    active : bool
        Whether a query runs only what its parameter changes. Also the truth value.
    reason : str
        Why not, where it is not active.
    opaque : dict from module name to str
        Submodules that count as one node each, and why torch.fx could not trace them.
    unfolded : dict from name to str
        What runs one query at a time rather than many in one batch, and why: modules, the
        criterion, or parameters all of whose queries do.
    """

    active: bool = True
    reason: str = ""
    opaque: dict[str, str] = field(default_factory=dict)
    unfolded: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.active


def cut(module: nn.Module, x: Tensor, feature_reuse: bool) -> tuple[Program, FeatureReuse]:
    """Return the program of a module and what of it is reused.

    The module is asked a few times on `x` to prove the program, unless it holds a black
    box, which somebody may be paid for.
    """
    if isinstance(module, BlackBox):
        reason = "the whole module is a black box"
        return Program(module, whole(), module), FeatureReuse(False, reason)
    if not feature_reuse:
        program = Program(module, whole(), module, in_place=True)
        return program, FeatureReuse(False, "feature_reuse=False")
    try:
        program, opaque = _cut_graph(module, x)
    except Untraceable as error:
        _warn(f"of {type(module).__name__}: {error}. Every query runs the whole forward pass")
        return _uncut(module, x), FeatureReuse(False, str(error))
    for name, reason in opaque.items():
        _warn(f"inside {name}: {reason}. It runs as one node")
    return program, FeatureReuse(opaque=opaque)


def _cut_graph(module: nn.Module, x: Tensor) -> tuple[Program, dict[str, str]]:
    graph, traced, opaque = trace(module)
    for parameter in traced.parameters():  # of the copy, constants alone are ever read
        parameter.data = parameter.data.new_empty(0)
    program = Program(module, graph, traced)
    if not has_boxes(module):
        prove(program, x)
    elif module._forward_hooks or module._forward_pre_hooks:
        raise Untraceable("its own hooks are no part of its graph")
    return program, opaque


def _uncut(module: nn.Module, x: Tensor) -> Program:
    """Return the program that runs the whole module: folded only if that is proven."""
    program = Program(module, whole(), module)
    if not has_boxes(module):
        with contextlib.suppress(Untraceable):
            prove(program, x)
            return program
    return Program(module, whole(), module, in_place=True)


def _warn(what: str) -> None:
    warnings.warn(
        f"Cannot reuse features {what}; set feature_reuse=False to silence this.",
        FeatureReuseWarning,
        stacklevel=2,
    )


def has_boxes(module: nn.Module) -> bool:
    """Return whether a module asks a black box, which may be paid for: nothing is tried on it."""
    return any(isinstance(part, BlackBox) for part in module.modules())


def prove(program: Program, x: Tensor) -> None:
    """Compare a program with its module run in place, here and at moved parameters.

    The second comparison finds the parameters that a graph took for constants. Raises
    `Untraceable` where they differ.
    """
    module, state = program.module, RandomState.current(x.device)
    here = {name: p.detach().clone() for name, p in module.named_parameters()}
    moved = {name: value + 0.01 * (1 + value.abs()) for name, value in here.items()}
    # The module first: an error of its own is raised as it is.
    expected, buffers = _run_in_place(module, here, x)
    state.restore()
    try:
        done = program.run(x.clone())
        elsewhere = program.rerun(done, moved)
    except Exception as error:
        raise Untraceable(f"its graph does not run ({error})") from error
    state.restore()
    if not _equal(done.output, expected):
        raise Untraceable("its graph gives other outputs than its forward")
    if not all(_equal(done.tensors[name], buffer) for name, buffer in buffers.items()):
        raise Untraceable("its graph leaves out what its forward writes to a buffer")
    if not _equal(elsewhere, _run_in_place(module, moved, x)[0]):
        raise Untraceable("its graph takes parameters for constants")
    state.restore()


def _run_in_place(
    module: nn.Module, parameters: dict[str, Tensor], x: Tensor
) -> tuple[Any, dict[str, Tensor]]:
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    tensors = {**parameters, **buffers}
    outputs = call_in_place(module, tensors, (x.clone(),), {})
    return outputs, {name: tensors[name] for name in buffers}


def _equal(found: Any, expected: Any) -> bool:
    """Compare up to rounding, in which two runs on a GPU or two kernels may differ."""
    ours, theirs = pytree.tree_leaves(found), pytree.tree_leaves(expected)
    return len(ours) == len(theirs) and all(
        _close(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(np.all(a == b))
        for a, b in zip(ours, theirs, strict=True)
    )


def _close(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    tolerance = 0.0
    if found.is_floating_point() and found.numel():
        finite = torch.nan_to_num(expected, posinf=0.0, neginf=0.0)
        tolerance = 256 * torch.finfo(found.dtype).eps * float(finite.abs().max())
    return bool(torch.isclose(found, expected, rtol=0, atol=tolerance, equal_nan=True).all())
