"""From what the user passes as `module` to the module that is trained."""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from zoestim.evaluation import BlackBox, drawing_from, first_parameter
from zoestim.models import MLP


def build_module(
    module: Any,
    initial_params: Any,
    arguments: Mapping[str, Any],
    sizes: Mapping[str, Any],
    seed: int,
    name: str = "module",
) -> nn.Module:
    """Return a fresh module: built, copied or wrapped; the global generators stay as they are.

    Parameters
    ----------
    module : None, nn.Module class, factory, nn.Module instance or callable
        What the estimator was given.
    initial_params : array, dict of arrays or None
        Marks `module` as a black-box callable.
    arguments : mapping
        The user's ``module__`` parameters, without the prefix.
    sizes : mapping
        What is known of the data: passed where the signature names it.
    seed : int
        The seed of the initialisation.
    name : str, default="module"
        What the parameter is called.

    Raises
    ------
    TypeError, ValueError
        If the module cannot be built; the message says what to pass.
    """
    with drawing_from(seed, torch.device("cpu")):
        built = _build(module, initial_params, arguments, sizes, name)
    first_parameter(built)  # refuses to have none
    return built


def _build(module: Any, initial_params: Any, arguments: Any, sizes: Any, name: str) -> nn.Module:
    if initial_params is not None:
        return _wrap(module, initial_params, arguments)
    if module is None:
        return _call(MLP, arguments, sizes, name).to(torch.float64)
    if isinstance(module, nn.Module):
        _refuse_arguments(
            f"{name}__", arguments, f"{name} is an instance; pass its class or a factory instead"
        )
        return copy.deepcopy(module)
    if callable(module):
        return _call(module, arguments, sizes, name)
    raise TypeError(
        f"{name} must be None, a torch.nn.Module (class, factory or instance) or a callable "
        f"f(params, X) with initial_params; got {type(module).__name__}."
    )


def _wrap(function: Any, initial_params: Any, arguments: Mapping[str, Any]) -> BlackBox:
    if not callable(function) or isinstance(function, nn.Module | type):
        raise TypeError(
            "initial_params is for a black-box callable f(params, X); module is "
            f"{function!r}. Leave initial_params out, or pass the function as module."
        )
    _refuse_arguments("module__", arguments, "module is a black box; use functools.partial")
    return BlackBox(function, initial_params)


def _call(
    factory: Callable[..., Any], arguments: Mapping[str, Any], sizes: Any, prefix: str
) -> nn.Module:
    name = getattr(factory, "__name__", type(factory).__name__)
    parameters = inspect.signature(factory).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [n for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if not open_ended:
        check_names(arguments, named, prefix=f"{prefix}__", owner=name)
    given = {n: value for n, value in sizes.items() if n in named} | dict(arguments)
    missing = [
        n for n in named if parameters[n].default is inspect.Parameter.empty and n not in given
    ]
    if missing:
        raise TypeError(
            f"{prefix}={name} needs the argument(s) {missing}. If it is a factory or class, pass "
            f"{prefix}__{missing[0]}=...; if it is a black-box function of parameters and data, "
            "pass initial_params=... (an array or a dict of arrays)."
        )
    built = factory(**given)
    if not isinstance(built, nn.Module):
        raise TypeError(
            f"{prefix}={name} returned {type(built).__name__}; expected a torch.nn.Module. For a "
            "black-box function of parameters and data, pass initial_params=... too."
        )
    return built


def build_criterion(given: Any, arguments: Mapping[str, Any], default: Any) -> Any:
    """Return the criterion: the default, an instance of a class, or what was given.

    Raises ValueError for parameters that it cannot use or would not train.
    """
    criterion = given
    if given is None:
        _refuse_arguments("criterion__", arguments, "criterion is None; pass a class")
        criterion = default
    elif isinstance(given, type):
        known = list(inspect.signature(given).parameters)
        check_names(arguments, known, prefix="criterion__", owner=given.__name__)
        criterion = given(**arguments)
    else:
        _refuse_arguments("criterion__", arguments, "criterion is no class; pass its class")
    if isinstance(criterion, nn.Module) and any(p.requires_grad for p in criterion.parameters()):
        raise ValueError(
            f"criterion={type(criterion).__name__} has trainable parameters, which are not "
            "trained here; expected none. Make them part of module."
        )
    return criterion


def check_names(given: Iterable[str], known: Iterable[str], *, prefix: str, owner: str) -> None:
    """Refuse a name that is not known, and say which one may have been meant."""
    options = list(known)
    for name in given:
        if name not in options:
            close = difflib.get_close_matches(name, options, n=1)
            hint = f"Did you mean {prefix}{close[0]}?" if close else f"Expected one of {options}."
            raise ValueError(f"{owner} has no parameter {prefix}{name}. {hint}")


def _refuse_arguments(prefix: str, arguments: Mapping[str, Any], reason: str) -> None:
    if arguments:
        names = [f"{prefix}{name}" for name in arguments]
        raise ValueError(f"{names} cannot be used: {reason}.")
