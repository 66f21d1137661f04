"""All results beside the paper's numbers: ``python -m benchmarks.report``.

It reads `benchmarks/results`, runs nothing, and writes `docs/reproduction.md` and its pictures.
What has not been run is shown as missing.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper import defense, fig6
from benchmarks.paper.all import FIGURES
from benchmarks.paper.defense_cases import rows_of_cifar10, rows_of_digits, rows_of_sklearn
from benchmarks.paper.figure import RESULTS, Figure, table
from benchmarks.peers.curves import draw
from benchmarks.peers.table import EFFORTS, by_budget, by_effort
from benchmarks.peers.tasks import TASKS
from benchmarks.records import Result, read

DOCS = Path(__file__).parents[1] / "docs"
SHOWN = ("cpu", "paper")
ROWS: dict[str, Callable[[], dict[str, defense.Row]]] = {
    "digits": rows_of_digits,
    "forest": lambda: rows_of_sklearn({}),
    "mlp": lambda: rows_of_sklearn({}),
    "cifar10": rows_of_cifar10,
}
HEAD = """# Reproduction

The paper's experiments, run with zoestim, beside the numbers of the paper in brackets. The scale
`cpu` is each experiment cut to minutes on two cores; `paper` is the whole. ± is the standard
deviation over seeds. Written by `python -m benchmarks.report` from `benchmarks/results`; what is
missing has not been run.

## What holds at CPU scale

Accuracies are those of networks of some thousand parameters after some hundred steps: compare
rows, not numbers with the paper's. Differences within the deviation decide nothing.

- **As in the paper.** CGE follows backprop at every depth, RGE with as many queries is below it
  (Fig. 2). DeepZero is close to backprop with sparse gradients and, from 90 % on, above backprop
  with sparse weights (Fig. 4). It is above feedback alignment, direct feedback alignment and
  Align-ada in a network of the same width (Table 1). ZO-GraSP prunes better than chance, the more
  so the more is pruned, and nearly as well as with gradients (Tables A2, A3). Sets renewed by
  layer-wise ratios (SR) are above the alternatives at 90 and 95 % (Fig. A3), within the
  deviation.
- **Later than in the paper.** Pattern Search is ahead on few images, DeepZero on many: here from
  2,000 images, there from 500 (Fig. 5, one seed).
- **Not as in the paper.** Pattern Search with its 400,000 queries is ahead of DeepZero in the
  narrow network of Fig. 1D, where DeepZero asks a tenth of them (one seed). Large batches lose
  much more (Fig. A5): with so few images they leave few steps. Two workers on two cores make a
  third more steps an hour (Fig. A6): steps take less than a second here, and sharing them out has
  its price.
- **Much faster than in the paper.** Without feature reuse and folds, a step of CGE takes tens of
  times as long on one core (Fig. 3); in the paper twice.
- **Not run.** Everything at the scale `paper`, which needs GPUs. `benchmarks/gpu.sh` runs the
  speed of a gradient and ResNet-20 at 99 and 90 % sparsity in slices that go on from their
  checkpoint; what it does has been run on a CPU at its smallest size only.
