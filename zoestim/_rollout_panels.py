"""Panels of a roll-out: a field as an image or a line, all in the same colours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from zoestim._figure import import_pyplot

OUTLIERS = 0.5  # per cent at either end that may lie beyond the colours
BEYOND = 10.0  # how many widths of the scale are drawn beyond it; more overflows in matplotlib
OBSTACLE = (0.45, 0.45, 0.45, 1.0)
MISSING = "0.85"
LINES = ("black", "C3", "C0", "C2", "C1", "C4")  # the reference first


def field_style(reference: np.ndarray, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return imshow's keywords for the reference and all that is compared with it.

    Fields with both signs get colours of both, white in between at 0.
    """
    low, high = value_range(reference, (OUTLIERS, 100 - OUTLIERS))
    given = _that_are_given(given)
    both = min(-low, high) > 0.2 * max(-low, high)
    if both:
        high = max(-low, high)
        low = -high
    found = {"vmin": low, "vmax": high, "cmap": "RdBu_r" if both else "viridis", **given}
    return {"interpolation": "nearest", "origin": "lower", **found}


def error_style(
    errors: np.ndarray, fields: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return imshow's keywords for errors such as these, of fields in such a style.

    White is none, and what diverges is no further away than fields are from each other.
    """
    _, high = value_range(errors, (0.0, 100 - OUTLIERS / 5))
    high = min(high, fields["vmax"] - fields["vmin"])
    found = {"vmin": 0.0, "vmax": high, "cmap": "gist_heat_r", **_that_are_given(given)}
    return {"interpolation": "nearest", "origin": "lower", **found}


def _that_are_given(keywords: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in keywords.items() if value is not None}


def value_range(values: np.ndarray, percentiles: tuple[float, float]) -> tuple[float, float]:
    """Return two percentiles of what is finite, the second one above the first."""
    there = values[np.isfinite(values)].astype(np.float64)
    if not there.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(there, percentiles))
    return (low, high) if high > low else (low, low + (abs(low) or 1.0))


def compare(
    reference: Any, predictions: Mapping[str, Any], obstacle: Any = None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return fields by name, the reference first, and the absolute errors of the others.

    Raises
    ------
    ValueError
        If there is nothing to compare, or shapes are others than (n_frames, *grid).
    """
    truth = np.asarray(reference)
    if truth.ndim not in (2, 3) or not truth.size:
        raise ValueError(
            "reference must be of shape (n_frames, *grid), with a grid of 1 or 2 dimensions; got "
            f"shape {truth.shape}."
        )
    if not predictions or "reference" in predictions:
        raise ValueError(
            "predictions must be at least one, by names other than 'reference'; got "
            f"{list(predictions)}."
        )
    if obstacle is not None and np.shape(obstacle) != truth.shape[1:]:
        raise ValueError(
            f"obstacle must have the shape of the grid, {truth.shape[1:]}; got "
            f"{np.shape(obstacle)}."
        )
    fields, errors = {"reference": truth}, {}
    for name, given in predictions.items():
        fields[name] = field = np.asarray(given)
        if field.shape != truth.shape:
            raise ValueError(
                f"All fields must have the shape of the reference, {truth.shape}; got "
                f"{field.shape} for {name!r}."
            )
        with np.errstate(all="ignore"):
            errors[name] = np.abs(field.astype(np.float64) - truth)
    return fields, errors


def finite(values: np.ndarray) -> np.ndarray:
    """Return values with NaN, which matplotlib leaves out, for all that are not finite."""
    return np.where(np.isfinite(values), values, np.nan)


def drawable(field: np.ndarray, style: Mapping[str, Any]) -> Any:
    """Return a field as imshow takes it: axis 0 to the right, missing where it is not finite."""
    margin = BEYOND * (style["vmax"] - style["vmin"])
    clipped = np.clip(finite(field), style["vmin"] - margin, style["vmax"] + margin)
    return np.ma.masked_invalid(clipped.T)


def draw_image(
    ax: Any, field: np.ndarray, style: Mapping[str, Any], obstacle: np.ndarray | None
) -> Any:
    """Draw a field of two dimensions, and return the image."""
    limits = ("vmin", "vmax") if "norm" in style else ()  # a norm has limits of its own
    passed = {name: value for name, value in style.items() if name not in limits}
    image = ax.imshow(drawable(field, style), **passed)
    if obstacle is not None:
        place = {name: style[name] for name in ("origin", "extent", "aspect") if name in style}
        ax.imshow(
            np.transpose(obstacle)[..., None] * np.array(OBSTACLE), interpolation="nearest", **place
        )
    ax.set(xticks=[], yticks=[], facecolor=MISSING)
    for spine in ax.spines.values():
        spine.set(color="0.7", linewidth=0.6)
    return image


def draw_lines(
    ax: Any, fields: Mapping[str, np.ndarray], step: int, first: int, given: Mapping[str, Any]
) -> list[Any]:
    """Draw a step of fields of one dimension into one panel, and return the lines."""
    lines = []
    for (name, field), color in zip(fields.items(), cycle(LINES[first:]), strict=False):
        lines += ax.plot(
            finite(field[step]), **{"color": color, "label": name, "linewidth": 1.4, **given}
        )
    ax.spines[["top", "right"]].set_visible(False)
    return lines


def keep_in_sight(ax: Any, low: float, high: float) -> None:
    """Let an axis reach from low to high at most: beyond is what diverged."""
    bottom, top = ax.get_ylim()
    ax.set_ylim(max(bottom, low) if bottom < high else low, min(top, high) if top > low else high)


def line_limits(reference: np.ndarray) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return how far fields and errors of one dimension are shown, by the reference's range."""
    low, high = value_range(reference, (0.0, 100.0))
    width = high - low
    return (low - width / 2, high + width / 2), (-width / 20, width)


def error_scale(curves: Iterable[np.ndarray]) -> str:
    """Return the scale on which curves of errors can be seen together: "linear" or "log"."""
    errors = [curve[np.isfinite(curve) & (curve > 0)] for curve in curves]
    errors = [each for each in errors if each.size]
    if not errors:
        return "linear"
    typical = min(float(np.median(each)) for each in errors)
    return "log" if max(float(each.max()) for each in errors) > 100 * typical else "linear"


def say_mean(ax: Any, error: np.ndarray) -> Any:
    """Write the mean of an error into its panel, and return the text."""
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "boxstyle": "round,pad=0.2"}
    place = {"ha": "right", "va": "top", "fontsize": "small", "transform": ax.transAxes}
    return ax.text(0.98, 0.95, mean_text(error), bbox=box, **place)


