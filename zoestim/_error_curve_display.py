"""The error of roll-outs over their steps, drawn: the solver alone and corrected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from zoestim._figure import make_ax
from zoestim._rollout_panels import error_scale
from zoestim._rollouts import SOLVER, as_named, number_of_steps, predict_both, step_errors

BANDS = {
    "standard_error": "mean ± standard error",
    "quartiles": "median and quartiles",
    None: "mean",
}
NEVER = 1e250  # an error that no roll-out has


class ErrorCurveDisplay:
    """Mean absolute error at each step of roll-outs, with a band over simulations.

    Make one by :meth:`from_estimator` or :meth:`from_predictions`; several lie over each other
    on the same axes: ``first.ax_`` goes in as ``ax``.

    Parameters
    ----------
    errors : mapping from str to ndarray of shape (n_simulations, n_steps)
        The error of each simulation at each step, from the first on, by the name of what made
        it. Inf where a roll-out diverged, NaN behind the end of a shorter one.

    Attributes
    ----------
    lines_ : dict from str to matplotlib Line2D
        Where a roll-out that counts has diverged, the line has ended.
    bands_ : dict from str to matplotlib PolyCollection
        Empty for one simulation.
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    See Also
    --------
    RolloutDisplay : Frames of one simulation.

    Examples
    --------
    >>> import numpy as np
    >>> from zoestim import ErrorCurveDisplay
    >>> display = ErrorCurveDisplay(errors={"solver": [[0.1, 0.2, 0.3], [0.1, 0.3, 0.4]]})
    >>> display.plot()  # doctest: +SKIP
    """

    def __init__(self, *, errors: Mapping[str, Any]):
        self.errors = errors

    def plot(
        self,
        ax: Any = None,
        *,
        band: str | None = "standard_error",
        scale: str | None = None,
        band_kw: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> ErrorCurveDisplay:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where; by default in a new figure.
        band : {"standard_error", "quartiles"} or None, default="standard_error"
            The line is the mean of simulations, and the band one standard error of it to
            either side; or the line is their median, and the band goes from the first quartile
            to the third. None is the mean without a band.
        scale : {"linear", "log"}, optional
            Of the errors; by default "log" if the largest is more than 100 times what is
            typical for the best curve, as where one nearly diverges.
        band_kw : mapping, optional
            For matplotlib's `fill_between`.
        **kwargs : dict
            For matplotlib's `plot`, of every curve.

        Returns
        -------
        ErrorCurveDisplay
            Itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If there is no such band, no curve, or errors are of another shape.
        """
        if band not in BANDS:
            raise ValueError(f"band must be 'standard_error', 'quartiles' or None; got {band!r}.")
        ax = make_ax(ax, "ErrorCurveDisplay.plot")
        self.ax_, self.figure_ = ax, ax.figure
        curves = _as_curves(self.errors)
        self.lines_: dict[str, Any] = {}
        self.bands_: dict[str, Any] = {}
        for name, errors in curves.items():
            middle, low, high = _summary(errors, band)
            steps = np.arange(1, errors.shape[1] + 1)
            # The bare solver is what curves are compared with: it takes no colour of the cycle.
            style = {"color": "0.35", "linestyle": "--"} if name == SOLVER else {}
            (line,) = ax.plot(steps, middle, **{"label": _label(name, errors), **style, **kwargs})
            self.lines_[name] = line
            if band is not None and len(errors) > 1:
                fill = {"color": line.get_color(), "alpha": 0.2, "linewidth": 0, **(band_kw or {})}
                self.bands_[name] = ax.fill_between(steps, low, high, **fill)
        ax.set(xlabel="Step", ylabel="Mean absolute error")
        if scale is None:
            drawn = [line for line in ax.lines if line.get_transform() == ax.transData]
            scale = error_scale(np.asarray(line.get_ydata(), float) for line in drawn)
        ax.set_yscale(scale)
        if scale == "linear":
            ax.set_ylim(bottom=0)
        ax.spines[["top", "right"]].set_visible(False)
        most = max(len(errors) for errors in curves.values())
        number = f"{most} simulations" if most > 1 else "one simulation"
        ax.legend(loc="best", title=f"{BANDS[band]}, {number}", frameon=False)
        return self

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any,
        *,
        baseline: bool = True,
        name: str = "corrected",
        ax: Any = None,
        **kwargs: Any,
    ) -> ErrorCurveDisplay:
        """Roll simulations out, without and with correction, and draw their errors.

        Parameters
        ----------
        estimator : object
            Fitted, with a method ``predict(X, n_steps=, correct=)``, such as
            `SolverInTheLoop`.
        X : Simulations, array-like of shape (n_simulations, n_channels, *grid) or list of dict
            The initial states, and their conditions.
        y : array-like of shape (n_simulations, n_steps, n_channels, *grid) or list of array-like
            The true frames after them.
        baseline : bool, default=True
            Whether to draw the curve of the solver alone, too.
        name : str, default="corrected"
            What the legend calls the corrected roll-outs.
        ax : matplotlib Axes, optional
            Where; by default in a new figure.
        **kwargs : dict
            For :meth:`plot`.

        Returns
        -------
        ErrorCurveDisplay

        Raises
        ------
        TypeError
            If the estimator has no method `predict`.
        ValueError
            If shapes differ, or there is no simulation.
        """
        found = predict_both(estimator, X, number_of_steps(y), name, baseline)
        errors = {called: step_errors(y, each, called) for called, each in found.items()}
        return cls(errors=errors).plot(ax, **kwargs)

    @classmethod
    def from_predictions(
        cls, y_true: Any, y_pred: Any, *, ax: Any = None, **kwargs: Any
    ) -> ErrorCurveDisplay:
        """Draw the errors of roll-outs that are there already.

        Parameters
        ----------
        y_true : array-like of shape (n_simulations, n_steps, n_channels, *grid) or list of them
            The true frames.
        y_pred : mapping from str to array-like, or array-like, shaped as y_true
            What was predicted, by name.
        ax : matplotlib Axes, optional
            Where; by default in a new figure.
        **kwargs : dict
            For :meth:`plot`.

        Returns
        -------
        ErrorCurveDisplay

        Raises
        ------
        ValueError
            If shapes differ, or there is no simulation.
        """
        named = as_named(y_pred, "predicted")
        errors = {name: step_errors(y_true, each, name) for name, each in named.items()}
        return cls(errors=errors).plot(ax, **kwargs)


