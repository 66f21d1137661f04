"""One number a batch from any criterion: torch's or a plain function, weighted or not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class BatchLoss(nn.Module):
    """The loss of one batch, as a scalar float64 tensor.

    Parameters
    ----------
    criterion : torch criterion or callable
        ``(outputs, y) -> scalar or per-sample losses``; a torch tensor, a numpy value or a
        Python number. Per-sample losses are averaged here, in float64: rounding a mean in
        float32 costs more digits of a finite difference than anything else.

    Notes
    -----
    With sample weights the loss is ``sum(w * l) / sum(w)``; that needs the per-sample
    losses, so a torch criterion is used with ``reduction="none"``.
    """

    def __init__(self, criterion: Callable[[Any, Any], Any]):
        super().__init__()
        self.criterion = criterion

    def forward(self, outputs: Any, target: Any) -> Tensor:
        """Return the loss; `target` is y, or the pair of y and sample weights."""
        y, weight = target if isinstance(target, tuple | list) else (target, None)
        criterion = self.criterion if weight is None else self._per_sample()
        losses = criterion(outputs, y)
        if not isinstance(losses, Tensor):
            device = y.device if isinstance(y, Tensor) else None
            losses = torch.as_tensor(losses, dtype=torch.float64, device=device)
        if losses.ndim == 0:
            self._refuse_weights(weight)
            return losses.to(torch.float64)
        if losses.shape[0] != len(y):
            raise ValueError(
                f"{_name(self.criterion)} returned losses of shape {tuple(losses.shape)} for "
                f"{len(y)} samples; expected one number, or one loss a sample. Reduce it to "
                f"shape () or ({len(y)},)."
            )
        each = losses.to(torch.float64).flatten(1).mean(1) if losses.ndim > 1 else losses.double()
        return each.mean() if weight is None else weighted_mean(each, weight)

    def _per_sample(self) -> Callable[[Any, Any], Any]:
        if getattr(self.criterion, "reduction", "none") == "none":
            return self.criterion
        unreduced = copy.copy(self.criterion)
        unreduced.reduction = "none"  # type: ignore[attr-defined]
        return unreduced

    def _refuse_weights(self, weight: Tensor | None) -> None:
        if weight is not None:
            raise ValueError(
                f"{_name(self.criterion)} returns one number a batch, which sample_weight or "
                "class_weight cannot weigh. Return one loss a sample, shape (n_samples,), or "
                "leave the weights out."
            )


def weighted_mean(losses: Tensor, weight: Tensor) -> Tensor:
    """Return ``sum(w * l) / sum(w)``; zero for a batch whose weights are all zero."""
    total = weight.to(torch.float64).sum()
    return (losses * weight).sum() / torch.where(total > 0, total, 1.0)


def _name(criterion: Any) -> str:
    return str(getattr(criterion, "__name__", type(criterion).__name__))
