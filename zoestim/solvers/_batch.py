"""What goes into a solver and out of it: batches of states, and a value for each simulation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64)


def as_batch(states: Any, shape: tuple[int, ...], solver: str) -> Tensor:
    """Return a batch of states as a tensor, which may share the caller's memory: do not write.

    Parameters
    ----------
    states : ndarray or Tensor of shape (n_simulations, *shape)
        Of float32 or float64.
    shape : tuple of int
        The shape of one state.
    solver : str
        Who asks, for the message.

    Raises
    ------
    TypeError
        If the states are neither an ndarray nor a tensor, or not of a floating type.
    ValueError
        If their shape is another one.
    """
    if isinstance(states, np.ndarray) and states.dtype.kind == "f" and states.itemsize in (4, 8):
        states = torch.from_numpy(np.require(states, requirements=["C", "W"]))
    if not isinstance(states, Tensor) or states.dtype not in FLOATS:
        raise TypeError(
            f"{solver} takes states as an ndarray or a tensor of float32 or float64; got "
            f"{type(states).__name__} of {getattr(states, 'dtype', 'no dtype')}. Convert them, "
            "such as by np.asarray(states, dtype=np.float32)."
        )
    if states.ndim != len(shape) + 1 or tuple(states.shape[1:]) != shape:
        expected = ", ".join(str(size) for size in shape)
        raise ValueError(
            f"{solver} takes states of the shape (n_simulations, {expected}); got "
            f"{tuple(states.shape)}. A single state needs a leading axis: state[None]."
        )
    return states


def like(answer: Tensor, states: Any) -> Any:
    """Return the answer as what the states were given as: an ndarray or a tensor."""
    return answer if isinstance(states, Tensor) else answer.numpy()


def each_simulation(
    conditions: Mapping[str, Any] | None,
    name: str,
    states: Tensor,
    solver: str,
    shape: tuple[int, ...] = (),
) -> Tensor:
    """Return a condition as a tensor of shape (n_simulations, ...), like the states.

    Parameters
    ----------
    conditions : mapping from str to array-like
        One value holds for all simulations, otherwise there is one for each.
    name : str
        The condition.
    states : Tensor
        The batch, of which the number of simulations, dtype and device are taken.
    solver : str
        Who asks, for the message.
    shape : tuple of int, default=()
        The shape of the condition of one simulation.

    Raises
    ------
    ValueError
        If it is missing, of another shape, or not finite.
    """
    given = {} if conditions is None else conditions
    if name not in given:
        raise ValueError(
            f"{solver} needs the condition {name!r}, one value for each simulation; got "
            f"{sorted(given)}. Pass conditions={{{name!r}: ...}}."
        )
    value = torch.as_tensor(given[name]).to(device=states.device, dtype=states.dtype)
    whole = (len(states), *shape)
    if tuple(value.shape) not in (shape, whole):
        raise ValueError(
            f"The condition {name!r} of {solver} must have the shape {shape} or {whole}, one "
            f"value for each of {len(states)} simulations; got {tuple(value.shape)}."
        )
    if not bool(torch.isfinite(value).all()):
        wrong = value[~torch.isfinite(value)].flatten()[0]
        raise ValueError(f"The condition {name!r} of {solver} must be finite; got {wrong:g}.")
    return value.expand(whole)


def other_kind(states: Any) -> Any:
    """Return tensors as an array and arrays as a tensor."""
    return states.detach().cpu().numpy() if isinstance(states, Tensor) else torch.tensor(states)


def conditions_of_each(conditions: Mapping[str, Any], n: int) -> dict[str, Any]:
    """Return conditions with a first axis of n simulations."""
    found = {}
    for name, given in conditions.items():
        values = given if isinstance(given, Tensor) else np.asarray(given)
        if values.ndim == 0:
            values = values.expand(n) if isinstance(values, Tensor) else np.repeat(values, n)
        if len(values) != n:
            raise ValueError(
                f"The condition {name!r} must have one value for each of {n} simulations; got "
                f"{len(values)}."
            )
        found[name] = values
    return found
