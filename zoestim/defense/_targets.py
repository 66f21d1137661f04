"""The black box and what it says of clean samples: asked before anything is learned from it."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator

from zoestim.backends import Backend
from zoestim.defense._black_box import Responder, is_estimator, kind_of, missing, one_column
from zoestim.defense._layout import Layout
from zoestim.defense._scores import Classifier
from zoestim.evaluation import Asking, Patience, QueryError, hash_of


def fitted_black_box(defense: Any, X: np.ndarray, y: Any) -> Any:
    """Return the classifier: the one that was given, or a clone of it that is fitted here."""
    given = defense.estimator
    if not is_estimator(given) or isinstance(given, FrozenEstimator):
        return given
    if y is None:
        raise ValueError(
            f"{type(defense).__name__} requires y to be passed, but the target y is None: a clone "
            f"of {type(given).__name__} is to be fitted to it. Pass y, or FrozenEstimator("
            f"{type(given).__name__}(...)) if it is fitted already."
        )
    return clone(given).fit(X, y)


def ask_targets(
    defense: Any,
    box: Any,
    X: np.ndarray,
    y: Any,
    layout: Layout,
    asking: Asking,
    trains: bool = True,
    n_before: int = 0,
    before: Classifier | None = None,
) -> tuple[Classifier, np.ndarray, int]:
    """Ask about clean samples.

    Parameters
    ----------
    defense : ZODenoiserDefense
        Its parameters.
    box : Any
        The black box.
    X : ndarray of shape (n, ...)
        Clean samples.
    y : ndarray of shape (n,) or None
        Their classes.
    layout : Layout
        How they are laid out.
    asking : Asking
        Who asks, and how patiently.
    trains : bool, default=True
        Whether anything is to be trained by queries: else a few answers will do, to see what the
        black box returns, or none.
    n_before : int, default=0
        How many queries of the budget are spent.
    before : Classifier, optional
        The black box as it turned out to be in a fit that goes on.

    Returns
    -------
    classifier : Classifier
        The black box as it turned out to be.
    targets : ndarray of int, of shape (n,)
        The class of each sample that was asked about, -1 where the black box failed.
    n_queries : int
        How many samples it was asked about.
    """
    respond, size = Responder(box, defense.response_method), defense.query_batch_size
    n_asked = len(X)
    if not trains or defense.target == "labels":
        n_asked = int(min(n_asked, _n_to_tell(defense, respond, box, size, y)))
    limit = defense.max_queries
    if limit is not None and limit < n_before + n_asked:
        spent = f" beside the {n_before} of the fit that goes on" if n_before else ""
        raise ValueError(
            f"max_queries={limit} is less than the {n_asked} clean samples that the black box is "
            f"asked about first{spent}; expected more. Raise it, or pass fewer samples."
        )
    penalize = defense.on_error == "penalize"
    answers = ask_all(respond, X[:n_asked], size, asking.backend, asking.patience)
    good = [each for each in answers if not isinstance(each, Exception)]
    failure = next((each for each in answers if isinstance(each, Exception)), None)
    if failure is not None and (not penalize or not good):
        text = f"{type(failure).__name__}: {failure}"
        raise QueryError(
            f"The black box failed on clean samples: {text.rstrip('.')}. Mend its cause, raise "
            "max_retries, or set on_error='penalize' if some may fail."
        ) from failure
    classifier = before
    if classifier is None:
        kind = kind_of(good) if respond.kind == "auto" else respond.kind
        classifier = Classifier(
            respond, kind, _classes(defense.classes, box, kind, good, y), layout,
            defense.input_range, defense.quantize, size, penalize, asking.patience, dtype=X.dtype,
        )  # fmt: skip
    if defense.target == "labels":
        return classifier, encode(y, classifier.classes), n_asked
    found = [
        np.full(min(size, n_asked - k * size), -1)
        if isinstance(each, Exception)
        else classifier.best(classifier.read(each))
        for k, each in enumerate(answers)
    ]
    targets = np.concatenate([np.zeros(0, dtype=np.int64), *found])
    _report_failed(targets, penalize)
    return classifier, targets, n_asked


def _n_to_tell(defense: Any, respond: Responder, box: Any, size: int, y: Any) -> float:
    """Return how many answers show what a black box returns: all, for the labels that it has."""
    if defense.classes is None and not hasattr(box, "classes_"):
        return size if respond.kind in ("proba", "logits") or y is not None else math.inf
    return size if respond.kind == "auto" else 0


def _classes(
    given: Any, box: Any, kind: str, answers: list[np.ndarray], y: np.ndarray | None
) -> np.ndarray:
    """Return the classes, in the order of the black box's columns."""
    if given is not None:
        classes = np.asarray(given)
        if classes.ndim != 1 or len(np.unique(classes)) != len(classes):
            raise ValueError(
                f"classes={given!r} must be one label a column of the black box, each once; "
                f"expected such as {np.unique(classes).tolist()}."
            )
        return classes
    if hasattr(box, "classes_"):
        return np.asarray(box.classes_)
    if kind != "labels":
        return np.arange(2 if one_column(answers[0]) else answers[0].shape[1])
    seen = np.concatenate([each.reshape(len(each)) for each in answers])
    seen = np.unique(seen[~missing(seen)])
    alike = y is not None and (seen.dtype.kind in "OUS") == (y.dtype.kind in "OUS")
    return np.unique(np.concatenate([seen, y])) if alike else seen


