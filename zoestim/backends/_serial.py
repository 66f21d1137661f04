"""What a backend is, and the one that does everything here."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Generator, Sequence
from typing import Protocol, TypeVar

Shared = TypeVar("Shared")
Result = TypeVar("Result")
Answer = Callable[[Shared, list[int]], Result]


class Unsendable(TypeError):
    """What workers in other processes need cannot be pickled."""


class Backend(Protocol):
    """Maps a function over shares of tasks; it knows nothing of what they are."""

    @property
    def own_memory(self) -> bool:
        """Whether workers see the objects of this process, and an error here is one of theirs."""
        ...

    def map(
        self, function: Answer[Shared, Result], shared: Shared, work: Sequence[float]
    ) -> Generator[tuple[list[int], Result], None, None]:
        """Give ``function(shared, tasks)`` for shares that hold each task once.

        It is a generator: who needs no more answers closes it.

        Parameters
        ----------
        function : callable
            ``(shared, tasks) -> result``; a function of a module, so that it has a name.
        shared : object
            What all tasks need; it is sent once a call to each worker.
        work : sequence of float
            How much each task is, to cut them into shares.

        Yields
        ------
        tasks : list of int
            The tasks of a share that is done, in the order in which they are.
        result : object
            What the function returned.
        """
        ...

    def once(self, function: Callable[[], Result]) -> Result:
        """Return what a function returns that must be called once by all processes together."""
        ...

    def close(self) -> None:
        """Let go of what is held between two calls."""
        ...


class SerialBackend:
    """Does every task here, one after the other.

    Examples
    --------
    >>> from zoestim.backends import SerialBackend
    >>> list(SerialBackend().map(lambda x, tasks: [x * t for t in tasks], 10, [1.0, 1.0]))
    [([0, 1], [0, 10])]
    """

    own_memory = True

    def map(
        self, function: Answer[Shared, Result], shared: Shared, work: Sequence[float]
    ) -> Generator[tuple[list[int], Result], None, None]:
        """Give one share that holds all."""
        tasks = list(range(len(work)))
        yield tasks, function(shared, tasks)

    def once(self, function: Callable[[], Result]) -> Result:
        """Call the function."""
        return function()

    def close(self) -> None:
        """There is nothing to let go of."""


def worker_name(number: int = 0) -> str:
    """Return what reports call a worker: its host and process, and its number of several there."""
    return f"{socket.gethostname()}:{os.getpid()}" + (f":{number}" if number else "")
