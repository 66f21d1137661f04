"""How a SolverInTheLoop finds its gradient: which one, its finite-difference step, its cost."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoestim.evaluation import Asking, Batch, BatchLoss, Objective, first_parameter
from zoestim.gradients import resolve_estimator
from zoestim.rollouts import Unrolled, Windows, check_step, n_asked, takes_less

# The finite-difference step by scheme and type: of the weights, and of a state in its units.
WEIGHT_STEPS = {
    ("forward", torch.float32): 1e-4,
    ("central", torch.float32): 1e-3,
    ("forward", torch.float64): 1e-6,
    ("central", torch.float64): 1e-4,
}
STATE_STEPS = {torch.float32: 1e-3, torch.float64: 1e-5}
SLOPES = {"non": "zero", "nog": "zero", "ste": "identity"}


def chosen_gradient(loop: Any, unrolled: Unrolled, rows: Tensor, asking: Asking) -> tuple[Any, str]:
    """Return the gradient, and why it was taken."""
    if loop.mode != "sol":
        return "autograd", f"mode={loop.mode!r} asks for no derivative of the solver"
    if loop.gradient != "auto":
        return loop.gradient, "as asked for"
    n_active = _n_active(loop, unrolled.corrector)
    return asking.backend.once(lambda: takes_less(unrolled, rows, n_active))


def _n_active(loop: Any, corrector: nn.Module) -> int:
    """Return about how many weights a step of sparse CGE queries."""
    left_out = 0.0 if loop.pruning is None else loop.sparsity
    sizes = [(p.numel(), p.ndim > 1) for p in corrector.parameters() if p.requires_grad]
    return sum(math.ceil(n * (1 - left_out)) if is_weight else n for n, is_weight in sizes)


def slope_of(loop: Any, gradient: Any) -> str | None:
    """Return what stands for the derivative of the solver, None if queries move the weights."""
    if loop.mode != "sol":
        return SLOPES[loop.mode]
    known = {"solver-vjp": "queries", "autograd": "autograd"}
    return known.get(gradient) if isinstance(gradient, str) else None


def smoothing_of(loop: Any, unrolled: Unrolled) -> float:
    """Return the finite-difference step, of a weight or of a state in its units."""
    kind = first_parameter(unrolled.corrector).dtype
    if loop.smoothing != "auto":
        return loop.smoothing
    return WEIGHT_STEPS[loop.scheme, kind] if unrolled.slope is None else STATE_STEPS[kind]


def check_gradient(
    loop: Any,
    unrolled: Unrolled,
    frames: np.ndarray,
    owners: np.ndarray,
    given: dict[str, Any],
    asking: Asking,
    generator: torch.Generator,
) -> Any:
    """Compare two finite-difference steps on a first batch, and warn where they disagree."""
    windows = Windows(frames, owners, unrolled, asking.patience)
    n = min(loop.batch_size, len(windows))
    X, y = windows[torch.randperm(len(windows), generator=generator)[:n]]
    objective = Objective(unrolled, BatchLoss(nn.MSELoss()), feature_reuse=loop.feature_reuse)
    strategy = resolve_estimator(
        given["gradient"], given["smoothing"], given["scheme"], given["n_directions"]
    )
    batch = Batch(X, y, None, "the batch of the gradient check")
    forgiving = replace(asking.patience, forgiving=loop.on_failure != "raise")
    asking = replace(asking, patience=forgiving)
    most = math.inf
    if loop.max_queries is not None:
        most = loop.max_queries - _step_cost(loop, unrolled, strategy)
    check = check_step(unrolled, objective, batch, strategy, generator, asking, most)
    if check is not None and not check.agrees:
        warnings.warn(f"The gradient {check.complaint()}", stacklevel=6)
    return check


def _step_cost(loop: Any, unrolled: Unrolled, strategy: Any) -> int:
    """Return how many queries a step of training takes, but for scores of pruning."""
    if unrolled.slope is not None:
        return n_asked(unrolled, strategy, loop.n_repeats)
    return loop.n_repeats * (1 + strategy.n_queries(_n_active(loop, unrolled.corrector)))