def encode(y: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the index of each label among the classes, which need not be in order."""
    unknown = np.setdiff1d(y, classes)
    if len(unknown):
        raise ValueError(
            f"y holds the labels {unknown.tolist()}, which the black box does not know; expected "
            f"some of {classes.tolist()}. Pass classes=... in the order of its columns."
        )
    order = np.argsort(classes)
    return order[np.searchsorted(classes, y, sorter=order)]


def _report_failed(targets: np.ndarray, penalize: bool) -> None:
    failed = np.flatnonzero(targets < 0)
    if len(failed) and (not penalize or len(failed) == len(targets)):
        raise QueryError(
            f"The black box gave no class for {len(failed)} clean samples, the first of them "
            f"sample {failed[0]}: NaN, or a label that is not among the classes; expected one of "
            "each. Look at what it returns, or set on_error='penalize' to leave them out."
        )
    if len(failed):
        warnings.warn(
            f"{len(failed)} of {len(targets)} samples are left out of the training by queries: the "
            "black box gave no class for them.",
            stacklevel=7,
        )


def ask_all(
    respond: Responder, X: np.ndarray, batch_size: int, backend: Backend, patience: Patience
) -> list[np.ndarray | Exception]:
    """Return what a black box says of samples, a batch at a time, by all workers.

    Parameters
    ----------
    respond : Responder
        The black box.
    X : ndarray of shape (n, ...)
        The samples.
    batch_size : int
        How many of them it is asked about at a time.
    backend : Backend
        Who asks.
    patience : Patience
        How long and often.

    Returns
    -------
    list of ndarray or Exception
        For each batch what was answered, or why nothing was.
    """
    starts = range(0, len(X), batch_size)
    asked = _Asked(respond, X, batch_size, patience)
    found: dict[int, np.ndarray | Exception] = {}
    for tasks, answers in backend.map(_answer, asked, [1.0] * len(starts)):
        found.update(zip(tasks, answers, strict=True))
    return [found[task] for task in range(len(starts))]


@dataclass
class _Asked:
    """What workers need; a task is a batch."""

    respond: Responder
    X: np.ndarray
    batch_size: int
    patience: Patience

    def at(self, device: Any) -> _Asked:
        """Return the same for a device: a black box is where it is."""
        return self

    def digest(self) -> str:
        """Return what ranks of a process group compare."""
        return hash_of([torch.from_numpy(np.ascontiguousarray(self.X)), self.batch_size])


def _answer(asked: _Asked, tasks: list[int]) -> list[np.ndarray | Exception]:
    found: list[np.ndarray | Exception] = []
    for task in tasks:
        part = asked.X[task * asked.batch_size : (task + 1) * asked.batch_size]
        reply = asked.patience.ask(lambda: asked.respond(part))  # noqa: B023
        found.append(reply.value if reply.cause is None else reply.cause)
    return found
