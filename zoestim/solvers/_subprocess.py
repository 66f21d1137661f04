"""A solver that is a program in a process of its own, asked through files or its own pipes."""

from __future__ import annotations

import math
import os
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from zoestim.solvers._batch import conditions_of_each, other_kind
from zoestim.solvers._exchange import Command, Exchange, SolverFailed, checked_command
from zoestim.solvers._programs import Programs
from zoestim.solvers._workdirs import Workdirs

N_FAILURES = 100  # which are kept


class SolverFailedWarning(RuntimeWarning):
    """A program gave no next state, and NaN stands in its place."""


class SubprocessSolver:
    """Make a solver of a program: each step of a simulation is a process of its own.

    What a step does: take a copy of `workdir_template`, let `write` put the state there, run
    `command` in it, and let `read` get the next state. Without `write` and `read`, the program
    gets the state by its standard input, and gives the next one by its standard output.

    Parameters
    ----------
    command : list of str, or callable
        The program and its arguments, run in the work folder without a shell, so that a script is
        named by its absolute path or is part of the template; or a function of the work folder, a
        `Path`, that returns them.
    write : callable, optional
        ``(workdir, state, conditions)``: writes the input files of one simulation. `state` is an
        ndarray of shape (n_channels, *grid), `conditions` a dict of the values of this
        simulation.
    read : callable, optional
        ``(workdir) -> state``: reads what the program wrote, an ndarray of the same shape.
    workdir_template : path-like, optional
        A folder of what a run needs: meshes, settings. Links in it are copied as links, so what
        is large and only read can be a link. By default work folders are empty.
    workdir_root : path-like, optional
        Where work folders are made; by default in ``/dev/shm``, which is memory, if it has 1 GB
        left, else where temporary files go.
    env : dict of str, optional
        Environment variables beside those of this process. ``{"OMP_NUM_THREADS": "1"}`` is wise
        with a pool.
    timeout : float, optional
        Seconds that a step may take. Then the program is killed with all that it has started.
    pool : int, default=1
        How many programs a call of `step` runs at once. Workers that call it at the same time
        have such a pool each.
    on_error : {"nan", "raise"}, default="nan"
        What to do where a program fails, see Notes.
    deterministic : bool, default=True
        Whether equal questions get equal answers, bit by bit.

    Attributes
    ----------
    failures : tuple of SolverFailed
        The last 100 simulations that failed in this process.
    n_failures : int
        How many there were.
    batched : bool
        Whether there is a pool.
    max_batch : None
        Any number of states will do.
    native : str
        ``"numpy"``.

    Notes
    -----
    **Failures.** A program fails by a return code other than 0, a signal, a timeout, or an output
    that `read` cannot read. With ``on_error="nan"`` the state of this simulation is then NaN, the
    others keep their answers, and nothing needs to be asked twice. The first failure is a
    `SolverFailedWarning`; each is in `failures`. `SolverInTheLoop` counts such queries as failed
    and does what its `on_failure` says; its ``max_retries=0`` keeps it from asking a program again
    that would only fail again, where the default suits programs that fail by chance. States that
    are not finite are not asked about at all: NaN stays NaN. With ``"raise"`` the first failure
    ends the call, which loses the others' answers. What no other state would make better is always
    raised: a program that cannot be started, a `write` that raises, an output of another shape.

    **Pipes.** The program finds on its standard input what ``np.savez`` writes, the array
    ``state`` and one for each condition, and writes to its standard output what ``np.save``
    writes. Messages go to its standard errors.

    **Work folders.** Each program under way has one, which no other thread or process uses.
    Between two steps all that has changed is set back to the template, so that nothing goes from
    one step to the next but the state. What is needed of it must be in the state: for flows, the
    pressure of the last step is often a first guess only, face fluxes may be more.

    Folders are removed by `close`, with the solver, or with the process. If that is killed by
    SIGKILL, its programs run to their end, and the next solver with the same root removes the
    folders.

    **Precision.** Text files with 6 digits are noise to finite differences. Let both sides write
    9 digits for float32, or binary files; `check_solver` shows the noise that is left.

    Pickled or copied, a solver takes no folders and no failures along. It needs a POSIX system.

    Examples
    --------
    A program that halves the state, and doubles what a condition says:

    >>> import sys
    >>> import numpy as np
    >>> from zoestim.solvers import SubprocessSolver
    >>> program = '''
    ... import io, sys, numpy as np
    ... given = np.load(io.BytesIO(sys.stdin.buffer.read()))
    ... np.save(sys.stdout.buffer, given["state"] / 2 + 2 * given["source"])
    ... '''
    >>> with SubprocessSolver([sys.executable, "-c", program], timeout=60) as solver:
    ...     solver.step(np.ones((2, 1, 3), dtype=np.float32), {"source": [0, 1]})
    array([[[0.5, 0.5, 0.5]],
           [[2.5, 2.5, 2.5]]], dtype=float32)

    A program that works on files:

    >>> def write(workdir, state, conditions):
    ...     np.savetxt(workdir / "in.txt", state, fmt="%.9g")
    >>> def read(workdir):
    ...     return np.loadtxt(workdir / "out.txt", ndmin=2)
    >>> command = ["sort", "-g", "in.txt", "-o", "out.txt"]
    >>> with SubprocessSolver(command, write=write, read=read) as solver:
    ...     solver.step(np.array([[[3.0], [1.0], [2.0]]]), {})[0, :, 0]
    array([1., 2., 3.])
    """

    max_batch: int | None = None
    native = "numpy"

    def __init__(
        self,
        command: Command | Callable[[Path], Command],
        *,
        write: Callable[[Path, np.ndarray, dict[str, Any]], object] | None = None,
        read: Callable[[Path], Any] | None = None,
        workdir_template: str | os.PathLike[str] | None = None,
        workdir_root: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
        pool: int = 1,
        on_error: str = "nan",
        deterministic: bool = True,
    ):
        self.command = command if callable(command) else checked_command(command)
        self.write, self.read = write, read
        self.workdir_template = None if workdir_template is None else Path(workdir_template)
        self.workdir_root = None if workdir_root is None else Path(workdir_root)
        self.env, self.timeout, self.pool = dict(env or {}), timeout, pool
        self.on_error, self.deterministic = on_error, deterministic
        _check(self)
        self._mine = _Mine()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what belongs to one object in one process."""
        return {name: value for name, value in vars(self).items() if name != "_mine"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._mine = _Mine()

    @property
    def batched(self) -> bool:
        """Return whether there is a pool."""
        return self.pool > 1

    @property
    def failures(self) -> tuple[SolverFailed, ...]:
        """Return the last simulations that failed."""
        return tuple(self._mine.failures)

    @property
    def n_failures(self) -> int:
        """Return how many simulations failed."""
        return self._mine.n_failures

    def step(self, states: Any, conditions: Mapping[str, Any] | None = None) -> Any:
        """Return the states one step later, as arrays or tensors like those given.

        Parameters
        ----------
        states : ndarray or Tensor of shape (n_simulations, n_channels, *grid)
            Of a floating type. They are not written to.
        conditions : mapping, optional
            One value for all, or one for each simulation.

        Raises
        ------
        SolverFailed
            If a program fails, with ``on_error="raise"``.
        OSError
            If it cannot be started.
        TypeError, ValueError
            If it gives another shape, states are of another type, or a condition has another
            number of values than there are states.
        """
        given = other_kind(states) if isinstance(states, Tensor) else np.asarray(states)
        if given.dtype.kind != "f":
            raise TypeError(
                f"States must be of a floating type, such as float32; got {given.dtype}."
            )
        each = conditions_of_each(conditions or {}, len(given))
        found = np.full_like(given, np.nan)
        finite = np.isfinite(given.reshape(len(given), -1)).all(axis=1)
        exchange = Exchange(self.command, self.write, self.read, self.env, self.timeout)
        workdirs = self._mine.folders_of(self)
        with workdirs.call() as programs:

            def advance(i: int) -> None:
                of_this = {name: _plain(values[i]) for name, values in each.items()}
                try:
                    found[i] = exchange.ask(workdirs, programs, given[i], of_this)
                except SolverFailed as error:
                    if self._mine.note(error) == 1 and self.on_error == "nan":
                        _warn(error)
                    if self.on_error == "raise":
                        raise

            _several(advance, np.flatnonzero(finite), self.pool, programs)
        return other_kind(found) if isinstance(states, Tensor) else found

    def close(self) -> None:
        """Kill programs that run, and remove the work folders; a next step makes new ones."""
        with self._mine.lock:
            workdirs, self._mine.workdirs = self._mine.workdirs, None
        if workdirs is not None:
            workdirs.clear()

    def __enter__(self) -> SubprocessSolver:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def to_features(self, states: Any) -> Any:
        """Return what a corrector sees: the states."""
        return states

    def apply_correction(self, states: Any, correction: Any) -> Any:
        """Return the states plus a correction of the same shape."""
        return states + correction


class _Mine:
    """What belongs to one solver object in one process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.workdirs: Workdirs | None = None
        self.failures: deque[SolverFailed] = deque(maxlen=N_FAILURES)
        self.n_failures = 0

    def folders_of(self, solver: SubprocessSolver) -> Workdirs:
        """Return the work folders, which are made when they are first needed."""
        with self.lock:
            if self.workdirs is None or self.workdirs.pid != os.getpid():
                self.workdirs = Workdirs(solver.workdir_template, solver.workdir_root)
                weakref.finalize(solver, self.workdirs.clear)
            return self.workdirs

    def note(self, failed: SolverFailed) -> int:
        """Keep a failure, and return how many there were."""
        with self.lock:
            # A traceback would keep states and folders alive.
            self.failures.append(failed.with_traceback(None))
            self.n_failures += 1
            return self.n_failures


