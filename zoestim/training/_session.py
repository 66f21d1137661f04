"""From validated arrays to a trained skorch net, and the fitted attributes from it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from sklearn.base import is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from skorch.callbacks import Callback, EarlyStopping
from skorch.helper import predefined_split
from torch.utils.data import Dataset, Subset

from zoestim._modules import check_names
from zoestim.backends import Backend
from zoestim.evaluation import (
    Asking,
    Objective,
    draw_seed,
    shared_generator,
)
from zoestim.gradients import RandomizedEstimator
from zoestim.sparsity import Pruning
from zoestim.training._asking import Agreement, make_asking
from zoestim.training._build import (
    learning_rate,
    make_net,
    refuse_bad,
    refuse_new_build,
    strategy_of,
)
from zoestim.training._callbacks import BudgetStop, Conductor, LearningRate, QueryProgress
from zoestim.training._checkpoint import Checkpoint
from zoestim.training._fingerprint import fingerprint
from zoestim.training._net import ZONet
from zoestim.training._sklearn_callbacks import SklearnBridge
from zoestim.training._step import StepSettings, prunable

AUTO_BATCH = 200  # as scikit-learn's MLPs


@dataclass
class Session:
    """One fit that is ready to run: nothing can be refused any more but the queries.

    Attributes
    ----------
    net : ZONet
        The net to train, new or continued.
    objective : Objective
        What is minimised.
    training : Dataset
        The samples to train on.
    callbacks : list of Callback
        Those of this fit alone.
    checkpoint : Checkpoint or None
        Where the fit is kept; the last of the callbacks.
    n_before : int
        Epochs of the fits that this one continues.
    """

    net: ZONet
    objective: Objective
    training: Dataset
    callbacks: list[Callback]
    checkpoint: Checkpoint | None = None
    n_before: int = 0

    def run(self, estimator: Any) -> None:
        """Train, and store what was learned, also if training fails."""
        estimator.net_, estimator.module_ = self.net, self.net.module_
        reason = "error"
        try:
            if self.checkpoint is not None and self.checkpoint.finished is not None:
                reason = self.checkpoint.finished
                return
            if self.checkpoint is not None and self.checkpoint.found is not None:
                self.net.zo_resumption = self.checkpoint
            self.net.zo_interrupted = False
            with _attached(self.net, self.callbacks), _kept(self.checkpoint):
                self.net.partial_fit(self.training, None)
            reason = _termination(self.net, self.callbacks, self.n_before)
            if self.checkpoint is not None:
                self.checkpoint.end(self.net, reason)
            _warn(self.net, estimator.smoothing, estimator._warning_level)
        finally:
            if self.checkpoint is not None:
                self.checkpoint.close()
            backend = self.net.zo_step.settings.asking.backend
            if backend is not estimator.backend:
                backend.close()
            self.net.train_split = None  # it holds data
            _store(estimator, self.objective)
            estimator.termination_condition_ = reason


def prepare(
    estimator: Any,
    X: np.ndarray,
    y: Any,
    target: np.ndarray,
    weight: np.ndarray | None,
    *,
    continued: bool,
    epochs: int | None,
) -> Session:
    """Make a fit ready to run: `target` is y encoded; `epochs` None is one at a constant rate."""
    asking = make_asking(estimator)
    checkpoint = _checkpoint(estimator, epochs, asking.backend)
    try:
        return _prepared(
            estimator, X, y, target, weight, asking, checkpoint, continued=continued, epochs=epochs
        )
    except BaseException:
        if checkpoint is not None:
            checkpoint.close()
        raise


def _prepared(
    estimator: Any,
    X: np.ndarray,
    y: Any,
    target: np.ndarray,
    weight: np.ndarray | None,
    asking: Asking,
    checkpoint: Checkpoint | None,
    *,
    continued: bool,
    epochs: int | None,
) -> Session:
    if continued:
        refuse_new_build(estimator)
    if checkpoint is not None and estimator.journal_queries:
        asking = replace(asking, journal=checkpoint.journal)
    net = estimator.net_ if continued else make_net(estimator, asking.backend)
    training, validation = estimator._make_data(X, target, weight, net.module_), None
    estimator._held_out = None
    if estimator.early_stopping and epochs:
        training, validation = _split(estimator, training, asking.backend, checkpoint)
    net.batch_size = _batch_size(estimator, len(training))
    reserved = len(net.get_iterator(validation)) if validation else 0
    objective = estimator._make_objective(net.module_, net.criterion_)
    settings = _settings(estimator, net, asking, reserved)
    _check_pruning(settings.pruning, objective)
    net.zo_step.begin(settings, objective)
    net.lr = learning_rate(estimator)
    net.max_epochs = epochs or 1
    net.zo_batches_per_epoch = len(net.get_iterator(training, training=True))
    net.train_split = predefined_split(validation) if validation else None
    n_before = len(_finished(net))
    if checkpoint is not None:
        checkpoint.claim(net, fingerprint(estimator, net, X, y, weight, continued=continued))
        if checkpoint.finished is not None:
            return Session(net, objective, training, [], checkpoint, n_before)
    callbacks = _callbacks(estimator, X, y, constant_lr=epochs is None)
    callbacks += [] if checkpoint is None else [checkpoint]
    return Session(net, objective, training, callbacks, checkpoint, n_before)


def _checkpoint(estimator: Any, epochs: int | None, backend: Backend) -> Checkpoint | None:
    if estimator.checkpoint is None:
        if estimator.journal_queries:
            raise ValueError(
                "journal_queries=True keeps answers beside the checkpoint, and there is none; "
                "expected checkpoint=PATH too."
            )
        return None
    if epochs is None:
        raise ValueError(
            "partial_fit cannot keep a checkpoint: a file cannot tell which of several calls it "
            f"is of; got checkpoint={os.fspath(estimator.checkpoint)!r}, expected None. Call fit, "
            "or set checkpoint=None and save between the calls."
        )
    if estimator._prefixed("iterator_train").get("generator", True) is None:
        raise ValueError(
            "checkpoint cannot keep the order of the batches, which iterator_train__generator="
            "None draws from torch's global generator; expected a torch.Generator, or nothing."
        )
    return Checkpoint(estimator.checkpoint, backend)


def _settings(estimator: Any, net: ZONet, asking: Asking, reserved: int) -> StepSettings:
    pruning = estimator.pruning
    return StepSettings(
        estimator=strategy_of(estimator),
        pruning=Pruning(pruning) if isinstance(pruning, str) else pruning,
        sparsity=estimator.sparsity,
        mask_interval=estimator.mask_interval,
        n_pruning_queries=estimator.n_pruning_queries,
        smoothing=estimator.smoothing,
        max_queries=estimator.max_queries,
        reserved=reserved,
        n_repeats=estimator.n_repeats,
        samples_a_query=net.batch_size if estimator._counts_samples else None,
        failure_penalty=estimator._failure_penalty,
        asking=asking,
    )


def _check_pruning(pruning: Any, objective: Objective) -> None:
    """Refuse rules and layers that do not exist, before anything is asked."""
    if isinstance(pruning, Pruning):
        pruning.check()
        refuse_bad(RandomizedEstimator(1, distribution=pruning.distribution))
    elif pruning is not None:
        owner = f"The prunable part of {type(objective.module).__name__}"
        check_names(pruning, prunable(objective), prefix="", owner=owner)
        wrong = {name: ratio for name, ratio in pruning.items() if not 0 <= ratio <= 1}
        if wrong:
            raise ValueError(f"pruning has the ratios {wrong}; expected numbers in [0, 1].")


def _batch_size(estimator: Any, n_samples: int) -> int:
    return min(AUTO_BATCH if estimator.batch_size == "auto" else estimator.batch_size, n_samples)


def _split(
    estimator: Any, data: Any, backend: Backend, checkpoint: Checkpoint | None
) -> tuple[Dataset, Dataset]:
    def draw() -> int:
        return draw_seed(shared_generator(estimator.random_state, backend)) % 2**32

    # Of samples that belong to groups, whole groups are held out.
    groups = getattr(data, "groups", None)
    units = np.arange(len(data)) if groups is None else np.unique(groups)
    parts = train_test_split(
        units,
        test_size=estimator.validation_fraction,
        stratify=data.tensors[1].numpy() if is_classifier(estimator) else None,
        random_state=draw() if checkpoint is None else checkpoint.seed(draw),
    )
    estimator._held_out = parts[1]
    if groups is not None:
        parts = [np.flatnonzero(np.isin(groups, part)) for part in parts]
    training, validation = (Subset(data, torch.as_tensor(part)) for part in parts)  # type: ignore[arg-type]
    return training, validation


def _callbacks(estimator: Any, X: Any, y: Any, *, constant_lr: bool) -> list[Callback]:
    """Return the callbacks of one fit, in the order in which they are called."""
    schedule = "constant" if constant_lr else estimator.lr_schedule
    warmup = 0 if constant_lr else estimator.warmup_epochs
    callbacks: list[Callback] = [Conductor(estimator.update), LearningRate(schedule, warmup)]
    if estimator.verbose:
        callbacks.append(QueryProgress())
    epochs = 1 if constant_lr else estimator.max_epochs
    context = estimator._init_callback_context(max_subtasks=epochs)
    if context is not None:
        context.call_on_fit_task_begin(estimator=estimator, X=X, y=y)
        callbacks.append(SklearnBridge(estimator, context, X, y))
    if estimator.early_stopping and not constant_lr:
        callbacks.append(
            EarlyStopping(
                patience=estimator.n_iter_no_change,
                threshold=estimator.tol,
                threshold_mode="abs",
                load_best=True,
            )
        )
    return [*callbacks, Agreement(), BudgetStop()]


@contextmanager
def _attached(net: ZONet, callbacks: Sequence[Callback]) -> Iterator[None]:
    """Lend callbacks to a net: those that keep time come first, the user's own stay."""
    own = net.callbacks_
    for callback in callbacks:
        callback.initialize()
    first, rest = callbacks[:2], callbacks[2:]
    net.callbacks_ = [
        *((type(c).__name__, c) for c in first),
        *own,
        *((type(c).__name__, c) for c in rest),
    ]
    try:
        yield
    finally:
        net.callbacks_, net.zo_resumption = own, None
        for callback in callbacks:
            if isinstance(callback, QueryProgress):
                callback.close()


