"""The losses and scores of fits over their epochs, drawn against what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from zoestim._figure import Panels
from zoestim._fitted_runs import as_named_estimators, class_name, left_behind

X_LABELS = {"queries": "Queries", "epochs": "Epochs", "seconds": "Seconds"}
# What a history records beside scores; so do names with such beginnings and ends.
COUNTS = ("epoch", "dur", "n_queries", "train_loss", "valid_loss", "batches")
ENDS = ("_best", "_batch_count")
EVENT = "event_"

Row = Mapping[str, Any]


class TrainingDisplay:
    """Loss and score of each epoch of one or several fits, against queries, epochs or seconds.

    Make one by :meth:`from_estimator` or :meth:`from_estimators`. The mean loss over the batches
    of an epoch is a line, the loss on what early stopping holds out a dashed one. A score that
    callbacks recorded in `history_`, such as skorch's `EpochScoring`, has a scale of its own.

    Parameters
    ----------
    histories : mapping from str to sequence of dict
        The rows of `history_` of each fit, by its name: ``train_loss``, ``n_queries`` so far,
        ``dur`` in seconds, and whatever else was recorded. Rows without a ``train_loss``, of
        epochs that did not end, are left out.

    Attributes
    ----------
    lines_ : dict from str to matplotlib Line2D
        The training loss of each fit.
    validation_lines_ : dict from str to matplotlib Line2D
        The validation loss, of the fits that have one.
    score_lines_ : dict from str to matplotlib Line2D
        The score, of the fits that have one.
    score_ : str or None
        Which score is drawn.
    ax_ : matplotlib Axes
        That of the losses.
    score_ax_ : matplotlib Axes or None
        That of the score.
    figure_ : matplotlib Figure

    See Also
    --------
    LayerRatiosDisplay : How much of each layer the queries were of.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from zoestim import TrainingDisplay, ZOClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> model = ZOClassifier(max_epochs=3, early_stopping=True, random_state=0).fit(X, y)
    >>> display = TrainingDisplay.from_estimator(model)  # doctest: +SKIP

    Runs that are kept as numbers alone:

    >>> rows = [{"train_loss": 1.1, "n_queries": 50}, {"train_loss": 0.7, "n_queries": 100}]
    >>> display = TrainingDisplay(histories={"mine": rows, "theirs": rows[:1]})
    >>> display.plot()  # doctest: +SKIP
    """

    def __init__(self, *, histories: Mapping[str, Sequence[Row]]):
        self.histories = histories

    def plot(
        self,
        ax: Any = None,
        *,
        x: str = "queries",
        score: str | None = "auto",
        scale: str = "linear",
        **kwargs: Any,
    ) -> TrainingDisplay:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes or pair of them, optional
            Where: for the losses, and for the score, which without a second one has its scale
            at the right of the first, or where an earlier display has put it; by default panels
            of a new figure.
        x : {"queries", "epochs", "seconds"}, default="queries"
            What the curves are over. Queries are all that were asked until the end of the
            epoch, those of scores and validations among them, in the units of `n_queries_`:
            losses on a batch, or samples for `ZODenoiserDefense`. Seconds are those that the
            epochs took; of a fit that went on from a checkpoint, the epoch in which it was
            interrupted counts from there.
        score : str or None, default="auto"
            The entry of the histories to draw as a score. "auto" takes the first one that holds
            numbers other than losses, costs and events, one whose name begins with "valid"
            before others; None draws none.
        scale : {"linear", "log"}, default="linear"
            Of the losses.
        **kwargs : dict
            For matplotlib's `plot`, of every line.

        Returns
        -------
        TrainingDisplay
            Itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If there is no such `x`, score or scale, no fit, or one without an epoch that ended.
        """
        if x not in X_LABELS:
            raise ValueError(f"x must be 'queries', 'epochs' or 'seconds'; got {x!r}.")
        if scale not in ("linear", "log"):
            raise ValueError(f"scale must be 'linear' or 'log'; got {scale!r}.")
        runs = {name: _ended(name, rows) for name, rows in self.histories.items()}
        if not runs:
            raise ValueError("histories must hold at least one fit; got none.")
        places = {name: _places(name, rows, x) for name, rows in runs.items()}
        self.score_ = _chosen(runs, score)
        panels = Panels.of(ax, "TrainingDisplay.plot", second=self.score_ is not None)
        self.ax_, self.figure_ = panels.first, panels.first.figure
        self.score_ax_: Any = panels.second if self.score_ is not None else None
        self.lines_: dict[str, Any] = {}
        self.validation_lines_: dict[str, Any] = {}
        self.score_lines_: dict[str, Any] = {}
        for name, rows in runs.items():
            self._draw(name, rows, places[name], kwargs)
        self.ax_.set(ylabel="Loss", yscale=scale)
        if self.score_ax_ is not None:
            self.score_ax_.set_ylabel(self.score_)
        if x == "epochs" and self.ax_.get_xscale() == "linear":
            self.ax_.locator_params(axis="x", integer=True)
        panels.finish(X_LABELS[x])
        return self

    def _draw(self, name: str, rows: Sequence[Row], x: np.ndarray, given: dict[str, Any]) -> None:
        """Draw the lines of one fit, all in one colour."""
        single = {"marker": "o"} if len(rows) == 1 else {}  # a line of one point is not seen
        is_held_out = any("valid_loss" in row for row in rows)
        label = f"{name}, training" if is_held_out else name
        style = {"label": label, **single, **given}
        (line,) = self.ax_.plot(x, _column(rows, "train_loss"), **style)
        self.lines_[name], style = line, {"color": line.get_color(), **single}
        if is_held_out:
            style |= {"label": f"{name}, validation", "linestyle": "--"}
            values = _column(rows, "valid_loss")
            (self.validation_lines_[name],) = self.ax_.plot(x, values, **{**style, **given})
        if self.score_ is not None and any(self.score_ in row for row in rows):
            style |= {"label": f"{name}, {self.score_}", "linestyle": ":"}
            values = _column(rows, self.score_)
            (self.score_lines_[name],) = self.score_ax_.plot(x, values, **{**style, **given})

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, name: str | None = None, ax: Any = None, **kwargs: Any
    ) -> TrainingDisplay:
        """Draw the training of one estimator.

        Parameters
        ----------
        estimator : object
            Fitted, with `history_`, as `ZOClassifier`, `ZORegressor`, `ZODenoiserDefense` and
            `SolverInTheLoop` have it; also as the last step of a pipeline, or as the best
            estimator of a search.
        name : str, optional
            What the legend calls it; by default the name of its class.
        ax : matplotlib Axes or pair of them, optional
            Where; by default in a new figure.
        **kwargs : dict
            For :meth:`plot`, such as ``x="seconds"``.

        Returns
        -------
        TrainingDisplay

        Raises
        ------
        NotFittedError
            If the estimator was not fitted.
        TypeError
            If it has no `history_`.
        """
        (rows,) = left_behind(estimator, "history_")
        name = class_name(estimator) if name is None else name
        return cls(histories={name: rows}).plot(ax, **kwargs)

    @classmethod
    def from_estimators(cls, estimators: Any, *, ax: Any = None, **kwargs: Any) -> TrainingDisplay:
        """Draw the training of several estimators over each other.

        Parameters
        ----------
        estimators : mapping from str to estimator, or list of them
            Those of :meth:`from_estimator`, by the names for the legend; in a list these are
            those of their classes.
        ax : matplotlib Axes or pair of them, optional
            Where; by default in a new figure.
        **kwargs : dict
            For :meth:`plot`, such as ``x="seconds"``.

        Returns
        -------
        TrainingDisplay

        Raises
        ------
        NotFittedError
            If one was not fitted.
        TypeError
            If one has no `history_`.
        ValueError
            If there is none.
        """
        named = as_named_estimators(estimators)
        histories = {name: left_behind(each, "history_")[0] for name, each in named.items()}
        return cls(histories=histories).plot(ax, **kwargs)


