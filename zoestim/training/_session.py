"""From validated arrays to a trained skorch net, and the fitted attributes from it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from skorch.callbacks import Callback, EarlyStopping
from skorch.helper import predefined_split
from torch import nn
from torch.utils.data import TensorDataset

from zoestim._modules import check_names
from zoestim.backends import Backend
from zoestim.evaluation import (
    PRECISIONS,
    Asking,
    Objective,
    as_input,
    as_tensor,
    draw_seed,
    first_parameter,
)
from zoestim.gradients import RandomizedEstimator, resolve_estimator
from zoestim.sparsity import Pruning
from zoestim.training._asking import Agreement, main_device, make_asking, root_generator
from zoestim.training._callbacks import BudgetStop, Conductor, LearningRate, QueryProgress
from zoestim.training._net import ArrayBatches, ZONet
from zoestim.training._sklearn_callbacks import SklearnBridge
from zoestim.training._step import StepSettings, TrainingStep, prunable

AUTO_BATCH = 200  # as scikit-learn's MLPs
BUILT_FROM = ("module", "initial_params", "criterion", "optimizer", "precision", "device")
MOMENTUM = 0.9  # Sec. 6.1


@dataclass
class Session:
    """One fit that is ready to run: nothing can be refused any more but the queries.

    Attributes
    ----------
    net : ZONet
        The net to train, new or continued.
    objective : Objective
        What is minimised.
    training : TensorDataset
        The samples to train on.
    callbacks : list of Callback
        Those of this fit alone.
    """

    net: ZONet
    objective: Objective
    training: TensorDataset
    callbacks: list[Callback]

    def run(self, estimator: Any) -> None:
        """Train, and store what was learned, also if training fails."""
        estimator.net_, estimator.module_ = self.net, self.net.module_
        before, reason = len(_finished(self.net)), "error"
        try:
            with _attached(self.net, self.callbacks):
                self.net.partial_fit(self.training, None)
            reason = _termination(self.net, self.callbacks, before)
            if not self.net.zo_step.responded:
                warnings.warn(
                    "No query changed the loss, so nothing was learned: the step is too small "
                    "for outputs that are rounded or counted. Raise "
                    f"smoothing={estimator.smoothing}.",
                    ConvergenceWarning,
                    stacklevel=5,
                )
        finally:
            backend = self.net.zo_step.settings.asking.backend
            if backend is not estimator.backend:
                backend.close()
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
    if continued:
        _refuse_new_build(estimator)
    asking = make_asking(estimator)
    net = estimator.net_ if continued else make_net(estimator, asking.backend)
    training, validation = _tensors(X, target, weight, net.module_), None
    if estimator.early_stopping and epochs:
        training, validation = _split(estimator, training, asking.backend)
    net.batch_size = _batch_size(estimator, len(training))
    reserved = len(net.get_iterator(validation)) if validation else 0
    objective = estimator._make_objective(net.module_, net.criterion_)
    settings = _settings(estimator, asking, reserved)
    _check_pruning(settings.pruning, objective)
    net.zo_step.begin(settings, objective)
    net.lr = _lr(estimator)
    net.max_epochs = epochs or 1
    net.zo_batches_per_epoch = len(net.get_iterator(training, training=True))
    net.train_split = predefined_split(validation) if validation else None
    callbacks = _callbacks(estimator, X, y, constant_lr=epochs is None)
    return Session(net, objective, training, callbacks)


def build_parameters(estimator: Any) -> dict[str, Any]:
    """Return the parameters that a net is built from, and keeps when a fit goes on."""
    params = estimator.get_params(deep=False)
    prefixes = ("module__", "criterion__", "optimizer__")
    return {n: v for n, v in params.items() if n in BUILT_FROM or n.startswith(prefixes)}


def _refuse_new_build(estimator: Any) -> None:
    old, new = estimator.net_.zo_built_from, build_parameters(estimator)
    names = [n for n in old | new if n not in old or n not in new or not _same(old[n], new[n])]
    if names:
        raise ValueError(
            f"{sorted(names)} changed since the fit that is to go on, which keeps its module, "
            "criterion and optimizer; expected them as they were. Set warm_start=False, or "
            "build a new estimator around module=module_, to start with others."
        )


def _same(old: Any, new: Any) -> bool:
    if old is new:
        return True
    plain = bool | int | float | str | tuple | torch.device
    return type(old) is type(new) and isinstance(old, plain) and old == new


def make_net(estimator: Any, backend: Backend) -> ZONet:
    """Return an initialised net with a fresh module, optimizer and generators."""
    optimizer_arguments = _optimizer_arguments(estimator)
    root, device = root_generator(estimator, backend), main_device(estimator.device)
    module = estimator._make_module(estimator.n_features_in_, draw_seed(root))
    if estimator.precision != "auto":
        module = module.to(PRECISIONS[estimator.precision])
    net = ZONet(
        module=module.to(device),
        criterion=estimator._make_criterion().to(first_parameter(module)),
        optimizer=estimator.optimizer,
        iterator_train=ArrayBatches,
        iterator_valid=ArrayBatches,
        train_split=None,
        callbacks=estimator.callbacks,
        verbose=estimator.verbose,
        device=device,
        lr=_lr(estimator),
        **{f"optimizer__{name}": value for name, value in optimizer_arguments.items()},
        **_iterator_arguments(estimator, root),
        **_log_arguments(estimator),
    )
    net.initialize()
    net.zo_built_from = build_parameters(estimator)
    net.zo_step = TrainingStep(torch.Generator().manual_seed(draw_seed(root)))
    net.iterator_train__proceed = net.zo_step.affordable
    return net


def _optimizer_arguments(estimator: Any) -> dict[str, Any]:
    optimizer, arguments = estimator.optimizer, estimator._prefixed("optimizer")
    if not issubclass(optimizer, torch.optim.Optimizer):
        raise ValueError(
            f"optimizer must be a torch.optim.Optimizer class; got {optimizer.__name__}."
        )
    if issubclass(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "optimizer=LBFGS asks for the same batch several times a step, each time at the "
            "price of a whole gradient estimate; expected an optimizer that takes one "
            "gradient a step, such as torch.optim.SGD or torch.optim.Adam."
        )
    known = [*inspect.signature(optimizer).parameters, "param_groups"]  # these are skorch's
    check_names(arguments, known, prefix="optimizer__", owner=optimizer.__name__)
    if optimizer is torch.optim.SGD:
        return {"momentum": MOMENTUM} | arguments
    return arguments


def _iterator_arguments(estimator: Any, root: torch.Generator) -> dict[str, Any]:
    device, shuffler = main_device(estimator.device), torch.Generator().manual_seed(draw_seed(root))
    defaults = {
        "iterator_train__shuffle": True,
        "iterator_train__generator": shuffler,
        "iterator_train__device": device,
        "iterator_valid__device": device,
    }
    known = list(inspect.signature(ArrayBatches).parameters)
    given: dict[str, Any] = {}
    for prefix in ("iterator_train", "iterator_valid"):
        arguments = estimator._prefixed(prefix)
        check_names(arguments, known, prefix=f"{prefix}__", owner="ArrayBatches")
        given |= {f"{prefix}__{name}": value for name, value in arguments.items()}
    return defaults | given


def _log_arguments(estimator: Any) -> dict[str, Any]:
    quiet = {} if estimator.verbose >= 2 else {"callbacks__print_log": None}
    given = estimator._prefixed("callbacks").items()
    return quiet | {f"callbacks__{name}": value for name, value in given}


def _settings(estimator: Any, asking: Asking, reserved: int) -> StepSettings:
    pruning = estimator.pruning
    return StepSettings(
        estimator=_strategy(estimator),
        pruning=Pruning(pruning) if isinstance(pruning, str) else pruning,
        sparsity=estimator.sparsity,
        mask_interval=estimator.mask_interval,
        n_pruning_queries=estimator.n_pruning_queries,
        smoothing=estimator.smoothing,
        max_queries=estimator.max_queries,
        reserved=reserved,
        n_repeats=estimator.n_repeats,
        asking=asking,
    )


def _check_pruning(pruning: Any, objective: Objective) -> None:
    """Refuse rules and layers that do not exist, before anything is asked."""
    if isinstance(pruning, Pruning):
        pruning.check()
        _refuse_bad(RandomizedEstimator(1, distribution=pruning.distribution))
    elif pruning is not None:
        owner = f"The prunable part of {type(objective.module).__name__}"
        check_names(pruning, prunable(objective), prefix="", owner=owner)
        wrong = {name: ratio for name, ratio in pruning.items() if not 0 <= ratio <= 1}
        if wrong:
            raise ValueError(f"pruning has the ratios {wrong}; expected numbers in [0, 1].")


def _strategy(estimator: Any) -> Any:
    strategy = resolve_estimator(
        estimator.gradient, estimator.smoothing, estimator.scheme, estimator.n_directions
    )
    _refuse_bad(strategy)
    return strategy


def _refuse_bad(strategy: Any) -> None:
    """Let a strategy refuse its own parameters before anything is asked."""
    strategy.queries(torch.arange(1), (1,), torch.Generator())


def _lr(estimator: Any) -> float:
    if estimator.lr is not None:
        return estimator.lr
    strategy = _strategy(estimator)
    return estimator._default_lr["rge" if isinstance(strategy, RandomizedEstimator) else "cge"]


def _batch_size(estimator: Any, n_samples: int) -> int:
    return min(AUTO_BATCH if estimator.batch_size == "auto" else estimator.batch_size, n_samples)


def _tensors(
    X: np.ndarray, y: np.ndarray, weight: np.ndarray | None, module: nn.Module
) -> TensorDataset:
    target = as_tensor(y)
    if target.is_floating_point():
        target = target.to(first_parameter(module).dtype)
    weights = () if weight is None else (as_tensor(weight),)
    return TensorDataset(as_input(X, module), target, *weights)


def _split(
    estimator: Any, data: TensorDataset, backend: Backend
) -> tuple[TensorDataset, TensorDataset]:
    stratify = data.tensors[1].numpy() if is_classifier(estimator) else None
    indices = train_test_split(
        np.arange(len(data)),
        test_size=estimator.validation_fraction,
        stratify=stratify,
        random_state=draw_seed(root_generator(estimator, backend)) % 2**32,
    )
    training, validation = (TensorDataset(*data[torch.as_tensor(part)]) for part in indices)
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
        net.callbacks_ = own
        for callback in callbacks:
            if isinstance(callback, QueryProgress):
                callback.close()


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
