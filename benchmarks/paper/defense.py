"""Table 2 of the paper on a CPU: ``python -m benchmarks.paper.defense --out FILE.json``.

Shown are certified accuracy (an abstention is an error), accuracy of the majority vote, the average
certified radius and the queries of training: means over the seeds, and standard deviations. A seed
draws the black box, the denoiser, batches and noise. The rows of a seed share the black box, the
pretrained denoiser and the noise of the certificates; beside them is what the paper reports.

A row that is in the file already, with the same settings, is not measured again.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.paper.boxes import first_order
from benchmarks.paper.defense_cases import CASES, ENDLESS, Case, Row, add_sizes, row_names
from benchmarks.records import as_key, machine, once
from benchmarks.speed.measure import numbers, print_table
from zoestim import ZODenoiserDefense, max_certifiable_radius
from zoestim.certification import average_certified_radius, certified_accuracy

RADII = (0.0, 0.25, 0.5, 0.75)
N0, ALPHA = 100, 1e-3


class Measured:
    """The rows of one case and one seed, on one black box and one pretrained denoiser.

    Parameters
    ----------
    case : Case
        Data, black box and rows.
    seed : int
        Draws all that is random but the black box.
    """

    def __init__(self, case: Case, seed: int):
        self.case = case
        self.seed = seed

    @cached_property
    def pretrained(self) -> nn.Module:
        """The denoiser that was trained by the squared error alone."""
        return self.fitted({"max_epochs": 0}).white_[0]

    def defense(self, row: Row) -> ZODenoiserDefense:
        """Return the fitted defense of a row."""
        started: dict[str, Any] = {"init_denoiser": self.pretrained}
        if row.settings.get("denoiser", "dncnn") is None:
            return self.fitted({**row.settings, "max_epochs": 0})
        if not row.per_image:
            return self.fitted({**started, "max_epochs": 0})
        if row.by == "backprop":
            started["init_denoiser"] = self.by_backprop(row)
            return self.fitted({**started, "max_epochs": 0})
        budget = {"max_queries": self.case.budget, "max_epochs": ENDLESS}
        return self.fitted({**row.settings, **started, **budget})

    def by_backprop(self, row: Row) -> nn.Module:
        """Return the denoiser that as many steps of backprop give as queries would allow."""
        given = {**self.case.settings, **row.settings}
        return first_order(
            self.pretrained,
            self.case.box,
            self.case.train[0],
            image=self.case.image,
            noise_std=given["noise_std"],
            last_only=given["trainable"] == "last",
            n_steps=self.n_steps(row),
            batch_size=given["batch_size"],
            lr=given["lr"],
            seed=self.seed,
        )

    def n_steps(self, row: Row) -> int:
        """Return how many steps the budget of a row allows."""
        batch_size = {**self.case.settings, **row.settings}["batch_size"]
        asked = self.case.budget - len(self.case.train[0])
        return max(1, asked // (batch_size * row.per_image))

    def row(self, row: Row, n: int) -> dict[str, Any]:
        """Defend as a row says, certify the test samples, and return the figures."""
        self.pretrained  # noqa: B018 (not part of the first row's seconds)
        start = time.perf_counter()
        defense = self.defense(row)
        fitted = time.perf_counter()
        X, y = self.case.test
        found = defense.certify(X, N0, n, ALPHA, random_state=self.seed)
        at = certified_accuracy(y, found.label, found.radius, RADII)
        # What so few draws cannot certify is no result.
        most = max_certifiable_radius(n, ALPHA, defense.noise_std)
        majority = defense.classes_[found.counts.argmax(1)]
        right = np.where(found.label == y, found.radius, 0.0)
        backprop = row.by == "backprop"
        return {
            "certified": [float(a) if r <= most else None for r, a in zip(RADII, at, strict=True)],
            "majority": float((majority == y).mean()),
            "acr": average_certified_radius(y, found.label, found.radius),
            "black_box_accuracy": self.black_box_accuracy(),
            "queries": None if backprop else defense.n_queries_,
            "steps": self.n_steps(row) if row.per_image else 0,
            "fit_seconds": round(fitted - start, 2),
            "certify_seconds": round(time.perf_counter() - fitted, 2),
            "right_radii": right.round(4).tolist(),
        }

    def black_box_accuracy(self) -> float:
        """Return the accuracy of the black box alone on clean test samples."""
        X, y = self.case.test
        return float((self.case.probabilities(X).argmax(1) == y).mean())

    def fitted(self, given: dict[str, Any]) -> ZODenoiserDefense:
        """Return a fitted defense, of the case's parameters and these."""
        settings = {**self.case.settings, **given, "random_state": self.seed}
        return ZODenoiserDefense(self.case.box, **settings).fit(self.case.train[0])