@contextmanager
def _kept(checkpoint: Checkpoint | None) -> Iterator[None]:
    """Write the last whole step of a fit that an error ends, and let the error pass."""
    try:
        yield
    except BaseException as error:
        try:
            if checkpoint is not None:
                checkpoint.write()
        except Exception as another:
            if str(another) != str(error):  # not the write that ended it
                error.add_note(f"Its last steps could not be written to a checkpoint: {another}")
        raise


def _warn(net: ZONet, smoothing: float, level: int) -> None:
    """Say what a caller would not see by itself of a fit that returned."""
    if net.zo_interrupted:
        warnings.warn(
            f"The fit was interrupted in epoch {len(net.history)}, after {net.zo_step.n_steps} "
            "training steps, and keeps what they learned. Call fit again to train in full.",
            stacklevel=level,
        )
    elif not net.zo_step.responded and net.zo_step.n_failed:
        warnings.warn(
            f"{net.zo_step.n_failed} queries failed and no other changed the loss, so nothing was "
            "learned: mend what they fail of, which on_failure='raise' tells.",
            ConvergenceWarning,
            stacklevel=level,
        )
    elif not net.zo_step.responded:
        warnings.warn(
            "No query changed the loss, so nothing was learned: the step is too small for outputs "
            f"that are rounded or counted. Raise smoothing={smoothing}.",
            ConvergenceWarning,
            stacklevel=level,
        )


