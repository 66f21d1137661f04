"""The error of gradient estimates against their step, drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoestim._asked import ask_about, flat_coordinates
from zoestim._estimate import estimate_gradient
from zoestim._figure import Panels
from zoestim.evaluation import ParameterMap, QueryError, has_boxes, unchanged_generators
from zoestim.gradients import SCHEMES

STEPS = np.logspace(-8, 0, 17)  # two a decade


class GradientErrorDisplay:
    """Relative error and cosine of gradient estimates against the step, `smoothing`.

    A long step errs because the loss bends, a short one because losses are rounded or noisy: the
    least error, which is marked, lies between. Make one by :meth:`from_module`.

    Parameters
    ----------
    smoothings : array-like of shape (n_smoothings,)
        Ascending steps, in units of the parameters.
    errors : mapping from str to array-like of shape (n_smoothings,)
        The relative errors ``norm(estimate - reference) / norm(reference)``, by what made them.
        NaN where there is no estimate.
    cosines : mapping from str to array-like of shape (n_smoothings,), optional
        The cosines of the angles between estimates and reference, by the same names. NaN where
        there is no estimate, or it is zero.

    Attributes
    ----------
    lines_ : dict from str to matplotlib Line2D
        The errors.
    cosine_lines_ : dict from str to matplotlib Line2D
        The cosines; empty if there are none.
    minima_ : dict from str to matplotlib Line2D
        The dot at the least of the errors that are drawn.
    ax_ : matplotlib Axes
        That of the errors.
    cosine_ax_ : matplotlib Axes or None
        That of the cosines.
    figure_ : matplotlib Figure

    See Also
    --------
    suggest_smoothing : Finds a good step without a reference.

    Examples
    --------
    >>> import torch
    >>> from zoestim import GradientErrorDisplay
    >>> module, X = torch.nn.Linear(4, 3).double(), torch.randn(20, 4)
    >>> y, loss = torch.arange(20) % 3, torch.nn.CrossEntropyLoss()
    >>> display = GradientErrorDisplay.from_module(
    ...     module, loss, X, y, scheme=["forward", "central"]
    ... )  # doctest: +SKIP

    Errors from elsewhere:

    >>> display = GradientErrorDisplay(smoothings=[1e-4, 1e-2], errors={"mine": [1e-3, 1e-1]})
    >>> display.plot()  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        smoothings: Any,
        errors: Mapping[str, Any],
        cosines: Mapping[str, Any] | None = None,
    ):
        self.smoothings = smoothings
        self.errors = errors
        self.cosines = cosines

    def plot(self, ax: Any = None, *, cosine: bool = True, **kwargs: Any) -> GradientErrorDisplay:
        """Draw the curves, on logarithmic scales but for that of the cosines.

        Parameters
        ----------
        ax : matplotlib Axes or pair of them, optional
            Where: for the errors, and for the cosines, which without a second one have their
            scale at the right of the first, or where an earlier display has put it; by default
            panels of a new figure.
        cosine : bool, default=True
            Whether to draw the cosines, if there are any.
        **kwargs : dict
            For matplotlib's `plot`, of every line.

        Returns
        -------
        GradientErrorDisplay
            Itself.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If there is no curve, or one is of another length, or steps are not above 0.
        """
        steps = _as_steps(self.smoothings)
        errors = _as_curves(self.errors, len(steps), "errors")
        if not errors:
            raise ValueError("errors must hold at least one curve; got none.")
        cosines = _as_curves((self.cosines if cosine else None) or {}, len(steps), "cosines")
        if not set(cosines) <= set(errors):
            raise ValueError(f"cosines are of {list(cosines)}; expected some of {list(errors)}.")
        panels = Panels.of(ax, "GradientErrorDisplay.plot", second=bool(cosines))
        self.ax_, self.figure_ = panels.first, panels.first.figure
        self.cosine_ax_ = panels.second if cosines else None
        self.lines_: dict[str, Any] = {}
        self.cosine_lines_: dict[str, Any] = {}
        self.minima_: dict[str, Any] = {}
        for name, curve in errors.items():
            (line,) = self.ax_.plot(steps, curve, **{"label": _label(name, steps, curve), **kwargs})
            self.lines_[name], color = line, line.get_color()
            best = _least(curve)
            if best is not None:
                dot = {"marker": "o", "linestyle": "none", "color": color}
                (self.minima_[name],) = self.ax_.plot(steps[best], curve[best], **dot)
            if name in cosines:
                style = {"label": f"{name}, cosine", "linestyle": "--", "color": color, **kwargs}
                (self.cosine_lines_[name],) = panels.second.plot(steps, cosines[name], **style)
        self.ax_.set(ylabel="Relative error", xscale="log")
        if self.minima_:  # else there is nothing that a logarithmic scale could show
            self.ax_.set_yscale("log")
        if cosines:
            lowest = min((float(np.nanmin(c)) for c in cosines.values() if _any(c)), default=0.0)
            low = min(0.0, lowest - 0.05)
            panels.second.set(ylabel="Cosine", xscale="log", ylim=(low, 1.05))
        panels.finish("Smoothing, in units of the parameters")
        return self

    @classmethod
    def from_module(
        cls,
        module: nn.Module,
        criterion: Callable[[Any, Any], Any],
        X: Any,
        y: Any,
        *,
        smoothings: Any = None,
        scheme: str | Sequence[str] = "forward",
        method: str = "cge",
        gradient: Mapping[str, Any] | None = None,
        coordinates: Mapping[str, Any] | None = None,
        random_state: Any = None,
        estimate_kw: Mapping[str, Any] | None = None,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> GradientErrorDisplay:
        """Estimate the gradient of a module's loss at several steps and draw the errors.

        Parameters
        ----------
        module : nn.Module
            The model, as for :func:`estimate_gradient`. It comes back bitwise equal.
        criterion : torch criterion or callable
            ``(outputs, y) -> scalar or per-sample losses``.
        X : Tensor or array-like of shape (n, ...)
            The inputs of one batch.
        y : Tensor or array-like of shape (n, ...)
            The targets.
        smoothings : array-like of shape (n_smoothings,), optional
            The steps, in units of the parameters; by default two a decade from 1e-8 to 1. Each
            costs a whole estimate.
        scheme : {"forward", "central"} or list of them, default="forward"
            The differences; a curve each.
        method : {"cge", "rge"}, default="cge"
            Coordinate-wise or randomised.
        gradient : mapping from str to array-like, optional
            The reference: for each parameter an array of its shape, as
            :meth:`GradientEstimate.as_dict` gives it. By default that of autograd, in a copy of
            the module in float64.
        coordinates : mapping from str to array of int, optional
            Flat indices into each named parameter: only these are estimated and compared.
        random_state : int, RandomState instance or None, default=None
            Draws the directions of ``"rge"``; an integer gives all steps the same.
        estimate_kw : mapping, optional
            For :func:`estimate_gradient`, such as ``{"precision": "float32"}`` or
            ``{"n_directions": 20}``.
        name : str, optional
            What the legend calls the estimates, before their scheme.
        ax : matplotlib Axes or pair of them, optional
            Where; by default in a new figure.
        **kwargs : dict
            For :meth:`plot`.

        Returns
        -------
        GradientErrorDisplay

        Raises
        ------
        QueryError
            If a query fails at every step. At some, the curve has gaps there: as where a step is
            lost in the rounding of a parameter, or so long that the loss overflows.
        TypeError, ValueError
            If an argument cannot be used, or there is no reference: the module has a black box,
            the loss does not depend on the parameters, or the gradient is zero.
        """
        steps = STEPS if smoothings is None else np.sort(_as_steps(smoothings))
        schemes = _as_schemes(scheme, method)
        parameters = ask_about(module, criterion, X, y, True, "auto", None).objective.parameters
        if gradient is None:
            reference = _by_autograd(module, criterion, X, y)
        else:
            reference = _flat_gradient(gradient, parameters, coordinates)
        flat = flat_coordinates(coordinates, parameters)
        settings = {"method": method, "coordinates": coordinates, "random_state": random_state}
        settings |= dict(estimate_kw or {})

        def estimate(step: float, scheme: str) -> np.ndarray:
            given = {**settings, "smoothing": step, "scheme": scheme}
            found = estimate_gradient(module, criterion, X, y, **given).as_dict()
            return _as_vector(found)[flat].cpu().numpy()

        target = _refuse_no_direction(reference[flat].cpu().numpy())
        errors, cosines = {}, {}
        for each in schemes:
            called = each if name is None else f"{name}, {each}"
            found = _compared(steps, target, partial(estimate, scheme=each))
            errors[called], cosines[called] = found
        return cls(smoothings=steps, errors=errors, cosines=cosines).plot(ax, **kwargs)


# --- The reference


def _by_autograd(module: nn.Module, criterion: Any, X: Any, y: Any) -> Tensor:
    """Return the flat gradient of the loss by autograd, in float64."""
    remedy = "Pass gradient={name: array}, a reference from elsewhere."
    if has_boxes(module):
        raise ValueError(f"module has a BlackBox, which autograd cannot see through. {remedy}")
    asked = ask_about(module, criterion, X, y, False, "float64", None)
    objective, batch = asked.objective, asked.batch
    named = dict(objective.module.named_parameters())
    theta = [named[name] for name in objective.parameters.names]
    with torch.enable_grad(), unchanged_generators(batch.X.device):
        loss = objective.loss(objective.module(batch.X), batch.y)
    if not loss.requires_grad:
        raise ValueError(
            "The loss has no gradient by autograd: module or criterion leaves torch, or detaches "
            f"its tensors. {remedy}"
        )
    found = torch.autograd.grad(loss, theta, allow_unused=True, materialize_grads=True)
    return _as_vector(dict(zip(objective.parameters.names, found, strict=True)))


def _flat_gradient(
    gradient: Mapping[str, Any], parameters: ParameterMap, coordinates: Mapping[str, Any] | None
) -> Tensor:
    """Return a gradient that was given as one vector; what is not compared may be missing."""
    needed = set(parameters.names if coordinates is None else coordinates)
    parts = {}
    for name, shape in zip(parameters.names, parameters.shapes, strict=True):
        if name not in gradient and name not in needed:
            parts[name] = torch.zeros(shape)
            continue
        given = torch.as_tensor(gradient[name]) if name in gradient else None
        if given is None or given.shape != shape:
            got = "none" if given is None else f"shape {tuple(given.shape)}"
            raise ValueError(
                f"gradient must hold an array of shape {tuple(shape)} for {name!r}; got {got}."
            )
        parts[name] = given
    return _as_vector(parts)


def _as_vector(named: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([part.detach().to(torch.float64).flatten() for part in named.values()])


def _refuse_no_direction(reference: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(reference)
    if not np.isfinite(norm) or norm == 0:
        raise ValueError(
            f"The reference gradient has the norm {norm:g}; expected one above 0, or errors "
            "relative to it mean nothing. Take other parameters or another batch; where a module "
            "rounds, autograd gives zero: pass gradient={name: array}."
        )
    return reference


# --- The comparison


def _compared(
    steps: np.ndarray, reference: np.ndarray, estimate: Callable[[float], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return relative errors and cosines at each step; NaN where queries fail."""
    errors, cosines = np.full((2, len(steps)), np.nan)
    norm, failure = np.linalg.norm(reference), None
    for i, step in enumerate(steps):
        try:
            found = estimate(float(step))
        except QueryError as error:
            failure = error
            continue
        errors[i] = np.linalg.norm(found - reference) / norm
        length = np.linalg.norm(found)
        if length > 0:
            cosines[i] = found @ reference / (length * norm)
    if failure is not None and not _any(errors):
        raise failure
    return errors, cosines


def _as_steps(smoothings: Any) -> np.ndarray:
    steps = np.asarray(smoothings, dtype=np.float64)
    if steps.ndim != 1 or not len(steps) or not (np.isfinite(steps) & (steps > 0)).all():
        raise ValueError(
            "smoothings must be a list of finite numbers above 0, at least one; got "
            f"{smoothings!r}."
        )
    return steps


def _as_schemes(scheme: str | Sequence[str], method: str) -> list[str]:
    if method not in ("cge", "rge"):
        raise ValueError(
            f"method must be 'cge' or 'rge'; got {method!r}. An object brings a step of its own: "
            "draw errors that you compute by GradientErrorDisplay(smoothings=, errors=)."
        )
    schemes = [scheme] if isinstance(scheme, str) else list(scheme)
    if not schemes or not set(schemes) <= set(SCHEMES):
        raise ValueError(
            f"scheme must be one of {list(SCHEMES)}, or a list of them; got {scheme!r}."
        )
    return schemes


def _as_curves(given: Mapping[str, Any], length: int, what: str) -> dict[str, np.ndarray]:
    """Return curves as arrays, once they are known to have a number for each step."""
    curves = {name: np.asarray(each, dtype=np.float64) for name, each in given.items()}
    for name, curve in curves.items():
        if curve.shape != (length,):
            raise ValueError(
                f"{what} must hold one number for each of the {length} smoothings; got shape "
                f"{curve.shape} for {name!r}."
            )
    return curves


def _any(curve: np.ndarray) -> bool:
    return bool(np.isfinite(curve).any())


def _least(curve: np.ndarray) -> int | None:
    """Return where the least number is that a logarithmic scale shows."""
    shown = np.where(np.isfinite(curve) & (curve > 0), curve, np.inf)
    return int(shown.argmin()) if _any(shown) else None


def _label(name: str, steps: np.ndarray, curve: np.ndarray) -> str:
    best = _least(curve)
    return name if best is None else f"{name} (least {curve[best]:.2g} at {steps[best]:.2g})"
