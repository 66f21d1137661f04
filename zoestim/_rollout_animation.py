"""A roll-out that runs: fields, their errors, and how these grow, frame by frame."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from zoestim._figure import import_pyplot
from zoestim._rollout_panels import (
    LINES,
    color_bar,
    draw_image,
    draw_lines,
    drawable,
    error_scale,
    error_style,
    field_style,
    finite,
    keep_in_sight,
    line_limits,
    make_axes,
    value_range,
)

Mover = Callable[[int], None]  # to a step


def make_animation(
    fields: Mapping[str, np.ndarray],
    errors: Mapping[str, np.ndarray],
    steps: Sequence[int],
    *,
    field_name: str,
    obstacle: np.ndarray | None,
    field_kw: Mapping[str, Any],
    error_kw: Mapping[str, Any],
    path: Any,
    fps: int,
) -> Any:
    """Return the animation of fields and their errors, and save it if there is a path."""
    pyplot = import_pyplot("RolloutDisplay.animate")
    from matplotlib.animation import FuncAnimation

    if not fps > 0:
        raise ValueError(f"fps, the frames a second, must be above 0; got {fps!r}.")
    reference = fields["reference"]
    is_line = reference.ndim == 2
    axes = make_axes(None, 2, 1 if is_line else len(fields), reference.shape[1:])
    figure = axes[0, 0].figure
    if is_line:
        movers = [
            *_line_movers(axes[0, 0], fields, 0, steps, field_kw),
            *_line_movers(axes[1, 0], errors, 1, steps, error_kw),
        ]
        for ax, limits in zip(axes[:, 0], line_limits(reference), strict=True):
            keep_in_sight(ax, *limits)
        axes[0, 0].set_ylabel(field_name or "state")
        axes[1, 0].set(xlabel="place", ylabel="|error|")
        axes[0, 0].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    else:
        movers = _image_movers(
            axes, fields, errors, steps, field_name, obstacle, field_kw, error_kw
        )
    title = figure.suptitle("")

    def show(step: int) -> list[Any]:
        title.set_text(f"step {step}")
        for move in movers:
            move(step)
        return []

    show(steps[0])
    # Once laid out, panels stay where they are: laying them out takes longer than drawing them.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    animation = FuncAnimation(figure, show, frames=list(steps), interval=1000 / fps, blit=False)
    if path is not None:
        is_gif = Path(path).suffix.lower() == ".gif"
        try:
            animation.save(path, writer="pillow" if is_gif else None, fps=fps)
        finally:
            pyplot.close(figure)
    return animation


def _line_movers(
    ax: Any,
    fields: Mapping[str, np.ndarray],
    first: int,
    steps: Sequence[int],
    given: Mapping[str, Any],
) -> list[Mover]:
    """Draw lines of one dimension, and return what moves each to a step."""
    lines = draw_lines(ax, fields, steps[0], first, given)
    every = np.concatenate([finite(field[list(steps)]).ravel() for field in fields.values()])
    low, high = value_range(every, (0.0, 100.0))
    ax.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))

    def moves(line: Any, field: np.ndarray) -> Mover:
        return lambda step: line.set_ydata(finite(field[step]))

    return [moves(line, field) for line, field in zip(lines, fields.values(), strict=True)]


def _image_movers(
    axes: np.ndarray,
    fields: Mapping[str, np.ndarray],
    errors: Mapping[str, np.ndarray],
    steps: Sequence[int],
    field_name: str,
    obstacle: np.ndarray | None,
    field_kw: Mapping[str, Any],
    error_kw: Mapping[str, Any],
) -> list[Mover]:
    """Draw images above and errors below, and return what moves each to a step."""
    first_errors = next(iter(errors.values()))[list(steps)]
    field_colors = field_style(fields["reference"], field_kw)
    error_colors = error_style(first_errors, field_colors, error_kw)
    kinds = (
        (axes[0], fields, field_colors, field_name),
        (axes[1, 1:], errors, error_colors, "|error|"),
    )
    movers: list[Mover] = []
    for row, shown, style, label in kinds:
        for ax, (name, field) in zip(row, shown.items(), strict=True):
            image = draw_image(ax, field[steps[0]], style, obstacle)
            ax.set_title(name if shown is fields else f"error of {name}", fontsize="medium")
            movers.append(_moves_image(image, field, style))
        values = [each[step] for each in shown.values() for step in steps]
        color_bar(ax.figure, image, row, label, values)
    axes[1, 0].set_box_aspect(fields["reference"].shape[2] / fields["reference"].shape[1])
    return [*movers, *_growing(axes[1, 0], errors, steps)]


def _moves_image(image: Any, field: np.ndarray, style: Mapping[str, Any]) -> Mover:
    return lambda step: image.set_data(drawable(field[step], style))


def _grows(line: Any, times: np.ndarray, values: np.ndarray) -> Mover:
    return lambda step: line.set_data(times[: step + 1], values[: step + 1])


def _growing(ax: Any, errors: Mapping[str, np.ndarray], steps: Sequence[int]) -> list[Mover]:
    """Draw the mean error over steps, and return what lets each line grow to a step."""
    movers: list[Mover] = []
    times = np.arange(max(steps) + 1)
    curves = []
    for (name, error), color in zip(errors.items(), cycle(LINES[1:]), strict=False):
        with np.errstate(all="ignore"):
            means = finite(error[: len(times)].mean(axis=tuple(range(1, error.ndim))))
        (line,) = ax.plot([], [], color=color, label=name, linewidth=1.4)
        curves.append(means)
        movers.append(_grows(line, times, means))
    low, high = value_range(np.concatenate(curves)[np.concatenate(curves) != 0], (0.0, 100.0))
    scale = error_scale(curves)
    ax.set(xlim=(0, max(times[-1], 1)), yscale=scale, title="mean |error|")
    ax.set_ylim(low / 2 if scale == "log" else 0.0, high * (2 if scale == "log" else 1.05))
    ax.title.set_fontsize("medium")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="upper left", frameon=False, fontsize="small")
    return movers
