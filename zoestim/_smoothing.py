"""The step that balances the noise of the loss against its bending: suggest_smoothing."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoestim._asked import Asked, ask_about, flat_coordinates
from zoestim._balance import RULES, Rule
from zoestim._noise import Reading, read_noise, resolution, rounding
from zoestim.evaluation import QueryError, evaluate, private_generator
from zoestim.gradients import SCHEMES, CoordinateQueries

N_COORDINATES = 8
ROUNDS = 3  # of either kind, at most
SPACING = 1e-4  # of the first table, beside a typical parameter: a costly box is seldom smoother
FARTHER = 100.0  # by which a spacing changes that tells nothing
TABLE = torch.tensor([-3.0, -2.0, -1.0, 1.0, 2.0, 3.0], dtype=torch.float64)  # 0 is the base
# A difference of so many times the noise is looked for, is good enough, and is too much.
SOUGHT, ENOUGH, TOO_MUCH = 100.0, 10.0, 1000.0
SEEN = 2.0  # times the noise of a difference itself: less may be noise that was read too small


@dataclass(frozen=True)
class SmoothingSuggestion:
    """What :func:`suggest_smoothing` returns.

    Attributes
    ----------
    smoothing : float
        The step to pass as `smoothing`; always positive and finite.
    scheme : {"forward", "central"}
        The differences that it is for.
    noise : float
        The standard deviation of the loss, from one query to the next.
    derivative : float
        The root mean square, over the coordinates looked at, of the second derivative of the
        loss, or for ``"central"`` of the third. Where it is lost in the noise, the largest that
        the noise could hide.
    slope : float
        That of the first derivative. ``error / slope`` is the relative error to expect.
    error : float
        The root mean square error of one coordinate of the gradient at this step.
    n_queries : int
        How many losses were asked for, the unperturbed ones among them.

    Examples
    --------
    >>> from zoestim import SmoothingSuggestion
    >>> found = SmoothingSuggestion(0.02, "forward", 1e-4, 1.0, 1.0, 0.017, 60)
    >>> f"{found.error / found.slope:.1%}"
    '1.7%'
    """

    smoothing: float
    scheme: str
    noise: float
    derivative: float
    slope: float
    error: float
    n_queries: int


def suggest_smoothing(
    module: nn.Module,
    criterion: Callable[[Any, Any], Any],
    X: Any,
    y: Any,
    *,
    scheme: str = "forward",
    n_coordinates: int = N_COORDINATES,
    coordinates: Mapping[str, Any] | None = None,
    longest: float | None = None,
    feature_reuse: bool = True,
    precision: str = "auto",
    memory_budget: int | None = None,
    random_state: int | np.random.RandomState | None = None,
) -> SmoothingSuggestion:
    """Measure the noise of a module's loss and suggest a step for coordinate-wise differences.

    A long step errs because the loss bends, a short one because the noise of two losses is
    divided by it. Both are measured here, along a few coordinates drawn at random. With the
    default `n_coordinates`, that takes 42 to 126 queries, or for ``"central"`` 58 to 174.

    Noise is what differs between losses at neighbouring parameters and is no slope: the
    rounding of a computation, a measurement, a server's generator. What layers draw from the
    global generators (dropout) is none, since all queries of an estimate draw the same. Torch
    modules whose operations all have rules hardly show the rounding of their type: their
    changes, not their losses, are computed.

    Parameters
    ----------
    module : nn.Module
        The model, as for :func:`estimate_gradient`. It comes back bitwise equal.
    criterion : torch criterion or callable
        ``(outputs, y) -> scalar or per-sample losses``.
    X : Tensor or array-like of shape (n, ...)
        The inputs of one batch, of the size that will be trained with.
    y : Tensor or array-like of shape (n, ...)
        The targets.
    scheme : {"forward", "central"}, default="forward"
        The differences that the step is for.
    n_coordinates : int, default=8
        How many coordinates to draw. The noise is measured along half of them, or four.
    coordinates : dict of str to array of int, optional
        Flat indices into each named parameter to draw from. By default all.
    longest : float, optional
        The longest step that may be tried and suggested, with ``"central"`` up to twice as far
        in the search. By default the root mean square of the parameters, or 1 if all are zero.
    feature_reuse : bool, default=True
        Whether to run, in each query, only what its parameter changes. A step for training
        without reuse is to be asked for without.
    precision : {"auto", "float64", "float32", "bfloat16"}, default="auto"
        That of the training.
    memory_budget : int, optional
        Bytes that queries in flight may take on the device.
    random_state : int, RandomState instance or None, default=None
        Draws the coordinates.

    Returns
    -------
    SmoothingSuggestion
        With ``.smoothing``, what it rests on, and the ``.error`` to expect.

    Raises
    ------
    QueryError
        If a loss is NaN or infinite.
    TypeError, ValueError
        If an argument cannot be used; the message says what to pass.

    Warns
    -----
    UserWarning
        If the loss does not change, its noise does not show, or its bending is lost in the
        noise. The step is then a bound, not an optimum.

    Notes
    -----
    The noise is that of ECnoise [1]_: the median over tables of differences of seven losses.
    With the noise s, the mean square error of a forward difference at the step h, one term for
    the bending and one for the noise of two independent losses, and the step that makes it
    least [2]_, are

        (f'' h / 2)² + 2 (s / h)²             h = 8^(1/4) sqrt(s / abs(f''))

    and of a central one

        (f''' h² / 6)² + (s / h)² / 2         h = cbrt(3 s / abs(f'''))

    All coordinates share one step, so that the sum of their errors is to be least: the root
    mean square of the derivatives takes the place of abs(f''). Its differences are taken as in
    the heuristic of [2]_, at a step that makes them about a hundred times the noise, found by
    trying and correcting; the noise's own share is subtracted.

    References
    ----------
    .. [1] Moré and Wild, Estimating computational noise, SIAM J. Sci. Comput. 33 (2011).
    .. [2] Moré and Wild, Estimating derivatives of noisy simulations, ACM Trans. Math. Softw.
       38 (2012).

    Examples
    --------
    >>> import numpy as np
    >>> from torch import nn
    >>> from zoestim import BlackBox, suggest_smoothing
    >>> meter = np.random.default_rng(0)
    >>> def measured(params, X):
    ...     return X @ params + meter.normal(scale=1e-3, size=len(X))
    >>> box = BlackBox(measured, np.ones(4))
    >>> X, y = np.random.default_rng(1).normal(size=(50, 4)), np.zeros(50)
    >>> found = suggest_smoothing(box, nn.MSELoss(), X, y, random_state=0)
    >>> 0.01 < found.smoothing < 0.1, found.n_queries < 180
    (True, True)
    """
    asked = ask_about(module, criterion, X, y, feature_reuse, precision, memory_budget)
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {list(SCHEMES)}; got {scheme!r}.")
    if not isinstance(n_coordinates, Integral) or n_coordinates < 1:
        raise ValueError(f"n_coordinates must be an integer of at least 1; got {n_coordinates!r}.")
    among = flat_coordinates(coordinates, asked.objective.parameters)
    if not len(among):
        raise ValueError("coordinates names no coordinate; expected at least one, or None for all.")
    order = torch.randperm(len(among), generator=private_generator(random_state))
    drawn = among[order[:n_coordinates]]
    losses, rule = _Losses(asked), RULES[scheme]
    scale = _Scale.of(asked, among, longest)
    noise, share = _measure_noise(losses, drawn[: max(4, len(drawn) // 2)], scale)
    if noise == 0:
        return SmoothingSuggestion(scale.longest, scheme, 0.0, 0.0, 0.0, 0.0, losses.n_queries)
    start = scale.typical * (SOUGHT * share) ** (1 / rule.order)  # were all of one scale
    bend, slope = _measure_bend(losses, drawn, rule, noise, scale, start)
    step = scale.within(rule.step(noise, bend))
    error = rule.error(step, noise, bend)
    return SmoothingSuggestion(step, scheme, noise, bend, slope, error, losses.n_queries)


class _Losses:
    """Asks for losses along coordinates, and counts them."""

    def __init__(self, asked: Asked):
        self.asked = asked
        self.n_queries = 0

    def along(self, coordinates: Tensor, steps: Tensor) -> tuple[float, Tensor]:
        """Return the base loss, and one loss for each of the steps, shape (n, n_steps)."""
        each = coordinates.repeat_interleave(steps.shape[1])
        queries = CoordinateQueries(each, steps.flatten())
        self.n_queries += len(queries) + 1
        try:
            found = evaluate(self.asked.objective, self.asked.batch, queries)
        except QueryError as error:
            error.add_note(
                "If suggest_smoothing tried too long a step, pass a shorter one as longest."
            )
            raise
        return found.base_loss, found.losses.reshape(steps.shape)


@dataclass(frozen=True)
class _Scale:
    """Between which steps to look, in units of the parameters."""

    typical: float
    shortest: float
    longest: float

    @classmethod
    def of(cls, asked: Asked, coordinates: Tensor, longest: float | None) -> _Scale:
        """Return the scale of the parameters, each step longer than their rounding."""
        theta = asked.objective.theta().values()
        values = torch.cat([value.double().flatten().cpu() for value in theta])[coordinates]
        typical = float(values.square().mean().sqrt()) or 1.0
        eps = max(torch.finfo(value.dtype).eps for value in theta)
        shortest = 2 * eps * (float(values.abs().max()) or 1.0)
        if longest is None:
            longest = max(typical, 10 * shortest)
        if not 10 * shortest <= longest < math.inf:
            raise ValueError(
                f"longest must be a number above the rounding of the parameters, at least "
                f"{10 * shortest:.2g}; got {longest!r}."
            )
        return cls(typical, shortest, float(longest))

    def within(self, step: float) -> float:
        """Return the step, or the end of the scale that it is beyond."""
        return min(max(step, self.shortest), self.longest)


def _measure_noise(losses: _Losses, coordinates: Tensor, scale: _Scale) -> tuple[float, float]:
    """Return the noise and its share of the losses, from tables along each coordinate.

    Where most of them tell nothing, they are taken again at another spacing.
    """
    readings: dict[int, Reading] = {}
    rounded: set[int] = set()
    spacings = [_spacing(SPACING * scale.typical, scale)] * len(coordinates)
    left = list(range(len(coordinates)))
    for _ in range(ROUNDS):
        steps = torch.tensor([spacings[k] for k in left], dtype=torch.float64)[:, None] * TABLE
        base, along = losses.along(coordinates[left], steps)
        size = max(abs(base), float(along.abs().max()))
        for k, row in zip(left, along, strict=True):
            middle = len(row) // 2
            table = torch.cat([row[:middle], row.new_tensor([base]), row[middle:]])
            reading = read_noise(table)
            if k in rounded and reading.spacing == "right":  # steps of one height are no slope
                reading = Reading(max(reading.noise, resolution(table)), "right")
            elif reading.spacing == "small":
                rounded.add(k)
            readings[k] = reading
            factor = {"right": 1.0, "small": FARTHER, "large": 1 / FARTHER}[reading.spacing]
            spacings[k] = _spacing(spacings[k] * factor, scale)
        left = [k for k in left if readings[k].spacing != "right"]
        if 2 * len(left) <= len(coordinates):
            break
    for spacing in ("right", "large"):
        noises = [each.noise for each in readings.values() if each.spacing == spacing]
        if noises:
            if spacing == "large":
                _warn(
                    "No noise of the loss stood out from its changes: the noise is at most what "
                    "is given. Check the smoothing by estimating with others beside it."
                )
            noise = max(float(np.median(noises)), rounding(size))
            return noise, noise / size
    _warn(
        f"The loss did not change along {len(coordinates)} coordinates, at steps up to "
        f"{scale.longest:g}. Pass more n_coordinates, or a longer step as longest."
    )
    return 0.0, 0.0


def _spacing(spacing: float, scale: _Scale) -> float:
    """Return a spacing whose table stays within the scale."""
    return max(min(spacing, scale.longest / float(TABLE.max())), scale.shortest)


def _measure_bend(
    losses: _Losses, coordinates: Tensor, rule: Rule, noise: float, scale: _Scale, start: float
) -> tuple[float, float]:
    """Return the root mean squares of the derivatives of a rule's order and of the first.

    The step is one at which the rule's differences are about a hundred times the noise.
    """
    points = torch.tensor(rule.points, dtype=torch.float64)
    following = scale.within(start)
    for _ in range(ROUNDS):
        step = following
        base, along = losses.along(coordinates, (step * points).expand(len(coordinates), -1))
        differences = rule.difference(base, along) / noise
        strength = math.sqrt(max(float(differences.square().mean()) - rule.spread**2, 0.0))
        following = scale.within(step * (SOUGHT / max(strength, 1.0)) ** (1 / rule.order))
        if ENOUGH <= strength <= TOO_MUCH or following == step:
            break
    least = SEEN * rule.spread
    if strength < least:
        _warn(
            f"How the loss bends is lost in its noise, {noise:.2g}, up to steps of {step:.2g}: the "
            "smoothing is about as long as was tried. Pass a longer step as longest, or make the "
            "noise less: a larger batch, or the mean of several measurements."
        )
    bend = max(strength, least) * noise / (rule.factor * step**rule.order)
    return bend, float(rule.slope(along, step).square().mean().sqrt())


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=4)  # where suggest_smoothing was called
