"""Work folders: copies of a template, one for each program under way, and removed in the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from zoestim.solvers._programs import Programs

try:
    import fcntl
except ImportError:  # Windows, where no such solver can be made
    fcntl = None  # type: ignore[assignment]

PREFIX = "zoestim-solver-"
MEMORY = Path("/dev/shm")  # Linux's file system in memory
ROOMY = 2**30  # bytes that it must have left: a container may have next to none

Fingerprints = dict[str, tuple[int, ...]]


class Workdirs:
    """Folders for the programs of one solver in one process.

    They are made when they are needed, in a folder of their own, which holds a lock as long as the
    process lives. Whoever comes next to the same root removes what killed processes left there.

    Parameters
    ----------
    template : Path or None
        The folder to copy; by default work folders are empty.
    root : Path or None
        Where; by default in memory if there is room, else where temporary files go.
    """

    def __init__(self, template: Path | None, root: Path | None):
        self.template = template
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._idle: list[Path] = []
        self._as_made: dict[Path, Fingerprints] = {}
        self._calls: set[Programs] = set()
        root = default_root() if root is None else root
        remove_abandoned(root)
        self.home, self._held = _make_home(root)

    @contextlib.contextmanager
    def call(self) -> Iterator[Programs]:
        """Give what runs the programs of one call, and stop all of them if one of them raises."""
        programs = Programs()
        with self._lock:
            self._calls.add(programs)
        try:
            yield programs
        finally:
            programs.stop()
            with self._lock:
                self._calls.discard(programs)

    @contextlib.contextmanager
    def one(self) -> Iterator[Path]:
        """Lend a folder that is as the template; it is not used again if there is an error."""
        with self._lock:
            folder = self._idle.pop() if self._idle else None
        if folder is None:
            folder = self._make()
        try:
            yield folder
            restore(folder, self.template, self._as_made[folder])
        except BaseException:
            shutil.rmtree(folder.parent, ignore_errors=True)
            with self._lock:
                self._as_made.pop(folder, None)
            raise
        with self._lock:
            self._idle.append(folder)

    def _make(self) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self.home)) / "work"
        if self.template is None:
            folder.mkdir()
        else:
            shutil.copytree(self.template, folder, symlinks=True)
        with self._lock:
            self._as_made[folder] = fingerprints(folder)
        return folder

    def clear(self) -> None:
        """Kill programs that run, and remove all folders."""
        if self.pid != os.getpid():  # a fork: they are the parent's
            return
        with self._lock:
            calls, self._calls = self._calls, set()
            self._idle = []
        for programs in calls:
            programs.stop()
        shutil.rmtree(self.home, ignore_errors=True)
        held, self._held = self._held, -1
        if held >= 0:
            os.close(held)


def default_root() -> Path:
    """Return a folder in memory if there is room, else the one for temporary files."""
    with contextlib.suppress(OSError):
        if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ROOMY:
            return MEMORY
    return Path(tempfile.gettempdir())


def _make_home(root: Path) -> tuple[Path, int]:
    """Return a new folder, and the file that says by its lock that the process lives."""
    made = Path(tempfile.mkdtemp(prefix=".making-", dir=root))
    held = os.open(made / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(held, fcntl.LOCK_EX)
    # Not before it is locked has it the name by which others look for what was left.
    return made.rename(root / made.name.replace(".making-", PREFIX)), held


def remove_abandoned(root: Path) -> None:
    """Remove the folders of processes that were killed before they could do so."""
    for home in root.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # somebody else's, or somebody else was faster
            try:
                held = os.open(home / "lock", os.O_RDWR)
            except FileNotFoundError:  # the lock went first: its process was killed as it cleared
                shutil.rmtree(home, ignore_errors=True)
                continue
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(home, ignore_errors=True)
            finally:
                os.close(held)


def fingerprints(folder: Path) -> Fingerprints:
    """Return what changes if a file does, for each file, link and folder below a folder."""
    found = {}
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(where, name)
            found[os.path.relpath(path, folder)] = _fingerprint(path)
    return found


def _fingerprint(path: str) -> tuple[int, ...]:
    at = os.lstat(path)
    if os.path.isdir(path) and not os.path.islink(path):
        return (stat.S_IFDIR,)  # its times change with what is in it
    return (at.st_mode, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns)


def restore(folder: Path, template: Path | None, as_made: Fingerprints) -> None:
    """Make a folder what it was: a program must not find what an earlier one has left."""
    now = fingerprints(folder)
    differing = {name for name in now | as_made if now.get(name) != as_made.get(name)}
    for name in sorted(differing, key=len, reverse=True):  # what is in a folder before the folder
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if template is None:
        return
    for name in sorted(differing & as_made.keys(), key=len):
        source, path = template / name, folder / name
        if source.is_dir() and not source.is_symlink():
            path.mkdir(exist_ok=True)
            shutil.copystat(source, path)
        else:
            shutil.copy2(source, path, follow_symlinks=False)
        as_made[name] = _fingerprint(str(path))
