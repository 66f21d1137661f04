"""Workers of joblib give what one process gives, and are asked as few times as is worth it."""

import pickle
import threading

import joblib
import pytest

from backends.answering import fails, slowly, times
from zoestim.backends import (
    DevicesBackend,
    DistributedBackend,
    JoblibBackend,
    SerialBackend,
    Unsendable,
    resolve_backend,
)

WORK = [1.0, 5.0, 0.5, 3.0] * 5
EXPECTED = [7 * task for task in range(20)]


def results(backend, function=times, shared=7, work=WORK) -> list:
    """Return the results in the order of the tasks."""
    found = {}
    for tasks, share in backend.map(function, shared, work):
        found |= dict(zip(tasks, share, strict=True))
    return [found[task] for task in range(len(work))]


@pytest.mark.parametrize("kind", ["loky", "threading", "sequential", None])
def test_every_task_is_answered_once(kind):
    assert results(JoblibBackend(2, kind)) == EXPECTED


def test_one_process_gives_one_share():
    assert [tasks for tasks, _ in SerialBackend().map(times, 1, WORK)] == [list(range(20))]


def test_one_job_is_answered_here(monkeypatch):
    monkeypatch.setattr(joblib, "Parallel", None)
    assert results(JoblibBackend(1)) == results(JoblibBackend()) == EXPECTED


def test_the_context_says_how_many_and_where():
    with joblib.parallel_config(backend="threading", n_jobs=3):
        assert JoblibBackend().n_workers() == 3
        assert results(JoblibBackend()) == EXPECTED
    assert JoblibBackend().n_workers() == 1


def test_a_worker_of_joblib_takes_no_others():
    def inside(_):
        before = threading.active_count()
        found = results(JoblibBackend(4, "threading"))
        return found == EXPECTED, threading.active_count() - before

    nested = joblib.Parallel(2, backend="threading")(joblib.delayed(inside)(k) for k in range(2))
    assert all(same for same, _ in nested)


def test_shares_become_fewer_once_it_is_known_that_tasks_are_short():
    backend = JoblibBackend(2, "threading")
    first = list(backend.map(times, 1, [1.0] * 64))
    later = list(backend.map(times, 1, [1.0] * 64))
    assert len(later) < len(first)


def test_shares_stay_many_where_tasks_are_long():
    backend = JoblibBackend(2, "threading")
    for _ in range(2):
        shares = list(backend.map(slowly, 0.02, [1.0] * 12))
    assert len(shares) >= 4


def test_an_error_of_the_function_comes_back_from_a_worker():
    with pytest.raises(OSError, match="the wire is cut"):
        results(JoblibBackend(2, "loky"), fails)


def test_what_cannot_be_pickled_is_said_before_anything_is_sent():
    with pytest.raises(Unsendable, match=r'cannot be pickled .*Use backend="threading"'):
        results(JoblibBackend(2, "loky"), shared=threading.Lock())


def test_threads_share_what_cannot_be_pickled():
    lock = threading.Lock()
    found = list(JoblibBackend(2, "threading").map(lambda shared, _: shared is lock, lock, WORK))
    assert all(same for _, same in found)


def test_a_backend_can_be_pickled_after_use():
    backend = JoblibBackend(2, "threading")
    results(backend)
    assert results(pickle.loads(pickle.dumps(backend))) == EXPECTED


# --- From names to backends


def test_names_lead_to_backends():
    assert isinstance(resolve_backend(), JoblibBackend)
    assert isinstance(resolve_backend(backend="distributed"), DistributedBackend)
    assert isinstance(resolve_backend(devices=["cpu", "cpu"]), DevicesBackend)
    own = SerialBackend()
    assert resolve_backend(backend=own) is own


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"backend": "lokky"}, "backend='lokky' with n_jobs=None cannot be used .*'threading'"),
        ({"backend": "distributed", "n_jobs": 2}, "n_jobs=2 says nothing to"),
        ({"devices": ["cpu", "cpu"], "n_jobs": 2}, "device names 2 devices"),
        ({"n_jobs": 0}, "n_jobs"),
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_asked(given: dict, match: str):
    with pytest.raises(ValueError, match=match):
        resolve_backend(**given)


def test_a_process_group_is_needed_for_the_distributed_backend():
    with pytest.raises(RuntimeError, match=r"found no process group; .* torchrun"):
        next(DistributedBackend().map(times, 1, [1.0]))
