"""Fig. 6 of the paper on a CPU: ``python -m benchmarks.paper.fig6 --out FILE.json``.

Shown is the mean absolute error of roll-outs of test simulations, whose conditions no corrector
has seen: of short ones from several starts (with the standard error over roll-outs), at single
steps of them, and of long ones; the part of the bare solver's error that is gone; what it took.
Figures are means over the seeds, each of which draws a corrector, batches and coordinates.

``--tune`` fits to some of the training simulations in place of all, with each setting that a row
tries, and tests on the others: no test simulation is looked at. The best is what the rows use.

A row that is in the file already, with the same settings, is not measured again.
"""

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.paper.fig6_cases import CASES, Case, Row, add_sizes, names_of, row_names
from benchmarks.paper.fig6_data import Truth, errors, gap_closed, standard_error
from benchmarks.records import as_key, machine, once
from benchmarks.speed.measure import numbers, print_table
from benchmarks.speed.problems import built
from zoestim import SolverInTheLoop
from zoestim.solvers import simulate

SHOWN_STEPS = (1, 16, 100)
DEFAULT_ROWS = ("src", "non", "nog", "ste", "zo", "fo")


class Measured:
    """The rows of one case and one seed, on one truth.

    Parameters
    ----------
    case : Case
        Solver, corrector and rows.
    truth : Truth
        What is fitted to, and what is tested on.
    seed : int
        Of the corrector, the batches and the coordinates.
    folder : Path or None
        Where correctors are kept that other rows start from.
    """

    def __init__(self, case: Case, truth: Truth, seed: int, folder: Path | None = None):
        self.case = case
        self.truth = truth
        self.seed = seed
        self.folder = folder

    def row(self, row: Row) -> dict[str, Any]:
        """Fit a row, roll it out, and return the figures."""
        case, fitted = self.case, None if row.settings is None else self.fitted(row)
        start = time.perf_counter()
        short = self.errors_of(fitted, case.starts, case.n_short)
        long = short
        if case.n_long > case.n_short:
            long = self.errors_of(fitted, (0,), case.n_long)
        seconds = time.perf_counter() - start
        at = [step for step in SHOWN_STEPS if step <= case.n_short]
        return {
            "mae": _number(short.mean()),
            "standard_error": _number(standard_error(short.mean(axis=1))),
            "at": {str(step): _number(short[:, step - 1].mean()) for step in at},
            "rollouts": [_number(value) for value in short.mean(axis=1)],
            "mae_long": _number(long.mean()),
            "long": [_number(value) for value in long.mean(axis=1)],
            "diverged": int(np.isinf(short).any(axis=1).sum()),
            "predict_seconds": round(seconds, 2),
            **(_effort(fitted) if fitted is not None else {}),
        }

    def errors_of(self, fitted: Any, starts: Sequence[int], n_steps: int) -> np.ndarray:
        """Return the error of each frame of roll-outs, by a fitted row or the bare solver."""
        X, y = self.truth.rollouts(starts, n_steps)
        if fitted is None:
            found = simulate(self.case.solver, X.states, X.conditions, n_steps=n_steps)
        else:
            found = fitted.predict(X, n_steps=n_steps)
        return errors(found, y, self.case.counted)

    def fitted(self, row: Row) -> SolverInTheLoop:
        """Return the fitted estimator of a row."""
        given = {**self.case.settings, **(row.settings or {}), "random_state": self.seed}
        corrector = built(self.case.make_corrector, self.seed)
        if row.after is not None:
            corrector.load_state_dict(self.state_of(row.after))
            given["zero_init"] = False
        X, y = self.truth.training(given["n_unroll"] if row.apart else None)
        return SolverInTheLoop(self.case.solver, corrector, **given).fit(X, y)

    def state_of(self, name: str) -> dict[str, torch.Tensor]:
        """Return what the corrector of a row has learnt, from its file if there is one."""
        if name not in self._states:
            row = self.case.rows[name]
            text = json.dumps(about(self.case, self.truth, name, row, self.seed), default=str)
            path = self.folder and self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.pt"
            if path is not None and path.exists():
                self._states[name] = torch.load(path, weights_only=True)
            else:
                self._states[name] = self.fitted(row).corrector_.state_dict()
                if path is not None:
                    torch.save(self._states[name], path)
        return self._states[name]

    @cached_property
    def _states(self) -> dict[str, dict[str, torch.Tensor]]:
        return {}


