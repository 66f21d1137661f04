"""Fit = validate, build, train, store: what the estimators share beside their parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import _fit_context, is_regressor
from sklearn.utils import get_tags
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor, nn

from zoestim._modules import build_criterion, build_module
from zoestim._parameters import ZOParameters
from zoestim._persistence import save
from zoestim.evaluation import (
    MATRIX_TYPES,
    Batch,
    BatchLoss,
    Objective,
    Patience,
    as_input,
    has_boxes,
    unchanged_generators,
)
from zoestim.training import CallbackSupportMixin, TrainingStep, in_memory, main_device, prepare

PREDICT_BATCH = 1024


class BaseZOEstimator(CallbackSupportMixin, ZOParameters):
    """Fitting and evaluation; a subclass brings the targets and what outputs mean.

    A subclass gives `_encode_target`, `_default_criterion`, `_output_sizes` and
    `_check_outputs`, and turns outputs into predictions.
    """

    _step = TrainingStep  # how a gradient is found
    _counts_samples = False  # whether a query is a loss on one sample, rather than on a batch
    _n_queries_before = 0  # what was asked before the first fit
    _forgiving = False  # whether a fit goes on when a query has failed
    _failure_penalty: float | None = None  # what it then adds, relative to the loss
    _held_out: Any = None  # which samples, or groups of them, were for validation
    _make_data = staticmethod(in_memory)  # what is trained on, from what `fit` was given
    _warning_level = 6  # the stack between a warning of a fit and its caller

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train from function values.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            The inputs; more than two dimensions where `module` is given.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            The targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of the samples in the loss, ``sum(w * l) / sum(w)``.

        Returns
        -------
        self : estimator
            After an error in mid-training too, the fitted attributes hold what was learned.

        Raises
        ------
        QueryError
            If a loss is NaN or infinite.
        ValueError, TypeError
            If a parameter or the data cannot be used; the message says what to pass.
        """
        continued = self.warm_start and hasattr(self, "net_")
        return self._fit(X, y, sample_weight, continued, self.max_epochs)

    def _fit(self, X: Any, y: Any, sample_weight: Any, continued: bool, epochs: int | None) -> Self:
        """Train for some epochs; None is one, at a constant learning rate."""
        before, net = dict(vars(self)), None
        try:
            self._check_extras()
            X, y = self._validate(X, y, reset=not continued)
            weight = self._weights(X, y, sample_weight)
            if weight is not None and not weight.any():
                raise ValueError("All weights are zero; expected at least one positive weight.")
            target = self._encode_target(y, weight, reset=not continued)
            session = prepare(self, X, y, target, weight, continued=continued, epochs=epochs)
            net = session.net
            session.run(self)
        except BaseException:
            if net is None or (net.zo_step.n_steps == 0 and "net_" in before):
                # What fails before it has learned anything leaves an earlier fit as it was.
                self.__dict__.clear()
                self.__dict__.update(before)
            raise
        return self

    def _validate(self, X: Any, y: Any = "no_validation", *, reset: bool) -> Any:
        checks: dict[str, Any] = {"dtype": np.float64}
        if self.module is not None:  # integers are for embeddings, images have four dimensions
            checks = {"dtype": "numeric", "allow_nd": True}
        if not isinstance(y, str):
            checks |= {"multi_output": get_tags(self).target_tags.multi_output}
        return validate_data(self, X, y, reset=reset, **checks)

    def _weights(self, X: Any, y: Any, sample_weight: Any) -> np.ndarray | None:
        if sample_weight is None:
            return None
        return _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)

    def _make_module(self, n_features: int, seed: int) -> nn.Module:
        sizes = {"n_features_in": n_features} | self._output_sizes()
        return build_module(self.module, self.initial_params, self._prefixed("module"), sizes, seed)

    def _make_criterion(self) -> BatchLoss:
        arguments = self._prefixed("criterion")
        criterion = build_criterion(self.criterion, arguments, self._default_criterion())
        return BatchLoss(criterion, flatten=is_regressor(self))

    def _make_objective(self, module: nn.Module, criterion: nn.Module) -> Objective:
        """Return what is minimised: the one thing in which the estimators differ."""
        return Objective(
            module,
            criterion,
            feature_reuse=self.feature_reuse,
            matrix_type=MATRIX_TYPES.get(self.precision),
            memory_budget=self.memory_budget,
            check_outputs=self._check_outputs,
        )

    def _check_outputs(self, outputs: Any, batch: Batch) -> None:
        """Refuse outputs that do not hold one row a sample."""
        if isinstance(outputs, Tensor) and outputs.ndim and len(outputs) == len(batch.X):
            return
        got = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else type(outputs)
        raise ValueError(
            f"module returned outputs of {got} for {len(batch.X)} samples; expected a tensor "
            f"or array of shape ({len(batch.X)}, ...), one row a sample."
        )

    def _outputs(self, X: Any) -> Tensor:
        """Return the outputs in eval mode, on the CPU, shape (n_samples, ...)."""
        check_is_fitted(self)
        X = self._validate(X, reset=False)
        module, training = self.module_, self.module_.training
        module.eval()
        try:
            with torch.no_grad(), unchanged_generators(main_device(self.device)):
                parts, device = as_input(X, module).split(PREDICT_BATCH), main_device(self.device)
                return torch.cat([self._patiently(module, part.to(device)) for part in parts])
        finally:
            module.train(training)

    def _patiently(self, module: nn.Module, X: Tensor) -> Tensor:
        """Return the outputs of one batch; a black box that fails is asked again."""
        patience = Patience(self.query_timeout, self.max_retries if has_boxes(module) else 0)
        return patience.insist(lambda: module(X)).cpu()

    def save(self, path: str | Path) -> None:
        """Write the fitted estimator to a file, without pickle.

        Parameters
        ----------
        path : str or path-like
            A safetensors file: the module's tensors, and the rest as JSON in its header.
            Functions and classes of the user's are not stored; :func:`zoestim.load` asks
            for them.
        """
        check_is_fitted(self)
        save(self, path)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "module_")
