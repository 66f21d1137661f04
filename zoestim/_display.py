"""Certified accuracy against radius, drawn."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoestim._figure import make_ax
from zoestim.certification import (
    average_certified_radius,
    certified_accuracy,
    max_certifiable_radius,
)


class CertifiedAccuracyDisplay:
    """Curve of certified accuracy against radius.

    The accuracy at a radius is the share of all samples whose label is right and certified at
    least so far. Make one by :meth:`from_estimator` or :meth:`from_predictions`; what they
    computed is kept as attributes.

    Parameters
    ----------
    radii : array-like of shape (n_radii,)
        Ascending radii, in the units of X.
    accuracies : array-like of shape (n_radii,)
        The certified accuracy at each of them. Between two of them the curve has that of the
        larger one, behind the last it is 0.
    estimator_name : str, optional
        What the legend calls the curve.
    max_radius : float, optional
        The largest radius that the number of draws can certify: a dotted line.
    average_radius : float, optional
        The average certified radius (ACR), for the legend.

    Attributes
    ----------
    line_ : matplotlib Line2D
        The curve.
    max_line_ : matplotlib Line2D or None
        The dotted line.
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    baseline_ : CertifiedAccuracyDisplay or None
        The curve of the undefended classifier, of ``from_estimator(..., baseline=True)``.

    Examples
    --------
    >>> from zoestim import CertifiedAccuracyDisplay
    >>> display = CertifiedAccuracyDisplay(radii=[0, 0.25, 0.5], accuracies=[0.9, 0.6, 0.2])
    >>> display.plot(name="defended")  # doctest: +SKIP
    """

    baseline_: CertifiedAccuracyDisplay | None = None

    def __init__(
        self,
        *,
        radii: Any,
        accuracies: Any,
        estimator_name: str | None = None,
        max_radius: float | None = None,
        average_radius: float | None = None,
    ):
        self.radii = radii
        self.accuracies = accuracies
        self.estimator_name = estimator_name
        self.max_radius = max_radius
        self.average_radius = average_radius

    def plot(
        self, ax: Any = None, *, name: str | None = None, **kwargs: Any
    ) -> CertifiedAccuracyDisplay:
        """Draw the curve.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where; by default in a new figure.
        name : str, optional
            What the legend calls the curve; by default `estimator_name`.
        **kwargs : dict
            For matplotlib's `plot`.

        Returns
        -------
        CertifiedAccuracyDisplay
            Itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        ax = make_ax(ax, "CertifiedAccuracyDisplay.plot")
        x, y = np.append(self.radii, self.radii[-1]), np.append(self.accuracies, 0.0)
        # A radius counts at itself, so that a step has the height of its right end.
        style = {"drawstyle": "steps-pre", "label": self._label(name), **kwargs}
        self.ax_, self.figure_ = ax, ax.figure
        (self.line_,) = ax.plot(x, y, **style)
        self.max_line_ = None
        if self.max_radius is not None:
            self.max_line_ = ax.axvline(
                self.max_radius,
                color=self.line_.get_color(),
                linestyle=":",
                label=f"largest that can be certified: {self.max_radius:.3g}",
            )
        ax.set(xlabel="Radius, in the units of X", ylabel="Certified accuracy", ylim=(0, 1.02))
        ax.set_xlim(left=0)
        if ax.get_legend_handles_labels()[1]:
            ax.legend(loc="best")
        return self

    def _label(self, name: str | None) -> str | None:
        name = self.estimator_name if name is None else name
        if self.average_radius is None:
            return name
        mean = f"ACR = {self.average_radius:.3f}"
        return mean if name is None else f"{name} ({mean})"

    @classmethod
    def from_predictions(
        cls,
        y_true: Any,
        y_pred: Any,
        radius: Any,
        *,
        max_radius: float | None = None,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> CertifiedAccuracyDisplay:
        """Draw the curve of certified labels.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            The true labels.
        y_pred : array-like of shape (n_samples,)
            The certified labels.
        radius : array-like of shape (n_samples,)
            The certified radii: above 0, and 0 where the classifier abstained, which counts as
            wrong whatever the label.
        max_radius : float, optional
            As :func:`max_certifiable_radius` gives it.
        name : str, optional
            What the legend calls the curve.
        ax : matplotlib Axes, optional
            Where; by default in a new figure.
        **kwargs : dict
            For matplotlib's `plot`.

        Returns
        -------
        CertifiedAccuracyDisplay

        Raises
        ------
        ValueError
            If there is no sample, or lengths differ.
        """
        made = cls._of(y_true, y_pred, radius, max_radius, name)
        return made.plot(ax, **kwargs)

    @classmethod
    def _of(
        cls, y_true: Any, y_pred: Any, radius: Any, max_radius: float | None, name: str | None
    ) -> CertifiedAccuracyDisplay:
        average = average_certified_radius(y_true, y_pred, radius)
        found = np.unique(np.asarray(radius, dtype=np.float64))
        radii = np.append(0.0, found[found > 0])
        return cls(
            radii=radii,
            accuracies=certified_accuracy(y_true, y_pred, radius, radii),
            estimator_name=name,
            max_radius=max_radius,
            average_radius=average,
        )

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any,
        *,
        n0: int = 100,
        n: int = 1000,
        alpha: float = 0.001,
        random_state: Any = None,
        baseline: bool = False,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> CertifiedAccuracyDisplay:
        """Certify samples and draw the curve.

        Parameters
        ----------
        estimator : object
            Fitted, with a method `certify`, such as `ZODenoiserDefense`. The dotted line is
            drawn if it has an attribute `noise_std`.
        X : array-like of shape (n_samples, ...)
            The samples.
        y : array-like of shape (n_samples,)
            The true labels.
        n0 : int, default=100
            The number of draws that choose a class.
        n : int, default=1000
            The number of draws that bound its probability.
        alpha : float, default=0.001
            The probability, for each sample, that its radius is wrong.
        random_state : int, RandomState instance or None, default=None
            Draws the noise; an integer gives both curves the same.
        baseline : bool, default=False
            Whether to draw the curve of the classifier without its defence, too.
        name : str, optional
            What the legend calls the curve; by default the name of the estimator's class.
        ax : matplotlib Axes, optional
            Where; by default in a new figure.
        **kwargs : dict
            For matplotlib's `plot` of the defended curve.

        Returns
        -------
        CertifiedAccuracyDisplay

        Raises
        ------
        TypeError
            If the estimator has no method `certify`.
        """
        if not hasattr(estimator, "certify"):
            raise TypeError(
                f"{type(estimator).__name__} has no method certify; expected an estimator that "
                "certifies radii. Use from_predictions for labels and radii from elsewhere."
            )
        name = type(estimator).__name__ if name is None else name
        noise_std = getattr(estimator, "noise_std", None)
        most = None if noise_std is None else max_certifiable_radius(n, alpha, noise_std)
        settings = {"n0": n0, "n": n, "alpha": alpha, "random_state": random_state}

        def certified(limit: float | None, name: str, **defended: bool) -> CertifiedAccuracyDisplay:
            found = estimator.certify(X, **settings, **defended)
            radius = np.where(found.abstained, 0.0, found.radius)
            return cls._of(y, found.label, radius, limit, name)

        made = certified(most, name)
        undefended = certified(None, "undefended", defended=False) if baseline else None
        made.plot(ax, **kwargs)
        made.baseline_ = undefended
        if undefended is not None:
            undefended.plot(made.ax_, color="0.5", linestyle="--")
        return made
