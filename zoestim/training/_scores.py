"""Scores of a module's weights on one batch: ZO-GraSP, Eq. (3), and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import functional_call

from zoestim.evaluation import (
    Batch,
    Evaluation,
    Objective,
    ParameterMap,
    RandomState,
    draw_seed,
    unchanged_generators,
)
from zoestim.gradients import Queries, RandomizedEstimator
from zoestim.sparsity import first_order_grasp_scores, grasp_scores


def scoring_cost(kind: str, n_directions: int) -> int:
    """Return how many queries one scoring asks for: two estimates and their base losses."""
    return 2 * (n_directions + 1) if kind == "zo-grasp" else 0


def score_weights(
    kind: str,
    objective: Objective,
    batch: Batch,
    layers: Iterable[str],
    estimator: RandomizedEstimator,
    generator: torch.Generator,
    ask: Callable[[Batch, Queries, int], Evaluation],
) -> dict[str, Tensor]:
    """Return one score a weight, by layer.

    Parameters
    ----------
    kind : {"zo-grasp", "fo-grasp", "magnitude", "random"}
        The rule.
    objective : Objective
        Its module comes back bitwise equal.
    batch : Batch
        The data of the GraSP scores.
    layers : iterable of str
        The parameters to score.
    estimator : RandomizedEstimator
        Estimates the gradients of ZO-GraSP.
    generator : torch.Generator
        Where the randomness comes from.
    ask : callable
        ``(batch, queries, seed) -> Evaluation``: has queries answered.
    """
    own = objective.theta()
    theta = {name: own[name].to(torch.float64) for name in layers}
    if kind == "magnitude":
        return {name: value.cpu().clone() for name, value in theta.items()}
    if kind == "random":
        return {name: torch.randn(v.shape, generator=generator) for name, v in theta.items()}
    part = ParameterMap(tuple(theta), tuple(value.shape for value in theta.values()))
    flat = torch.cat([value.flatten() for value in theta.values()])
    if kind == "fo-grasp":
        random = RandomState.seeded(draw_seed(generator), batch.X.device)
        with unchanged_generators(batch.X.device):
            loss = _differentiable_loss(objective, batch, part, random)
            scores = first_order_grasp_scores(flat, loss)
    else:
        gradient = _estimated_gradient(objective, batch, part, estimator, generator, ask)
        scores = grasp_scores(flat.cpu(), gradient, estimator.smoothing)
    return {name: value.cpu() for name, value in part.split(scores).items()}


def _estimated_gradient(
    objective: Objective,
    batch: Batch,
    part: ParameterMap,
    estimator: RandomizedEstimator,
    generator: torch.Generator,
    ask: Callable[[Batch, Queries, int], Evaluation],
) -> Callable[[Tensor], Tensor]:
    """Return theta -> RGE on some layers, with the same directions and draws each time."""
    parameters = objective.parameters
    coordinates = parameters.flatten({n: torch.arange(s) for n, s in part.sizes.items()})
    segments, seed = parameters.segments(coordinates), draw_seed(generator)
    draws = draw_seed(generator)

    def gradient(theta: Tensor) -> Tensor:
        directions = torch.Generator().manual_seed(seed)
        queries = estimator.queries(coordinates, segments, directions)
        with _moved(objective, part.split(theta)):
            found = ask(batch, queries, draws)
        return estimator.combine(queries, found.base_loss, found.losses).values

    return gradient


@contextmanager
def _moved(objective: Objective, theta: Mapping[str, Tensor]) -> Iterator[None]:
    """Put other values into the module, and the old ones back, bit for bit."""
    own, before = objective.theta(), objective.theta_copy()
    try:
        for name, value in theta.items():
            own[name].copy_(value)
        yield
    finally:
        for name in theta:
            own[name].copy_(before[name])


def _differentiable_loss(
    objective: Objective, batch: Batch, part: ParameterMap, random: RandomState
) -> Callable[[Tensor], Tensor]:
    module, like = objective.module, objective.theta()
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}

    def loss(flat: Tensor) -> Tensor:
        named = {name: value.to(like[name]) for name, value in part.split(flat).items()}
        fresh = {name: buffer.clone() for name, buffer in buffers.items()}
        random.restore()
        outputs = functional_call(module, {**named, **fresh}, (batch.X.clone(),))
        return objective.loss(outputs, batch.target)

    return loss
