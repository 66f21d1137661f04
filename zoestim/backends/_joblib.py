"""Workers of joblib: threads, processes, or a cluster that somebody runs already."""

from __future__ import annotations

import time
import uuid
import warnings
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import cloudpickle
import joblib
import numpy as np
from joblib.parallel import get_active_backend

from zoestim.backends._serial import Answer, SerialBackend, Unsendable
from zoestim.backends._shares import guided_shares

Shared = TypeVar("Shared")
Result = TypeVar("Result")
# A share that takes less costs more to send than it saves: a task of Dask takes 20 ms.
SHORTEST = {"threading": 0.01, "loky": 0.05, "multiprocessing": 0.05}
SHORTEST_ELSEWHERE = 0.4
LOCAL = {*SHORTEST, "sequential"}
DASK = "daskdistributed"
# How many shares a worker gets at most where it is not known what a query takes.
FIRST_SHARES = 12
# What is larger goes to the processes of this machine through a file that they map.
MAPPED_BYTES = 16_384


class JoblibBackend:
    """Answers on the workers of joblib, each of which takes a share whenever it is free.

    Parameters
    ----------
    n_jobs : int or None, default=None
        How many; None as ``joblib.parallel_config`` says, or one, -1 as many as there are.
    backend : str or None, default=None
        The name of a backend that joblib knows, as ``"loky"``, ``"threading"``, ``"dask"`` or
        ``"ray"``; None as ``joblib.parallel_config`` says, or loky.

    Examples
    --------
    >>> from zoestim.backends import JoblibBackend
    >>> backend = JoblibBackend(n_jobs=2, backend="threading")
    >>> shares = backend.map(lambda x, tasks: [x * t for t in tasks], 10, [1.0] * 8)
    >>> sorted(result for _, results in shares for result in results)
    [0, 10, 20, 30, 40, 50, 60, 70]
    """

    def __init__(self, n_jobs: int | None = None, backend: str | None = None):
        self.n_jobs = n_jobs
        self.backend = backend
        self._pool: joblib.Parallel | None = None
        self._seconds: float | None = None  # that a unit of work has taken so far
        self._own_memory = False

    def map(
        self, function: Answer[Shared, Result], shared: Shared, work: Sequence[float]
    ) -> Generator[tuple[list[int], Result], None, None]:
        """Give shares as workers finish them.

        Raises
        ------
        Unsendable
            If workers are processes and what they need cannot be pickled.
        """
        self._own_memory = False
        backend, n_jobs = self._active()  # which fails where a cluster is gone
        self._own_memory = _answers_here(backend, n_jobs)
        if self._own_memory:
            yield from SerialBackend().map(function, shared, work)
            return
        # As long as nobody knows what a query takes, shares are few.
        least = sum(work) / (FIRST_SHARES * max(1, n_jobs))
        if self._seconds:
            least = SHORTEST.get(_kind(backend), SHORTEST_ELSEWHERE) / self._seconds
        shares = guided_shares(work, max(1, n_jobs), least)
        call: Callable[..., Any] = function
        here = getattr(backend, "supports_sharedmem", False)
        if not here:
            call, shared = _Remote(function), _sendable(shared)  # type: ignore[assignment]
        answers = (_timed(call, shared, tasks) for tasks in shares)
        # What may crash its process was meant for another one: that gets a single share too.
        if len(shares) > 1 or not here:
            answers = self._parallel(backend, shared)(
                joblib.delayed(_timed)(call, shared, tasks) for tasks in shares
            )
        try:
            for tasks, result, seconds in answers:
                self._learn(sum(work[task] for task in tasks), seconds)
                yield tasks, result
        except Exception:
            self.close()  # the next call starts with other workers
            raise
        finally:
            if hasattr(answers, "close"):
                with warnings.catch_warnings():  # of answers that nobody waits for any more
                    warnings.simplefilter("ignore", UserWarning)
                    answers.close()

    def once(self, function: Callable[[], Result]) -> Result:
        """Call the function here: there is one process that asks."""
        return function()

    @property
    def own_memory(self) -> bool:
        """Whether the last call was answered here, without workers."""
        return self._own_memory  # to ask a cluster that is gone would take its time once more

    def close(self) -> None:
        """Stop workers that were started for this backend alone."""
        if self._pool is not None:
            pool, self._pool = self._pool, None
            pool.__exit__(None, None, None)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_pool": None}

    def _parallel(self, backend: Any, shared: Any) -> joblib.Parallel:
        """Return what sends shares to workers."""
        if self._pool is not None:
            return self._pool
        in_turn = getattr(backend, "supports_return_generator", False)
        given = {"backend": _dask(backend, shared)} if _kind(backend) == DASK else {}
        # Parallel(backend="dask") fails in joblib 1.6.
        with self._configured(), joblib.parallel_config(**given):
            parallel = joblib.Parallel(
                batch_size=1,
                # A cluster may give one worker two shares before another has any.
                pre_dispatch="all" if _kind(backend) in SHORTEST else "n_jobs",
                max_nbytes=MAPPED_BYTES,
                return_as="generator_unordered" if in_turn else "list",
            )
        if not in_turn:  # as Ray, whose workers would be started anew for each call
            self._pool = parallel.__enter__()
        return parallel

    def n_workers(self) -> int:
        """Return how many workers would answer now."""
        return self._active()[1]

    def _active(self) -> tuple[Any, int]:
        """Return the backend of joblib that is meant, and how many workers it has."""
        with self._configured():
            backend, n_jobs = get_active_backend()
            return backend, joblib.effective_n_jobs(n_jobs)

    def _configured(self) -> joblib.parallel_config:
        settings = {"n_jobs": self.n_jobs, "backend": self.backend}
        given = {name: value for name, value in settings.items() if value is not None}
        return joblib.parallel_config(**given)

    def _learn(self, work: float, seconds: float) -> None:
        if work > 0:
            rate, old = seconds / work, self._seconds
            self._seconds = rate if old is None else (old + rate) / 2


