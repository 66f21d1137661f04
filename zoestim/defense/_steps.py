"""Steps of the differences that a black box can answer: trees and labels move in jumps."""

from __future__ import annotations

from typing import Any

from zoestim.gradients import SMOOTHING

# Measured on digits, see the user guide: smaller steps find no jump, larger ones too many.
SMOOTHING_OF_TREES = 0.05
SMOOTHING_OF_LABELS = 0.1
PIECEWISE_CONSTANT = ("sklearn.ensemble", "sklearn.tree", "sklearn.neighbors")


def steps_for(classifier: Any, kind: str, smoothing: Any, scheme: str) -> tuple[float, str]:
    """Return step and scheme, those that are "auto" by what the black box returns.

    Parameters
    ----------
    classifier : Any
        The black box.
    kind : {"proba", "logits", "labels"}
        What it returns.
    smoothing : float or "auto"
        The step that was asked for.
    scheme : {"forward", "central", "auto"}
        The scheme that was asked for.
    """
    step, differences = SMOOTHING, "forward"
    if kind == "labels":
        step, differences = SMOOTHING_OF_LABELS, "central"
    elif jumps(classifier):
        step, differences = SMOOTHING_OF_TREES, "central"
    return (
        step if smoothing == "auto" else smoothing,
        differences if scheme == "auto" else scheme,
    )


def jumps(classifier: Any) -> bool:
    """Return whether a scikit-learn classifier's probabilities are known to move in jumps."""
    inner = getattr(classifier, "estimator", classifier)  # of a FrozenEstimator
    last = inner.steps[-1][1] if hasattr(inner, "steps") else inner
    return type(last).__module__.startswith(PIECEWISE_CONSTANT)
