"""One fit at a time at a path: a lock that ends with the process which holds it."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from zoestim.backends import worker_name

try:
    import fcntl
except ImportError:  # Windows; two fits at one path are then not kept apart
    fcntl = None  # type: ignore[assignment]

# The system's lock is one for all threads of a process, and not handed down by fork: workers
# that outlive a killed fit do not hold its path. So threads are told apart here.
_HELD: dict[Path, int] = {}
_LOOKING = threading.Lock()


class Lock:
    """The right of one fit to a path.

    However the process ends, the system takes the lock back. The file that a kill leaves says
    nothing by itself: the next fit takes it over.

    Parameters
    ----------
    path : Path
        The file to lock, which nobody else needs.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file: int | None = None

    def acquire(self) -> str | None:
        """Take the lock; return who has it, if somebody else does."""
        with _LOOKING:
            if _HELD.get(self.path) == os.getpid():
                return worker_name()
            while self._file is None:
                file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
                if not _locked(file):
                    holder = os.read(file, 1000).decode(errors="replace")
                    os.close(file)
                    return holder or "unknown"
                if _is_at(file, self.path):
                    self._file = file
                else:  # who had it removed it after it was opened here
                    os.close(file)
            os.ftruncate(self._file, 0)
            os.write(self._file, worker_name().encode())
            _HELD[self.path] = os.getpid()
            return None

    def release(self) -> None:
        """Let go of the lock and remove its file."""
        with _LOOKING:
            if self._file is None or _HELD.get(self.path) != os.getpid():  # or of a fork's parent
                return
            with contextlib.suppress(OSError):
                self.path.unlink()
            os.close(self._file)
            self._file = None
            del _HELD[self.path]


def _locked(file: int) -> bool:
    if fcntl is not None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError:  # a file system without locks
            pass
    return True


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
