"""The fit of a chain whose last part is black: an estimator that meta-estimators train with."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from zoestim._base import BaseZOEstimator
from zoestim.training import ChainStep


class ChainTraining(BaseZOEstimator):
    """Trains a :class:`zoestim.training.Chain` by queries, which count by the sample."""

    _step = ChainStep
    _counts_samples = True
    _warning_level = 10
    _default_lr = {"cge": 1e-3, "rge": 1e-3}  # of Adam

    def _encode_target(self, y: Any, weight: Any, *, reset: bool) -> np.ndarray:
        return np.asarray(y)

    def _output_sizes(self) -> dict[str, int]:
        return {}

    def _default_criterion(self) -> nn.Module:
        return nn.NLLLoss(reduction="none")
