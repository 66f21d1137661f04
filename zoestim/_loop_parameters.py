"""The parameters of a SolverInTheLoop, and what each may be."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from os import PathLike
from typing import Any

import torch
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from torch import nn

from zoestim._parameters import ZOParameters
from zoestim._prefixed import PrefixedParameters
from zoestim.evaluation import MAX_RETRIES
from zoestim.gradients import N_DIRECTIONS

MODES = ("sol", "non", "nog", "ste")
# Parameters that the estimator which asks the queries has under the same names and as they are.
SHARED = (
    "scheme",
    "n_directions",
    "sparsity",
    "pruning",
    "mask_interval",
    "n_pruning_queries",
    "optimizer",
    "lr_schedule",
    "warmup_epochs",
    "update",
    "max_epochs",
    "max_queries",
    "early_stopping",
    "validation_fraction",
    "n_iter_no_change",
    "tol",
    "query_timeout",
    "max_retries",
    "n_repeats",
    "journal_queries",
    "n_jobs",
    "backend",
    "device",
    "feature_reuse",
    "precision",
    "memory_budget",
    "checkpoint",
    "callbacks",
    "warm_start",
    "random_state",
    "verbose",
)


class LoopParameters(PrefixedParameters):
    """Stores the parameters; nothing is checked before `fit`."""

    _prefixes = ("corrector", "optimizer")
    _parameter_constraints: dict = {
        **{name: ZOParameters._parameter_constraints[name] for name in SHARED},
        "solver": [HasMethods(["step"]), callable],
        "corrector": [None, nn.Module, type, callable],
        "n_unroll": [Interval(Integral, 1, None, closed="left")],
        "unroll_schedule": [None, tuple, list],
        "mode": [StrOptions(set(MODES))],
        "gradient": [
            StrOptions({"auto", "cge", "rge", "solver-vjp", "autograd"}),
            HasMethods(["n_queries", "queries", "combine"]),
        ],
        "smoothing": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "lr": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "scaler": [None, StrOptions({"std"})],
        "condition_channels": ["boolean"],
        "zero_init": ["boolean"],
        "check_gradient": ["boolean"],
        "on_failure": [StrOptions({"reject", "penalize", "raise"})],
        "failure_penalty": [Interval(Real, 0, None, closed="left")],
        "solver_batch": [None, Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        solver: Any,
        corrector: Any = None,
        *,
        n_unroll: int = 8,
        unroll_schedule: tuple[int, ...] | None = None,
        mode: str = "sol",
        gradient: Any = "auto",
        smoothing: float | str = "auto",
        scheme: str = "forward",
        n_directions: int = N_DIRECTIONS,
        sparsity: float = 0.95,
        pruning: Any = "uniform",
        mask_interval: int | str = "batch",
        n_pruning_queries: int = N_DIRECTIONS,
        optimizer: type = torch.optim.Adam,
        lr: float = 1e-3,
        lr_schedule: str | Callable[[float], float] = "cosine",
        warmup_epochs: int = 0,
        update: str = "active",
        max_epochs: int = 1,
        batch_size: int = 3,
        max_queries: int | None = None,
        scaler: str | None = "std",
        condition_channels: bool = True,
        zero_init: bool = True,
        check_gradient: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        tol: float = 1e-4,
        on_failure: str = "reject",
        failure_penalty: float = 10.0,
        solver_batch: int | None = None,
        query_timeout: float | None = None,
        max_retries: int = MAX_RETRIES,
        n_repeats: int = 1,
        journal_queries: bool = False,
        n_jobs: int | None = None,
        backend: Any = None,
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
        self.solver = solver
        self.corrector = corrector
        self.n_unroll = n_unroll
        self.unroll_schedule = unroll_schedule
        self.mode = mode
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
        self.lr_schedule = lr_schedule
        self.warmup_epochs = warmup_epochs
        self.update = update
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.max_queries = max_queries
        self.scaler = scaler
        self.condition_channels = condition_channels
        self.zero_init = zero_init
        self.check_gradient = check_gradient
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.on_failure = on_failure
        self.failure_penalty = failure_penalty
        self.solver_batch = solver_batch
        self.query_timeout = query_timeout
        self.max_retries = max_retries
        self.n_repeats = n_repeats
        self.journal_queries = journal_queries
        self.n_jobs = n_jobs
        self.backend = backend
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
