"""From `n_jobs` and the name of a backend to the backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from zoestim.backends._devices import DevicesBackend
from zoestim.backends._distributed import DistributedBackend
from zoestim.backends._joblib import JoblibBackend
from zoestim.backends._serial import Backend


def resolve_backend(
    n_jobs: int | None = None,
    backend: Any = None,
    devices: Sequence[torch.device | str] = (),
) -> Backend:
    """Return where queries are answered.

    Parameters
    ----------
    n_jobs : int or None, default=None
        How many workers of joblib; see :class:`JoblibBackend`.
    backend : str, object or None, default=None
        A name that joblib knows, ``"distributed"`` for the process group of ``torchrun``, or
        an object with the methods of :class:`Backend`.
    devices : sequence of torch.device or str, default=()
        Several devices of this machine, which then answer.

    Returns
    -------
    Backend
    """
    if len(devices) > 1:
        if backend is not None or n_jobs not in (None, 1):
            raise ValueError(
                f"device names {len(devices)} devices, which share the queries among themselves; "
                f"got backend={backend!r} and n_jobs={n_jobs} beside it. Leave both out, or name "
                "one device."
            )
        return DevicesBackend(devices)
    if backend == "distributed":
        if n_jobs not in (None, 1):
            raise ValueError(
                f'n_jobs={n_jobs} says nothing to backend="distributed", whose ranks are those '
                "that torchrun starts. Leave n_jobs out."
            )
        return DistributedBackend()
    if not isinstance(backend, str | None):
        return backend
    if backend == "ray":
        _register_ray()
    found = JoblibBackend(n_jobs, backend)
    try:
        found.n_workers()
    except (ImportError, ValueError) as error:
        raise ValueError(
            f"backend={backend!r} with n_jobs={n_jobs} cannot be used ({error}); expected None, "
            "'loky', 'threading', 'dask', 'ray', 'distributed' or another name that joblib knows, "
            "and n_jobs None, -1 or a positive number."
        ) from error
    return found


def _register_ray() -> None:
    try:
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise ImportError(
            'backend="ray" needs Ray, which is not installed. Run: pip install "zoestim[ray]"'
        ) from error
    register_ray()
