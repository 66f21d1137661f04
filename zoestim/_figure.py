"""Where displays get matplotlib and axes from: matplotlib only when they draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SIZE = (6.4, 6.4)  # inches of two panels, one below the other
BESIDE, BELOW = "zoestim-beside", "zoestim-below"  # by which a second scale is found again


def import_pyplot(asker: str) -> Any:
    """Return matplotlib.pyplot; ImportError, in the name of who asks, if there is none."""
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            f'{asker} needs matplotlib, which is not installed. Run: pip install "zoestim[plot]"'
        ) from error
    return pyplot


def make_ax(ax: Any, asker: str, **figure: Any) -> Any:
    """Return the axes given, or those of a new figure with such settings."""
    if ax is not None:
        return ax
    return import_pyplot(asker).subplots(layout="constrained", **figure)[1]


@dataclass(frozen=True)
class Panels:
    """Axes of one quantity, and of a second one over the same x, if there is one.

    Attributes
    ----------
    first : matplotlib Axes
        Of the quantity that is always drawn.
    second : matplotlib Axes or None
        Of the other one.
    beside : bool
        Whether the second one is no panel of its own: its scale is at the right of the first.
    """

    first: Any
    second: Any = None
    beside: bool = False

    @classmethod
    def of(cls, ax: Any, asker: str, *, second: bool) -> Panels:
        """Return panels for one quantity or two.

        Parameters
        ----------
        ax : matplotlib Axes, pair of them, or None
            One gets a second scale at its right, if it has none from an earlier display; none is
            two panels of a new figure.
        asker : str
            Whose name an ImportError bears.
        second : bool
            Whether there is a second quantity.

        Raises
        ------
        ValueError
            If there are several axes, but not two.
        """
        if isinstance(ax, np.ndarray | Sequence):
            if np.shape(ax) != (2,):
                raise ValueError(
                    "ax must be one Axes, or two, the second one for what has another scale, such "
                    f"as pyplot.subplots(2, 1)[1]; got an array of shape {np.shape(ax)}."
                )
            return cls(ax[0], ax[1] if second else None)
        found = None if ax is None else _second_of(ax)
        if found is not None:
            return cls(ax, found, beside=found.get_gid() == BESIDE)
        if not second:
            return cls(make_ax(ax, asker))
        if ax is None:
            rows = {"sharex": True, "height_ratios": [3, 2], "figsize": SIZE}
            first, below = make_ax(None, asker, nrows=2, **rows)
            below.set_gid(BELOW)
            return cls(first, below)
        right = ax.twinx()
        right.set_gid(BESIDE)
        ax.set_zorder(right.get_zorder() + 1)  # its legend lies above all lines
        ax.patch.set_visible(False)
        return cls(ax, right, beside=True)

    def finish(self, xlabel: str) -> None:
        """Name the x axes, write the legend and take away frames that say nothing."""
        own = None if self.beside else self.second  # a panel of its own, below the first or not
        shared = own is not None and self.first.get_shared_x_axes().joined(self.first, own)
        for ax in (None if shared else self.first, own):
            if ax is not None:
                ax.set_xlabel(xlabel)
        hidden = ["top"] if self.beside else ["top", "right"]
        for ax in (self.first, self.second):
            if ax is not None:
                ax.spines[hidden].set_visible(False)
        entries = self.first.get_legend_handles_labels()
        if self.beside:
            more = self.second.get_legend_handles_labels()
            entries = entries[0] + more[0], entries[1] + more[1]
        self.first.legend(*entries, loc="best", frameon=self.beside)


def _second_of(ax: Any) -> Any:
    """Return the axes that an earlier display has given to axes, if it has."""
    others = (other for other in ax.figure.axes if other.get_gid() in (BESIDE, BELOW))
    shared = ax.get_shared_x_axes()
    return next((other for other in others if other is not ax and shared.joined(ax, other)), None)
