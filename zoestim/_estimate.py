"""One gradient estimate of a module on one batch: the entry for research and plain loops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from zoestim._asked import ask_about, flat_coordinates
from zoestim.backends import resolve_backend
from zoestim.evaluation import (
    MAX_RETRIES,
    Asking,
    ParameterMap,
    Patience,
    RandomState,
    draw_seed,
    evaluate_mean,
    shared_generator,
)
from zoestim.gradients import (
    N_DIRECTIONS,
    SMOOTHING,
    GradientEstimator,
    SparseGradient,
    resolve_estimator,
)


@dataclass(frozen=True)
class GradientEstimate:
    """What :func:`estimate_gradient` returns.

    Attributes
    ----------
    loss : float
        The loss at the unperturbed parameters.
    n_queries : int
        How many losses were asked for, the unperturbed one among them.
    gradient : SparseGradient
        Values at flat coordinates, in `named_parameters` order.

    Examples
    --------
    >>> import torch
    >>> from zoestim import estimate_gradient
    >>> module = torch.nn.Linear(1, 1, bias=False).double()
    >>> X, y = torch.ones(2, 1).double(), torch.zeros(2, 1).double()
    >>> estimate = estimate_gradient(module, lambda outputs, y: outputs.mean(), X, y)
    >>> round(float(estimate.as_dict()["weight"]), 6)
    1.0
    """

    loss: float
    n_queries: int
    gradient: SparseGradient
    _parameters: ParameterMap = field(repr=False)

    def as_dict(self) -> dict[str, Tensor]:
        """Return the dense estimate by parameter name, in float64; not asked for is zero."""
        return self._parameters.split(self.gradient.dense(self._parameters.size))


def estimate_gradient(
    module: nn.Module,
    criterion: Callable[[Any, Any], Any],
    X: Any,
    y: Any,
    *,
    method: str | GradientEstimator = "cge",
    smoothing: float = SMOOTHING,
    scheme: str = "forward",
    n_directions: int = N_DIRECTIONS,
    coordinates: Mapping[str, Any] | None = None,
    feature_reuse: bool = True,
    precision: str = "auto",
    memory_budget: int | None = None,
    n_repeats: int = 1,
    n_jobs: int | None = None,
    backend: Any = None,
    query_timeout: float | None = None,
    max_retries: int = MAX_RETRIES,
    random_state: int | np.random.RandomState | None = None,
    set_grad: bool = False,
) -> GradientEstimate:
    """Estimate the gradient of a module's loss on one batch from loss values alone.

    The module comes back bitwise equal: parameters, buffers, mode and the global random
    generators. Random layers (dropout) draw in every query what a forward pass would draw
    now, so the differences are of one and the same function.

    Parameters
    ----------
    module : nn.Module
        The model, in the mode (train or eval) to be used. Wrap a plain function of
        parameters in :class:`BlackBox`. Parameters with ``requires_grad=False`` are left out.
    criterion : torch criterion or callable
        ``(outputs, y) -> scalar or per-sample losses``; it need not be differentiable.
    X : Tensor or array-like of shape (n, ...)
        The inputs, as the module takes them.
    y : Tensor or array-like of shape (n, ...)
        The targets, as the criterion takes them.
    method : {"cge", "rge"} or strategy object, default="cge"
        Coordinate-wise or randomised, Eq. (1). A strategy object such as
        ``RandomizedEstimator(distribution="sphere")`` brings its own step.
    smoothing : float, default=5e-3
        The step mu, in units of the parameters.
    scheme : {"forward", "central"}, default="forward"
        Forward differences, or central ones at twice the queries.
    n_directions : int, default=192
        Directions of ``"rge"``.
    coordinates : dict of str to array of int, optional
        Flat indices into each named parameter to estimate; the rest is zero (Sparse-CGE).
        By default all.
    feature_reuse : bool, default=True
        Whether to run, in each query, only what its parameter changes, Eq. (4).
    precision : {"auto", "float64", "float32", "bfloat16"}, default="auto"
        ``"auto"`` computes in the module's own type; the others in a converted copy.
        ``"bfloat16"`` is float32 in which convolutions and linear layers multiply the
        changes of queries in bfloat16: faster on a GPU, with estimates within some percent.
    memory_budget : int, optional
        Bytes that queries in flight may take on the device; by default a quarter of what
        is free. A fold that does not fit is halved.
    n_repeats : int, default=1
        How often each query is asked, to average what a noisy loss gives.
    n_jobs : int or None, default=None
        How many workers answer; -1 as many as there are cores. None means one, or what a
        ``joblib.parallel_config`` around the call says. The result is the same to the last bit.
    backend : str, object or None, default=None
        ``"loky"`` (processes), ``"threading"``, ``"dask"``, ``"ray"`` or another that joblib
        knows, ``"distributed"`` for the ranks of ``torchrun``, or an object with the methods of
        :class:`zoestim.backends.Backend`.
    query_timeout : float or None, default=None
        Seconds after which a query counts as failed.
    max_retries : int, default=2
        How often a query that fails, or gives no finite loss, is asked again.
    random_state : int, RandomState instance or None, default=None
        Draws the directions of ``"rge"``, and the numbers that dropout draws in repeats.
    set_grad : bool, default=False
        Whether to write the estimate to each parameter's ``.grad``, so that a torch
        training loop becomes zeroth-order by replacing ``loss.backward()``.

    Returns
    -------
    GradientEstimate
        With ``.loss``, ``.n_queries`` and ``.as_dict()``.

    Raises
    ------
    QueryError
        If a query fails, or its loss is NaN or infinite, as often as it is asked.
    TypeError, ValueError
        If an argument cannot be used; the message says what to pass.

    References
    ----------
    Chen et al., DeepZero, ICLR 2024, Eq. (1), (Sparse-CGE) and (4).

    Examples
    --------
    >>> import torch
    >>> from zoestim import estimate_gradient
    >>> module = torch.nn.Linear(3, 2).double()
    >>> X, y = torch.randn(8, 3).double(), torch.tensor([0, 1] * 4)
    >>> estimate = estimate_gradient(module, torch.nn.CrossEntropyLoss(), X, y)
    >>> estimate.n_queries
    9
    >>> {name: tuple(g.shape) for name, g in estimate.as_dict().items()}
    {'weight': (2, 3), 'bias': (2,)}
    """
    asked = ask_about(module, criterion, X, y, feature_reuse, precision, memory_budget)
    estimator = resolve_estimator(method, smoothing, scheme, n_directions, "method")
    parameters, device = asked.objective.parameters, asked.batch.X.device
    flat = flat_coordinates(coordinates, parameters)
    asking = Asking(resolve_backend(n_jobs, backend), Patience(query_timeout, max_retries))
    try:
        generator = shared_generator(random_state, asking.backend)
        queries = estimator.queries(flat, parameters.segments(flat), generator)
        repeats = [RandomState.seeded(draw_seed(generator), device) for _ in range(n_repeats - 1)]
        found = evaluate_mean(asked.objective, asked.batch, queries, [None, *repeats], asking)
    finally:
        if asking.backend is not backend:
            asking.backend.close()
    gradient = estimator.combine(queries, found.base_loss, found.losses)
    n_queries = n_repeats * (len(queries) + 1)
    estimate = GradientEstimate(found.base_loss, n_queries, gradient, parameters)
    if set_grad:
        parameters.write_gradient(module, gradient.dense(parameters.size))
    return estimate
