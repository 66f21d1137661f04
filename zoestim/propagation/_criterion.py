"""Torch's criteria at changed outputs: what each loss changes by, without cancellation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoestim.propagation._change import RankOne, Slab, Value, rows_of
from zoestim.propagation._tiles import may_hold

# The series of a rank-one change stops where its next term is below rounding.
_MAX_TERMS = 20
# Below it, log(1 + x) does not feel the rounding of 1 + x, nor what e^d overflows.
_LARGE = 0.5
_EXACT = torch.float64


def sample_changes(criterion: Any, outputs: Value, y: Tensor) -> Tensor | None:
    """Return by how much each loss changes, without reduction.

    Parameters
    ----------
    criterion : callable
        The criterion; its ``reduction`` is not looked at.
    outputs : Value of shape (n, ...)
        The module's outputs, which change.
    y : Tensor of shape (n, ...)
        The targets.

    Returns
    -------
    Tensor of shape (k, n, ...) or None
        None where there is no closed form.
    """
    form = _FORMS.get(type(criterion))
    floating = outputs.base.is_floating_point() and outputs.base.ndim > 0
    return form(criterion, outputs, y) if form and floating else None


def mean_divisor(criterion: Any, outputs: Tensor, y: Tensor) -> Tensor | int:
    """Return what a criterion divides the sum of its losses by for their mean."""
    if not isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss):
        return y.numel()
    if y.is_floating_point():
        return y.numel() // outputs.shape[1]
    return _label_weights(criterion, y, _EXACT).sum()


# --- Regression


def _squared_error(criterion: nn.MSELoss, outputs: Value, y: Tensor) -> Tensor | None:
    """(b + d - y)^2 - (b - y)^2 = d (2 (b - y) + d)."""
    if outputs.base.shape != y.shape:
        return None
    d = outputs.dense()
    return d * (2 * (outputs.base - y) + d)


def _absolute_error(criterion: nn.L1Loss, outputs: Value, y: Tensor) -> Tensor | None:
    """|e + d| - |e| = d sign(e) where the sign stays, else |d| - 2 |e|, with e = b - y."""
    if outputs.base.shape != y.shape:
        return None
    d, e = outputs.dense(), outputs.base - y
    return torch.maximum(d * torch.where(e < 0, -1, 1), d.abs() - 2 * e.abs())


def _huber(criterion: nn.HuberLoss, outputs: Value, y: Tensor) -> Tensor | None:
    return _clipped_error(outputs, y, criterion.delta)


def _smooth_l1(criterion: nn.SmoothL1Loss, outputs: Value, y: Tensor) -> Tensor | None:
    if criterion.beta == 0:
        return _absolute_error(criterion, outputs, y)  # type: ignore[arg-type]
    moved = _clipped_error(outputs, y, criterion.beta)
    return None if moved is None else moved / criterion.beta


def _clipped_error(outputs: Value, y: Tensor, bound: float) -> Tensor | None:
    """Change of c e - c^2 / 2, where c = clamp(e) moves by g: d c + g (e - c + d - g / 2)."""
    if outputs.base.shape != y.shape:
        return None
    d, e = outputs.dense(), outputs.base - y
    c = e.clamp(-bound, bound)
    g = torch.maximum(torch.minimum(d + (e - c), bound - c), -bound - c)
    return d * c + g * ((e - c) + d - g / 2)


# --- Classification


def _binary_cross_entropy(
    criterion: nn.BCEWithLogitsLoss, outputs: Value, y: Tensor
) -> Tensor | None:
    """(1 - y) softplus(b) + y softplus(-b), each by its own change."""
    if outputs.base.shape != y.shape:
        return None
    d, b = outputs.dense(), outputs.base
    towards = y * _softplus_step(-b, -d)
    if criterion.pos_weight is not None:
        towards = criterion.pos_weight * towards
    moved = towards + (1 - y) * _softplus_step(b, d)
    return moved if criterion.weight is None else criterion.weight * moved


def _softplus_step(b: Tensor, d: Tensor) -> Tensor:
    """Log(1 + e^(b + d)) - log(1 + e^b) = log(1 + sigmoid(b) (e^d - 1))."""

    def directly() -> Tensor:
        wide = b.to(_EXACT)
        return F.logsigmoid(-wide) - F.logsigmoid(-wide - d)

    return _log1p(torch.sigmoid(b) * torch.expm1(d), directly)


def _log1p(growth: Tensor, directly: Callable[[], Tensor]) -> Tensor:
    """Return log(1 + growth), as the difference of two logarithms where the growth is large."""
    large = ~(growth.abs() < _LARGE)
    if not may_hold(large):
        return torch.log1p(growth)
    return torch.where(large, directly().to(growth.dtype), torch.log1p(growth))


def _likelihood(criterion: nn.NLLLoss, outputs: Value, y: Tensor) -> Tensor | None:
    """Change -w_y d_y, for outputs of shape (n, C, ...)."""
    if not _are_labels(outputs.base, y):
        return None
    d = outputs.dense()
    return -_chosen(d, _labels(y, criterion.ignore_index)) * _label_weights(criterion, y, d.dtype)


def _cross_entropy(criterion: nn.CrossEntropyLoss, outputs: Value, y: Tensor) -> Tensor | None:
    """Choose between labels, of one class each, and stakes on all classes."""
    if _are_labels(outputs.base, y) and criterion.label_smoothing == 0:
        each = _of_labels(outputs, y, criterion.ignore_index)
        weights = outputs.derived(_uneven_weights, criterion, y)
        return each if weights is None else each * weights
    probabilities = y.is_floating_point() and y.shape == outputs.base.shape and y.ndim > 1
    if probabilities or _are_labels(outputs.base, y):
        return _of_stakes(outputs, _stakes(criterion, outputs.base, y))
    return None


def _of_stakes(outputs: Value, stakes: Tensor) -> Tensor:
    """Change of sum_j s_j (log sum_i e^(b_i) - b_j), in float64: s may cancel softmax(b)."""
    b, d = outputs.base.to(_EXACT), outputs.dense().to(_EXACT)
    growth = (torch.expm1(d) * torch.softmax(b, 1)).sum(2)
    moved = _log1p(growth, lambda: torch.logsumexp(b + d, 2) - torch.logsumexp(b, 1))
    return moved * stakes.sum(1) - (d * stakes).sum(2)


def _stakes(criterion: nn.CrossEntropyLoss, outputs: Tensor, y: Tensor) -> Tensor:
    """Return w_j ((1 - a) t_j + a / C), zero where the label is ignored, (n, C, ...)."""
    n_classes, a = outputs.shape[1], criterion.label_smoothing
    along = (-1, *[1] * (outputs.ndim - 2))
    if y.is_floating_point():
        stakes = (1 - a) * y.to(_EXACT) + a / n_classes
    else:
        classes = torch.arange(n_classes, device=y.device).view(along)
        stakes = (1 - a) * (y[:, None] == classes).to(_EXACT) + a / n_classes
        stakes = stakes * (y != criterion.ignore_index)[:, None]
    return stakes if criterion.weight is None else stakes * criterion.weight.view(along)


# --- Labels: log sum_j e^(b_j) - b_y changes by log(1 + sum_j p_j (e^(d_j - d_y) - 1))


def _of_labels(outputs: Value, y: Tensor, ignored: int) -> Tensor:
    """Return how cross-entropy without weights changes, where p = softmax(b)."""
    change, labels = outputs.change, _labels(y, ignored)
    on_host = y.device.type == "cpu"  # whose answers need not be waited for
    if isinstance(change, RankOne) and outputs.base.ndim == 2 and on_host:
        summed = _of_rank_one(change, outputs, y, ignored)
        if summed is not None:
            return summed
    if isinstance(change, Slab) and change.dim == 1 and change.width == 1:
        growth = _growth_by_one_class(change, outputs, y, ignored)
    else:
        d = outputs.dense()
        relative = d - _chosen(d, labels).unsqueeze(2)
        growth = relative.expm1_().mul_(outputs.derived(torch.softmax, 1)).sum(2)

    def directly() -> Tensor:
        b, d = outputs.base.to(_EXACT), outputs.dense().to(_EXACT)
        return torch.logsumexp(b + d, 2) - torch.logsumexp(b, 1) - _chosen(d, labels)

    return _log1p(growth, directly)


def _growth_by_one_class(change: Slab, outputs: Value, y: Tensor, ignored: int) -> Tensor:
    """Return r_c (e^d - 1), times e^-d if c = y."""
    d = change.values[:, 0]
    starts = change.starts.to(y.device).view(-1, *[1] * y.ndim)
    grown = outputs.part(change, _residual, y, ignored)[:, 0] * torch.expm1(d)
    return torch.where(starts == _labels(y, ignored), grown * torch.exp(-d), grown)


def _of_rank_one(change: RankOne, outputs: Value, y: Tensor, ignored: int) -> Tensor | None:
    """Sum the series log E[e^(h v)] = sum_m kappa_m h^m / m!, h the change of the feature.

    Its cumulants kappa are those of v_j = w_j - w_y, drawn with probability p_j. Lanes that
    perturb one layer share few rows w, one for each of its features. None where h w is large.
    """
    features, lanes, counts = change.features.unique_consecutive(
        return_inverse=True, return_counts=True
    )
    table = rows_of(change.table, features)
    n_terms = _n_terms(float(change.column.abs().max() * table.abs().max()), change.column.dtype)
    if n_terms is None:
        return None
    even = bool((counts == counts[0]).all())
    h = change.column.unflatten(0, (len(counts), -1)) if even else change.column
    cumulants = _cumulants(table, outputs.derived(torch.softmax, 1), _labels(y, ignored), n_terms)
    terms = [k[:, None] if even else rows_of(k, lanes) for k in cumulants]
    total = terms[-1] * h
    for term in reversed(terms[:-1]):
        total.add_(term).mul_(h)
    return total.view_as(change.column)


def _n_terms(reach: float, kind: torch.dtype) -> int | None:
    """Return how many terms leave a remainder below rounding, where |h w| <= reach.

    Where |h v| = 1/2, |E[e^(h v)] - 1| < 0.65 and the logarithm is at most 1.05. By Cauchy's
    estimate, terms then fall at least as (4 reach)^m.
    """
    ratio, eps = 4 * reach, torch.finfo(kind).eps
    return next((m for m in range(1, _MAX_TERMS + 1) if ratio**m <= eps * (1 - ratio)), None)


def _cumulants(table: Tensor, p: Tensor, labels: Tensor, n_terms: int) -> list[Tensor]:
    """Return kappa_m / m! for m = 1 to n_terms, each (n_features, n_samples)."""
    v = table[:, None] - table[:, labels][..., None]  # zero for the label itself
    part = p * v
    moments: list[Tensor] = []
    cumulants: list[Tensor] = []
    for m in range(1, n_terms + 1):
        moments.append(part.sum(2))
        part = part * v if m < n_terms else part
        cumulant = moments[-1]
        for k, earlier in enumerate(cumulants, 1):
            cumulant = cumulant - math.comb(m - 1, k - 1) * earlier * moments[m - 1 - k]
        cumulants.append(cumulant)
    return [each / math.factorial(m) for m, each in enumerate(cumulants, 1)]


def _residual(b: Tensor, y: Tensor, ignored: int) -> Tensor:
    """Return r_j = p_j, less 1 for the label: as minus the sum of the others."""
    labels = _labels(y, ignored).unsqueeze(1)
    others = torch.softmax(b, 1).scatter(1, labels, 0.0)
    return others.scatter(1, labels, -others.sum(1, keepdim=True))


def _are_labels(outputs: Tensor, y: Tensor) -> bool:
    labels = not (y.is_floating_point() or y.is_complex())
    return labels and outputs.ndim > 1 and y.shape == (outputs.shape[0], *outputs.shape[2:])


def _labels(y: Tensor, ignored: int) -> Tensor:
    """Return the labels, some class where they are ignored."""
    return y.long().masked_fill(y == ignored, 0)


def _label_weights(criterion: Any, y: Tensor, kind: torch.dtype) -> Tensor:
    """Return what each label counts: its class weight, nothing where it is ignored."""
    counts = (y != criterion.ignore_index).to(kind)
    if criterion.weight is None:
        return counts
    return counts * criterion.weight[_labels(y, criterion.ignore_index)].to(kind)


def _uneven_weights(b: Tensor, criterion: Any, y: Tensor) -> Tensor | None:
    """Return the weights of the labels; None where each counts 1."""
    weights = _label_weights(criterion, y, b.dtype)
    return None if bool((weights == 1).all()) else weights


def _chosen(d: Tensor, labels: Tensor) -> Tensor:
    """Return the change of each label's output: (k, n, ...) of (k, n, C, ...)."""
    index = labels.unsqueeze(1).expand(len(d), -1, -1, *labels.shape[1:])
    return d.gather(2, index).squeeze(2)


_FORMS: dict[type[nn.Module], Callable[[Any, Value, Tensor], Tensor | None]] = {
    nn.MSELoss: _squared_error,
    nn.L1Loss: _absolute_error,
    nn.HuberLoss: _huber,
    nn.SmoothL1Loss: _smooth_l1,
    nn.BCEWithLogitsLoss: _binary_cross_entropy,
    nn.NLLLoss: _likelihood,
    nn.CrossEntropyLoss: _cross_entropy,
}
