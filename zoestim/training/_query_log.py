"""When queries were asked, how long they took, and who answered them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from zoestim.evaluation import Record

_ROW = np.dtype(
    [
        ("epoch", "i4"),
        ("step", "i4"),
        ("query", "i8"),
        ("n_queries", "i8"),
        ("started", "f8"),
        ("seconds", "f8"),
        ("attempts", "i4"),
        ("worker", "i4"),
    ]
)


class QueryLog:
    """What the queries of a fit cost.

    One row is one call of a black box; where there is none, so that nobody pays for the single
    query, one row is all queries that a worker answered together. Queries at the current
    parameters and those of a validation are not in it.

    Attributes
    ----------
    rows : structured ndarray of shape (n,)
        With the fields ``epoch`` and ``step`` (of the whole fit, from 0; the scores of pruning
        count to the step that needs them), ``query`` (its number among those asked together),
        ``n_queries``, ``started`` (seconds since 1970), ``seconds``, ``attempts`` and
        ``worker`` (a number, into `workers`).
    workers : list of str
        Host, process and thread of each worker.

    Examples
    --------
    >>> import numpy as np
    >>> from zoestim import BlackBox, ZORegressor
    >>> box = BlackBox(lambda params, X: X @ params, np.zeros((2, 1)))
    >>> model = ZORegressor(box, pruning=None, max_epochs=3, random_state=0)
    >>> log = model.fit(np.eye(2), [1.0, 2.0]).query_log_
    >>> len(log), int(log.rows["n_queries"].sum())
    (6, 6)
    >>> list(log.to_frame().columns)[:4]
    ['epoch', 'step', 'query', 'n_queries']
    """

    def __init__(self) -> None:
        self.workers: list[str] = []
        self._numbers: dict[str, int] = {}
        self._parts: list[np.ndarray] = []

    def add(self, epoch: int, step: int, records: Sequence[Record]) -> None:
        """Append what the queries of one step cost."""
        for record in records:
            if record.worker not in self._numbers:
                self._numbers[record.worker] = len(self.workers)
                self.workers.append(record.worker)
        rows = [(epoch, step, *r[:5], self._numbers[r.worker]) for r in records]
        self._parts.append(np.array(rows, _ROW))

    @property
    def rows(self) -> np.ndarray:
        """All rows, in the order in which answers came."""
        self._parts = [np.concatenate(self._parts)] if self._parts else [np.empty(0, _ROW)]
        return self._parts[0]

    def __len__(self) -> int:
        return len(self.rows)

    def to_frame(self) -> Any:
        """Return the log as a pandas DataFrame, times as timestamps, workers by name.

        Returns
        -------
        pandas.DataFrame
        """
        import pandas

        frame = pandas.DataFrame(self.rows)
        frame["started"] = pandas.to_datetime(frame["started"], unit="s")
        frame["worker"] = frame["worker"].map(dict(enumerate(self.workers)))
        return frame

    def __repr__(self) -> str:
        rows = self.rows
        again = int((rows["attempts"] - 1).sum())
        return (
            f"QueryLog({int(rows['n_queries'].sum())} queries by {len(self.workers)} workers in "
            f"{float(rows['seconds'].sum()):.3g} s of their time, {again} asked again)"
        )
