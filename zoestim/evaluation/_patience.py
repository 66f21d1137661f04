"""How long and how often a query is asked before it counts as failed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from zoestim.evaluation._query_error import QueryTimeout

MAX_RETRIES = 2
# Seconds before what raised is asked again, doubled each time: a server may need to recover.
PAUSE = 0.1


class Reply(NamedTuple):
    """What became of asking something, perhaps several times.

    Parameters
    ----------
    value : Any
        What it returned the last time; None where it raised.
    cause : Exception or None
        What it raised the last time.
    attempts : int
        How often it was asked.
    """

    value: Any
    cause: Exception | None
    attempts: int


@dataclass(frozen=True)
class Patience:
    """How long a query may take, and how often it is asked again.

    Parameters
    ----------
    timeout : float, optional
        Seconds; by default any time.
    max_retries : int, default=2
        How often what raised, hung or gave no finite number is asked again.
    forgiving : bool, default=False
        Whether to go on with the other queries when one has failed that often.
    """

    timeout: float | None = None
    max_retries: int = MAX_RETRIES
    forgiving: bool = False

    def ask(
        self,
        function: Callable[[], Any],
        usable: Callable[[Any], bool] | None = None,
        asked: int = 0,
    ) -> Reply:
        """Call a function until what it returns is usable, or patience is at its end.

        Parameters
        ----------
        function : callable
            What to call.
        usable : callable, optional
            Judges what it returned; by default anything will do.
        asked : int, default=0
            How often it was called before.
        """
        while True:
            value, cause = None, None
            try:
                value = self.within_time(function)
            except Exception as error:
                cause = error
            asked += 1
            good = cause is None and (usable is None or usable(value))
            if good or asked > self.max_retries:
                return Reply(value, cause, asked)
            if cause is not None:
                time.sleep(PAUSE * 2 ** (asked - 1))

    def insist(self, function: Callable[[], Any]) -> Any:
        """Return what a function returns, or raise what it raised the last time."""
        reply = self.ask(function)
        if reply.cause is not None:
            raise reply.cause
        return reply.value

    def within_time(self, function: Callable[[], Any]) -> Any:
        """Return what a function returns, or leave it to itself when its time is over."""
        if self.timeout is None:
            return function()
        reply: Future[Any] = Future()

        def call() -> None:
            try:
                with torch.no_grad():  # which each thread has for itself
                    reply.set_result(function())
            except BaseException as error:
                reply.set_exception(error)

        threading.Thread(target=call, name=threading.current_thread().name, daemon=True).start()
        try:
            return reply.result(self.timeout)
        except TimeoutError as error:
            if reply.done():  # in this instant, or with such an error of its own
                return reply.result()
            raise QueryTimeout(f"no answer within query_timeout={self.timeout:g} s") from error
