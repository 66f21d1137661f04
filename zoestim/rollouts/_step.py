"""A training step through a solver: queries of the weights, or of the solver's input alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from zoestim.evaluation import Batch, BatchLoss, Objective, QueryError, draw_seed, drawing_from
from zoestim.rollouts._box import SolverBox, is_finite
from zoestim.rollouts._unrolled import Unrolled
from zoestim.training import StepSettings, TrainingStep, row_slopes


class Pull(nn.Module):
    """The inner product of a solver's result with what the loss makes of it.

    Its derivative by the state is a product with the transposed Jacobian of a step, for one
    solver step a number of the state, whatever is trained.

    Parameters
    ----------
    box : SolverBox
        The solver.
    n : int
        How many rows are moved.
    unit : Tensor of shape (n_state,)
        In which units a state is moved.
    """

    unit: Tensor

    def __init__(self, box: SolverBox, n: int, unit: Tensor):
        super().__init__()
        self.box = box
        self.register_buffer("unit", unit)
        self.move = nn.Parameter(unit.new_zeros(n, len(unit)))

    def forward(self, x: Tensor) -> Tensor:
        """Return one number a row, (n,), of rows with what they are multiplied by behind them."""
        size = self.box.function.rows.n_state
        states = x[:, :size] + self.move * self.unit
        found = self.box(torch.cat([states, x[:, size:-size]], 1))
        return (found * x[:, -size:]).sum(1)


def itself(outputs: Tensor, y: Tensor) -> Tensor:
    """Return outputs that are losses already."""
    return outputs


class UnrolledStep(TrainingStep):
    """The step of an :class:`Unrolled` solver.

    With a `slope` for the solver's step, autograd goes through the corrector and meets it there;
    otherwise queries perturb the weights of the corrector, as everywhere else.

    Attributes
    ----------
    solver_seconds : float
        How much of the steps' time the solver took, summed over workers.
    """

    solver_seconds = 0.0

    def begin(self, settings: StepSettings, objective: Objective) -> None:
        """Attach the objective of a fit and refuse a budget that allows no step at all."""
        if objective.module.slope is not None:
            self.cheaper = "or lower n_unroll, with which they grow, or n_repeats"
        super().begin(settings, objective)
        self._pulls: dict[int, tuple[Objective, Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_pulls"}

    @property
    def unrolled(self) -> Unrolled:
        """What is trained."""
        return self.objective.module  # type: ignore[return-value]

    def __call__(self, batch: Batch) -> tuple[float, Any]:
        """Write the estimate to ``.grad`` and return the loss and outputs of the batch."""
        meter = self.unrolled.box.meter
        before = meter.read()
        try:
            return self._step(batch)
        finally:
            self.solver_seconds += meter.since(before).seconds

    def _step(self, batch: Batch) -> tuple[float, Any]:
        batch = replace(batch, y=batch.y[:, : self.unrolled.n_unroll])
        if self.unrolled.slope is None:
            return super().__call__(batch)
        self._batch, self.before = batch, self.objective.theta_copy()
        self.active = torch.arange(self.objective.parameters.size)
        self.objective.write_gradient(torch.zeros(self.objective.parameters.size))
        self.n_queries += 1  # the roll-out at the current weights
        with torch.enable_grad(), drawing_from(draw_seed(self.generator), batch.X.device):
            before, after = self._roll_out(batch)
        outputs = torch.stack([state.detach() for state in after], 1) / self.unrolled.state_scale
        outputs.requires_grad_()
        with torch.enable_grad():
            loss = self.objective.batch_loss(outputs, batch)
        (slopes,) = torch.autograd.grad(loss, outputs)
        self._back_through(batch, before, after, slopes / self.unrolled.state_scale)
        self.n_steps += 1
        self.responded = True
        return float(loss.detach()), outputs.detach()

    def _n_asked(self) -> int:
        unrolled, settings = self.unrolled, self.settings
        if unrolled.slope is None:
            return super()._n_asked()
        return n_asked(unrolled, settings.estimator, settings.n_repeats)

    def _roll_out(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Return the states before and after each correction; each pair has a graph of its own."""
        unrolled = self.unrolled
        before: list[Tensor] = []
        after: list[Tensor] = []
        states, channels = unrolled.rows.states(batch.X), unrolled.channels(batch.X)
        for number in range(unrolled.n_unroll):
            if number:
                states = self._solve(batch, after[-1].detach(), number)
            states = states.detach().requires_grad_()
            before.append(states)
            after.append(unrolled.correct(states, channels))
        return before, after

    def _solve(self, batch: Batch, states: Tensor, number: int) -> Tensor:
        asking = self.settings.asking

        def ask() -> Tensor:
            reply = asking.patience.ask(lambda: self.unrolled.solve(batch.X, states), is_finite)
            if isinstance(reply.cause, ValueError | TypeError):
                raise reply.cause  # of states that cannot be used, which says what to do
            if reply.cause is not None:
                raise QueryError(
                    f"The roll-out at the current weights failed in step {number + 1} of "
                    f"{self.unrolled.n_unroll} on {batch.label}, asked {reply.attempts} time(s): "
                    f"{type(reply.cause).__name__}: {reply.cause}"
                ) from reply.cause
            return reply.value

        found = asking.backend.once(ask).to(states.device)
        if not bool(found.isfinite().all()):
            raise QueryError(
                f"The roll-out at the current weights is not finite after step {number + 1} of "
                f"{self.unrolled.n_unroll} on {batch.label}; expected finite states. Lower lr or "
                "n_unroll, or begin with fewer steps by unroll_schedule."
                f"{self.unrolled.box.hint()}"
            )
        return found

    def _back_through(
        self, batch: Batch, before: list[Tensor], after: list[Tensor], slopes: Tensor
    ) -> None:
        """Add to ``.grad`` what each correction contributes, the last one first."""
        parameters = [p for p in self.unrolled.corrector.parameters() if p.requires_grad]
        later = torch.zeros_like(slopes[:, 0])
        for number in reversed(range(len(after))):
            wanted = [*parameters, before[number]]
            found = torch.autograd.grad(
                after[number], wanted, slopes[:, number] + later, allow_unused=True
            )
            for parameter, part in zip(parameters, found, strict=False):
                if part is not None:
                    parameter.grad += part  # type: ignore[operator]
            if number and found[-1] is not None:
                later = self._through_solver(batch, after[number - 1].detach(), found[-1])

    def _through_solver(self, batch: Batch, states: Tensor, slopes: Tensor) -> Tensor:
        """Return the slopes at the states before a step of the solver from those behind it."""
        slope = self.unrolled.slope
        if slope == "zero":
            return torch.zeros_like(slopes)
        if slope == "identity":
            return slopes
        if slope == "autograd":
            rows = self.unrolled.rows
            with torch.enable_grad():
                states.requires_grad_()
                box, given = self.unrolled.box, rows.with_states(batch.X, states)
                with box.meter.running(len(given)):
                    behind = box.function.after(given)
                return torch.autograd.grad(behind, states, slopes.flatten(1))[0]
        return self._asked_slopes(batch, states, slopes)

    def _asked_slopes(self, batch: Batch, states: Tensor, slopes: Tensor) -> Tensor:
        """Return them by finite differences of the solver at its input."""
        n, unrolled = len(states), self.unrolled
        rows = torch.cat([unrolled.rows.with_states(batch.X, states), slopes.flatten(1)], 1)
        if n not in self._pulls:
            self._pulls[n] = make_pull(unrolled, n, self.objective)
        pull, unit = self._pulls[n]
        _, found = row_slopes(self, Batch(rows, rows[:, :1], None, batch.label), pull, len(unit))
        return (found.to(states) / unit).reshape(states.shape)


def n_asked(unrolled: Unrolled, estimator: Any, n_repeats: int) -> int:
    """Return how many queries a step of training asks where autograd meets a slope."""
    if unrolled.slope != "queries":
        return 1
    a_step = 1 + estimator.n_queries(unrolled.rows.n_state)
    # Of the longest, so that it has its queries left where shorter ones come first.
    return 1 + (unrolled.longest - 1) * n_repeats * a_step


def make_pull(unrolled: Unrolled, n: int, like: Objective) -> tuple[Objective, Tensor]:
    """Return what queries of the solver's input are asked about, for n rows, and their units."""
    shape = unrolled.rows.state
    unit = unrolled.state_scale.expand(shape).flatten().contiguous()
    objective = Objective(
        Pull(unrolled.box, n, unit),
        BatchLoss(itself, per_sample=True),
        feature_reuse=like.feature_reuse,
        memory_budget=like.memory_budget,
    )
    return objective, unit
