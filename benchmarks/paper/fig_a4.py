"""Fig. A4: DeepZero and backprop epoch by epoch: ``python -m benchmarks.paper.fig_a4``.

The paper shows curves, which end at the numbers of its Fig. 4.
"""

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.paper import fig4
from benchmarks.paper.figure import Cell, main

SPARSITY = {"dense backprop": 0.0, "DeepZero": 0.9}


def cells(scale: str) -> Sequence[Cell]:
    """Return the cells of Fig. 4 that are followed."""
    return [cell for cell in fig4.cells(scale) if SPARSITY.get(cell.row) == cell.at]


FIGURE = replace(
    fig4.FIGURE,
    name="fig_a4",
    title="DeepZero (90 % sparse) and dense backprop, epoch by epoch",
    cells=cells,
    by_epoch=True,
)

if __name__ == "__main__":
    main(FIGURE)