def _store(estimator: Any, objective: Objective) -> None:
    """Set the fitted attributes from the net as it stands."""
    step, finished = estimator.net_.zo_step, _finished(estimator.net_)
    ratios = step.schedule.ratios if step.schedule is not None else {}
    estimator.n_iter_ = len(finished)
    estimator.n_queries_ = step.n_queries
    estimator.query_log_ = step.log
    estimator.history_ = estimator.net_.history
    estimator.loss_curve_ = [float(row["train_loss"]) for row in finished]
    estimator.feature_reuse_ = objective.reuse
    estimator.layer_ratios_ = {name: ratios.get(name, 0.0) for name in objective.parameters.names}


def _finished(net: ZONet) -> list[dict[str, Any]]:
    """Return the rows of the history that belong to whole epochs."""
    return [row for row in net.history if "train_loss" in row]


def _termination(net: ZONet, callbacks: Sequence[Callback], before: int) -> str:
    if any(isinstance(c, EarlyStopping) and c.misses_ >= c.patience for c in callbacks):
        return "early_stopping"
    batches = net.history[-1].get("train_batch_count", 0)
    if batches >= net.zo_batches_per_epoch and len(_finished(net)) - before >= net.max_epochs:
        return "max_epochs"
    return "callback" if net.zo_step.affordable() else "max_queries"
