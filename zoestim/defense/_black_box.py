"""The classifier that can only be queried: what it is asked, and what its answers mean."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from sklearn.base import is_classifier
from sklearn.utils.validation import check_is_fitted
from torch import nn

from zoestim.evaluation import BlackBox

METHODS = ("predict_proba", "decision_function", "predict")
KINDS = {"predict_proba": "proba", "decision_function": "logits", "predict": "labels"}
RESPONSES = ("auto", *METHODS, "proba", "logits", "labels")


class Responder:
    """A classifier as a function from samples to an array, by one method of it.

    Parameters
    ----------
    classifier : fitted scikit-learn classifier, nn.Module or callable
        What is asked.
    response_method : str
        Of :data:`RESPONSES`.

    Attributes
    ----------
    kind : {"proba", "logits", "labels", "auto"}
        What it returns; "auto" where only its first answer can tell.
    """

    def __init__(self, classifier: Any, response_method: str):
        self.kind = response_method
        self.columns: Any = None
        if is_estimator(classifier):
            check_is_fitted(classifier)
            method = _method(classifier, response_method)
            self.kind, self.ask = KINDS[method], getattr(classifier, method)
            self.columns = getattr(classifier, "feature_names_in_", None)
        elif response_method in METHODS:
            raise ValueError(
                f"response_method={response_method!r} is a method of scikit-learn's classifiers; "
                f"expected 'auto', 'proba', 'logits' or 'labels' for {type(classifier).__name__}."
            )
        elif isinstance(classifier, BlackBox) and _is_plain(classifier):
            self.ask = classifier.function
        elif isinstance(classifier, nn.Module):
            self.ask = _ModuleCall(classifier)
        else:
            self.ask = classifier

    def __call__(self, X: np.ndarray) -> np.ndarray:
        """Return what the classifier says of some samples."""
        if self.columns is not None:
            import pandas as pd

            found = self.ask(pd.DataFrame(X, columns=self.columns))
        else:
            found = self.ask(X.copy())  # it may write to it
        found = found.detach().cpu().numpy() if isinstance(found, torch.Tensor) else found
        answers = np.asarray(found)
        if not answers.ndim or len(answers) != len(X) or answers.ndim > 2:
            raise ValueError(
                f"The black box returned an array of shape {answers.shape} for {len(X)} samples; "
                f"expected ({len(X)}, n_classes) scores, or ({len(X)},) labels."
            )
        if answers.dtype.kind not in "biufOSU":
            raise TypeError(
                f"The black box returned an array of {answers.dtype}; expected real numbers, or "
                "labels."
            )
        return answers


class _ModuleCall:
    """A torch module in evaluation mode, as a function of arrays."""

    def __init__(self, module: nn.Module):
        self.module = copy.deepcopy(module).eval()

    def __call__(self, X: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            like = next(self.module.parameters(), None)
            data = torch.from_numpy(np.ascontiguousarray(X))
            return self.module(data if like is None else data.to(like.device, like.dtype))


def is_estimator(classifier: Any) -> bool:
    """Return whether something is an estimator of scikit-learn's kind."""
    return hasattr(classifier, "fit") and hasattr(classifier, "predict")


def refuse_no_classifier(classifier: Any) -> None:
    """Raise TypeError for what cannot be asked for classes."""
    if isinstance(classifier, type) or not (is_estimator(classifier) or callable(classifier)):
        raise TypeError(
            f"estimator={classifier!r} cannot be asked; expected a scikit-learn classifier, a "
            "torch module, or a callable from samples to scores or labels."
        )
    if is_estimator(classifier) and not is_classifier(classifier):
        raise TypeError(
            f"estimator is a {type(classifier).__name__}, which is no classifier; expected one, a "
            "torch module, or a callable from samples to scores or labels."
        )


def _method(classifier: Any, response_method: str) -> str:
    by_kind = {kind: method for method, kind in KINDS.items()}
    wanted = by_kind.get(response_method, response_method)
    options = METHODS if wanted == "auto" else (wanted,)
    for method in options:
        if hasattr(classifier, method) and not _by_pairs(classifier, method):
            return method
    raise ValueError(
        f"response_method={response_method!r}, and {type(classifier).__name__} has no {wanted}; "
        f"expected one of {[m for m in METHODS if hasattr(classifier, m)]}, or 'auto'."
    )


def _is_plain(box: BlackBox) -> bool:
    """Return whether a box is a function of samples alone."""
    return not box.vectorized and not any(True for _ in box.parameters())


def _by_pairs(classifier: Any, method: str) -> bool:
    """Return whether a method gives a column for each pair of classes, as SVC can."""
    inner = getattr(classifier, "estimator", classifier)  # of a FrozenEstimator
    shape = getattr(inner, "decision_function_shape", "ovr")
    return method == "decision_function" and shape == "ovo"


def kind_of(answers: list[np.ndarray]) -> str:
    """Return what the answers of a function are: labels, probabilities or logits."""
    if any(one_column(each) for each in answers):
        _refuse_scores([each for each in answers if one_column(each)])
        return "labels"
    rows = np.concatenate([np.asarray(each, dtype=np.float64).ravel() for each in answers])
    sums = np.concatenate([np.asarray(each, dtype=np.float64).sum(1) for each in answers])
    finite = sums[np.isfinite(sums)]
    if len(finite) and not (rows < 0).any() and np.allclose(finite, 1, atol=1e-3):
        return "proba"
    return "logits"


def one_column(answers: np.ndarray) -> bool:
    """Return whether there is one answer a sample: a label, or the score of the second class."""
    return answers.ndim == 1 or answers.shape[1] == 1


def missing(labels: np.ndarray) -> np.ndarray:
    """Return which labels are None or NaN: no answer."""
    if labels.dtype.kind == "O":
        return np.array([each is None or each != each for each in labels], dtype=bool)
    return np.isnan(labels) if labels.dtype.kind == "f" else np.zeros(len(labels), dtype=bool)


def _refuse_scores(answers: list[np.ndarray]) -> None:
    """Raise ValueError if numbers are no labels."""
    for each in answers:
        if (
            each.dtype.kind == "f"
            and (odd := each[np.isfinite(each) & (each != np.round(each))]).size
        ):
            raise ValueError(
                f"The black box returned one number a sample, such as {odd.flat[0]:g}, which is "
                "no label; expected labels, or a column of scores a class. Set response_method="
                "'proba' or 'logits' if it is the score of the second of two classes."
            )
