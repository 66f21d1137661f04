"""The parameters that every estimator of zoestim takes."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from os import PathLike
from typing import Any

import torch
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from torch import nn

from zoestim._prefixed import PrefixedParameters
from zoestim.evaluation import MAX_RETRIES, PRECISIONS
from zoestim.gradients import N_DIRECTIONS, SCHEMES, SMOOTHING
from zoestim.sparsity import SCORES, Pruning


class ZOParameters(PrefixedParameters):
    """Stores the parameters; nothing is checked before `fit`.

    Names like ``module__hidden`` or ``optimizer__momentum`` are taken as in skorch.
    """

    _prefixes = (
        "module",
        "criterion",
        "optimizer",
        "iterator_train",
        "iterator_valid",
        "callbacks",
    )
    _parameter_constraints: dict = {
        "module": [None, callable, type, nn.Module],
        "initial_params": [None, "array-like", dict, torch.Tensor],
        "criterion": [None, callable, type],
        "gradient": [StrOptions({"cge", "rge"}), HasMethods(["n_queries", "queries", "combine"])],
        "smoothing": [Interval(Real, 0, None, closed="neither")],
        "scheme": [StrOptions(set(SCHEMES))],
        "n_directions": [Interval(Integral, 1, None, closed="left")],
        "sparsity": [Interval(Real, 0, 1, closed="left")],
        "pruning": [None, dict, Pruning, StrOptions(set(SCORES))],
        "mask_interval": [Interval(Integral, 1, None, closed="left"), StrOptions({"batch"})],
        "n_pruning_queries": [Interval(Integral, 1, None, closed="left")],
        "optimizer": [type],
        "lr": [None, Interval(Real, 0, None, closed="neither")],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "lr_schedule": [StrOptions({"cosine", "constant"}), callable],
        "warmup_epochs": [Interval(Integral, 0, None, closed="left")],
        "update": [StrOptions({"active", "all"})],
        "max_queries": [None, Interval(Integral, 1, None, closed="left")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "n_repeats": [Interval(Integral, 1, None, closed="left")],
        "journal_queries": ["boolean"],
        "n_jobs": [None, Integral],
        "backend": [None, str, HasMethods(["map", "once"])],
        "query_timeout": [None, Interval(Real, 0, None, closed="neither")],
        "max_retries": [Interval(Integral, 0, None, closed="left")],
        "device": [str, torch.device, list],
        "feature_reuse": ["boolean"],
        "precision": [StrOptions({"auto", *PRECISIONS})],
        "memory_budget": [None, Interval(Integral, 1, None, closed="left")],
        "checkpoint": [None, str, PathLike],
        "callbacks": [None, list],
        "warm_start": ["boolean"],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        module: Any = None,
        *,
        initial_params: Any = None,
        criterion: Any = None,
        gradient: Any = "cge",
        smoothing: float = SMOOTHING,
        scheme: str = "forward",
        n_directions: int = N_DIRECTIONS,
        sparsity: float = 0.9,
        pruning: Any = "zo-grasp",
        mask_interval: int | str = 1,
        n_pruning_queries: int = N_DIRECTIONS,
        optimizer: type = torch.optim.SGD,
        lr: float | None = None,
        max_epochs: int = 100,
        batch_size: int | str = "auto",
        lr_schedule: str | Callable[[float], float] = "cosine",
        warmup_epochs: int = 0,
        update: str = "active",
        max_queries: int | None = None,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        n_repeats: int = 1,
        journal_queries: bool = False,
        n_jobs: int | None = None,
        backend: Any = None,
        query_timeout: float | None = None,
        max_retries: int = MAX_RETRIES,
        device: str | torch.device | list = "cpu",
        feature_reuse: bool = True,
        precision: str = "auto",
        memory_budget: int | None = None,
        checkpoint: str | PathLike | None = None,
        callbacks: list | None = None,
        warm_start: bool = False,
        random_state: Any = None,
        verbose: int = 0,
        **kwargs: Any,
    ):
        self.module = module
        self.initial_params = initial_params
        self.criterion = criterion
        self.gradient = gradient
        self.smoothing = smoothing
        self.scheme = scheme
        self.n_directions = n_directions
        self.sparsity = sparsity
        self.pruning = pruning
        self.mask_interval = mask_interval
        self.n_pruning_queries = n_pruning_queries
        self.optimizer = optimizer
        self.lr = lr
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.lr_schedule = lr_schedule
        self.warmup_epochs = warmup_epochs
        self.update = update
        self.max_queries = max_queries
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.n_repeats = n_repeats
        self.journal_queries = journal_queries
        self.n_jobs = n_jobs
        self.backend = backend
        self.query_timeout = query_timeout
        self.max_retries = max_retries
        self.device = device
        self.feature_reuse = feature_reuse
        self.precision = precision
        self.memory_budget = memory_budget
        self.checkpoint = checkpoint
        self.callbacks = callbacks
        self.warm_start = warm_start
        self.random_state = random_state
        self.verbose = verbose
        self.__dict__.update(kwargs)