def _number(value: float) -> float | None:
    """Return what JSON can hold: six digits, and None of what is not finite."""
    return float(f"{value:.6g}") if np.isfinite(value) else None


def _effort(fitted: SolverInTheLoop) -> dict[str, Any]:
    """Return what a fit took."""
    solver, network = fitted.fit_time_solver_, fitted.fit_time_network_
    other = fitted.fit_time_other_
    return {
        "n_parameters": sum(each.numel() for each in fitted.corrector_.parameters()),
        "gradient": str(fitted.gradient_),
        "updates": int(fitted.n_updates_),
        "queries": int(fitted.n_queries_),
        "solver_steps": int(fitted.n_solver_steps_),
        "fit_seconds": round(solver + network + other, 2),
        "seconds_of": {
            "solver": round(solver, 2),
            "network": round(network, 2),
            "other": round(other, 2),
        },
    }


def about(case: Case, truth: Truth, name: str, row: Row, seed: int) -> dict[str, Any]:
    """Return what a result is the result of, as it comes back from a JSON file."""
    settings = None if row.settings is None else {**case.settings, **row.settings}
    key = {
        "row": name,
        "seed": None if settings is None else seed,
        "settings": settings,
        "after": row.after,
        "apart": row.apart,
        "solver": repr(case.solver),
        "truth": truth.about,
        "starts": list(case.starts),
        "n_short": case.n_short,
        "n_long": case.n_long,
    }
    return as_key(key)


# --- What is measured


def known_or_new(
    measured: Measured, name: str, row: Row, options: argparse.Namespace, case_name: str
) -> dict[str, Any]:
    """Return the result of a row, from the file if it is there."""
    key = about(measured.case, measured.truth, name, row, measured.seed)
    return once(options.out, {"case": case_name, **key}, lambda: measured.row(row))


def measure(name: str, options: argparse.Namespace) -> tuple[Case, list[dict[str, Any]]]:
    """Return the results of the rows of a case."""
    case = CASES[name](options)
    truth, results = case.truth(), []
    for seed in options.seeds:
        measured = Measured(case, truth, seed, options.data_dir)
        for row in names_of(options.rows):
            if row == "src" and results and seed != options.seeds[0]:
                continue  # nothing is drawn
            results.append(known_or_new(measured, row, case.rows[row], options, name))
    return case, results


