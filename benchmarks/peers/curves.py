"""Train loss by queries and by CPU seconds, a line for each method, as a picture."""

import statistics
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from benchmarks.peers.methods import METHODS
from benchmarks.records import Result


def draw(results: Sequence[Result], path: Path) -> Path:
    """Draw the curves of one task, of the largest budget of each method, and return the file.

    zoestim's are solid, the others' dashed.
    """
    import matplotlib.pyplot as plt

    shown, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    lines = [row for row in METHODS if any(each["row"] == row for each in results)]
    drawn = {"-": count(), "--": count()}
    for row in lines:
        line = "-" if row.startswith("zoestim") else "--"
        style = {"color": f"C{next(drawn[line])}", "linestyle": line}
        own = [each for each in results if each["row"] == row]
        largest = max(each["budget"] for each in own)
        points = mean_curve([each["curve"] for each in own if each["budget"] == largest])
        for place, by in zip(axes, ("queries", "seconds"), strict=True):
            some = [point for point in points if point[by] > 0]
            x, y = [p[by] for p in some], [p["train_loss"] for p in some]
            place.plot(x, y, marker=".", label=row, **style)
    axes[0].set(xlabel="queries", ylabel="train loss", xscale="log", yscale="log")
    axes[1].set(xlabel="CPU seconds", xscale="log")
    shown.legend(handles=axes[0].lines, loc="outside right upper", fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    shown.savefig(path, dpi=100)
    plt.close(shown)
    return path


def mean_curve(curves: Sequence[Sequence[Result]]) -> list[dict[str, float]]:
    """Return the means over seeds of the points that all have."""
    figures = ("queries", "seconds", "train_loss", "accuracy")
    return [
        {figure: statistics.mean(point[figure] for point in points) for figure in figures}
        for points in zip(*curves, strict=False)
    ]
