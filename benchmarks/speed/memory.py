"""The peak memory of one gradient: ``python -m benchmarks.speed.memory``.

Each row is a process of its own: how far the largest resident set of one evaluation lies above
that of the base pass and the imports, for numbers of coordinates and memory budgets. It should
depend on the budget and not on the number. What of the unperturbed pass is kept for all queries
is in it; that grows with the model and the batch.
"""

import argparse
import multiprocessing
import resource
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.speed.measure import add_options, numbers, print_table, start, write_json
from benchmarks.speed.problems import CASES, load_case
from benchmarks.speed.problems import add_options as add_problem_options
from benchmarks.speed.rivals import Kept

MIB = 2**20


def peak() -> float:
    """Return the largest resident set of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def row(options: argparse.Namespace, task: tuple[int, int | None]) -> dict[str, Any]:
    """Estimate in this process, and return by how much its peak grows."""
    n, budget = task
    case = load_case(options.case, options)
    kept = Kept(case)
    kept.objective.memory_budget = None if budget is None else budget * MIB
    kept(case.sample(1, options.seed))
    before = peak()
    kept(case.sample(n, options.seed))
    name = "default" if budget is None else budget
    return {
        "coordinates": n,
        "budget MiB": name,
        "before MiB": before,
        "grown MiB": peak() - before,
    }


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Print the table and return its rows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", choices=CASES, default="cnn3700")
    parser.add_argument("--n-coordinates", type=numbers, default=[200, 800, 3200])
    parser.add_argument("--budgets", type=numbers, default=[8, 32, 128], help="in MiB")
    add_problem_options(parser)
    add_options(parser)
    options = parser.parse_args(arguments)

    start(options)
    tasks = [(n, budget) for budget in (*options.budgets, None) for n in options.n_coordinates]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        rows = pool.map(partial(row, options), tasks, chunksize=1)
    print_table(rows)
    write_json(options, {"case": options.case, "rows": rows})
    return rows


if __name__ == "__main__":
    main()
