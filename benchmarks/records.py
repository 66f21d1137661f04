"""Files of results, to which each is added as soon as it is measured, and none is measured twice.

A result is a dict: what decided it (its key), its figures, and the machine. The key is compared as
it comes back from JSON.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.speed.measure import environment, version_of

Result = dict[str, Any]


def read(path: Path | None) -> list[Result]:
    """Return the results that are in the file."""
    if path is None or not path.exists():
        return []
    return json.loads(path.read_text())["results"]


def add(path: Path, result: Result) -> None:
    """Add a result to the file, one line each: a run that is killed leaves a whole file."""
    lines = ",\n".join(json.dumps(each) for each in [*read(path), result])
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(f'{{"results": [\n{lines}\n]}}\n')
    part.replace(path)


def as_key(key: Mapping[str, Any]) -> Result:
    """Return a key as it comes back from a JSON file."""
    return json.loads(json.dumps(key, default=str))


def once(
    path: Path | None,
    key: Mapping[str, Any],
    measure: Callable[[], Mapping[str, Any]],
    device: str = "cpu",
) -> Result:
    """Return the result of a key, from the file if it is there.

    Parameters
    ----------
    path : Path or None
        The file; None keeps nothing.
    key : mapping
        All that decides the result.
    measure : callable
        Gives the figures, if they are not known.
    device : str, default="cpu"
        Where they are measured.
    """
    wanted = as_key(key)
    for result in read(path):
        if wanted.items() <= result.items():
            return result
    start = time.perf_counter()
    result = {**wanted, **measure(), "environment": machine(device)}
    if path is not None:
        add(path, result)
    named = [str(wanted[name]) for name in ("case", "row", "seed") if name in wanted]
    print(f"{', '.join(named)}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return result


def machine(device: str = "cpu") -> Result:
    """Return what figures and seconds depend on besides the code."""
    packages = ("numpy", "scipy", "scikit-learn")
    return {**environment(device), **{name: version_of(name) for name in packages}}
