"""Table A3: as Table A2, of a ResNet-18: ``python -m benchmarks.paper.table_a3``."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from benchmarks.paper import table_a2
from benchmarks.paper.figure import Cell, main
from benchmarks.paper.networks import WHOLE, Make, augmented, resnet18

WIDTHS = {"smoke": 2, "cpu": 4, "paper": 64}
PAPER = {
    "random": (95.45, 95.51, 95.32, 95.34, 95.40, 95.09, 94.92, 94.58, 93.53, 92.13),
    "FO-GraSP": (95.44, 95.46, 95.53, 95.49, 95.44, 95.86, 95.99, 95.97, 95.91, 96.19),
    "ZO-GraSP": (95.43, 95.53, 95.53, 95.56, 95.50, 95.24, 95.36, 95.28, 94.94, 94.39),
}


def cells(scale: str) -> Sequence[Cell]:
    """Return the cells of Table A2 with another network."""
    make: Make = partial(resnet18, WIDTHS[scale])
    make = partial(augmented, make) if scale == "paper" else make
    found = []
    for cell in table_a2.cells(scale):
        paper = PAPER[cell.row][table_a2.RATIOS.index(cell.at)] if scale == "paper" else None
        found.append(replace(cell, make=make, paper=paper))
    return found


FIGURE = replace(
    table_a2.FIGURE,
    name="table_a3",
    title="a pruned ResNet-18, trained by backprop",
    cells=cells,
    notes={
        "cpu": (
            "Cut: ResNet-18 of width 4 (44,650 parameters) in place of 64, 2,048 images of 16 x 16",
            "pixels, 10 epochs in batches of 64: 320 steps.",
        ),
        "paper": WHOLE,
    },
)

if __name__ == "__main__":
    main(FIGURE)