def _warn(failed: SolverFailed) -> None:
    """Warn of a first failure."""
    warnings.warn(
        f"{failed}\nNaN stands for its next state. This warning comes once; all failures are in "
        "the solver's attribute failures.",
        SolverFailedWarning,
        stacklevel=2,
    )


def _several(
    function: Callable[[int], None], rows: np.ndarray, pool: int, programs: Programs
) -> None:
    """Call a function of each row, some at once; if one raises, end all."""
    if pool == 1 or len(rows) < 2:
        for i in rows:
            function(int(i))
        return
    left, lock = iter(rows), threading.Lock()
    errors: list[BaseException] = []

    def work() -> None:
        while not errors:
            with lock:
                i = next(left, None)
            if i is None:
                return
            try:
                function(int(i))
            except BaseException as error:
                errors.append(error)
                programs.stop()

    # Not a ThreadPoolExecutor: Python would not end before a step that nobody waits for.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(pool, len(rows)))]
    try:
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    except BaseException as error:  # an interrupt
        errors.insert(0, error)
        programs.stop()
        for each in threads:
            if each.ident is not None:  # it was started
                each.join()
    if errors:
        raise errors[0]


def _plain(value: Any) -> Any:
    """Return a number as Python's, and an array or a tensor as an array of its own."""
    array = np.array(value.detach().cpu().numpy() if isinstance(value, Tensor) else value)
    return array.item() if array.ndim == 0 else array


def _check(solver: SubprocessSolver) -> None:
    """Refuse parameters that cannot work."""
    if os.name != "posix":
        raise OSError("SubprocessSolver needs a POSIX system, which can end process groups.")
    if (solver.write is None) != (solver.read is None):
        raise TypeError(
            "write and read belong together: give both for a program that works on files, or "
            "neither for one with pipes; got "
            f"write={solver.write!r} and read={solver.read!r}."
        )
    for name, folder in (("template", solver.workdir_template), ("root", solver.workdir_root)):
        if folder is not None and not folder.is_dir():
            raise ValueError(f"workdir_{name} must be a folder; there is none at {folder}.")
    seconds = solver.timeout
    if seconds is not None and not (isinstance(seconds, Real) and 0 < float(seconds) < math.inf):
        raise ValueError(f"timeout must be seconds above 0, or None; got {seconds!r}.")
    if not isinstance(solver.pool, Integral) or solver.pool < 1:
        raise ValueError(f"pool must be an integer of at least 1; got {solver.pool!r}.")
    if solver.on_error not in ("nan", "raise"):
        raise ValueError(f"on_error must be 'nan' or 'raise'; got {solver.on_error!r}.")
