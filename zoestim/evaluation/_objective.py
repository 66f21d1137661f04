"""The function that is minimised: a module, a criterion, and what of it can be reused."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from zoestim.evaluation._black_box import BlackBox
from zoestim.evaluation._in_place import Untraceable
from zoestim.evaluation._loss import BatchLoss
from zoestim.evaluation._parameters import ParameterMap
from zoestim.evaluation._program import OverwrittenFeature, Pass, Program
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


@dataclass(frozen=True)
class Batch:
    """One mini-batch.

    Parameters
    ----------
    X : Tensor of shape (n, ...)
        The inputs.
    y : Tensor of shape (n, ...)
        The targets.
    weight : Tensor of shape (n,) or None
        The sample weights.
    label : str
        What error messages call the batch.
    """

    X: Tensor
    y: Tensor
    weight: Tensor | None = None
    label: str = "the batch"

    @property
    def target(self) -> Any:
        """The targets as :class:`BatchLoss` takes them."""
        return self.y if self.weight is None else (self.y, self.weight)


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
    unfolded : dict from parameter names to str
        Parameters whose queries run one by one rather than many in one batch, and why.
    """

    active: bool = True
    reason: str = ""
    opaque: dict[str, str] = field(default_factory=dict)
    unfolded: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.active


class Objective:
    """The loss of a module on a batch, at its own parameters and at perturbed ones.

    Parameters
    ----------
    module : nn.Module
        Only read: neither its parameters nor its buffers change.
    criterion : callable
        See :class:`BatchLoss`.
    feature_reuse : bool, default=True
        Whether to cut the module's graph, Eq. (4). False runs the whole module each time.
    check_outputs : callable, optional
        ``(outputs, batch)``; raises if the outputs cannot be what the criterion needs.

    Attributes
    ----------
    parameters : ParameterMap
        The flat coordinates of the trainable parameters.
    reuse : FeatureReuse
        What is reused; complete after the first batch.
    """

    def __init__(
        self,
        module: nn.Module,
        criterion: Callable[[Any, Any], Any],
        *,
        feature_reuse: bool = True,
        check_outputs: Callable[[Any, Batch], None] | None = None,
    ):
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"module is a {type(module).__name__}, whose parameters cannot be replaced for a "
                "query; expected a plain torch.nn.Module. Pass the one it was made from."
            )
        self.module = module
        self.loss = criterion if isinstance(criterion, BatchLoss) else BatchLoss(criterion)
        self.parameters = ParameterMap.of(module)
        self.feature_reuse = feature_reuse
        self.reuse = FeatureReuse()
        self.foldable: dict[tuple[str, ...], bool] = {}
        self._check_outputs = check_outputs
        self._program: Program | None = None

    def theta(self) -> dict[str, Tensor]:
        """Return the trainable parameters by name, without their graphs."""
        named = dict(self.module.named_parameters())
        return {name: named[name].detach() for name in self.parameters.names}

    def theta_copy(self) -> dict[str, Tensor]:
        """Return copies of the trainable parameters by name."""
        return {name: value.clone() for name, value in self.theta().items()}

    def write_gradient(self, flat: Tensor) -> None:
        """Write a flat gradient of size d to the parameters' ``.grad``."""
        named = dict(self.module.named_parameters())
        for name, value in self.parameters.split(flat).items():
            named[name].grad = value.to(named[name])

    @torch.no_grad()
    def keep_buffers(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the buffers of a training forward, as running statistics, to the module."""
        for name, buffer in self.module.named_buffers():
            buffer.copy_(tensors[name])

    def base(self, batch: Batch) -> tuple[Program, Pass]:
        """Run the whole graph once, at the module's own parameters."""
        program = self._program or self._cut(batch)
        try:
            done = program.run(batch.X.clone())  # a node may write to its input
        except OverwrittenFeature as error:
            reason = f"some operation writes in place into {error}"
            self._program = program = self._give_up(reason)
            done = program.run(batch.X.clone())
        if self._check_outputs is not None:
            self._check_outputs(done.output, batch)
        return program, done

    def _cut(self, batch: Batch) -> Program:
        """Trace the module and prove on the first batch that its graph is the module."""
        if not self.feature_reuse:
            self.reuse = FeatureReuse(False, "feature_reuse=False")
            self._program = self._whole()
            return self._program
        if isinstance(self.module, BlackBox):
            self.reuse = FeatureReuse(False, "the whole module is a black box")
            self._program = self._whole()
            return self._program
        try:
            graph, traced, opaque = trace(self.module)
            program = Program(self.module, graph, traced)
            self.reuse = FeatureReuse(opaque=opaque)
            if not any(isinstance(m, BlackBox) for m in self.module.modules()):
                self._prove(program, batch.X)
            elif self.module._forward_hooks or self.module._forward_pre_hooks:
                raise Untraceable("its own hooks are no part of its graph")
        except Untraceable as error:
            program = self._give_up(str(error))
        self._program = program
        for name, reason in self.reuse.opaque.items():
            warnings.warn(
                f"Cannot reuse features inside {name}: {reason}. "
                "It runs as one node; set feature_reuse=False to silence this.",
                FeatureReuseWarning,
                stacklevel=2,
            )
        return program

    def _prove(self, program: Program, x: Tensor) -> None:
        """Compare the graph with the module; an eager forward is the judge."""
        state = RandomState.current(x.device)
        own = [*self.module.named_parameters(), *self.module.named_buffers()]
        copies = {name: tensor.clone() for name, tensor in own}
        expected = functional_call(self.module, copies, (x.clone(),))
        state.restore()
        try:
            found = program.run(x.clone())
        except OverwrittenFeature as error:
            raise Untraceable(f"some operation writes in place into {error}") from error
        except Exception as error:
            raise Untraceable(f"its graph does not run ({error})") from error
        state.restore()
        if not _equal(found.output, expected):
            raise Untraceable("its graph gives other outputs than its forward")
        if not all(_equal(found.tensors[name], copy) for name, copy in copies.items()):
            raise Untraceable("its graph leaves out what its forward writes to a buffer")

    def _whole(self) -> Program:
        return Program(self.module, whole(), self.module)

    def _give_up(self, reason: str) -> Program:
        name = type(self.module).__name__
        self.reuse = FeatureReuse(False, reason)
        warnings.warn(
            f"Cannot reuse features of {name}: {reason}. Every query runs the whole forward "
            "pass; set feature_reuse=False to silence this.",
            FeatureReuseWarning,
            stacklevel=2,
        )
        return self._whole()


def _equal(found: Any, expected: Any) -> bool:
    ours, theirs = pytree.tree_leaves(found), pytree.tree_leaves(expected)
    return len(ours) == len(theirs) and all(
        torch.equal(torch.nan_to_num(a), torch.nan_to_num(b)) if isinstance(a, Tensor) else a == b
        for a, b in zip(ours, theirs, strict=True)
    )
