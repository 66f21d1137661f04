"""Untouched defaults beside scikit-learn's MLPs: ``python -m benchmarks.defaults``.

Each estimator stands in ``make_pipeline(StandardScaler(), ...)`` with ``random_state`` set and
nothing else, and is scored by cross-validation on the same folds: accuracy for classes, R2 for
the regression.

ZORegressor standardises the targets within its fit; MLPRegressor does not, and fails on diabetes
untouched. The fair row is therefore the one where it gets standardised targets too.
"""

import argparse
import json
import os
import platform
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, StratifiedKFold, cross_validate
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import zoestim
from zoestim import ZOClassifier, ZORegressor


def scaled_targets_mlp(random_state: int) -> TransformedTargetRegressor:
    """Return MLPRegressor on standardised targets, predictions scaled back."""
    return TransformedTargetRegressor(
        MLPRegressor(random_state=random_state), transformer=StandardScaler()
    )


CLASSES = (ZOClassifier, MLPClassifier, StratifiedKFold)
DATASETS = {
    "iris": (load_iris, *CLASSES),
    "wine": (load_wine, *CLASSES),
    "breast cancer": (load_breast_cancer, *CLASSES),
    "digits": (load_digits, *CLASSES),
    "diabetes": (load_diabetes, ZORegressor, scaled_targets_mlp, KFold),
    "diabetes, raw y": (load_diabetes, ZORegressor, MLPRegressor, KFold),
}


def measure(name: str, n_folds: int, seed: int) -> dict[str, Any]:
    """Return scores, queries and seconds a fit of both estimators on one dataset."""
    load, ours, theirs, splitter = DATASETS[name]
    X, y = load(return_X_y=True)
    folds = splitter(n_folds, shuffle=True, random_state=seed)
    row: dict[str, Any] = {"dataset": name, "n_samples": len(X), "n_features": X.shape[1]}
    for kind, estimator in (("zoestim", ours), ("mlp", theirs)):
        pipeline = make_pipeline(StandardScaler(), estimator(random_state=seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # 200 epochs are its default
            found = cross_validate(pipeline, X, y, cv=folds, return_estimator=True)
        row[f"{kind}_scores"] = found["test_score"].tolist()
        row[f"{kind}_seconds"] = found["fit_time"].tolist()
        if kind == "zoestim":
            row["queries"] = [fitted[-1].n_queries_ for fitted in found["estimator"]]
    return row


def versions() -> dict[str, Any]:
    """Return what the figures depend on besides the code of this file."""
    return {
        "zoestim": zoestim.__version__,
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
    }


def header() -> str:
    """Return the names of the columns."""
    return (
        f"{'':16}{'zoestim':>18}{'MLP':>18}{'difference':>12}"
        f"{'queries':>10}{'seconds':>9}{'MLP s':>8}"
    )


def line(row: dict[str, Any]) -> str:
    """Return one row of the table: means over the folds, and their standard deviations."""
    ours, theirs = np.array(row["zoestim_scores"]), np.array(row["mlp_scores"])
    return (
        f"{row['dataset']:16}{ours.mean():10.3f} ± {ours.std():.3f}"
        f"{theirs.mean():10.3f} ± {theirs.std():.3f}{ours.mean() - theirs.mean():+12.3f}"
        f"{np.mean(row['queries']):10,.0f}{np.mean(row['zoestim_seconds']):9.2f}"
        f"{np.mean(row['mlp_seconds']):8.2f}"
    )


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Print the table and return its rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the figures and versions here, as JSON")
    options = parser.parse_args(arguments)

    print(f"{options.folds}-fold mean score (accuracy; R2 on diabetes), queries and seconds a fit")
    print(header())
    rows = []
    for name in options.datasets:
        rows.append(measure(name, options.folds, options.seed))
        print(line(rows[-1]), flush=True)
    if options.out is not None:
        content = {"options": vars(options) | {"out": None}, "versions": versions(), "rows": rows}
        options.out.write_text(json.dumps(content, indent=1) + "\n")
    return rows


if __name__ == "__main__":
    main()
