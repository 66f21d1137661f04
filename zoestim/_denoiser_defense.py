"""ZODenoiserDefense, Sec. 6.2 and App. G: robustify a classifier that can only be queried."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from os import PathLike
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, _fit_context
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from zoestim._certified import CertifiedPrediction
from zoestim._defense_fit import SHARED, fit
from zoestim._parameters import ZOParameters
from zoestim.defense import DATA_FORMATS, RESPONSES, Defended
from zoestim.evaluation import MAX_RETRIES, Patience
from zoestim.gradients import N_DIRECTIONS, SCHEMES


class ZODenoiserDefense(MetaEstimatorMixin, CertifiedPrediction, ClassifierMixin, BaseEstimator):
    """DOC."""

    _parameter_constraints: dict = {
        **{name: ZOParameters._parameter_constraints[name] for name in (*SHARED, "pruning")},
        "random_state": ["random_state"],
        "estimator": [HasMethods(["fit", "predict"]), nn.Module, callable],
        "response_method": [StrOptions(set(RESPONSES))],
        "classes": [None, "array-like"],
        "query_batch_size": [Interval(Integral, 1, None, closed="left")],
        "input_range": [None, tuple, list],
        "quantize": ["boolean"],
        "on_error": [StrOptions({"raise", "penalize"})],
        "noise_std": [Interval(Real, 0, None, closed="neither")],
        "n_samples": [Interval(Integral, 1, None, closed="left")],
        "denoiser": [None, StrOptions({"auto", "dncnn", "mlp"}), nn.Module, type, callable],
        "depth": [None, Interval(Integral, 2, None, closed="left")],
        "width": [None, Interval(Integral, 1, None, closed="left")],
        "image_shape": [None, tuple, list],
        "data_format": [StrOptions(set(DATA_FORMATS))],
        "init_denoiser": [None, nn.Module, dict],
        "pretrain_epochs": [Interval(Integral, 0, None, closed="left")],
        "pretrain_lr": [Interval(Real, 0, None, closed="neither")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "max_epochs": [Interval(Integral, 0, None, closed="left")],
        "lr_schedule": [StrOptions({"step", "cosine", "constant"}), callable],
        "lr_decay": [Interval(Real, 0, 1, closed="right")],
        "lr_decay_epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "target": [StrOptions({"black_box", "labels"})],
        "mse_weight": [Interval(Real, 0, None, closed="left")],
        "space": [StrOptions({"params", "input"})],
        "trainable": [StrOptions({"auto", "last", "all", "zo-grasp"}), list, tuple],
        "smoothing": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "scheme": [StrOptions({"auto", *SCHEMES})],
        "latent_dim": [None, Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        estimator: Any,
        *,
        response_method: str = "auto",
        classes: Any = None,
        query_batch_size: int = 1024,
        max_queries: int | None = None,
        input_range: tuple[float, float] | None = None,
        quantize: bool = False,
        on_error: str = "raise",
        max_retries: int = MAX_RETRIES,
        query_timeout: float | None = None,
        noise_std: float = 0.25,
        n_samples: int = 100,
        denoiser: Any = "auto",
        depth: int | None = None,
        width: int | None = None,
        image_shape: tuple[int, ...] | None = None,
        data_format: str = "channels_first",
        init_denoiser: Any = None,
        pretrain_epochs: int = 90,
        pretrain_lr: float = 1e-3,
        max_epochs: int = 20,
        optimizer: type = torch.optim.Adam,
        lr: float = 1e-3,
        lr_schedule: str | Callable[[float], float] = "cosine",
        lr_decay: float = 0.1,
        lr_decay_epochs: int = 4,
        batch_size: int = 32,
        target: str = "black_box",
        mse_weight: float = 0.0,
        space: str = "params",
        trainable: Any = "auto",
        gradient: Any = "cge",
        smoothing: float | str = "auto",
        scheme: str = "auto",
        n_directions: int = N_DIRECTIONS,
        sparsity: float = 0.95,
        pruning: Any = None,
        mask_interval: int | str = 1,
        n_pruning_queries: int = N_DIRECTIONS,
        update: str = "active",
        latent_dim: int | None = None,
        n_repeats: int = 1,
        journal_queries: bool = False,
        n_jobs: int | None = None,
        backend: Any = None,
        device: str | torch.device | list = "cpu",
        feature_reuse: bool = True,
        memory_budget: int | None = None,
        checkpoint: str | PathLike | None = None,
        callbacks: list | None = None,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.estimator = estimator
        self.response_method = response_method
        self.classes = classes
        self.query_batch_size = query_batch_size
        self.max_queries = max_queries
        self.input_range = input_range
        self.quantize = quantize
        self.on_error = on_error
        self.max_retries = max_retries
        self.query_timeout = query_timeout
        self.noise_std = noise_std
        self.n_samples = n_samples
        self.denoiser = denoiser
        self.depth = depth
        self.width = width
        self.image_shape = image_shape
        self.data_format = data_format
        self.init_denoiser = init_denoiser
        self.pretrain_epochs = pretrain_epochs
        self.pretrain_lr = pretrain_lr
        self.max_epochs = max_epochs
        self.optimizer = optimizer
        self.lr = lr
        self.lr_schedule = lr_schedule
        self.lr_decay = lr_decay
        self.lr_decay_epochs = lr_decay_epochs
        self.batch_size = batch_size
        self.target = target
        self.mse_weight = mse_weight
        self.space = space
        self.trainable = trainable
        self.gradient = gradient
        self.smoothing = smoothing
        self.scheme = scheme
        self.n_directions = n_directions
        self.sparsity = sparsity
        self.pruning = pruning
        self.mask_interval = mask_interval
        self.n_pruning_queries = n_pruning_queries
        self.update = update
        self.latent_dim = latent_dim
        self.n_repeats = n_repeats
        self.journal_queries = journal_queries
        self.n_jobs = n_jobs
        self.backend = backend
        self.device = device
        self.feature_reuse = feature_reuse
        self.memory_budget = memory_budget
        self.checkpoint = checkpoint
        self.callbacks = callbacks
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any = None) -> Self:
        """Train the denoiser: by backprop to denoise, then by queries to be understood.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features) or (n_samples, ...)
            Clean samples, laid out as the black box takes them.
        y : array-like of shape (n_samples,), default=None
            The classes; needed where `estimator` is to be fitted too, and for
            ``target="labels"``.

        Returns
        -------
        self : ZODenoiserDefense
            After an error in the queries too, the denoiser is kept as far as it was trained.

        Raises
        ------
        QueryError
            If the black box fails, with ``on_error="raise"``.
        ValueError, TypeError
            If a parameter or the data cannot be used; the message says what to pass.
        """
        fit(self, *self._validate(X, y))
        return self

    def denoise(self, X: Any) -> np.ndarray:
        """Return what the black box is given for samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples, noisy or not, laid out as in `fit`.

        Returns
        -------
        ndarray of the shape of X
            Denoised, clipped to `input_range` and rounded where `quantize` says so.
        """
        check_is_fitted(self)
        X = self._as_samples(X)
        starts = range(self.query_batch_size, len(X), self.query_batch_size)
        denoise = self._noisy_classifier(Patience()).denoise
        return np.concatenate([denoise(part) for part in np.array_split(X, starts)])

    def transform(self, X: Any) -> np.ndarray:
        """Return what the black box is given for samples, as :meth:`denoise`.

        Parameters
        ----------
        X : array-like of shape (n_samples, ...)
            Samples, laid out as in `fit`.

        Returns
        -------
        ndarray of the shape of X
        """
        return self.denoise(X)

    def _noisy_classifier(self, patience: Patience, defended: bool = True) -> Defended:
        return Defended(self.white_ if defended else None, self._classifier, patience)

    def _validate(self, X: Any, y: Any) -> tuple[np.ndarray, Any]:
        checks: dict[str, Any] = {"dtype": [np.float64, np.float32], "allow_nd": True}
        if y is None:
            return validate_data(self, X, **checks), None
        return validate_data(self, X, y, **checks)

    def _as_samples(self, X: Any) -> np.ndarray:
        dtype = [np.float64, np.float32]
        return validate_data(self, X, reset=False, dtype=dtype, allow_nd=True)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "white_")
