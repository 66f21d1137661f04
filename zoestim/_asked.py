"""What losses are asked of: a module, a criterion and one batch, checked and converted."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from zoestim.evaluation import (
    MATRIX_TYPES,
    PRECISIONS,
    Batch,
    BatchLoss,
    Objective,
    ParameterMap,
    as_input,
    as_tensor,
    first_parameter,
)


@dataclass(frozen=True)
class Asked:
    """An objective and the batch on which it is asked, in one type and on one device."""

    objective: Objective
    batch: Batch


def ask_about(
    module: nn.Module,
    criterion: Callable[[Any, Any], Any],
    X: Any,
    y: Any,
    feature_reuse: bool,
    precision: str,
    memory_budget: int | None,
) -> Asked:
    """Return the objective and the batch of a user's arguments, or say what is wrong with them."""
    _check_module(module)
    _check_memory_budget(memory_budget)
    module = _converted(module, precision)
    like = first_parameter(module)
    loss = BatchLoss(copy.deepcopy(criterion)).to(like)  # class weights in the module's type
    objective = Objective(
        module,
        loss,
        feature_reuse=feature_reuse,
        matrix_type=MATRIX_TYPES.get(precision),
        memory_budget=memory_budget,
    )
    return Asked(
        objective, Batch(as_input(X, module).to(like.device), as_tensor(y).to(like.device))
    )


def flat_coordinates(coordinates: Mapping[str, Any] | None, parameters: ParameterMap) -> Tensor:
    """Return the flat coordinates of indices given parameter by parameter; None is all."""
    if coordinates is None:
        return torch.arange(parameters.size)
    named = {}
    for name, given in coordinates.items():
        if name not in parameters.names:
            raise ValueError(
                f"coordinates names {name!r}, which is not a trainable parameter; expected "
                f"some of {list(parameters.names)}."
            )
        indices, size = torch.as_tensor(given).flatten(), parameters.sizes[name]
        if len(indices) and (indices.is_floating_point() or indices.dtype == torch.bool):
            raise TypeError(
                f"coordinates[{name!r}] holds {indices.dtype}; expected integer flat indices."
            )
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < size:
            raise ValueError(
                f"coordinates[{name!r}] holds {int(indices.min())} to {int(indices.max())}; "
                f"expected flat indices in [0, {size})."
            )
        named[name] = indices.to(torch.int64).unique()
    return parameters.flatten(named)


def _check_module(module: Any) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"module must be a torch.nn.Module instance; got {type(module).__name__}. Wrap a "
            "function f(params, X) as BlackBox(f, initial_params)."
        )


def _check_memory_budget(memory_budget: int | None) -> None:
    if memory_budget is not None and not (
        isinstance(memory_budget, Integral) and memory_budget > 0
    ):
        raise ValueError(
            f"memory_budget must be a number of bytes, an integer of at least 1; got "
            f"{memory_budget!r}."
        )


def _converted(module: nn.Module, precision: str) -> nn.Module:
    if precision == "auto":
        return module
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {['auto', *PRECISIONS]}; got {precision!r}.")
    return copy.deepcopy(module).to(PRECISIONS[precision])
