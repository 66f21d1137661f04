"""The function that is minimised: a module, a criterion, and what of it can be reused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from zoestim.evaluation._cost import Cost
from zoestim.evaluation._cut import FeatureReuse, cut, has_boxes, prove
from zoestim.evaluation._in_place import Untraceable
from zoestim.evaluation._lanes import Ways, widen
from zoestim.evaluation._loss import BatchLoss
from zoestim.evaluation._parameters import ParameterMap
from zoestim.evaluation._program import Known, Pass, Program


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

    def compact(self) -> Batch:
        """Return the batch without what else its tensors' memory holds, to be sent."""
        weight = None if self.weight is None else self.weight.clone()
        return Batch(self.X.clone(), self.y.clone(), weight, self.label)

    def to(self, device: torch.device) -> Batch:
        """Return the batch on a device."""
        weight = None if self.weight is None else self.weight.to(device)
        return Batch(self.X.to(device), self.y.to(device), weight, self.label)

    @property
    def target(self) -> Any:
        """The targets as :class:`BatchLoss` takes them."""
        return self.y if self.weight is None else (self.y, self.weight)


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
    matrix_type : torch.dtype, optional
        The type in which matrix units multiply the changes of queries; by default their own.
    memory_budget : int, optional
        How many bytes folds may take; by default a quarter of what is free on the device.
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
        matrix_type: torch.dtype | None = None,
        memory_budget: int | None = None,
        check_outputs: Callable[[Any, Batch], None] | None = None,
    ):
        if isinstance(module, torch.jit.ScriptModule | nn.DataParallel):
            raise TypeError(
                f"module is a {type(module).__name__}, whose parameters cannot be replaced for a "
                "query; expected a plain torch.nn.Module. Pass the one that it was made from."
            )
        self.module = module
        self.loss = criterion if isinstance(criterion, BatchLoss) else BatchLoss(criterion)
        self.parameters = ParameterMap.of(module)
        self.feature_reuse = feature_reuse
        self.matrix_type = matrix_type
        self.memory_budget = memory_budget
        self.reuse = FeatureReuse()
        self.foldable: dict[tuple[str, ...], bool] = {}
        self.costs: dict[Any, Cost] = {}
        self.proven: set[tuple[str, ...]] = set()
        self.ways = Ways({})
        self._check_outputs = check_outputs
        self._program: Program | None = None
        self._doubted = False

    def refresh(self) -> bool:
        """Follow `requires_grad`, which a callback may have switched; return whether it was."""
        parameters = ParameterMap.of(self.module)
        changed = parameters.names != self.parameters.names
        if changed:
            self.parameters = parameters
        return changed

    def theta(self) -> dict[str, Tensor]:
        """Return the trainable parameters by name, without their graphs."""
        named = dict(self.module.named_parameters())
        return {name: named[name].detach() for name in self.parameters.names}

    def theta_copy(self) -> dict[str, Tensor]:
        """Return copies of the trainable parameters by name."""
        return {name: value.clone() for name, value in self.theta().items()}

    def write_gradient(self, flat: Tensor) -> None:
        """Write a flat gradient of size d to the parameters' ``.grad``."""
        self.parameters.write_gradient(self.module, flat)

    @torch.no_grad()
    def keep_buffers(self, tensors: Mapping[str, Tensor]) -> None:
        """Write the buffers of a training forward, as running statistics, to the module."""
        for name, buffer in self.module.named_buffers():
            if not buffer.equal(tensors[name]):
                buffer.copy_(tensors[name])

    def __getstate__(self) -> dict[str, Any]:
        # A worker has the graph from elsewhere.
        return {**vars(self), "_program": None, "_check_outputs": None, "costs": {}}

    def prepare(self, batch: Batch) -> Program:
        """Return the program, cut anew if the graph is no longer the module's; no box is asked."""
        program, doubted = self._program, self._doubted
        self._doubted = False
        if program is not None and doubted:
            try:
                prove(program, batch.X)
            except Untraceable:
                program = None
        if program is None:
            program, self.reuse = cut(self.module, batch.X, self.feature_reuse)
            self.ways = Ways(self.reuse.unfolded)
            self.foldable, self.costs, self.proven = {}, {}, set()  # they were another graph's
            self._program = program
        return program

    def base(self, batch: Batch, known: Mapping[str, Known] | None = None) -> tuple[Program, Pass]:
        """Run the whole graph once, at the module's own parameters.

        Parameters
        ----------
        batch : Batch
            The data.
        known : dict from node name to Known, optional
            What black boxes gave in a pass elsewhere.
        """
        program = self.prepare(batch)
        done = program.run(batch.X.clone(), known)  # a node may write to its input
        if self._check_outputs is not None:
            self._check_outputs(done.output, batch)
        return program, done

    def batch_loss(self, outputs: Any, batch: Batch, wide: bool = False) -> Tensor:
        """Return the loss of outputs; a criterion may write to what it is given.

        With `wide`, it is computed in float64, as outputs in float64 need.
        """
        loss, widened = (self._wide_loss, widen) if wide else (self.loss, torch.clone)
        outputs = pytree.tree_map_only(Tensor, torch.clone, outputs)
        return loss(outputs, pytree.tree_map_only(Tensor, widened, batch.target))

    @cached_property
    def _wide_loss(self) -> BatchLoss:
        return copy.deepcopy(self.loss).double()

    def distrust(self, *, wholly: bool = False) -> None:
        """Ask for the graph to be proven once more: code outside may have set attributes.

        With `wholly`, it is known to be another: the module is cut anew.
        """
        self._program = None if wholly else self._program
        self._doubted = self.reuse.active and not has_boxes(self.module)
