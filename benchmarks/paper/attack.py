"""Attack what is certified: ``python -m benchmarks.paper.attack``.

Samples of the test set are certified; then each is moved, by queries alone, to where its class has
the smallest margin within so many times its radius, and fresh noise votes there. Counted are the
samples where another class wins that vote ("broken"), and, beyond what its draws explain, those

- whose class has not half of the votes, which no certificate allows within the radius;
- whose class has less than the certificate leaves it at that distance, in a ball of any size:
  Phi(Phi^-1(p) - distance / sigma), where p is the lower bound ("below floor").

That the attack is not blind shows in larger balls, and on the black box without noise and
denoiser in balls of the same size.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import norm

from benchmarks.paper.defense import ALPHA, N0, Measured
from benchmarks.paper.defense_cases import CASES, Case, add_sizes
from benchmarks.paper.query_attack import Effort, MeanUnderNoise, attacked
from benchmarks.records import machine
from benchmarks.speed.measure import print_table
from zoestim import ZODenoiserDefense, clopper_pearson_lower


@dataclass(frozen=True)
class Targets:
    """Certified samples.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        The samples.
    classes : ndarray of int, of shape (n,)
        What they are certified as.
    radius, p_lower : ndarray of shape (n,)
        Their certificates.
    """

    X: np.ndarray
    classes: np.ndarray
    radius: np.ndarray
    p_lower: np.ndarray

    @classmethod
    def of(cls, defense: ZODenoiserDefense, X: np.ndarray, n: int, seed: int) -> "Targets":
        """Return the samples that can be certified, right or wrong."""
        found = defense.certify(X, N0, n, ALPHA, random_state=seed)
        kept = ~found.abstained
        columns = np.searchsorted(defense.classes_, found.label[kept])
        return cls(X[kept], columns, found.radius[kept], found.p_lower[kept])


def on_smoothed(
    options: argparse.Namespace, case: Case, defense: ZODenoiserDefense, targets: Targets,
    factor: float,
) -> dict[str, Any]:  # fmt: skip
    """Attack the vote within `factor` times the certified radii."""
    rng = np.random.default_rng(options.seed)
    noise = defense.noise_std * rng.standard_normal((options.n_bank, targets.X.shape[1]))
    means = MeanUnderNoise(lambda rows: case.probabilities(defense.denoise(rows)), noise)
    # Rounding must not carry a sample out of its ball.
    radii = factor * targets.radius * (1 - 1e-9)
    found = attacked(means, targets.X, targets.classes, radii, effort(options), rng)
    # A seed of its own: the attack knew the bank, and the vote must not.
    counts = defense.certify(found, N0, options.n_votes, random_state=options.seed + 1).counts
    own = counts[np.arange(len(found)), targets.classes]
    distance = np.linalg.norm(found - targets.X, axis=1)
    floor = norm.cdf(norm.ppf(targets.p_lower) - distance / defense.noise_std)
    most = 1 - clopper_pearson_lower(options.n_votes - own, options.n_votes, ALPHA)
    return {
        "classifier": "smoothed",
        "ball": f"{factor:g} x radius",
        "samples": len(found),
        "mean distance": float(distance.mean()),
        "broken": int((counts.argmax(1) != targets.classes).sum()),
        "below half": int((most < 0.5).sum()),
        "below floor": int((most < floor).sum()),
        "least share": float(own.min() / options.n_votes),
        "mean share": float(own.mean() / options.n_votes),
        "queries": means.n_queries,
    }


def on_black_box(
    options: argparse.Namespace, case: Case, targets: Targets, factor: float
) -> dict[str, Any]:
    """Attack the black box alone, without noise, where it agrees with the certified class."""
    agrees = case.probabilities(targets.X).argmax(1) == targets.classes
    X, classes = targets.X[agrees], targets.classes[agrees]
    means = MeanUnderNoise(case.probabilities, np.zeros((1, targets.X.shape[1])))
    radii, rng = factor * targets.radius[agrees], np.random.default_rng(options.seed)
    found = attacked(means, X, classes, radii, effort(options), rng)
    left = case.probabilities(found).argmax(1) != classes
    return {
        "classifier": "black box",
        "ball": f"{factor:g} x radius",
        "samples": len(X),
        "mean distance": float(np.linalg.norm(found - X, axis=1).mean()),
        "broken": int(left.sum()),
        "below half": None,
        "below floor": None,
        "least share": None,
        "mean share": None,
        "queries": means.n_queries,
    }


def effort(options: argparse.Namespace) -> Effort:
    """Return how hard the options say to try."""
    return Effort(options.steps, options.directions, options.starts)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", choices=["digits", "forest", "mlp"], default="digits")
    parser.add_argument("--row", default="last", help="such as undefended, mse, ae16, last-scores")
    by_comma = {"type": lambda text: [float(part) for part in text.split(",")], "metavar": "1,2"}
    parser.add_argument("--factors", **by_comma, default=[1, 2, 3], help="balls, in radii")
    parser.add_argument("--n", type=int, default=1000, help="draws of a certificate")
    parser.add_argument("--n-bank", type=int, default=50, help="draws that the attack sees")
    parser.add_argument("--n-votes", type=int, default=10_000, help="draws of the verdict")
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--directions", type=int, default=16)
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the rows here, as JSON")
    add_sizes(parser)
    parser.set_defaults(n_test=30)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Print the table and return its rows."""
    options = parse(arguments)
    torch.set_num_threads(1)
    case = CASES[options.case](options, options.seed)
    row = case.rows[options.row]
    defense = Measured(case, options.seed).defense(row)
    targets = Targets.of(defense, case.test[0], options.n, options.seed)
    print(
        f"{options.case}, {row.label}: {len(targets.X)} of {len(case.test[0])} samples certified, "
        f"sigma {defense.noise_std}, radii {targets.radius.min():.3f} to "
        f"{targets.radius.max():.3f}; {options.starts} starts of {options.steps} steps of "
        f"{options.directions} directions on {options.n_bank} draws, {options.n_votes} votes"
    )
    rows = [on_smoothed(options, case, defense, targets, each) for each in options.factors]
    rows += [on_black_box(options, case, targets, each) for each in options.factors]
    print_table(rows)
    if options.out is not None:
        given = {**vars(options), "out": None}
        content = {"options": given, "environment": machine(), "rows": rows}
        options.out.write_text(json.dumps(content, indent=1, default=str) + "\n")
    return rows


if __name__ == "__main__":
    main()
