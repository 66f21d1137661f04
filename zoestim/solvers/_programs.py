"""Programs in processes of their own: they are given some time, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

STDIN, STDOUT, STDERR = "stdin", "stdout", "stderr"  # files beside the folder that it runs in
TAIL = 2000  # bytes of a file, of which the last lines are shown
LINES = 8


class Ended(NamedTuple):
    """How a program ended.

    Parameters
    ----------
    returncode : int
        Minus the signal's number if a signal ended it.
    timed_out : bool
        Whether it was ended because its time was over.
    """

    returncode: int
    timed_out: bool


class Programs:
    """Programs that run, which can be ended all at once.

    Each one leads a process group of its own. When it has ended, for whatever reason, what else is
    left of the group is killed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[int] = set()
        self._stopped = False

    def run(
        self,
        command: Sequence[str | os.PathLike[str]],
        workdir: Path,
        environment: Mapping[str, str],
        timeout: float | None,
    ) -> Ended:
        """Run a program in a folder and wait for its end.

        Standard input, output and errors are files beside the folder, see STDIN. Unlike pipes,
        they cannot block, and cannot be held open by a process that was forgotten.

        Raises
        ------
        InterruptedError
            If all programs were stopped.
        OSError
            If there is no such program.
        """
        given = workdir.with_name(STDIN)
        with contextlib.ExitStack() as files:
            source = files.enter_context(open(given if given.exists() else os.devnull, "rb"))
            out, err = (
                files.enter_context(open(workdir.with_name(name), "wb"))
                for name in (STDOUT, STDERR)
            )
            with self._lock:
                if self._stopped:
                    raise InterruptedError("this program was not started: all were stopped")
                process = subprocess.Popen(
                    command,
                    stdin=source,
                    stdout=out,
                    stderr=err,
                    cwd=workdir,
                    env=dict(environment),
                    start_new_session=True,
                )
                self._running.add(process.pid)
        return self._wait(process, timeout)

    def _wait(self, process: subprocess.Popen[bytes], timeout: float | None) -> Ended:
        over = threading.Event()

        def end() -> None:
            over.set()
            kill_group(process.pid)

        # A timer, because Popen.wait(timeout) looks only every 50 ms whether the program has ended.
        timer = None if timeout is None else threading.Timer(timeout, end)
        try:
            if timer is not None:
                timer.daemon = True
                timer.start()
            process.wait()
        finally:  # an interrupt comes by here, too
            if timer is not None:
                timer.cancel()
            with self._lock:
                self._running.discard(process.pid)
            kill_group(process.pid)
            process.wait()
        if self._stopped:
            raise InterruptedError("this program was killed: all were stopped")
        return Ended(process.returncode, over.is_set())

    def stop(self) -> None:
        """Kill what runs, and let nothing more begin."""
        with self._lock:
            self._stopped = True
            for pid in self._running:
                kill_group(pid)


def kill_group(pid: int) -> None:
    """Kill the processes of a group, if there are any."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def last_lines(workdir: Path) -> str:
    """Return the last lines that a program wrote to its standard errors, or else its output."""
    for name, called in ((STDERR, "standard errors"), (STDOUT, "standard output")):
        with contextlib.suppress(OSError), open(workdir.with_name(name), "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            lines = file.read().decode(errors="replace").strip().splitlines()[-LINES:]
            if lines:
                return f"The last lines of its {called}:\n    " + "\n    ".join(lines)
    return "It wrote nothing to its standard output and errors."
