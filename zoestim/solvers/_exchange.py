"""One step of one simulation by a program: the state goes in, the next one comes out."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zoestim.solvers._programs import STDIN, STDOUT, Programs, last_lines
from zoestim.solvers._workdirs import Workdirs

Command = Sequence[str | os.PathLike[str]]


class SolverFailed(RuntimeError):
    """A program gave no next state. The message says for which simulation, and why."""


@dataclass(frozen=True)
class Exchange:
    """A program, and how it is asked and read; see `SubprocessSolver` for the parameters."""

    command: Command | Callable[[Path], Command]
    write: Callable[[Path, np.ndarray, dict[str, Any]], object] | None
    read: Callable[[Path], Any] | None
    env: Mapping[str, str]
    timeout: float | None

    def ask(
        self, workdirs: Workdirs, programs: Programs, state: np.ndarray, conditions: dict[str, Any]
    ) -> np.ndarray:
        """Return the next state of a simulation.

        Raises
        ------
        SolverFailed
            If the program fails for this state.
        OSError, TypeError, ValueError
            If no other state would make it better.
        """
        try:
            with workdirs.one() as workdir:
                if self.write is None:
                    _send(workdir, state, conditions)
                else:
                    self.write(workdir, state.copy(), dict(conditions))
                command = self.command(workdir) if callable(self.command) else self.command
                command = checked_command(command)
                self._run(programs, workdir, command)
                answer = self._read(workdir, command)
        except SolverFailed as error:
            about = f"{error}\nThe conditions of this simulation: {conditions or 'none'}."
            raise SolverFailed(about) from error.__cause__
        if answer.shape != state.shape or answer.dtype.kind not in "fiu":
            raise ValueError(
                f"{command[0]} must give the next state as numbers of the shape of the state, "
                f"{state.shape}; got shape {answer.shape} of {answer.dtype}. Compare what goes in "
                "with what comes out."
            )
        return answer

    def _run(self, programs: Programs, workdir: Path, command: Command) -> None:
        """Run the program to a good end."""
        environment = {**os.environ, **self.env}
        try:
            ended = programs.run(command, workdir, environment, self.timeout)
        except InterruptedError:
            raise
        except OSError as error:
            raise type(error)(
                f"{command[0]} cannot be started: {error.strerror}. Expected a program on PATH, or "
                "a path, absolute or relative to the work folder."
            ) from error
        if ended.timed_out:
            raise SolverFailed(
                f"{command[0]} was killed after timeout={self.timeout:g} s. Raise timeout if it "
                f"is only slow. {last_lines(workdir)}"
            )
        if ended.returncode:
            how = f"return code {ended.returncode}"
            if ended.returncode < 0:
                how = f"signal {signal.Signals(-ended.returncode).name}"
            raise SolverFailed(
                f"{command[0]} ended with {how}; expected return code 0. {last_lines(workdir)}"
            )

    def _read(self, workdir: Path, command: Command) -> np.ndarray:
        """Return what the program wrote, as an array that needs no file."""
        try:
            if self.read is None:
                return _loaded(workdir.with_name(STDOUT))
            return np.array(self.read(workdir))
        except Exception as error:
            expected = "an array as np.save writes it, on its standard output"
            if self.read is not None:
                expected = f"what {getattr(self.read, '__name__', 'read')} can read"
            raise SolverFailed(
                f"{command[0]} ended with return code 0 but there is no next state: "
                f"{type(error).__name__}: {error}. Expected {expected}. {last_lines(workdir)}"
            ) from error


def _send(workdir: Path, state: np.ndarray, conditions: dict[str, Any]) -> None:
    """Write what the program will find on its standard input."""
    if "state" in conditions:
        raise ValueError("A condition may not be called 'state', as the state is. Rename it.")
    with open(workdir.with_name(STDIN), "wb") as file:
        np.savez(file, state=state, **conditions)


def _loaded(path: Path) -> np.ndarray:
    """Return the array in a .npy file."""
    with open(path, "rb") as file:
        begin = file.read(40)
        if not begin.startswith(np.lib.format.MAGIC_PREFIX):
            raise ValueError(
                f"its standard output begins with {begin!r}; messages belong on standard errors"
            )
        file.seek(0)
        return np.load(file, allow_pickle=False)


def checked_command(command: Any) -> Command:
    """Return a command if it is a list of strings or paths.

    Raises
    ------
    TypeError
        If it is anything else.
    """
    if (
        not isinstance(command, Sequence)
        or isinstance(command, str)
        or not command
        or not all(isinstance(each, str | os.PathLike) for each in command)
    ):
        raise TypeError(
            "command must be a list of the program and its arguments, strings or paths; got "
            f"{command!r}. For a line of shell, ['bash', '-c', line]."
        )
    return command
