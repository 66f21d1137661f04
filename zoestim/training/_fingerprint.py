"""Which fit a checkpoint belongs to, and a refusal that says what differs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor, nn

from zoestim._persistence import Unstorable, describe
from zoestim.training._net import ZONet
from zoestim.training._state import capture, shuffling

# Parameters that change how and where a fit runs, but not what it learns.
FREE = (
    "backend",
    "callbacks",
    "checkpoint",
    "device",
    "journal_queries",
    "max_retries",
    "memory_budget",
    "n_jobs",
    "query_timeout",
    "verbose",
    "warm_start",  # a fit that goes on is told by what it starts from
)
FREE_EXTRAS = ("callbacks__", "iterator_train__device", "iterator_valid__device")


def fingerprint(
    estimator: Any, net: ZONet, X: Any, y: Any, weight: Any, *, continued: bool
) -> dict[str, Any]:
    """Return what tells one fit from another, as JSON.

    Parameters
    ----------
    estimator : estimator
        Its parameters.
    net : ZONet
        The net before the fit.
    X, y, weight : ndarray
        The data; `weight` may be None.
    continued : bool
        Whether the net has been trained before.
    """
    params = estimator.get_params(deep=False).items()
    found = {
        "estimator": type(estimator).__name__,
        "parameters": {
            name: _described(value)
            for name, value in params
            if name not in FREE and not name.startswith(FREE_EXTRAS)
        },
        "tensors": {
            name: f"{tuple(value.shape)} {value.dtype}"
            for name, value in net.module_.state_dict().items()
            if isinstance(value, Tensor)
        },
        "start": _start(estimator, net) if continued else None,
        "data": {
            "X": _described(np.asarray(X)),
            "y": _described(np.asarray(y)),
            "sample_weight": None if weight is None else _described(np.asarray(weight)),
        },
    }
    return json.loads(json.dumps(found))


def _start(estimator: Any, net: ZONet) -> str:
    """Return a hash of the state that a continued fit starts from."""
    before = capture(net, shuffling(net).get_state(), callbacks=False)
    parts = ("module", "optimizer", "step", "shuffler")
    content = dict(before.content["$dict"])
    tensors = {n: v for n, v in before.tensors.items() if n.split(".")[0] in parts}
    return digest(json.dumps([content[part] for part in parts]), tensors)


def refuse_another(path: Path, stored: Any, own: Mapping[str, Any]) -> None:
    """Raise ValueError if a file was written by a fit with another fingerprint."""
    differences = [
        f"{name} is {got}, expected {expected}" for name, got, expected in _differing(stored, own)
    ]
    if differences:
        raise ValueError(
            f"The checkpoint {path} is of another fit: {'; '.join(differences)}. Delete the file "
            "to start anew, pass another path, or set back what differs to go on."
        )


def _differing(stored: Any, own: Any, name: str = "") -> list[tuple[str, str, str]]:
    if isinstance(stored, dict) and isinstance(own, dict) and name in ("", *PARTS):
        keys = [*own, *(key for key in stored if key not in own)]
        return [
            difference
            for key in keys
            for difference in _differing(stored.get(key), own.get(key), key)
        ]
    if json.dumps(stored, sort_keys=True) == json.dumps(own, sort_keys=True):
        return []
    return [(NAMES.get(name, name), _brief(own), _brief(stored))]


PARTS = ("parameters", "tensors", "data")
NAMES = {"estimator": "the estimator", "start": "the start (a hash where warm_start goes on)"}


def _brief(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _described(value: Any) -> Any:
    """Return a parameter as JSON: its value, or a hash, or at least its type's name."""
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biufc":
        return f"{value.shape} {hashlib.sha256(repr(value.tolist()).encode()).hexdigest()[:16]}"
    if isinstance(value, np.ndarray):
        content = hashlib.sha256(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        return f"{value.shape} {value.dtype} {content.hexdigest()[:16]}"
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {value.dtype} {digest('', {'': value})[:16]}"
    if isinstance(value, nn.Module):
        return f"{type(value).__qualname__} {_hashed(value)[:16]}"
    if isinstance(value, dict):
        return {str(key): _described(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_described(item) for item in value]
    if isinstance(value, BaseEstimator):
        params = value.get_params(deep=False)
        return {"class": type(value).__qualname__} | {n: _described(v) for n, v in params.items()}
    try:
        return describe(value)
    except Unstorable as unstorable:
        return str(unstorable)


def _hashed(module: nn.Module) -> str:
    """Return a hash of a module's tensors and of the plain settings of its parts."""
    state = {n: v for n, v in module.state_dict().items() if isinstance(v, Tensor)}
    settings = [
        [name, key, setting]
        for name, part in module.named_modules()
        for key, setting in sorted(vars(part).items())
        if _is_plain(setting) and key != "training"
    ]
    return digest(json.dumps(settings), state)


def _is_plain(setting: Any) -> bool:
    if isinstance(setting, tuple):
        return all(map(_is_plain, setting))
    return isinstance(setting, bool | int | float | str)


def digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of a text and of named tensors, in hexadecimal."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
