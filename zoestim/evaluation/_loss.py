"""One number a batch from any criterion: torch's or a plain function, weighted or not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoestim.propagation import Dense, Value, mean_divisor, sample_changes

_ELEMENTWISE = (
    nn.BCELoss,
    nn.BCEWithLogitsLoss,
    nn.HuberLoss,
    nn.L1Loss,
    nn.MSELoss,
    nn.PoissonNLLLoss,
    nn.SmoothL1Loss,
)


# Functions that are criteria at their defaults.
_CRITERIA: dict[Any, type[nn.Module]] = {
    F.binary_cross_entropy: nn.BCELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.cross_entropy: nn.CrossEntropyLoss,
    F.huber_loss: nn.HuberLoss,
    F.l1_loss: nn.L1Loss,
    F.mse_loss: nn.MSELoss,
    F.nll_loss: nn.NLLLoss,
    F.poisson_nll_loss: nn.PoissonNLLLoss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
}


class BatchLoss(nn.Module):
    """The loss of one batch, as a scalar float64 tensor, or that of each of its samples.

    Parameters
    ----------
    criterion : torch criterion or callable
        ``(outputs, y) -> scalar or per-sample losses``; a torch tensor, a numpy value or a
        Python number. Per-sample losses are averaged here, in float64: rounding a mean in
        float32 costs more digits of a finite difference than anything else.
    flatten : bool, default=False
        Whether outputs (n, 1) reach the criterion as (n,) where y has that shape. Against each
        other the two would broadcast to (n, n).
    per_sample : bool, default=False
        Whether to return one loss a sample, of shape (n,), rather than their mean. Weights
        are then left to the caller.

    Notes
    -----
    With sample weights the loss is ``sum(w * l) / sum(w)``; that needs the per-sample
    losses, so a torch criterion is used with ``reduction="none"``.
    """

    def __init__(
        self,
        criterion: Callable[[Any, Any], Any],
        flatten: bool = False,
        per_sample: bool = False,
    ):
        super().__init__()
        self.flatten = flatten
        self.per_sample = per_sample
        if isinstance(criterion, type) or not callable(criterion):
            raise TypeError(
                f"criterion must be a callable (outputs, y) -> loss; got {criterion!r}. Pass an "
                "instance such as torch.nn.MSELoss(), or a function."
            )
        known = _CRITERIA.get(criterion) if isinstance(criterion, FunctionType) else None
        self.criterion: Any = criterion if known is None else known()

    def forward(self, outputs: Any, target: Any) -> Tensor:
        """Return the loss; `target` is y, or the pair of y and sample weights."""
        y, weight = target if isinstance(target, list | tuple) else (target, None)
        if self.flatten and isinstance(outputs, Tensor) and outputs.shape == (len(y), 1):
            outputs = outputs.reshape(y.shape) if y.numel() == len(y) else outputs
        outputs, matched = _match(self.criterion, outputs, y)
        each_sample = weight is not None or self.per_sample
        criterion = self._unreduced() if each_sample else self.criterion
        losses = criterion(outputs, matched)
        if not isinstance(losses, Tensor):
            device = y.device if isinstance(y, Tensor) else None
            losses = torch.as_tensor(losses, dtype=torch.float64, device=device)
        if losses.ndim == 0:
            self._refuse_one_number(weight)
            return losses.to(torch.float64)
        if losses.shape[0] != len(y):
            raise ValueError(
                f"{_name(self.criterion)} returned losses of shape {tuple(losses.shape)} for "
                f"{len(y)} samples; expected one number, or one loss a sample. Reduce it to "
                f"shape () or ({len(y)},)."
            )
        if losses.ndim > 1 and losses.numel() > max(_numel(outputs), _numel(y)):
            raise ValueError(
                f"{_name(self.criterion)} returned losses of shape {tuple(losses.shape)}: "
                "outputs and y were broadcast against each other. Give them one shape."
            )
        each = losses.to(torch.float64)
        each = each.flatten(1).mean(1) if each.ndim > 1 else each
        if self.per_sample:
            return each
        if weight is None:
            return each.mean()
        return weighted_mean(each, weight, self._class_weights(y))

    @property
    def draws_nothing(self) -> bool:
        """Whether the criterion is one of torch's, none of which draws random numbers."""
        return type(self.criterion).__module__ == "torch.nn.modules.loss"

    def changes(self, outputs: Value, target: Any) -> Tensor | None:
        """Return by how much changed outputs change the loss, (k,), float64.

        In closed form, so that no digits cancel; None where the criterion has none here.
        """
        y, weight = target if isinstance(target, list | tuple) else (target, None)
        reduction = getattr(self.criterion, "reduction", "")
        if reduction not in ("mean", "sum", "none") or (weight is not None and reduction == "sum"):
            return None
        if isinstance(self.criterion, _ELEMENTWISE) and outputs.base.numel() == y.numel():
            outputs, y = _reshaped(outputs, y.shape), y.to(outputs.base.dtype)
        each = sample_changes(self.criterion, outputs, y)
        if each is None:
            return None
        each = each.to(torch.float64)
        if reduction == "none" or weight is not None or self.per_sample:
            each = each.flatten(2).mean(2) if each.ndim > 2 else each
            if self.per_sample:
                return each
            if weight is None:
                return each.mean(1)
            return weighted_mean(each, weight, self._class_weights(y))
        total = each.flatten(1).sum(1)
        return total / (mean_divisor(self.criterion, outputs.base, y) if reduction == "mean" else 1)

    def _unreduced(self) -> Callable[[Any, Any], Any]:
        reduction = getattr(self.criterion, "reduction", "none")
        if reduction == "none":
            return self.criterion
        if reduction != "mean":
            raise ValueError(
                f"{_name(self.criterion)} has reduction={reduction!r}, which has no loss of one "
                "sample that could be weighed; expected 'mean' or 'none'."
            )
        unreduced = copy.copy(self.criterion)
        unreduced.reduction = "none"
        return unreduced

    def _class_weights(self, y: Tensor) -> Tensor | None:
        """Return what a mean of cross-entropies divides by, beside the sample weights."""
        weight = getattr(self.criterion, "weight", None)
        if isinstance(self.criterion, nn.CrossEntropyLoss | nn.NLLLoss) and weight is not None:
            return weight[y] if self.criterion.reduction == "mean" and y.ndim == 1 else None
        return None

    def _refuse_one_number(self, weight: Tensor | None) -> None:
        name, needed = _name(self.criterion), "Return one loss a sample, shape (n_samples,)"
        if weight is not None:
            raise ValueError(
                f"{name} returns one number a batch, which sample_weight or class_weight cannot "
                f"weigh. {needed}, or leave the weights out."
            )
        if self.per_sample:
            raise ValueError(f"{name} returns one number a batch. {needed}.")


