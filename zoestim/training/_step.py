"""Algorithms 1 and 2: coordinate sets, estimates and budgets, one training step at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from zoestim.evaluation import (
    Asking,
    Batch,
    BlackBox,
    Evaluation,
    Objective,
    RandomState,
    draw_seed,
    evaluate_mean,
)
from zoestim.gradients import GradientEstimator, Queries, RandomizedEstimator
from zoestim.sparsity import CoordinateSchedule, Pruning
from zoestim.training._query_log import QueryLog
from zoestim.training._scores import score_weights, scoring_cost


@dataclass(frozen=True)
class StepSettings:
    """What a training step needs to know besides the objective.

    Parameters
    ----------
    estimator : GradientEstimator
        How a gradient is estimated.
    pruning : Pruning, mapping or None
        How the coordinate sets are chosen; None queries every coordinate.
    sparsity : float in [0, 1)
        The fraction of the prunable weights that a set leaves out.
    mask_interval : int or "batch"
        Epochs between renewals of the set.
    n_pruning_queries : int
        The directions q of each of the two estimates of ZO-GraSP.
    smoothing : float
        The step mu of ZO-GraSP.
    max_queries : int or None
        The budget.
    reserved : int
        Queries that the validation of an epoch will need.
    n_repeats : int
        How often each query is asked, to average what it gives.
    samples_a_query : int or None
        How many samples a batch has, where queries are counted by sample; None where each
        counts once.
    failure_penalty : float or None
        What a query that failed and was forgiven adds to the loss, relative to it; None lets it
        change nothing.
    asking : Asking
        Where queries are asked, and how patiently.
    """

    estimator: GradientEstimator
    pruning: Pruning | Mapping[str, float] | None
    sparsity: float
    mask_interval: int | str
    n_pruning_queries: int
    smoothing: float
    max_queries: int | None
    reserved: int = 0
    n_repeats: int = 1
    samples_a_query: int | None = None
    failure_penalty: float | None = None
    asking: Asking = field(default_factory=Asking)

    def price(self, n_samples: int | None) -> int:
        """Return what a loss on a batch counts; None is a batch of the usual size."""
        usual = self.samples_a_query
        return 1 if usual is None else usual if n_samples is None else n_samples


class TrainingStep:
    """One step of Alg. 2 after another: draw coordinates, ask, combine, write ``.grad``.

    Parameters
    ----------
    generator : torch.Generator
        Draws coordinate sets, directions and the random numbers of dropout.

    Attributes
    ----------
    n_queries : int
        Losses asked for so far, of batches or of samples.
    n_steps : int
        Steps that were finished.
    n_rounds : int
        Batches of queries asked so far: one a step, and two for scores.
    n_failed : int
        Queries that failed and were forgiven.
    seconds : float
        How long the steps took.
    log : QueryLog
        What the queries cost.
    responded : bool
        Whether any query of them gave another loss than the base.
    schedule : CoordinateSchedule or None
        The sparse coordinate sets, from the first batch on; None queries everything.
    active : Tensor of int64
        The flat coordinates of the last step.
    before : dict from name to Tensor
        The parameters as the last step found them.
    """

    settings: StepSettings
    objective: Objective
    # What makes a step cost less, beside a larger budget.
    cheaper = (
        "raise sparsity, or lower n_pruning_queries (pruning='uniform' needs none) or, for RGE, "
        "n_directions"
    )

    def __init__(self, generator: torch.Generator):
        self.generator = generator
        self.n_queries = 0
        self.n_steps = 0
        self.n_rounds = 0
        self.n_failed = 0
        self.seconds = 0.0
        self.log = QueryLog()
        self.responded = False
        self.epoch = 0
        self.schedule: CoordinateSchedule | None = None
        self.active = torch.empty(0, dtype=torch.int64)

    def begin(self, settings: StepSettings, objective: Objective) -> None:
        """Attach the objective of a fit and refuse a budget that allows no step at all."""
        before = dict(vars(self))
        if hasattr(self, "settings") and _rule(self.settings) != _rule(settings):
            self.schedule = None  # a continued fit with another rule starts another set
        self.settings = settings
        self.objective = objective
        self._prunable = prunable(objective)
        if not self.affordable():
            cost, scores = self.next_cost(), self.scoring_due()
            self.__dict__.clear()
            self.__dict__.update(before)
            raise ValueError(
                f"max_queries={settings.max_queries} does not allow one training step: it "
                f"needs {cost} queries, {scores} of them for the scores of pruning, and "
                f"{self.n_queries} were asked before. Raise max_queries above "
                f"{self.n_queries + cost + settings.reserved - 1}, {self.cheaper}."
            )

    def __getstate__(self) -> dict[str, Any]:
        # The objective belongs to one fit; its module is stored by the net.
        transient = ("objective", "before", "_batch")
        return {key: value for key, value in self.__dict__.items() if key not in transient}

    def __call__(self, batch: Batch) -> tuple[float, Any]:
        """Write the estimate to ``.grad`` and return the loss and outputs of the batch."""
        self._batch = batch
        self.before = self.objective.theta_copy()
        self.active = self._coordinates()
        estimator, parameters = self.settings.estimator, self.objective.parameters
        queries = estimator.queries(self.active, parameters.segments(self.active), self.generator)
        if len(queries) != (promised := estimator.n_queries(len(self.active))):
            raise ValueError(
                f"{type(estimator).__name__}.queries asks {len(queries)} times; expected "
                f"{promised}, what its n_queries says. The budget relies on it: make them agree."
            )
        found = self.ask(batch, queries, draw_seed(self.generator))
        gradient = estimator.combine(queries, found.base_loss, found.losses)
        self.objective.write_gradient(gradient.dense(parameters.size))
        self.objective.keep_buffers(found.tensors)
        self.n_steps += 1
        self.responded |= found.base_loss == 0 or bool((found.losses != found.base_loss).any())
        return found.base_loss, found.outputs

    def ask(
        self, batch: Batch, queries: Queries, seed: int, objective: Objective | None = None
    ) -> Evaluation:
        """Have queries answered, of the fit's objective or of another, and count and log them."""
        settings, device = self.settings, batch.X.device
        self.n_queries += settings.n_repeats * (len(queries) + 1) * settings.price(len(batch.X))
        draws = [RandomState.seeded(seed + r, device) for r in range(settings.n_repeats)]
        journal = settings.asking.journal
        asking = replace(settings.asking, journal=journal and journal.of(self.n_rounds))
        self.n_rounds += settings.n_repeats
        found = evaluate_mean(objective or self.objective, batch, queries, draws, asking)
        self.log.add(self.epoch, self.n_steps, found.records)
        self.n_failed += len(found.lost)
        if found.lost and settings.failure_penalty is not None:
            failed = sorted({failure.position for failure in found.lost})
            found.losses[failed] += settings.failure_penalty * found.base_losses.abs()
        return found

    def next_cost(self, n_samples: int | None = None) -> int:
        """Return how many queries the next step needs, with scores that fall due.

        By default on a batch of the usual size.
        """
        return self.scoring_due(n_samples) + self._n_asked() * self.settings.price(n_samples)

    def scoring_due(self, n_samples: int | None = None) -> int:
        """Return how many of them are for scores."""
        if self.schedule is not None:
            scoring = self.schedule.scores_next(self.epoch)
        else:
            scoring = self._sparse and isinstance(self.settings.pruning, Pruning)
        kind = getattr(self.settings.pruning, "scores", "")
        cost = scoring_cost(kind, self.settings.n_pruning_queries)
        return scoring * cost * self.settings.n_repeats * self.settings.price(n_samples)

    def affordable(self, n_samples: int | None = None) -> bool:
        """Return whether the budget allows the next step and the validation after it."""
        if self.objective.refresh():
            self._prunable, self.schedule = prunable(self.objective), None
        limit = self.settings.max_queries
        needed = self.n_queries + self.next_cost(n_samples) + self.settings.reserved
        return limit is None or needed <= limit

    @property
    def _sparse(self) -> bool:
        named = isinstance(self.settings.pruning, Mapping)
        return bool(self._prunable) and (
            named or (self.settings.pruning is not None and self.settings.sparsity > 0)
        )

    def _n_asked(self) -> int:
        """Return how many losses a step asks for, that at the current parameters among them."""
        n_active, settings = self.objective.parameters.size, self.settings
        if self._sparse:
            n_active -= sum(self._prunable.values())
            n_active += CoordinateSchedule.count(
                settings.pruning,  # type: ignore[arg-type]
                settings.sparsity,
                self._prunable,
            )
        return settings.n_repeats * (1 + settings.estimator.n_queries(n_active))

    def _coordinates(self) -> Tensor:
        parameters = self.objective.parameters
        if not self._sparse:
            return torch.arange(parameters.size)
        if self.schedule is None:
            self.schedule = make_schedule(self)
        chosen = self.schedule.coordinates(self.epoch)
        everything = {
            name: torch.arange(size)
            for name, size in parameters.sizes.items()
            if name not in chosen
        }
        return parameters.flatten({**everything, **chosen})

    def _scores(self, kind: str) -> dict[str, Tensor]:
        """Return the scores of the prunable weights on the batch of this step."""
        settings = self.settings
        estimator = RandomizedEstimator(
            settings.n_pruning_queries,
            settings.smoothing,
            distribution=settings.pruning.distribution,  # type: ignore[union-attr]
        )
        return score_weights(
            kind, self.objective, self._batch, self._prunable, estimator, self.generator, self.ask
        )


