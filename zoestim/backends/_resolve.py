"""From `n_jobs` and the name of a backend to the backend."""

from __future__ import annotations

from typing import Any

from zoestim.backends._distributed import DistributedBackend
from zoestim.backends._joblib import JoblibBackend
from zoestim.backends._serial import Backend


def resolve_backend(n_jobs: int | None = None, backend: Any = None) -> Backend:
    """Return where queries are answered.

    Parameters
    ----------
    n_jobs : int or None, default=None
        How many workers of joblib; see :class:`JoblibBackend`.
    backend : str, object or None, default=None
        A name that joblib knows, ``"distributed"`` for the process group of ``torchrun``, or
        an object with the methods of :class:`Backend`.

    Returns
    -------
    Backend
    """
    if backend == "distributed":
        if n_jobs not in (None, 1):
            raise ValueError(
                f'n_jobs={n_jobs} says nothing to backend="distributed", whose ranks are those '
                "that torchrun starts. Leave n_jobs out."
            )
        return DistributedBackend()
    if hasattr(backend, "map"):
        return backend
    return JoblibBackend(n_jobs, backend)