def _as_curves(errors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return errors as arrays of two axes, once they are known to be there."""
    found = {name: np.asarray(given, dtype=np.float64) for name, given in errors.items()}
    for name, each in found.items():
        if each.ndim != 2 or not len(each):
            raise ValueError(
                "errors must be of shape (n_simulations, n_steps), with at least one simulation; "
                f"got {each.shape} for {name!r}."
            )
    if not found:
        raise ValueError("errors must hold at least one curve; got none.")
    return found


def _summary(errors: np.ndarray, band: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the middle at each step and the ends of the band; NaN where it is not finite."""
    found = np.full((3, errors.shape[1]), np.nan)
    for step, column in enumerate(errors.T):
        there = column[~np.isnan(column)]
        if not len(there):
            continue
        if band == "quartiles":
            # An infinite error is one of the largest; infinity itself would spoil its neighbours.
            found[:, step] = np.quantile(np.minimum(there, NEVER), [0.5, 0.25, 0.75])
        elif np.isfinite(there).all():
            with np.errstate(all="ignore"):
                margin = there.std(ddof=1) / len(there) ** 0.5 if len(there) > 1 else 0.0
                found[:, step] = there.mean() + margin * np.array([0.0, -1.0, 1.0])
    middle, low, high = np.where(np.abs(found) < NEVER / 1e9, found, np.nan)
    return middle, low, high


def _label(name: str, errors: np.ndarray) -> str:
    """Return the name with the mean over all frames, or with how many roll-outs diverged."""
    there = errors[~np.isnan(errors)]
    if not len(there):
        return name
    if np.isfinite(there).all():
        with np.errstate(all="ignore"):
            return f"{name} (MAE = {there.mean():.3g})"
    return f"{name} ({int(np.isinf(errors).any(1).sum())} of {len(errors)} diverged)"