def _answers_here(backend: Any, n_jobs: int) -> bool:
    # Inside a worker of joblib all cores are taken: a grid search has them. A cluster that has
    # lost its workers gets others.
    return _is_nested(backend) or (n_jobs < 2 and _kind(backend) in LOCAL)


def _is_nested(backend: Any) -> bool:
    """Return whether this code runs on a worker already."""
    if _kind(backend) != DASK:
        return bool(backend.nesting_level)
    from distributed import get_worker

    try:
        get_worker()
    except ValueError:
        return False
    return True


def _dask(backend: Any, shared: Any) -> Any:
    """Return a backend of Dask for one call."""
    # Else one worker would have what is shared, and the tasks would wait for that one.
    found = type(backend)(scatter=[shared])
    count = found.effective_n_jobs
    # For one worker, the others being lost, joblib would run here what may kill a process.
    found.effective_n_jobs = lambda n_jobs: max(2, count(n_jobs))
    return found


def _kind(backend: Any) -> str:
    return type(backend).__name__.removesuffix("Backend").lower()


def _timed(
    function: Callable[[Any, list[int]], Any], shared: Any, tasks: list[int]
) -> tuple[list[int], Any, float]:
    start = time.perf_counter()
    result = function(shared, tasks)
    return tasks, result, time.perf_counter() - start


def _sendable(shared: Any) -> np.ndarray:
    """Return an object as bytes that joblib sends once, by its memory maps or by scattering."""
    try:
        return np.frombuffer(cloudpickle.dumps(shared), np.uint8)
    except Exception as error:
        raise Unsendable(
            f"What the workers need cannot be pickled ({type(error).__name__}: {error}); expected "
            "a module, a black box and a criterion that hold no lock, connection or open file. "
            'Use backend="threading", whose workers share them, or open such things inside the '
            "function when it is first called."
        ) from error


class _Remote:
    """A function whose shared argument arrives as bytes, and is unpacked once in a process."""

    def __init__(self, function: Callable[[Any, list[int]], Any]):
        self.function = function
        self.key = uuid.uuid4().hex  # of one call of map

    def __call__(self, packed: np.ndarray, tasks: list[int]) -> Any:
        return self.function(_unpacked(self.key, packed), tasks)


_UNPACKED: dict[str, Any] = {}


def _unpacked(key: str, packed: np.ndarray) -> Any:
    """Return what bytes hold; a worker with several threads may do it twice."""
    found = _UNPACKED.get(key)
    if found is None:
        found = cloudpickle.loads(packed.tobytes())
        _UNPACKED.clear()
        _UNPACKED[key] = found
    return found
