"""Tables A2 and A3: pruning before training: ``python -m benchmarks.paper.table_a2``.

The weights that are pruned stay zero; the others are trained by backprop.
"""

from collections.abc import Sequence

from benchmarks.paper.by_rule import ByRule
from benchmarks.paper.figure import Cell, Figure, main
from benchmarks.paper.networks import CUT, DIRECTIONS, RESNETS, SIZES, WHOLE, common
from benchmarks.paper.pruned import by_chance, first_order, sparse_weights, zeroth_order

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
PRUNED = {"smoke": (0.9,), "cpu": (0.5, 0.8, 0.9, 0.95), "paper": RATIOS}
PAPER = {
    "random": (92.71, 92.63, 92.40, 91.94, 91.77, 91.41, 90.57, 89.35, 86.55, 82.51),
    "FO-GraSP": (92.64, 92.44, 92.34, 92.35, 92.07, 92.00, 91.63, 90.75, 88.55, 85.48),
    "ZO-GraSP": (92.74, 92.56, 92.58, 92.46, 92.09, 91.61, 91.48, 90.21, 88.08, 84.80),
}


def cells(scale: str) -> Sequence[Cell]:
    """Return a cell for each way to prune and ratio."""
    ways = {
        "random": by_chance,
        "FO-GraSP": first_order,
        "ZO-GraSP": zeroth_order(DIRECTIONS[scale]),
    }
    return [
        Cell(
            row,
            ratio,
            RESNETS[scale],
            ByRule(f"pruned by {row}, {ratio:g}", sparse_weights(scores, ratio), common(scale)),
            paper=PAPER[row][RATIOS.index(ratio)] if scale == "paper" else None,
        )
        for ratio in PRUNED[scale]
        for row, scores in ways.items()
    ]


FIGURE = Figure(
    name="table_a2",
    title="a pruned ResNet-20, trained by backprop",
    axis="pruning ratio",
    cells=cells,
    sizes=SIZES,
    notes={"cpu": CUT, "paper": WHOLE},
)

if __name__ == "__main__":
    main(FIGURE)