def about(name: str, case: Case, seed: int, row: Row, n: int) -> dict[str, Any]:
    """Return what a result is the result of, as it comes back from a JSON file."""
    settings = {**case.settings, **row.settings, "by": row.by, "budget": case.budget}
    sizes = {"n_train": len(case.train[0]), "n_test": len(case.test[0]), "n0": N0, "n": n}
    key = {"case": name, "row": row.label, "seed": seed, "settings": settings, "alpha": ALPHA}
    return as_key({**key, **sizes})


# --- The table


def table(rows: Sequence[Row], results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a line for each row: what its seeds gave, and what the paper says."""
    lines = []
    for row in rows:
        own = [each for each in results if each["row"] == row.label]
        if not own:
            continue
        certified = zip(*(each["certified"] for each in own), strict=True)
        queries = [each["queries"] for each in own]
        lines.append(
            {
                "row": row.label,
                **{
                    f"CA {r:g}": spread(found, 100, 1)
                    for r, found in zip(RADII, certified, strict=True)
                },
                "majority": spread([each["majority"] for each in own], 100, 1),
                "ACR": spread([each["acr"] for each in own], 1, 3),
                "queries": "backprop" if None in queries else f"{statistics.mean(queries):,.0f}",
                "fit s": spread([each["fit_seconds"] for each in own], 1, 0),
                "seeds": len(own),
                "paper's CA": " / ".join(f"{figure:.2f}" for figure in row.paper),
            }
        )
    return lines


def spread(figures: Sequence[float | None], scale: float, digits: int) -> str:
    """Return the mean, and the standard deviation if there are several."""
    known = [scale * figure for figure in figures if figure is not None]
    if not known:
        return "-"
    mean = f"{statistics.mean(known):.{digits}f}"
    return mean if len(known) < 2 else f"{mean} ± {statistics.stdev(known):.{digits}f}"


# --- The command


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    by_comma = {"type": lambda text: text.split(","), "metavar": "A,B"}
    parser.add_argument("--cases", **by_comma, default=list(CASES)[:3], help=", ".join(CASES))
    parser.add_argument("--rows", **by_comma, help="such as mse,last; default: all of a case")
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    parser.add_argument("--n", type=int, default=1000, help="draws of a certificate")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--out", type=Path, help="JSON file, to which each result is added")
    add_sizes(parser)
    options = parser.parse_args(arguments)
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"there is no case {sorted(unknown)}; expected some of {list(CASES)}")
    if unknown := set(options.rows or ()) - row_names():
        parser.error(f"there is no row {sorted(unknown)}; expected some of {sorted(row_names())}")
    return options


def chosen(case: Case, names: Sequence[str] | None) -> list[Row]:
    """Return the rows of a case that were asked for; a case may lack some."""
    return [row for name, row in case.rows.items() if names is None or name in names]


def measure(
    options: argparse.Namespace, name: str, seed: int
) -> tuple[list[Row], list[dict[str, Any]]]:
    """Return rows and results of one case and seed; those in the file are not measured again."""
    case = CASES[name](options, seed)
    rows, measured, results = chosen(case, options.rows), Measured(case, seed), []
    for row in rows:
        key = about(name, case, seed, row, options.n)
        results.append(once(options.out, key, partial(measured.row, row, options.n)))
    return rows, results


def show(name: str, rows: Sequence[Row], results: Sequence[dict[str, Any]]) -> None:
    """Print the table of a case."""
    first = results[0]
    box = statistics.mean(each["black_box_accuracy"] for each in results)
    print(
        f"\n{name}: sigma {first['settings']['noise_std']}, n {first['n']}, {first['n_test']} test "
        f"samples; the black box alone is right on {100 * box:.1f} % without noise"
    )
    print_table(table(rows, results))


def main(arguments: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Print a table for each case, and return the results of each."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    print(f"{machine()['cpu']}, {options.threads} torch thread(s); paper: Table 2, ImageNet-10,")
    print("to be compared as a ranking only; ± is the standard deviation over seeds")
    found: dict[str, list[dict[str, Any]]] = {}
    for name in options.cases:
        found[name] = []
        for seed in options.seeds:
            rows, results = measure(options, name, seed)
            found[name] += results
        if found[name]:
            show(name, rows, found[name])
    return found


if __name__ == "__main__":
    main()
