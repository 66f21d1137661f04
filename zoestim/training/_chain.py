"""A black box behind a white one: differences at its input, then the chain rule to the weights.

Where only the last stage of a model is black, its gradient there takes as many queries as it has
inputs, however many weights the stages before it have (ZO-DS and ZO-AE-DS of Zhang et al., How to
robustify black-box ML models? A zeroth-order optimization perspective, ICLR 2022, Eq. 7).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from zoestim.evaluation import (
    Batch,
    BatchLoss,
    Evaluation,
    Objective,
    draw_seed,
    drawing_from,
)
from zoestim.gradients import CoordinateQueries, RowQueries
from zoestim.training._step import StepSettings, TrainingStep

Penalty = Callable[[Tensor, Tensor], Tensor]


class Chain(nn.Module):
    """A white part, which autograd can pass, and a black one behind it.

    Parameters
    ----------
    white : nn.Module
        From the data to the input of the black part, (n, ...), one row a sample.
    black : nn.Module
        From there to the outputs; nothing in it is trained.
    width : int, optional
        How many numbers the input of the black part has for one sample: queries then move
        these. By default they move the weights of the white part.
    penalty : callable, optional
        ``(inputs, X) -> loss``, which autograd can pass too and which is added to the loss;
        `inputs` are those of the black part.
    about : str, default=""
        What else makes the black part what it is: a checkpoint of another one is refused.

    Notes
    -----
    Both parts stay in the mode, training or evaluation, in which they were given: a BatchNorm in
    training mode would make the loss of a sample depend on the others.
    """

    def __init__(
        self,
        white: nn.Module,
        black: nn.Module,
        width: int | None = None,
        penalty: Penalty | None = None,
        about: str = "",
    ):
        super().__init__()
        self.white = white
        self.black = black
        self.width = width
        self.penalty = penalty
        self.about = about

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of the black part."""
        return self.black(self.white(x))

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the whole, and leave that of its parts."""
        self.training = mode
        return self


class _Moved(nn.Module):
    """A black part whose input is moved by a parameter, which is what queries perturb."""

    def __init__(self, black: nn.Module, like: Tensor):
        super().__init__()
        self.black = black
        self.move = nn.Parameter(torch.zeros_like(like))

    def forward(self, x: Tensor) -> Tensor:
        return self.black(x + self.move)


class ChainStep(TrainingStep):
    """The step of a :class:`Chain`: queries move its weights or the input of its black part."""

    def begin(self, settings: StepSettings, objective: Objective) -> None:
        """Attach the objective of a fit and refuse a budget that allows no step at all."""
        super().begin(settings, objective)
        self._tails: dict[torch.Size, Objective] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_tails"}

    def __call__(self, batch: Batch) -> tuple[float, Any]:
        """Write the estimate to ``.grad`` and return the loss and outputs of the batch."""
        chain: Chain = self.objective.module  # type: ignore[assignment]
        step = super().__call__ if chain.width is None else self._by_the_chain_rule
        loss, outputs = step(batch)
        if chain.penalty is not None:
            inputs = self._white(batch)
            chain.penalty(inputs, batch.X).backward()  # beside what queries have found
        return loss, outputs

    def _n_asked(self) -> int:
        chain: Chain = self.objective.module  # type: ignore[assignment]
        if chain.width is None:
            return super()._n_asked()
        return self.settings.n_repeats * (1 + self.settings.estimator.n_queries(chain.width))

    def _by_the_chain_rule(self, batch: Batch) -> tuple[float, Any]:
        self._batch, self.before = batch, self.objective.theta_copy()
        self.active = torch.arange(self.objective.parameters.size)
        self.objective.write_gradient(torch.zeros(self.objective.parameters.size))
        inputs = self._white(batch)
        found, slopes = self._slopes(batch, inputs.detach())
        weight = slopes.new_ones(len(inputs)) if batch.weight is None else batch.weight
        share = (weight / weight.sum()).to(slopes)
        inputs.backward(slopes * share.view(-1, *[1] * (inputs.ndim - 1)))
        self.n_steps += 1
        self.responded |= bool((found.base_losses == 0).all()) or bool(slopes.any())
        return float(found.base_losses @ share.double().cpu()), found.outputs

    def _slopes(self, batch: Batch, inputs: Tensor) -> tuple[Evaluation, Tensor]:
        """Return the losses of the samples, and their gradients at the input of the box."""
        given = Batch(inputs, batch.y, None, batch.label)
        found, slopes = row_slopes(self, given, self._at_the_box(inputs), inputs[0].numel())
        return found, slopes.to(inputs).reshape(inputs.shape)

    def _at_the_box(self, inputs: Tensor) -> Objective:
        """Return the losses of the samples as a function of what moves the box's input."""
        whole, chain = self.objective, self.objective.module
        if inputs.shape in self._tails:
            return self._tails[inputs.shape]
        criterion = BatchLoss(whole.loss.criterion, whole.loss.flatten, per_sample=True)
        self._tails[inputs.shape] = Objective(
            _Moved(chain.black, inputs),  # type: ignore[arg-type]
            criterion,
            feature_reuse=whole.feature_reuse,
            memory_budget=whole.memory_budget,
        )
        return self._tails[inputs.shape]

    def _white(self, batch: Batch) -> Tensor:
        """Return the input of the black part, with what autograd needs."""
        chain: Chain = self.objective.module  # type: ignore[assignment]
        seed, device = draw_seed(self.generator), batch.X.device
        with torch.enable_grad(), drawing_from(seed, device):
            return chain.white(batch.X)


def row_slopes(
    step: TrainingStep, batch: Batch, objective: Objective, width: int
) -> tuple[Evaluation, Tensor]:
    """Return the losses of samples, and how each depends on what moves its row.

    Parameters
    ----------
    step : TrainingStep
        Asks, and estimates.
    batch : Batch
        The samples.
    objective : Objective
        Their losses one by one, at a parameter with a row of `width` numbers for each.
    width : int
        How many numbers move a sample.

    Returns
    -------
    Evaluation, Tensor of shape (n, width), float64
    """
    estimator, n = step.settings.estimator, len(batch.X)
    everywhere, segments = torch.arange(width), (width,)
    first = estimator.queries(everywhere, segments, step.generator)
    rows = [first] * n  # differences along the axes are the same for all
    if not isinstance(first, CoordinateQueries):
        drawn = (estimator.queries(everywhere, segments, step.generator) for _ in range(n - 1))
        rows = [first, *drawn]
    queries = RowQueries(tuple(rows), width)  # type: ignore[arg-type]
    found = step.ask(batch, queries, draw_seed(step.generator), objective)
    bases, losses = found.base_losses.tolist(), found.losses
    slopes = [
        estimator.combine(row, bases[i], losses[:, i]).dense(width) for i, row in enumerate(rows)
    ]
    return found, torch.stack(slopes)
