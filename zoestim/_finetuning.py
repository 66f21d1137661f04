"""The estimators that meta-estimators train with, on what they make of their data."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from zoestim._base import BaseZOEstimator
from zoestim.evaluation import Patience
from zoestim.rollouts import UnrolledStep, Windows
from zoestim.training import ChainStep

# What a fit leaves behind on its owner too.
TRAINED = (
    "net_",
    "history_",
    "loss_curve_",
    "n_iter_",
    "n_queries_",
    "query_log_",
    "layer_ratios_",
    "feature_reuse_",
    "termination_condition_",
)


def keep_trained(owner: Any, trainer: BaseZOEstimator) -> None:
    """Set the fitted attributes of a trainer on the estimator that it trained for."""
    for name in TRAINED:
        if hasattr(trainer, name):
            setattr(owner, name, getattr(trainer, name))


class Finetuning(BaseZOEstimator):
    """Trains a module that is there already, on targets as they are."""

    _default_lr = {"cge": 1e-3, "rge": 1e-3}  # of Adam

    def _encode_target(self, y: Any, weight: Any, *, reset: bool) -> np.ndarray:
        return np.asarray(y)

    def _output_sizes(self) -> dict[str, int]:
        return {}


class ChainTraining(Finetuning):
    """Trains a :class:`zoestim.training.Chain` by queries, which count by the sample."""

    _step = ChainStep
    _counts_samples = True
    _warning_level = 10

    def _default_criterion(self) -> nn.Module:
        return nn.NLLLoss(reduction="none")


class UnrolledTraining(Finetuning):
    """Trains an :class:`zoestim.rollouts.Unrolled` solver on frames and what they are frames of."""

    _step = UnrolledStep
    _warning_level = 7

    def _make_data(self, X: Any, target: Any, weight: Any, module: Any) -> Windows:  # type: ignore[override]
        return Windows(X, target, module, Patience(self.query_timeout, self.max_retries))

    def _default_criterion(self) -> nn.Module:
        return nn.MSELoss()
