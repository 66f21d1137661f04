"""From an estimator's parameters to an initialised net, and what of it a continued fit keeps."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from zoestim._modules import check_names
from zoestim.backends import Backend
from zoestim.evaluation import PRECISIONS, draw_seed, first_parameter, shared_generator
from zoestim.gradients import RandomizedEstimator, resolve_estimator
from zoestim.training._asking import main_device
from zoestim.training._net import ArrayBatches, ZONet

BUILT_FROM = ("module", "initial_params", "criterion", "optimizer", "precision", "device")
PLAIN = bool | int | float | str | tuple | torch.device  # what is compared by its value
MOMENTUM = 0.9  # Sec. 6.1


def build_parameters(estimator: Any) -> dict[str, Any]:
    """Return the parameters that a net is built from, and keeps when a fit goes on."""
    params = estimator.get_params(deep=False)
    prefixes = ("module__", "criterion__", "optimizer__")
    return {n: v for n, v in params.items() if n in BUILT_FROM or n.startswith(prefixes)}


def refuse_new_build(estimator: Any) -> None:
    """Refuse to go on with a net after a change of what it was built from."""
    old, new = estimator.net_.zo_built_from, build_parameters(estimator)
    names = [
        n for n in old | new if n not in old or n not in new or not same_setting(old[n], new[n])
    ]
    if names:
        raise ValueError(
            f"{sorted(names)} changed since the fit that is to go on, which keeps its module, "
            "criterion and optimizer; expected them as they were. Set warm_start=False, or "
            "build a new estimator around module=module_, to start with others."
        )


def same_setting(old: Any, new: Any, plain: Any = PLAIN) -> bool:
    """Return whether a parameter is as it was: the same object, or an equal one of `plain`."""
    return old is new or (type(old) is type(new) and isinstance(old, plain) and old == new)


def make_net(estimator: Any, backend: Backend) -> ZONet:
    """Return an initialised net with a fresh module, optimizer and generators."""
    optimizer_arguments = _optimizer_arguments(estimator)
    root, device = shared_generator(estimator.random_state, backend), main_device(estimator.device)
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
        lr=learning_rate(estimator),
        **{f"optimizer__{name}": value for name, value in optimizer_arguments.items()},
        **_iterator_arguments(estimator, root),
        **_log_arguments(estimator),
    )
    net.initialize()
    net.zo_built_from = build_parameters(estimator)
    net.zo_step = estimator._step(torch.Generator().manual_seed(draw_seed(root)))
    net.zo_step.n_queries = estimator._n_queries_before
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


def strategy_of(estimator: Any) -> Any:
    """Return the gradient strategy that an estimator's parameters describe."""
    strategy = resolve_estimator(
        estimator.gradient, estimator.smoothing, estimator.scheme, estimator.n_directions
    )
    refuse_bad(strategy)
    return strategy


def refuse_bad(strategy: Any) -> None:
    """Let a strategy refuse its own parameters before anything is asked."""
    strategy.queries(torch.arange(1), (1,), torch.Generator())


def learning_rate(estimator: Any) -> float:
    """Return the initial learning rate, given or by default."""
    if estimator.lr is not None:
        return estimator.lr
    strategy = strategy_of(estimator)
    return estimator._default_lr["rge" if isinstance(strategy, RandomizedEstimator) else "cge"]
