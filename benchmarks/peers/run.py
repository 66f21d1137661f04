"""Methods beside each other on the same tasks, for the same number of queries, time, samples.

A query is one loss on one mini-batch, whoever asks. Each method starts from the same parameters,
by seed. BatchNorm normalises by the batch during a search; before a test its statistics are settled
on the training images, for all alike. A query may be on all samples, which some methods need: the
second and the third table hold CPU seconds and samples equal. Seconds are those of the method, its
tests left out: zoestim answers queries by its own engine, the others by the module, one by one.

With ``--tune``, each of a method's four settings has the whole budget with seed 0 on four fifths of
the training images. That of the best accuracy on the other fifth is then run with all seeds, of
equals that of the lower loss: once a network fits, loss only tells how sure of itself it is.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper.figure import Images
from benchmarks.peers.methods import METHODS
from benchmarks.peers.search import BudgetSpent, Method, Search
from benchmarks.peers.table import EFFORTS, by_budget, by_effort
from benchmarks.peers.tasks import TASKS
from benchmarks.records import Result, once
from benchmarks.speed.measure import numbers, print_table

BUDGETS = (50_000, 200_000, 1_000_000)
PACKAGES = ("cma", "nevergrad", "evotorch", "torchzero")


# --- Measuring


def train(
    method: Method, make: Callable[..., Any], images: Images, budget: int, seed: int, settings: Any
) -> Result:
    """Return what a method found by the budget, and its curve."""
    torch.optim.SGD([torch.zeros(1)], lr=0.1)  # a process's first optimizer imports a compiler
    search = Search(make, images, budget, seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        with contextlib.suppress(BudgetSpent):
            method.run(search, **settings)
        last = search.found()
    return {**last, "n_parameters": len(search.start), "curve": [*search.curve, last]}


def key_of(task: str, row: str, budget: int, seed: int, images: Images, settings: Any) -> Result:
    """Return all that decides a result."""
    key = {"case": task, "row": row, "budget": budget, "seed": seed}
    return {**key, "images": images.about, "settings": settings}


def measured(task: str, row: str, budget: int, images: Images, options: Any) -> list[Result]:
    """Return the results of a method for all seeds; those in the file are not measured again."""
    method, make = METHODS[row], TASKS[task].make
    settings = method.settings[0]
    if options.tune:
        held_out, tried = images.held_out(), []
        for each in method.settings:
            key = {**key_of(task, row, budget, 0, held_out, each), "tuning": True}
            run = partial(train, method, make, held_out, budget, 0, each)
            result = once(options.out, key, run)
            tried.append((-result["accuracy"], result["test_loss"]))
        settings = method.settings[tried.index(min(tried))]
    found = []
    for seed in options.seeds:
        key = {**key_of(task, row, budget, seed, images, settings), "tuned": options.tune}
        run = partial(train, method, make, images, budget, seed, settings)
        found.append(once(options.out, key, run))
    return found


def all_measured(options: argparse.Namespace) -> list[Result]:
    """Return the results of all tasks, budgets and methods but those that lack their package."""
    results = []
    for task in options.tasks:
        images = TASKS[task].load(options.data)
        for budget in options.budgets:
            for row in options.methods:
                try:
                    results += measured(task, row, budget, images, options)
                except ModuleNotFoundError as error:
                    if error.name not in PACKAGES:
                        raise
                    advice = f"{row} needs {error.name}: pip install 'zoestim[peers]'"
                    print(advice, file=sys.stderr)
    return results


# --- The command


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", type=known(TASKS), default=["T1", "T2"])
    parser.add_argument("--budgets", type=numbers, default=list(BUDGETS))
    parser.add_argument("--methods", type=known(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
    parser.add_argument("--tune", action="store_true", help="try each method's settings first")
    parser.add_argument("--out", type=Path, help="JSON file, to which each result is added")
    parser.add_argument("--data", type=Path, help="CIFAR-10 for T3a and T3b, see load_cifar10")
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    return parser.parse_args(arguments)


def known(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Return what picks the names in a text with commas, or all that contain a part of one."""

    def pick(text: str) -> list[str]:
        words = [word.strip() for word in text.split(",")]
        strange = [word for word in words if not any(word in name for name in names)]
        if strange:
            raise argparse.ArgumentTypeError(f"{strange} are not among {list(names)}")
        parts = [word for word in words if word not in names]
        return [name for name in names if name in words or any(part in name for part in parts)]

    return pick


def main(arguments: Sequence[str] | None = None) -> list[Result]:
    """Print the tables, and return the results."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    results = all_measured(options)
    print("Test accuracy in % / train loss / CPU seconds, by budget of queries")
    print_table(by_budget(results))
    for unit in EFFORTS:
        print(f"\nThe same within so many {unit}, the best of all budgets by train loss")
        print_table(by_effort(results, unit))
    return results
