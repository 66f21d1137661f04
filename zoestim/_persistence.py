"""A fitted estimator as a safetensors file: tensors, and the rest as JSON in the header."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from sklearn.base import BaseEstimator
from torch import Tensor, nn

import zoestim.gradients
import zoestim.models
import zoestim.sparsity
from zoestim._nested import decode, encode

FORMAT = "zoestim-1"
FITTED = (
    "n_features_in_",
    "n_iter_",
    "n_queries_",
    "loss_curve_",
    "layer_ratios_",
    "termination_condition_",
)
ARRAYS = ("classes_", "feature_names_in_", "_center", "_scale")
PLAIN = ("_target_ndim", "_n_targets")

# A file names classes and functions; only these places are ever looked into.
NAMESPACES: dict[str, ModuleType] = {
    "torch.optim": torch.optim,
    "torch.nn": torch.nn,
    "zoestim.gradients": zoestim.gradients,
    "zoestim.models": zoestim.models,
    "zoestim.sparsity": zoestim.sparsity,
}


class Unstorable(Exception):
    """A parameter that only its owner can bring back; the message describes it."""


def save(estimator: Any, path: str | Path) -> None:
    """Write a fitted estimator to a file."""
    tensors = {
        f"module.{name}": tensor.detach().cpu().contiguous().clone()
        for name, tensor in estimator.module_.state_dict().items()
    }
    content = {
        "format": FORMAT,
        "class": type(estimator).__name__,
        "params": {
            name: _encode_parameter(name, value, tensors)
            for name, value in estimator.get_params(deep=False).items()
        },
        "fitted": {name: getattr(estimator, name) for name in FITTED},
        "feature_reuse": asdict(estimator.feature_reuse_),
        "plain": {name: getattr(estimator, name) for name in PLAIN if hasattr(estimator, name)},
        "arrays": {
            name: _encode_array(getattr(estimator, name))
            for name in ARRAYS
            if hasattr(estimator, name)
        },
        "history": [
            {key: value for key, value in row.items() if key != "batches"}
            for row in estimator.history_
        ],
    }
    save_file(tensors, str(path), metadata={"zoestim": json.dumps(content, default=_plain)})


def read(path: Path, writer: str) -> tuple[str, dict[str, Tensor], dict[str, str]]:
    """Return the JSON, the tensors and all metadata of a safetensors file of ours.

    Raises ValueError, which calls `writer` what should have written it, if it is none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, writer, error) from error
    return metadata.get("zoestim", "null"), tensors, metadata


def parse(header: str, path: Path, form: str, writer: str) -> dict[str, Any]:
    """Return the content of a file's JSON if it has the format that is expected."""
    try:
        content = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, writer, error) from error
    if not isinstance(content, dict) or content.get("format") != form:
        found = content.get("format") if isinstance(content, dict) else None
        raise ValueError(
            f"{path} has the format {found!r}; expected {form!r}, a file written by {writer} of "
            "this version."
        )
    return content


def _unreadable(path: Path, writer: str, error: Exception) -> ValueError:
    return ValueError(
        f"{path} is no readable safetensors file ({error}); expected one written by {writer}. "
        "It may be truncated."
    )


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"cannot store {value!r}")


def _encode_array(value: Any) -> dict[str, Any]:
    array = np.asarray(value)
    kind = "object" if array.dtype == object else array.dtype.str
    return {"dtype": kind, "values": array.tolist()}


def decode_array(stored: Mapping[str, Any]) -> np.ndarray:
    """Return an array as it was stored."""
    return np.array(stored["values"], dtype=np.dtype(stored["dtype"]))


def _encode_parameter(name: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    if name == "initial_params" and value is not None:
        named = value if isinstance(value, Mapping) else {"": value}
        for key, array in named.items():
            tensor = array if isinstance(array, Tensor) else torch.as_tensor(np.array(array))
            tensors[f"initial_params.{key}"] = tensor.detach().cpu().contiguous().clone()
        is_torch = any(isinstance(array, Tensor) for array in named.values())
        return {"$initial_params": list(named), "torch": is_torch}
    try:
        return describe(value)
    except Unstorable as unstorable:
        return {"$ask": str(unstorable)}


def describe(value: Any, path: tuple[str, ...] = ()) -> Any:
    """Return a parameter as JSON; raise `Unstorable` for what only its owner can bring back."""
    return encode(value, _named, path)


def _named(value: Any, path: tuple[str, ...]) -> Any:
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, BaseEstimator):
        params = value.get_params(deep=False)
        return {
            "$object": _public_name(type(value)),
            "params": {name: describe(item, path) for name, item in params.items()},
        }
    return {"$name": _public_name(value)}


def _public_name(value: Any) -> str:
    name = getattr(value, "__name__", "")
    for namespace, module in NAMESPACES.items():
        if name and getattr(module, name, None) is value:
            return f"{namespace}.{name}"
    raise Unstorable(getattr(value, "__qualname__", type(value).__qualname__))


def decode_parameter(stored: Any) -> Any:
    """Return a parameter from its stored form; names are looked up, never imported."""
    return decode(stored, _by_name)


def _by_name(stored: dict[str, Any]) -> Any:
    if "$object" in stored:
        params = {name: decode_parameter(item) for name, item in stored["params"].items()}
        return _look_up(stored["$object"], BaseEstimator)(**params)
    return _look_up(stored["$name"], nn.Module, torch.optim.Optimizer)


def _look_up(name: str, *bases: type) -> Any:
    """Return what a file names if it is one of the things that a file may name."""
    namespace, _, attribute = name.rpartition(".")
    module = NAMESPACES.get(namespace)
    found = getattr(module, attribute, None) if module is not None else None
    listed = attribute in getattr(module, "__all__", ())
    if found is None or not (listed or (isinstance(found, type) and issubclass(found, bases))):
        raise ValueError(
            f"The file names {name!r}, which a zoestim file may not; expected a public name of "
            f"{list(NAMESPACES)}. It was damaged, or made by someone else; nothing was run."
        )
    return found