def _ended(name: str, rows: Sequence[Row]) -> list[Row]:
    """Return the rows of epochs that ended, once it is known that there is one."""
    found = [row for row in rows if "train_loss" in row]
    if not found:
        raise ValueError(
            f"The history of {name!r} has no 'train_loss' in any of its {len(rows)} rows; expected "
            "at least one epoch that ended. Train longer, or raise max_queries."
        )
    return found


def _places(name: str, rows: Sequence[Row], x: str) -> np.ndarray:
    """Return where the epochs of a fit lie on the x axis: at their ends."""
    if x == "epochs":
        return np.array([row.get("epoch", i) for i, row in enumerate(rows, start=1)], float)
    key = {"queries": "n_queries", "seconds": "dur"}[x]
    if not all(key in row for row in rows):
        raise ValueError(
            f"The history of {name!r} has not recorded {key!r} in each epoch, which x={x!r} "
            "needs. Use x='epochs'."
        )
    values = _column(rows, key)
    return values.cumsum() if x == "seconds" else values


def _column(rows: Sequence[Row], key: str) -> np.ndarray:
    return np.array([row.get(key, np.nan) for row in rows], dtype=np.float64)


def _chosen(runs: Mapping[str, Sequence[Row]], score: str | None) -> str | None:
    """Return the score to draw, if there is one, and refuse one that nobody has."""
    if score is None:
        return None
    known: dict[str, None] = {}
    for rows in runs.values():
        known |= {key: None for row in rows for key, value in row.items() if _is_score(key, value)}
    if score == "auto":
        return min(known, key=lambda key: not key.startswith("valid"), default=None)
    numbers = {key for rows in runs.values() for row in rows for key in row if _is_number(row[key])}
    if score not in numbers:
        raise ValueError(
            f"score={score!r} is not in the histories; expected one of {list(known)}, 'auto' or "
            "None. Callbacks record scores, such as skorch's EpochScoring."
        )
    return score


def _is_score(key: str, value: Any) -> bool:
    counts = key in COUNTS or key.endswith(ENDS) or key.startswith(EVENT)
    return not counts and _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool | np.bool_)