def weighted_mean(losses: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """Return ``sum(w * l) / sum(w * scale)``; zero for a batch whose weights are all zero."""
    total = (weight if scale is None else weight * scale).to(torch.float64).sum()
    return (losses * weight).sum(-1) / torch.where(total > 0, total, 1.0)


def _match(criterion: Any, outputs: Any, y: Any) -> tuple[Any, Any]:
    """Bring one column of outputs to the shape of y for torch's own elementwise criteria.

    Outputs (n, 1) against targets (n,) would broadcast to (n, n), and binary
    cross-entropy wants its labels as floats.
    """
    elementwise = isinstance(criterion, _ELEMENTWISE)
    if not elementwise or not isinstance(outputs, Tensor) or outputs.numel() != y.numel():
        return outputs, y
    return outputs.reshape(y.shape), y.to(outputs.dtype)


def _reshaped(outputs: Value, shape: torch.Size) -> Value:
    if outputs.base.shape == shape:
        return outputs
    moved = outputs.dense()
    return Value(outputs.base.reshape(shape), Dense(moved.reshape(len(moved), *shape)))


def _numel(value: Any) -> int:
    return value.numel() if isinstance(value, Tensor) else 0


def _name(criterion: Any) -> str:
    return str(getattr(criterion, "__name__", type(criterion).__name__))