def tune(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Print what each setting that is tried gives on simulations held out, and return that."""
    case = CASES[name](options)
    whole = case.truth()
    truth = whole.held_out(case.tune_every)
    more = len(whole.train) / len(truth.train)
    lines = []
    for row in names_of(options.rows):
        for candidate in _candidates(case.rows[row], more, options):
            found = [
                known_or_new(
                    Measured(case, truth, seed, options.data_dir), row, candidate, options, name
                )
                for seed in options.seeds
            ]
            tried = {key: (candidate.settings or {}).get(key) for key in _varied(case.rows[row])}
            lines.append({"row": row, **tried, "MAE": _mean(found, "mae"), "results": found})
    shown = [{k: v for k, v in line.items() if k != "results"} for line in lines]
    print(f"\n{name}: MAE of {case.n_short} steps of held-out training simulations")
    for row in names_of(options.rows):
        own = [line for line in shown if line["row"] == row]
        best = min(own, key=lambda line: np.inf if line["MAE"] is None else line["MAE"])
        print_table([{**line, "best": "*" if line is best else ""} for line in own])
    return [result for line in lines for result in line["results"]]


def _candidates(row: Row, more: float, options: argparse.Namespace) -> Iterator[Row]:
    """Give the row with each setting that it tries, and as many steps as on all simulations."""
    if row.settings is None:
        yield row
        return
    longer = {"max_epochs": round(row.settings["max_epochs"] * more)}
    for tried in row.tried or ({},):
        yield replace(row, settings={**row.settings, **longer, **tried})


def _varied(row: Row) -> list[str]:
    return list(dict.fromkeys(key for tried in row.tried for key in tried))


def _mean(results: Sequence[dict[str, Any]], key: str) -> float | None:
    values = [each[key] for each in results]
    return None if None in values else statistics.mean(values)


# --- The table


def table(case: Case, results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a line for each row: what its seeds gave, and what the paper says."""
    bare = next((each["rollouts"] for each in results if each["row"] == "src"), None)
    lines = []
    for name in row_names():
        own = [each for each in results if each["row"] == name]
        if not own:
            continue
        steps = [key for key in own[0]["at"] if int(key) in SHOWN_STEPS]
        line = {"row": case.rows[name].label, f"T={case.n_short}": _rollouts(own)}
        line |= {f"step {key}": _spread([each["at"][key] for each in own]) for key in steps}
        if case.n_long > case.n_short:
            line[f"T={case.n_long}"] = _spread([each["mae_long"] for each in own])
        line["gap closed"] = "" if bare is None or name == "src" else _gap(own, bare)
        line |= {key: _whole(own, key) for key in ("updates", "queries", "solver_steps")}
        line |= {"fit s": _whole(own, "fit_seconds"), "seeds": len(own)}
        if any(row.paper for row in case.rows.values()):
            paper = case.rows[name].paper
            line["paper"] = "" if paper is None else f"{paper:.3f}"
        lines.append(line)
    return lines


def _rollouts(own: Sequence[dict[str, Any]]) -> str:
    """Return the mean error, ± its standard error over roll-outs, each averaged over seeds."""
    if any(None in each["rollouts"] for each in own):
        return "diverged"
    each = np.mean([result["rollouts"] for result in own], axis=0)
    return f"{each.mean():.4f} ± {standard_error(each):.4f}"


def _gap(own: Sequence[dict[str, Any]], bare: Sequence[float]) -> str:
    """Return the part of the error that is gone, ± over roll-outs and ± over seeds."""
    if any(None in each["rollouts"] for each in own):
        return "-"
    per_seed = np.array([each["rollouts"] for each in own])
    closed, over_rollouts = gap_closed(per_seed.mean(axis=0), np.array(bare))
    text = f"{100 * closed:.0f} ± {100 * over_rollouts:.1f} %"
    if len(own) < 2:
        return text
    over_seeds = standard_error(1 - per_seed.mean(axis=1) / np.mean(bare))
    return f"{text} (seeds ± {100 * over_seeds:.1f})"


def _spread(values: Sequence[float | None]) -> str:
    """Return the mean, and the standard deviation over seeds if there are several."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "diverged"
    mean = f"{statistics.mean(known):.4f}"
    return mean if len(known) < 2 else f"{mean} ± {statistics.stdev(known):.4f}"


def _whole(own: Sequence[dict[str, Any]], key: str) -> str:
    return "" if key not in own[0] else f"{statistics.mean(each[key] for each in own):,.0f}"


def show(name: str, case: Case, results: Sequence[dict[str, Any]]) -> None:
    """Print the table of a case."""
    about_truth = results[0]["truth"]
    print(
        f"\n{name}: {case.solver}, the truth by a grid {about_truth['factor']} times as fine, "
        f"frames {about_truth['skip']} to {about_truth['skip'] + about_truth['n_frames']}; "
        f"{len(results[0]['rollouts'])} roll-outs of {case.n_short} steps, "
        f"{len(results[0]['long'])} of {case.n_long}"
    )
    print_table(table(case, results))
    for line in case.notes:
        print(line)


# --- The command


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    by_comma = {"type": lambda text: text.split(","), "metavar": "A,B"}
    parser.add_argument("--cases", **by_comma, default=["wake16", "burgers"], help=", ".join(CASES))
    parser.add_argument(
        "--rows", **by_comma, default=list(DEFAULT_ROWS), help=", ".join(row_names())
    )
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    parser.add_argument("--tune", action="store_true", help="choose settings, see above")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--out", type=Path, help="JSON file, to which each result is added")
    add_sizes(parser)
    options = parser.parse_args(arguments)
    if unknown := set(options.cases) - set(CASES):
        parser.error(f"there is no case {sorted(unknown)}; expected some of {list(CASES)}")
    if unknown := set(options.rows) - set(row_names()):
        parser.error(f"there is no row {sorted(unknown)}; expected some of {list(row_names())}")
    return options


def main(arguments: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Print a table for each case, and return the results of each."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    print(f"{machine()['cpu']}, {options.threads} torch thread(s); T=n: mean absolute error of n")
    print("steps ± its standard error over roll-outs; elsewhere ± is the deviation over seeds")
    found: dict[str, list[dict[str, Any]]] = {}
    for name in options.cases:
        if options.tune:
            found[name] = tune(name, options)
            continue
        case, found[name] = measure(name, options)
        show(name, case, found[name])
    return found


if __name__ == "__main__":
    main()