def mean_text(error: np.ndarray) -> str:
    """Return the mean of an error as words."""
    with np.errstate(all="ignore"):
        mean = float(np.mean(error))
    return f"mean {mean:.3g}" if np.isfinite(mean) else "diverged"


def color_bar(figure: Any, image: Any, axes: Any, label: str, fields: Sequence[np.ndarray]) -> Any:
    """Draw a colour bar beside axes, pointed where fields lie beyond its ends."""
    low, high = image.get_clim()
    below = any(bool((field < low).any()) for field in fields)
    above = any(bool((field > high).any()) for field in fields)
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[below, above]
    return figure.colorbar(
        image, ax=list(np.ravel(axes)), label=label, extend=extend, aspect=25, fraction=0.05
    )


def make_axes(ax: Any, n_rows: int, n_columns: int, grid: tuple[int, ...]) -> np.ndarray:
    """Return axes of shape (n_rows, n_frames): new ones, within one, or those given."""
    shape = (n_rows, n_columns)
    sharing = {"sharex": True, "sharey": "row"} if len(grid) == 1 else {}
    if ax is None:
        pyplot = import_pyplot("RolloutDisplay.plot")
        width, height = _panel_size(grid)
        size = (width * shape[1] + 1.6, height * n_rows + 0.6)
        # Images keep their shape: "compressed" closes the gaps that this leaves.
        layout = "constrained" if len(grid) == 1 else "compressed"
        figure = pyplot.figure(figsize=size, layout=layout)
        return figure.subplots(*shape, squeeze=False, **sharing)
    if isinstance(ax, np.ndarray | Sequence):
        axes = np.array(ax, dtype=object)
        if axes.shape != shape:
            raise ValueError(
                f"ax must be one Axes, or an array of them of shape {shape}, (n_rows, n_frames); "
                f"got shape {axes.shape}."
            )
        return axes
    place = ax.get_subplotspec() if hasattr(ax, "get_subplotspec") else None
    if place is None:
        raise ValueError(
            "ax must have a place in a grid, to be divided, such as those of pyplot.subplots(); "
            f"got {ax!r}."
        )
    ax.set_axis_off()
    return place.subgridspec(*shape).subplots(squeeze=False, **sharing)


def _panel_size(grid: tuple[int, ...]) -> tuple[float, float]:
    """Return the inches of a panel, wide or high as its grid is."""
    if len(grid) == 1:
        return 3.0, 1.9
    ratio = min(max(grid[1] / grid[0], 0.3), 3.0)
    return (2.8, 2.8 * ratio + 0.05) if ratio < 1 else (2.3 / ratio + 0.5, 2.3)
