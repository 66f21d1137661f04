"""What fits have left behind, by the names under which they are drawn together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted


def as_named_estimators(estimators: Any) -> dict[str, Any]:
    """Return estimators by name: as given, or by their classes, numbered where they repeat.

    Raises
    ------
    TypeError
        If it is a single estimator.
    ValueError
        If there is none.
    """
    if not isinstance(estimators, Mapping | Iterable) or isinstance(estimators, str | Pipeline):
        raise TypeError(
            "estimators must be a mapping from names to fitted estimators, or a list of them; got "
            f"{type(estimators).__name__}. Use from_estimator for a single one."
        )
    if isinstance(estimators, Mapping):
        found = dict(estimators)
    else:
        given = list(estimators)
        classes = [class_name(each) for each in given]
        often, seen = Counter(classes), Counter[str]()
        found = {}
        for each, name in zip(given, classes, strict=True):
            seen[name] += 1
            found[f"{name} {seen[name]}" if often[name] > 1 else name] = each
    if not found:
        raise ValueError("estimators must hold at least one fitted estimator; got none.")
    return found


def class_name(estimator: Any) -> str:
    """Return the name of an estimator's class; of a pipeline or a search, that of what trains."""
    return type(_trained(estimator)).__name__


def left_behind(estimator: Any, *names: str) -> tuple[Any, ...]:
    """Return attributes that a fit by queries has set.

    Of a pipeline it is the last step that trained, of a search the best estimator.

    Raises
    ------
    NotFittedError
        If the estimator was not fitted.
    TypeError
        If it has no such attributes.
    """
    if not hasattr(estimator, "fit") or isinstance(estimator, type):
        raise TypeError(
            f"estimator must be a fitted estimator such as ZOClassifier; got {estimator!r}."
        )
    check_is_fitted(estimator)
    trained = _trained(estimator)
    missing = [name for name in names if not hasattr(trained, name)]
    if missing:
        raise TypeError(
            f"{type(trained).__name__} has no {' and no '.join(missing)} after fit; expected an "
            "estimator that has trained by queries, such as ZOClassifier. A ZODenoiserDefense has "
            "not if max_epochs=0 or nothing of it is trainable."
        )
    return tuple(getattr(trained, name) for name in names)


def _trained(estimator: Any) -> Any:
    if isinstance(estimator, Pipeline):
        return _trained(estimator.steps[-1][1])
    best = getattr(estimator, "best_estimator_", None)
    return estimator if best is None else _trained(best)
