"""The tables of all methods: for equal numbers of queries, seconds, or samples."""

import statistics
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.peers.methods import METHODS
from benchmarks.records import Result

EFFORTS = {"seconds": (10, 60, 600), "samples": (6_400_000, 64_000_000, 640_000_000)}
Line = dict[str, str]


def by_budget(results: Sequence[Result]) -> list[Line]:
    """Return a line for each method: by task and budget, accuracy / train loss / CPU seconds.

    The best accuracy and the lowest loss of a column have a star; backprop takes no part.
    """
    lines = {row: {"row": row} for row in rows_of(results)}
    for task, budget in sorted({(r["case"], r["budget"]) for r in results}):
        own = [r for r in results if (r["case"], r["budget"]) == (task, budget)]
        found = {row: [r for r in own if r["row"] == row] for row in lines}
        fill(lines, f"{task} {budget:,}", found)
    return list(lines.values())


def by_effort(results: Sequence[Result], unit: str) -> list[Line]:
    """Return a line for each method: the best that any of its runs had reached by then.

    Of all checkpoints, whatever the run's budget, the one of the lowest train loss.

    Parameters
    ----------
    results : sequence of dict
        Of `run.train`.
    unit : {"seconds", "samples"}
        What is held equal: CPU seconds, or samples in all queries.
    """
    lines = {row: {"row": row} for row in rows_of(results)}
    for task in dict.fromkeys(r["case"] for r in results):
        own = [r for r in results if r["case"] == task]
        for limit in EFFORTS[unit]:
            reached = {
                row: reached_by(limit, unit, [r for r in own if r["row"] == row]) for row in lines
            }
            fill(lines, f"{task} {limit:,} {unit}", reached)
    return list(lines.values())


def reached_by(limit: float, unit: str, own: Iterable[Result]) -> list[Result]:
    """Return for each seed the checkpoint of the lowest train loss within some effort."""
    best: dict[int, Result] = {}
    for result in own:
        for point in result["curve"]:
            known = best.get(result["seed"])
            lower = known is None or point["train_loss"] < known["train_loss"]
            if point[unit] <= limit and lower:
                best[result["seed"]] = point
    return list(best.values())


def rows_of(results: Iterable[Result]) -> list[str]:
    """Return the methods that have results, in the order of the registry."""
    present = {result["row"] for result in results}
    return [row for row in METHODS if row in present]


def fill(lines: Mapping[str, Line], name: str, found: Mapping[str, Sequence[Result]]) -> None:
    """Write a column: the mean over seeds of each method's figures, the best of them marked."""
    means = {row: means_of(own) for row, own in found.items() if own}
    rivals = [mean for row, mean in means.items() if METHODS[row].by_queries]
    for row, line in lines.items():
        if row not in means:
            line[name] = "missing"
            continue
        mean, rival = means[row], METHODS[row].by_queries
        best = rival and mean["accuracy"] == max(each["accuracy"] for each in rivals)
        lowest = rival and mean["train_loss"] == min(each["train_loss"] for each in rivals)
        values = [100 * r["accuracy"] for r in found[row]]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        line[name] = (
            f"{'*' * best}{100 * mean['accuracy']:.1f}{spread} / "
            f"{'*' * lowest}{mean['train_loss']:.3g} / {mean['seconds']:.3g} s"
        )


def means_of(own: Sequence[Result]) -> dict[str, float]:
    """Return the means over seeds."""
    figures = ("accuracy", "train_loss", "seconds")
    return {figure: statistics.mean(each[figure] for each in own) for figure in figures}
