"""The parameters of a ZODenoiserDefense, and what each may be."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from os import PathLike
from typing import Any

import torch
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from torch import nn

from zoestim._parameters import ZOParameters
from zoestim.defense import DATA_FORMATS, RESPONSES
from zoestim.evaluation import MAX_RETRIES
from zoestim.gradients import N_DIRECTIONS, SCHEMES

# Parameters that the estimator which asks the queries has under the same names.
SHARED = (
    "gradient",
    "n_directions",
    "n_pruning_queries",
    "sparsity",
    "mask_interval",
    "optimizer",
    "lr",
    "max_epochs",
    "batch_size",
    "update",
    "max_queries",
    "n_repeats",
    "journal_queries",
    "n_jobs",
    "backend",
    "query_timeout",
    "max_retries",
    "device",
    "feature_reuse",
    "memory_budget",
    "checkpoint",
    "callbacks",
    "warm_start",
    "verbose",
)


class DefenseParameters(BaseEstimator):
    """Stores the parameters; nothing is checked before `fit`."""

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
        "space": [StrOptions({"auto", "params", "input"})],
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
        space: str = "auto",
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