"""


def markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """Return lines of the same columns as a table."""
    columns = list(lines[0])
    rows = [columns, ["---"] * len(columns), *([str(line[c]) for c in columns] for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def section(figure: Figure, results: Sequence[Result], folder: Path) -> Iterator[str]:
    """Give the paragraphs of a figure, and draw it."""
    yield f"## {figure.label}: {figure.title}"
    for scale in SHOWN:
        own = [each for each in results if each["scale"] == scale]
        command = f"`python -m benchmarks.paper.{figure.name} --scale {scale}`"
        yield f"{command}: {figure.value.replace('_', ' ')} by {figure.axis}."
        yield markdown(table(figure, scale, own))
        if own:
            yield effort(own)
            draw_it = trajectory if figure.by_epoch else plot
            drawn = draw_it(figure, own, folder / f"{figure.name}_{scale}.png")
            if drawn is not None:
                yield f"![{figure.title}]({folder.name}/{drawn.name})"
        yield from (" ".join(note) for note in [figure.notes.get(scale)] if note)


def effort(own: Sequence[Result]) -> str:
    """Return on what, and how long, all that was run."""
    devices = sorted({each["environment"]["device_name"] for each in own})
    seconds = sum(each.get("seconds", 0.0) for each in own)
    took = f", {seconds / 3600:.1f} hours of fits in all" if seconds else ""
    images = sorted({each["images"] for each in own})
    return f"{'; '.join(images)}. {', '.join(devices)}{took}."


def plot(figure: Figure, own: Sequence[Result], path: Path) -> Path | None:
    """Draw a line for each row that has several places, and return the file, or None."""
    import matplotlib.pyplot as plt

    lines: dict[str, dict[float, list[float]]] = {}
    for each in own:
        places = lines.setdefault(each["row"], {})
        places.setdefault(float(each["at"]), []).append(figure.unit * each[figure.value])
    if max(len(places) for places in lines.values()) < 2:
        return None
    shown, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for row, places in lines.items():
        at = sorted(places)
        means = [statistics.mean(places[x]) for x in at]
        spread = [statistics.stdev(places[x]) if len(places[x]) > 1 else 0.0 for x in at]
        if len(at) == 1:
            axes.axhline(means[0], color="0.5", linestyle="--", label=row)
        else:
            axes.errorbar(at, means, spread, marker="o", capsize=3, label=row)
    at = sorted({x for places in lines.values() if len(places) > 1 for x in places})
    if at[0] > 0 and at[-1] > 10 * at[0]:
        axes.set_xscale("log")
    axes.set_xticks(at, [f"{x:g}" for x in at], fontsize="small")
    axes.minorticks_off()
    heights = [y for places in lines.values() for seeds in places.values() for y in seeds if y > 0]
    if max(heights) > 100 * min(heights):
        axes.set_yscale("log")
    axes.set(xlabel=figure.axis, ylabel=axis_label(figure))
    shown.legend(loc="outside right upper", fontsize="small")
    return saved(shown, path)


def axis_label(figure: Figure) -> str:
    """Return what is measured, in which unit."""
    return figure.value.replace("_", " ") + (" (%)" if figure.unit == 100 else "")


def trajectory(figure: Figure, own: Sequence[Result], path: Path) -> Path:
    """Draw accuracy and loss of each epoch, means over seeds with their deviation."""
    import matplotlib.pyplot as plt

    shown, panels = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    curves = (("accuracies", figure.unit, axis_label(figure)), ("losses", 1.0, "training loss"))
    for axes, (name, unit, label) in zip(panels, curves, strict=True):
        for row in dict.fromkeys(each["row"] for each in own):
            runs = unit * np.array([each[name] for each in own if each["row"] == row])
            epochs, mean, spread = range(1, 1 + runs.shape[1]), runs.mean(0), runs.std(0)
            axes.plot(epochs, mean, marker=".", label=row)
            axes.fill_between(epochs, mean - spread, mean + spread, alpha=0.2)
        axes.set(xlabel="epoch", ylabel=label)
    panels[0].legend(fontsize="small")
    return saved(shown, path)


def saved(shown: Any, path: Path) -> Path:
    """Write a picture to its file, and return the file."""
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    shown.savefig(path, dpi=100)
    plt.close(shown)
    return path


def wakes() -> Iterator[str]:
    """Give the paragraphs of Fig. 6."""
    yield "## Fig. 6: a correction through a solver without gradients"
    results = read(RESULTS / "fig6.json")
    for name in fig6.CASES:
        case = fig6.CASES[name](fig6.parse([]))
        yield f"`python -m benchmarks.paper.fig6 --cases {name}`: {case.solver}."
        own = [each for each in results if each["case"] == name]
        yield markdown(fig6.table(case, own)) if own else "missing"
        yield " ".join(case.notes)


def defenses() -> Iterator[str]:
    """Give the paragraphs of Table 2."""
    yield "## Table 2: a black-box defense"
    results = read(RESULTS / "defense.json")
    for name in ROWS:
        own = [each for each in results if each["case"] == name]
        yield f"`python -m benchmarks.paper.defense --cases {name}`"
        yield markdown(defense.table(list(ROWS[name]().values()), own)) if own else "missing"


def peers(folder: Path) -> Iterator[str]:
    """Give the paragraphs of what else a user could pick, and draw their curves."""
    yield "## Other methods, for the same number of queries"
    found = [each for each in read(RESULTS / "peers.json") if each.get("tuned")]
    yield (
        "`python -m benchmarks.peers --tune`: test accuracy in % / train loss / CPU seconds. A "
        "query is one loss on one mini-batch; a star is the best. Backprop is the ceiling."
    )
    if not found:
        yield "missing"
        return
    yield markdown(by_budget(found))
    for unit in EFFORTS:
        yield f"Within so many {unit}, whatever the budget:"
        yield markdown(by_effort(found, unit))
    for task in dict.fromkeys(each["case"] for each in found):
        drawn = draw([r for r in found if r["case"] == task], folder / f"peers_{task}.png")
        yield f"![{TASKS[task].title}]({folder.name}/{drawn.name})"


def main(arguments: Sequence[str] | None = None) -> Path:
    """Write the page, and return it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--docs", type=Path, default=DOCS, help="the folder of the page")
    docs = parser.parse_args(arguments).docs
    paragraphs = [HEAD.strip()]
    for figure in FIGURES:
        paragraphs += section(figure, read(figure.path), docs / "reproduction")
    paragraphs += [*wakes(), *defenses(), *peers(docs / "reproduction")]
    page = docs / "reproduction.md"
    page.write_text("\n\n".join(paragraphs) + "\n")
    print(page)
    return page


if __name__ == "__main__":
    main()
