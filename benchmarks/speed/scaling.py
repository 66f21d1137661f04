"""How the cost of a gradient grows: ``python -m benchmarks.speed.scaling``.

Each series changes one size and fits ``seconds ~ size ** p`` by least squares in log-log. A loop
over d coordinates of an MLP runs d forward passes of d multiplications a sample each: its p is 2
for the parameters and 1 for the batch, less where overheads count. Of a large set
`--n-coordinates` are timed, and "full s" is the whole in proportion; `resnet-sparse` is the cost
of samples of one 90 % sparse set, so that its p tells how much is shared between coordinates.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.speed.measure import (
    Runs,
    add_options,
    exponent,
    interleaved,
    print_table,
    start,
    write_json,
)
from benchmarks.speed.problems import (
    BATCH_SIZE,
    Problem,
    cnn_problem,
    mlp_problem,
    resnet_problem,
)
from benchmarks.speed.problems import add_options as add_problem_options
from benchmarks.speed.rivals import Kept

Series = tuple[str, list[int], Callable[[int], Problem]]


def series(options: argparse.Namespace) -> dict[str, Series]:
    """Return each series: the size that it changes, its values, and the problem at a value."""

    def batched(size: int) -> argparse.Namespace:
        return argparse.Namespace(**vars(options) | {"batch_size": size})

    def sampled(n: int) -> Problem:
        resnet = resnet_problem(0.9, BATCH_SIZE, options, "resnet90")
        return resnet.sample(n, options.seed)

    return {
        "mlp-width": ("parameters", [16, 64, 256, 1_024], partial(mlp_problem, options=options)),
        "cnn-width": ("parameters", [8, 16, 32, 64], lambda w: cnn_problem(2, options, w)),
        "mlp-batch": ("batch", [32, 128, 512, 2_048], lambda n: mlp_problem(32, batched(n))),
        "cnn-batch": ("batch", [16, 32, 64, 128], lambda n: cnn_problem(1, batched(n))),
        "cnn-depth": ("parameters", [1, 2, 3, 4, 5], partial(cnn_problem, options=options)),
        "resnet-sparse": ("coordinates", [100, 200, 400, 800], sampled),
    }


def measure(name: str, found: Series, options: argparse.Namespace) -> dict[str, Any]:
    """Print the table of one series and return its figures."""
    size_name, values, make = found
    problems = {}
    for value in values[: options.points]:
        case = make(value)
        device = options.device
        case = replace(
            case, module=case.module.to(device), X=case.X.to(device), y=case.y.to(device)
        )
        problems[str(value)] = (case, case.sample(options.n_coordinates, options.seed))
    calls = {}
    for value, (_, asked) in problems.items():
        calls[value] = (partial(Kept(asked), asked), asked.n_coordinates)
    runs = interleaved(calls, options.repeats, options.device)
    rows = [row(value, *problems[value], runs[value]) for value in problems]
    whole = [figures["seconds_full"] for figures in rows]
    p = exponent([figures[size_name] for figures in rows], whole)
    print(f"\n{name}; {next(iter(problems.values()))[0].data}")
    print_table([{key: figures[key] for key in SHOWN} for figures in rows])
    print(f"seconds ~ {size_name} ** {p:.2f}")
    return {"series": name, "size": size_name, "exponent": p, "rows": rows}


SHOWN = ("value", "parameters", "coordinates", "batch", "timed", "s", "us a coordinate", "full s")


def row(value: str, case: Problem, asked: Problem, runs: Runs) -> dict[str, Any]:
    """Return the figures of one size; of a sample, the whole in proportion."""
    share = asked.n_coordinates / case.n_coordinates
    return runs.as_row() | {
        "value": value,
        "parameters": sum(p.numel() for p in case.module.parameters()),
        "coordinates": case.n_coordinates,
        "batch": len(case.X),
        "timed": asked.n_coordinates,
        "s": runs.median,
        "us a coordinate": 1e6 * runs.median / asked.n_coordinates,
        "full s": runs.median / share,
        "seconds_full": runs.median / share,
    }


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Print a table and an exponent for each series and return their figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--series", type=lambda text: text.split(","), help="default: all")
    parser.add_argument("--n-coordinates", type=int, default=4_000, help="timed at most; 0: all")
    parser.add_argument("--points", type=int, help="only this many sizes of each, 2 or more")
    add_problem_options(parser)
    add_options(parser)
    options = parser.parse_args(arguments)
    known = series(options)
    chosen = options.series or list(known)
    if unknown := set(chosen) - set(known):
        parser.error(f"{sorted(unknown)} are none of {list(known)}")

    start(options)
    rows = [measure(name, known[name], options) for name in chosen]
    print()
    print_table(
        [{"series": r["series"], "size": r["size"], "exponent": r["exponent"]} for r in rows]
    )
    write_json(options, {"series": rows})
    return rows


if __name__ == "__main__":
    main()
