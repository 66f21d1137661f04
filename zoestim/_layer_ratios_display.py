"""How much of each layer the queries of a fit were of, drawn as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zoestim._figure import make_ax
from zoestim._fitted_runs import as_named_estimators, class_name, left_behind

WIDTH = 6.4  # inches of a figure
BAR, MARGIN = 0.24, 1.2  # inches of height: of a bar, and beside them all
BARS = 0.8  # the share of a layer's place that its bars take
ROOM = 1.3  # of the x axis, for numbers behind bars

Ratios = Mapping[str, Mapping[str, float]]
Sizes = Mapping[str, Mapping[str, int]]


class LayerRatiosDisplay:
    """The fraction of each layer's weights that an estimate queries, for one or several fits.

    Make one by :meth:`from_estimator` or :meth:`from_estimators`. The set of coordinates is the
    last one of the fit; a rule that scores weights may draw others later.

    Parameters
    ----------
    ratios : mapping from str to mapping from str to float
        For each fit its `layer_ratios_`: the fraction of each parameter tensor, from 0 to 1,
        that an estimate leaves out.
    sizes : mapping from str to mapping from str to int
        For each fit, how many weights each of these tensors has.

    Attributes
    ----------
    bars_ : dict from str to matplotlib BarContainer
        Those of each fit, in the order of `layers_`; NaN wide where it has no such layer.
    layers_ : list of str
        The layers that are drawn, from above.
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure

    See Also
    --------
    TrainingDisplay : What such fits learned, and at what cost.

    Examples
    --------
    >>> from zoestim import LayerRatiosDisplay
    >>> display = LayerRatiosDisplay(
    ...     ratios={"zo-grasp": {"0.weight": 0.95, "0.bias": 0.0}},
    ...     sizes={"zo-grasp": {"0.weight": 2000, "0.bias": 20}},
    ... )
    >>> display.plot()  # doctest: +SKIP
    """

    def __init__(self, *, ratios: Ratios, sizes: Sizes):
        self.ratios = ratios
        self.sizes = sizes

    def plot(
        self, ax: Any = None, *, layers: str | Sequence[str] = "all", **kwargs: Any
    ) -> LayerRatiosDisplay:
        """Draw the bars.

        Parameters
        ----------
        ax : matplotlib Axes, optional
            Where; by default in a new figure, as high as the bars need.
        layers : {"all", "sparse"} or list of str, default="all"
            Which layers: all, those of which some fit leaves something out, or these.
        **kwargs : dict
            For matplotlib's `barh`.

        Returns
        -------
        LayerRatiosDisplay
            Itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If there is no such layer, no fit, or a ratio without its size or beyond [0, 1].
        """
        _check(self.ratios, self.sizes)
        self.layers_ = _chosen(self.ratios, layers)
        n_bars = len(self.layers_) * len(self.ratios)
        size = (WIDTH, BAR * max(n_bars, 4) + MARGIN)
        self.ax_ = make_ax(ax, "LayerRatiosDisplay.plot", figsize=size)
        self.figure_ = self.ax_.figure
        self.bars_: dict[str, Any] = {}
        for number, name in enumerate(self.ratios):
            self._draw(name, number, kwargs)
        self.ax_.set(
            xlim=(0, ROOM),
            xticks=np.linspace(0, 1, 5),
            yticks=range(len(self.layers_)),
            yticklabels=self.layers_,
            ylim=(len(self.layers_) - 0.5, -0.5),
        )
        self.ax_.set_xlabel("Fraction of weights that an estimate queries", x=0.5 / ROOM)
        self.ax_.spines[["top", "right"]].set_visible(False)
        self.ax_.spines["bottom"].set_bounds(0, 1)
        self.ax_.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, borderaxespad=0.2)
        return self

    def _draw(self, name: str, number: int, given: Mapping[str, Any]) -> None:
        """Draw the bars of one fit, with the numbers of weights behind them."""
        ratios, sizes = self.ratios[name], self.sizes[name]
        fractions = [1 - ratios.get(layer, np.nan) for layer in self.layers_]
        height = BARS / len(self.ratios)
        places = np.arange(len(self.layers_)) - BARS / 2 + (number + 0.5) * height
        total = sum(_n_queried(ratios, sizes, layer) for layer in ratios)
        label = f"{name}: {total:,} of {sum(sizes[layer] for layer in ratios):,}"
        style = {"height": 0.9 * height, "label": label, **given}
        self.bars_[name] = self.ax_.barh(places, fractions, **style)
        texts = [_said(ratios, sizes, layer) for layer in self.layers_]
        self.ax_.bar_label(self.bars_[name], texts, padding=3, fontsize="small")

    @classmethod
    def from_estimator(
        cls, estimator: Any, *, name: str | None = None, ax: Any = None, **kwargs: Any
    ) -> LayerRatiosDisplay:
        """Draw the layers of one estimator.

        Parameters
        ----------
        estimator : object
            Fitted, with `layer_ratios_` and `net_`, as `ZOClassifier`, `ZORegressor`,
            `ZODenoiserDefense` and `SolverInTheLoop` have them; also as the last step of a
            pipeline, or as the best estimator of a search.
        name : str, optional
            What the legend calls it; by default the name of its class.
        ax : matplotlib Axes, optional
            Where; by default in a new figure.
        **kwargs : dict
            For :meth:`plot`.

        Returns
        -------
        LayerRatiosDisplay

        Raises
        ------
        NotFittedError
            If the estimator was not fitted.
        TypeError
            If it has no `layer_ratios_`.
        """
        name = class_name(estimator) if name is None else name
        return cls._of({name: estimator}).plot(ax, **kwargs)

    @classmethod
    def from_estimators(
        cls, estimators: Any, *, ax: Any = None, **kwargs: Any
    ) -> LayerRatiosDisplay:
        """Draw the layers of several estimators, with a bar for each.

        Parameters
        ----------
        estimators : mapping from str to estimator, or list of them
            Those of :meth:`from_estimator`, by the names for the legend; in a list these are
            those of their classes.
        ax : matplotlib Axes, optional
            Where; by default in a new figure.
        **kwargs : dict
            For :meth:`plot`.

        Returns
        -------
        LayerRatiosDisplay

        Raises
        ------
        NotFittedError
            If one was not fitted.
        TypeError
            If one has no `layer_ratios_`.
        ValueError
            If there is none.
        """
        return cls._of(as_named_estimators(estimators)).plot(ax, **kwargs)

    @classmethod
    def _of(cls, estimators: Mapping[str, Any]) -> LayerRatiosDisplay:
        ratios, sizes = {}, {}
        for name, estimator in estimators.items():
            ratios[name], net = left_behind(estimator, "layer_ratios_", "net_")
            sizes[name] = {layer: p.numel() for layer, p in net.module_.named_parameters()}
        return cls(ratios=ratios, sizes=sizes)


def _check(ratios: Ratios, sizes: Sizes) -> None:
    if not any(ratios.values()):
        raise ValueError("ratios must hold at least one fit with a layer; got none.")
    for name, each in ratios.items():
        wrong = {layer: ratio for layer, ratio in each.items() if not 0 <= ratio <= 1}
        if wrong:
            raise ValueError(f"ratios of {name!r} must be numbers in [0, 1]; got {wrong}.")
        without = [layer for layer in each if layer not in sizes.get(name, {})]
        if without:
            raise ValueError(
                f"sizes of {name!r} must hold every layer of its ratios; expected also {without}."
            )


def _chosen(ratios: Ratios, layers: str | Sequence[str]) -> list[str]:
    """Return the layers to draw, in the order in which fits have them."""
    known = list(dict.fromkeys(layer for each in ratios.values() for layer in each))
    if layers == "all":
        return known
    if layers == "sparse":
        found = [layer for layer in known if any(each.get(layer) for each in ratios.values())]
        if not found:
            raise ValueError(
                "layers='sparse' leaves none: every fit queries all of every layer. Use 'all'."
            )
        return found
    found = [] if isinstance(layers, str) else list(layers)
    if not found or not set(found) <= set(known):
        raise ValueError(
            f"layers must be 'all', 'sparse' or a list of some of {known}; got {layers!r}."
        )
    return found


def _n_queried(ratios: Mapping[str, float], sizes: Mapping[str, int], layer: str) -> int:
    return round((1 - ratios[layer]) * sizes[layer])


def _said(ratios: Mapping[str, float], sizes: Mapping[str, int], layer: str) -> str:
    """Return how many weights of a layer are queried, in words."""
    if layer not in ratios:
        return ""
    count, size = _n_queried(ratios, sizes, layer), sizes[layer]
    return f"all {size:,}" if count == size else f"{count:,} of {size:,}"
