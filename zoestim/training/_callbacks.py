"""What happens around the training steps: budget, learning rate, progress, other callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from skorch.callbacks import Callback
from tqdm.auto import tqdm

from zoestim.training._net import ZONet
from zoestim.training._step import TrainingStep

LR_SCHEDULES = ("cosine", "constant")


class Conductor(Callback):
    """Keeps a training step in time with the loop: epoch, counts, idle coordinates.

    Parameters
    ----------
    update : {"active", "all"}
        Which coordinates the optimizer may move.
    """

    def __init__(self, update: str = "active"):
        self.update = update

    def on_epoch_begin(self, net: ZONet, **kwargs: Any) -> None:
        net.zo_step.objective.distrust()
        net.zo_step.epoch = len(net.history) - 1

    def on_batch_end(self, net: ZONet, training: bool = True, **kwargs: Any) -> None:
        if not training:
            net.zo_step.n_queries += 1  # a validation loss is a query too
        elif self.update == "active":
            _restrict_update(net.zo_step)

    def on_epoch_end(self, net: ZONet, **kwargs: Any) -> None:
        net.history.record("n_queries", net.zo_step.n_queries)
        net.zo_step.objective.distrust()
        net.zo_step.epoch = len(net.history)  # whose renewals the budget has to allow


def _restrict_update(step: TrainingStep) -> None:
    """Undo the optimizer's move of the coordinates that were not queried.

    Momentum would go on moving them on stale velocity, which can diverge.
    """
    parameters = step.objective.parameters
    if len(step.active) == parameters.size:
        return
    active = torch.zeros(parameters.size, dtype=torch.bool)
    active[step.active] = True
    theta = step.objective.theta()
    device = next(iter(theta.values())).device
    for name, mask in parameters.split(active.to(device)).items():
        theta[name].copy_(torch.where(mask, theta[name], step.before[name]))


class BudgetStop(Callback):
    """Ends the fit, as skorch's own callbacks do, when the next step costs too much."""

    def on_epoch_end(self, net: ZONet, **kwargs: Any) -> None:
        if not net.zo_step.affordable():
            raise KeyboardInterrupt


class Progress(Callback):
    """How much of the fit is done: the fraction of epochs or of the budget, whichever is further.

    What follows it, as a rate that falls to zero, so ends well also where the budget ends the fit.
    """

    def on_train_begin(self, net: ZONet, **kwargs: Any) -> None:
        self._first_epoch = len(net.history)
        self._first_query = net.zo_step.n_queries

    def state_dict(self) -> dict[str, int]:
        return {"first_epoch": self._first_epoch, "first_query": self._first_query}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._first_epoch, self._first_query = state["first_epoch"], state["first_query"]

    def epochs(self, net: ZONet) -> float:
        """Return how many epochs are done, at the beginning of a batch."""
        dataset = max(1, net.zo_batches_per_epoch)
        within = len(net.history[-1]["batches"]) - 1
        return len(net.history) - 1 - self._first_epoch + within / dataset

    def progress(self, net: ZONet) -> float:
        """Return how much is done, from 0 to 1, at the beginning of a batch."""
        done = self.epochs(net) / net.max_epochs
        limit = net.zo_step.settings.max_queries
        if limit is not None and limit > self._first_query:
            asked = net.zo_step.n_queries - self._first_query
            done = max(done, asked / (limit - self._first_query))
        return min(done, 1.0)


class LearningRate(Progress):
    """The learning rate as a function of how much of the fit is done.

    Parameters
    ----------
    schedule : {"cosine", "constant"} or callable
        A callable maps progress in [0, 1] to a factor of the initial rate.
    warmup_epochs : int
        Epochs over which the factor rises linearly from zero.
    """

    def __init__(self, schedule: str | Callable[[float], float], warmup_epochs: int = 0):
        self.schedule = schedule
        self.warmup_epochs = warmup_epochs

    def on_train_begin(self, net: ZONet, **kwargs: Any) -> None:
        super().on_train_begin(net, **kwargs)
        groups = net.optimizer_.param_groups
        for group in groups:
            group.setdefault("initial_lr", group["lr"])
        if len(groups) == 1:  # a later fit may bring another rate
            groups[0]["initial_lr"] = net.lr
        for group in groups:  # a last fit may have ended near zero
            group["lr"] = group["initial_lr"]

    def on_batch_begin(self, net: ZONet, training: bool = True, **kwargs: Any) -> None:
        if not training or (self.schedule == "constant" and not self.warmup_epochs):
            return  # a constant rate is left to the user's own schedulers
        factor = self._factor(self.progress(net)) * self._warmup(net)
        for group in net.optimizer_.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def _factor(self, progress: float) -> float:
        if self.schedule == "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        return 1.0 if self.schedule == "constant" else float(self.schedule(progress))  # type: ignore[operator]

    def _warmup(self, net: ZONet) -> float:
        if not self.warmup_epochs:
            return 1.0
        step = 1 / max(1, net.zo_batches_per_epoch)
        return min(1.0, (self.epochs(net) + step) / self.warmup_epochs)


class QueryProgress(Callback):
    """A progress bar with queries, loss and the time that is left."""

    def on_train_begin(self, net: ZONet, **kwargs: Any) -> None:
        steps = net.max_epochs * net.zo_batches_per_epoch
        done = 0 if net.zo_resumption is None else net.zo_resumption.steps_done
        limit = net.zo_step.settings.max_queries
        if limit is not None:
            scores = net.zo_step.scoring_due()
            left, step = limit - net.zo_step.n_queries - scores, net.zo_step.next_cost() - scores
            steps = min(steps, done + left // step)
        self._bar = tqdm(total=steps, initial=done, unit="step", desc="zoestim")

    def on_batch_end(self, net: ZONet, training: bool = True, **kwargs: Any) -> None:
        if training:
            loss = net.history[-1, "batches", -1, "train_loss"]
            self._bar.set_postfix(queries=net.zo_step.n_queries, loss=f"{loss:.4g}", refresh=False)
            self._bar.update()

    def close(self) -> None:
        """Leave the bar as it stands, also after an error, which skorch does not tell of."""
        if hasattr(self, "_bar"):
            self._bar.close()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_bar"}
