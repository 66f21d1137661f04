"""The one error of a query that gave no usable loss, and what it says."""

from __future__ import annotations

import pickle
import traceback
from typing import Any, NamedTuple


class QueryError(RuntimeError):
    """A query gave no usable loss. The message names the coordinate and the batch.

    Its ``__cause__`` is the error that a black box, a module or a criterion raised, if one did.

    Examples
    --------
    >>> import torch
    >>> from zoestim import QueryError, estimate_gradient
    >>> try:
    ...     estimate_gradient(
    ...         torch.nn.Linear(1, 1), lambda outputs, y: outputs.mean() / 0, [[1.0]], [0.0]
    ...     )
    ... except QueryError as error:
    ...     print(str(error)[:37])
    The loss at the current parameters is
    """


class QueryTimeout(Exception):
    """A query took longer than `query_timeout`."""


class Failure(NamedTuple):
    """A query that gave no usable loss as often as it was asked.

    Parameters
    ----------
    position : int
        Which query; -1 for the one at the current parameters.
    loss : float or None
        What it gave the last time, NaN or infinite; None where it raised.
    cause : Exception or None
        What it raised the last time.
    attempts : int
        How often it was asked.
    worker : str
        Who asked.
    """

    position: int
    loss: float | None
    cause: Exception | None
    attempts: int
    worker: str

    def __reduce__(self) -> tuple[Any, ...]:
        """Send the failure with a cause that survives the way, and a note of where it was raised.

        A traceback does not survive it, nor every exception: some ask for arguments that they do
        not keep.
        """
        cause = self.cause
        if cause is not None:
            where = "".join(traceback.format_tb(cause.__traceback__))
            try:
                cause = pickle.loads(pickle.dumps(cause))
            except Exception:
                cause = RuntimeError(text_of(cause))
            if where:
                cause.add_note(f"Raised by worker {self.worker}:\n{where}")
        return Failure, (self.position, self.loss, cause, self.attempts, self.worker)

    def describe(self, where: str, label: str) -> str:
        """Return what :class:`QueryError` says of it."""
        times = f", asked {self.attempts} times" if self.attempts > 1 else ""
        if self.cause is None:
            return (
                f"The query at {where} gave a loss that is NaN or infinite: {self.loss} on "
                f"{label}{times} by worker {self.worker}; expected a finite number. Lower "
                "smoothing or lr, or clip the outputs."
            )
        advice = "Mend its cause, or raise max_retries if it comes and goes."
        if isinstance(self.cause, QueryTimeout):
            advice = "Raise query_timeout, or max_retries if it seldom hangs."
        return (
            f"The query at {where} failed on {label}{times} by worker {self.worker}: "
            f"{text_of(self.cause).rstrip('.')}. {advice}"
        )


def text_of(error: BaseException) -> str:
    """Return the type and text of an error, also of one that cannot tell its text."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return f"{type(error).__name__}: (its text cannot be had)"
