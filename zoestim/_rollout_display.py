"""Frames of a roll-out beside the truth: the solver alone, corrected, and the errors of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from zoestim._rollout_animation import make_animation
from zoestim._rollout_fields import Channel, find_obstacle, is_staggered, to_field
from zoestim._rollout_panels import (
    color_bar,
    compare,
    draw_image,
    draw_lines,
    error_style,
    field_style,
    keep_in_sight,
    line_limits,
    make_axes,
    say_mean,
)
from zoestim._rollouts import as_named, as_steps, pick, predict_both

VELOCITIES = ("speed", "vorticity")


class RolloutDisplay:
    """Frames of one simulation: the reference, the solver alone, corrected, and their errors.

    A row each, with a column for each frame that is shown; all fields have the same colours, and
    all errors. On a grid of one dimension, fields are lines in one row, errors in another. Make
    one by :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    reference : ndarray of shape (n_steps + 1, *grid)
        One number for each place, in the first frame and after each step.
    predictions : mapping from str to ndarray of shape (n_steps + 1, *grid)
        Of what is compared with it, by name. The first one sets the colours of errors.
    frames : sequence of int, optional
        The steps to show; by default the first, the middle and the last. 0 is before any step.
    field_name : str, optional
        What the numbers are, for the colour bar.
    obstacle : ndarray of bool of shape grid, optional
        Places to draw in grey.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes, of shape (n_rows, n_frames)
    images_ : ndarray of matplotlib AxesImage, of shape (n_rows, n_frames), or None
        None where fields are lines.
    lines_ : list of matplotlib Line2D
        Those of one dimension; else empty.
    colorbars_ : tuple of matplotlib Colorbar
        Of the fields, and of the errors.
    figure_ : matplotlib Figure

    See Also
    --------
    ErrorCurveDisplay : The error at every step, over all simulations.

    Examples
    --------
    >>> import numpy as np
    >>> from zoestim import RolloutDisplay
    >>> truth = np.sin(np.arange(5.0)[:, None] + np.linspace(0, 6, 32))
    >>> display = RolloutDisplay(reference=truth, predictions={"solver": 0.9 * truth})
    >>> display.plot(frames=[0, 4])  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        reference: Any,
        predictions: Mapping[str, Any],
        frames: Sequence[int] | None = None,
        field_name: str | None = None,
        obstacle: Any = None,
    ):
        self.reference = reference
        self.predictions = predictions
        self.frames = frames
        self.field_name = field_name
        self.obstacle = obstacle

    def plot(
        self,
        ax: Any = None,
        *,
        frames: Sequence[int] | None = None,
        error_kw: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> RolloutDisplay:
        """Draw the frames.

        Parameters
        ----------
        ax : matplotlib Axes or array of them, optional
            One, whose place is divided, or one for each panel, of shape (n_rows, n_frames); by
            default those of a new figure.
        frames : sequence of int, optional
            The steps to show; by default those of the display.
        error_kw : mapping, optional
            For matplotlib's `imshow` of errors, such as ``{"vmax": 0.1, "cmap": "Reds"}``; for
            its `plot`, on a grid of one dimension.
        **kwargs : dict
            The same for fields.

        Returns
        -------
        RolloutDisplay
            Itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If there is no such frame, or fields or axes are of another shape.
        """
        fields, errors = compare(self.reference, self.predictions, self.obstacle)
        shown = self._steps(self.frames if frames is None else frames)
        is_line = fields["reference"].ndim == 2
        self.axes_ = make_axes(
            ax,
            2 if is_line else len(fields) + len(errors),
            len(shown),
            fields["reference"].shape[1:],
        )
        self.figure_ = self.axes_[0, 0].figure
        self.images_: np.ndarray | None = None
        self.lines_: list[Any] = []
        self.colorbars_: tuple[Any, ...] = ()
        draw = self._draw_lines if is_line else self._draw_images
        draw(shown, fields, errors, kwargs, dict(error_kw or {}))
        for panel, step in zip(self.axes_[0], shown, strict=True):
            panel.set_title(f"step {step}", fontsize="medium")
        return self

    def _steps(self, frames: Sequence[int] | None) -> list[int]:
        """Return the steps to show, once they are known to be there."""
        last = len(self.reference) - 1
        if frames is None:
            return sorted({0, last // 2, last})
        given: list[Any] = [frames] if isinstance(frames, Integral) else list(frames)
        if not given or not all(
            isinstance(each, Integral) and 0 <= int(each) <= last for each in given
        ):
            raise ValueError(
                f"frames must be steps from 0 to {last}, where 0 is before any step; got "
                f"{frames!r}."
            )
        return [int(each) for each in given]

    def _draw_lines(
        self, shown: list[int], fields: Any, errors: Any, field_kw: Any, error_kw: Any
    ) -> None:
        for (top, bottom), step in zip(self.axes_.T, shown, strict=True):
            self.lines_ += draw_lines(top, fields, step, 0, field_kw)
            self.lines_ += draw_lines(bottom, errors, step, 1, error_kw)
            bottom.set_xlabel("place")
        for row, limits in zip(self.axes_, line_limits(fields["reference"]), strict=True):
            for panel in row:
                keep_in_sight(panel, *limits)
        self.axes_[0, 0].set_ylabel(self.field_name or "state")
        self.axes_[1, 0].set_ylabel("|error|")
        self.axes_[0, -1].legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)

    def _draw_images(
        self, shown: list[int], fields: Any, errors: Any, field_kw: Any, error_kw: Any
    ) -> None:
        images = np.empty(self.axes_.shape, dtype=object)
        first_errors = next(iter(errors.values()))[shown]
        style = field_style(fields["reference"], field_kw)
        kinds = (
            (0, fields, style, self.field_name or ""),
            (len(fields), errors, error_style(first_errors, style, error_kw), "|error|"),
        )
        for first, rows, style, label in kinds:
            for row, (name, values) in enumerate(rows.items(), first):
                for column, step in enumerate(shown):
                    panel = self.axes_[row, column]
                    image = draw_image(panel, values[step], style, self.obstacle)
                    images[row, column] = image
                    if first:
                        say_mean(panel, values[step])
                self.axes_[row, 0].set_ylabel(f"error of\n{name}" if first else name)
            axes = self.axes_[first : first + len(rows)]
            values = [each[step] for each in rows.values() for step in shown]
            bar = color_bar(self.figure_, images[first, 0], axes, label, values)
            self.colorbars_ += (bar,)
        self.images_ = images

    def animate(
        self,
        path: Any = None,
        *,
        fps: int = 20,
        frames: Sequence[int] | None = None,
        error_kw: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Let the roll-out run: fields above, errors below, and how they grow.

        Parameters
        ----------
        path : str or path-like, optional
            Where to save it. A ``.gif`` needs nothing more; for other endings, matplotlib looks
            for ffmpeg.
        fps : int, default=20
            Frames a second.
        frames : sequence of int, optional
            The steps to show; by default all. ``range(0, 101, 2)`` makes a smaller file.
        error_kw : mapping, optional
            As in :meth:`plot`.
        **kwargs : dict
            As in :meth:`plot`.

        Returns
        -------
        matplotlib FuncAnimation
            To be kept for as long as it runs. In a notebook, show
            ``IPython.display.HTML(animation.to_jshtml())``.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If there is no such frame.
        """
        shown = self._steps(range(len(self.reference)) if frames is None else frames)
        fields, errors = compare(self.reference, self.predictions, self.obstacle)
        return make_animation(
            fields,
            errors,
            shown,
            field_name=self.field_name or "",
            obstacle=self.obstacle,
            field_kw=kwargs,
            error_kw=error_kw or {},
            path=path,
            fps=fps,
        )

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any,
        *,
        simulation: int = 0,
        frames: Sequence[int] | None = None,
        channel: Channel = 0,
        staggered: bool | None = None,
        name: str = "corrected",
        ax: Any = None,
        **kwargs: Any,
    ) -> RolloutDisplay:
        """Roll one simulation out, without and with correction, and draw frames of it.

        Parameters
        ----------
        estimator : object
            Fitted, with a method ``predict(X, n_steps=, correct=)``, such as
            `SolverInTheLoop`.
        X : Simulations, array-like of shape (n_simulations, n_channels, *grid) or list of dict
            The initial states, and their conditions.
        y : array-like of shape (n_simulations, n_steps, n_channels, *grid) or list of array-like
            The true frames after them.
        simulation : int, default=0
            Which of them.
        frames : sequence of int, optional
            The steps to show; by default the first, the middle and the last: 0, 50 and 100 of
            100 steps.
        channel : int, "speed", "vorticity" or callable, default=0
            What to look at: the number of a channel; the length, or the curl per width of a
            cell, of velocities, which are the first channels, one for each axis of the grid; or
            a function from states, of shape (n_frames, n_channels, *grid), to fields of shape
            (n_frames, *grid). Of three dimensions, the middle of the last one is shown.
        staggered : bool, optional
            Whether two channels in the plane are velocities on the faces of cells, as in
            `WakeFlow2D`; what is shown is then at the centres of cells. By default, if the
            last column of the one and the last row of the other are 0 throughout.
        name : str, default="corrected"
            What the corrected roll-out is called.
        ax : matplotlib Axes or array of them, optional
            See :meth:`plot`.
        **kwargs : dict
            For :meth:`plot`.

        Returns
        -------
        RolloutDisplay

        Raises
        ------
        TypeError
            If the estimator has no method `predict`.
        ValueError
            If there is no such simulation, frame or channel, or shapes differ.
        """
        one, truth = pick(X, y, simulation)
        n_steps = len(truth) - 1
        found = predict_both(estimator, one, n_steps, name)
        rollouts = {called: each[0] for called, each in found.items()}
        made = cls._of(truth, rollouts, frames, channel, staggered)
        return made.plot(ax, **kwargs)

    @classmethod
    def from_predictions(
        cls,
        X: Any,
        y_true: Any,
        y_pred: Any,
        *,
        simulation: int = 0,
        frames: Sequence[int] | None = None,
        channel: Channel = 0,
        staggered: bool | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> RolloutDisplay:
        """Draw frames of roll-outs that are there already, of one estimator or several.

        Parameters
        ----------
        X : Simulations, array-like of shape (n_simulations, n_channels, *grid) or list of dict
            The initial states.
        y_true : array-like of shape (n_simulations, n_steps, n_channels, *grid) or list of them
            The true frames after them.
        y_pred : mapping from str to array-like, or array-like, shaped as y_true
            What was predicted, by name.
        simulation : int, default=0
            Which of them.
        frames : sequence of int, optional
            The steps to show.
        channel : int, "speed", "vorticity" or callable, default=0
            What to look at, see :meth:`from_estimator`.
        staggered : bool, optional
            See :meth:`from_estimator`.
        ax : matplotlib Axes or array of them, optional
            See :meth:`plot`.
        **kwargs : dict
            For :meth:`plot`.

        Returns
        -------
        RolloutDisplay

        Raises
        ------
        ValueError
            As :meth:`from_estimator`.
        """
        _, truth = pick(X, y_true, simulation)
        rollouts = {}
        for name, each in as_named(y_pred, "predicted").items():
            if len(each) != len(y_true):
                raise ValueError(
                    f"The prediction {name!r} must have the {len(y_true)} simulations of y_true; "
                    f"got {len(each)}."
                )
            rollouts[name] = each[simulation]
        made = cls._of(truth, rollouts, frames, channel, staggered)
        return made.plot(ax, **kwargs)

    @classmethod
    def _of(
        cls,
        truth: np.ndarray,
        rollouts: Mapping[str, Any],
        frames: Sequence[int] | None,
        channel: Channel,
        staggered: bool | None,
    ) -> RolloutDisplay:
        on_faces = is_staggered(truth) if staggered is None else staggered
        fields = {}
        for name, given in rollouts.items():
            states = np.concatenate([truth[:1], as_steps(given, truth, name)])
            fields[name] = to_field(states, channel, on_faces)
        return cls(
            reference=to_field(truth, channel, on_faces),
            predictions=fields,
            frames=frames,
            field_name=_field_name(channel),
            obstacle=find_obstacle(truth, on_faces) if on_faces or channel in VELOCITIES else None,
        )


def _field_name(channel: Channel) -> str:
    if callable(channel):
        return getattr(channel, "__name__", "").strip("<>").replace("lambda", "")
    return channel if isinstance(channel, str) else f"channel {channel}"
