"""Nested values as JSON and back: containers here, what JSON lacks by a function for the leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Leaf = Callable[[Any, tuple[str, ...]], Any]


def encode(value: Any, leaf: Leaf, path: tuple[str, ...] = ()) -> Any:
    """Return a value in the form of JSON.

    Parameters
    ----------
    value : Any
        Numbers, strings, None, and lists, tuples and dicts of them; other things too, which
        are given to `leaf`.
    leaf : callable
        ``(value, path) -> JSON`` for everything else.
    path : tuple of str
        The keys that led to the value.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        kind = "$list" if isinstance(value, list) else "$tuple"
        items = enumerate(value)
        return {kind: [encode(item, leaf, (*path, str(number))) for number, item in items]}
    if isinstance(value, dict):
        pairs = value.items()
        return {
            "$dict": [
                [encode(key, leaf, path), encode(item, leaf, (*path, str(key)))]
                for key, item in pairs
            ]
        }
    return leaf(value, path)


def decode(stored: Any, leaf: Callable[[dict[str, Any]], Any]) -> Any:
    """Return a value from its JSON; `leaf` brings back what it made."""
    if not isinstance(stored, dict):
        return stored
    if "$list" in stored:
        return [decode(item, leaf) for item in stored["$list"]]
    if "$tuple" in stored:
        return tuple(decode(item, leaf) for item in stored["$tuple"])
    if "$dict" in stored:
        return {decode(key, leaf): decode(item, leaf) for key, item in stored["$dict"]}
    return leaf(stored)