def make_schedule(step: TrainingStep, state: dict[str, Any] | None = None) -> CoordinateSchedule:
    """Return the schedule of a step's coordinate sets: a new one, or one that goes on."""
    return CoordinateSchedule(
        step.settings.pruning,  # type: ignore[arg-type]
        step.settings.sparsity,
        step._prunable,
        step.settings.mask_interval,
        step._scores,
        step.generator,
        state,
    )


def _rule(settings: StepSettings) -> tuple[Any, ...]:
    """Return what a schedule of coordinate sets is made from, in a form that == compares."""
    rule = settings.pruning
    return settings.sparsity, settings.mask_interval, getattr(rule, "get_params", lambda: rule)()


def prunable(objective: Objective) -> dict[str, int]:
    """Return the layers that sparsity applies to, by parameter name, with their sizes.

    As in the authors' code these are the weights, here every parameter of two or more
    dimensions; biases and the scales of normalisations stay dense. Of a black box, every
    array is a layer.
    """
    boxed = {
        id(parameter)
        for module in objective.module.modules()
        if isinstance(module, BlackBox)
        for parameter in module.parameters()
    }
    named = dict(objective.module.named_parameters())
    return {
        name: size
        for name, size in objective.parameters.sizes.items()
        if named[name].ndim > 1 or id(named[name]) in boxed
    }
