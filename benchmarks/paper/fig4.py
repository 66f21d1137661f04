"""Fig. 4: sparse training by queries and by backprop: ``python -m benchmarks.paper.fig4``.

Fig. 4 shows the accuracy of each sparsity, and of dense training (sparsity 0).
"""

from collections.abc import Sequence

from benchmarks.baselines.backprop import Backprop
from benchmarks.paper.by_rule import ByRule
from benchmarks.paper.figure import ByQueries, Cell, Figure, main
from benchmarks.paper.networks import CUT, DIRECTIONS, RATES, RESNETS, SIZES, WHOLE, common, queried
from benchmarks.paper.pruned import first_order, sparse_gradients, sparse_weights, zeroth_order

SPARSITIES = {"smoke": (0.9,), "cpu": (0.8, 0.9, 0.95, 0.99), "paper": (0.8, 0.9, 0.95, 0.99)}
PAPER = {
    "backprop with sparse gradients": {0.8: 90.12, 0.9: 88.55, 0.95: 86.98, 0.99: 78.1},
    "backprop with sparse weights": {0.8: 88.59, 0.9: 86.25, 0.95: 82.95, 0.99: 68.22},
    "DeepZero": {0.8: 86.94, 0.9: 86.46, 0.95: 84.26, 0.99: 73.37},
}
DENSE = 92.85


def cells(scale: str) -> Sequence[Cell]:
    """Return a cell for each method and sparsity."""
    make, at_paper = RESNETS[scale], scale == "paper"
    dense = ByRule("backprop", lambda *given: Backprop(), common(scale))
    found = [Cell("dense backprop", 0.0, make, dense, paper=DENSE if at_paper else None)]
    for sparsity in SPARSITIES[scale]:
        given = common(scale, lr=RATES[scale])
        methods = {
            "backprop with sparse gradients": ByRule(
                f"sparse gradients, {sparsity:g}",
                sparse_gradients(zeroth_order(DIRECTIONS[scale]), sparsity),
                given,
            ),
            "backprop with sparse weights": ByRule(
                f"sparse weights, {sparsity:g}", sparse_weights(first_order, sparsity), given
            ),
            "DeepZero": ByQueries(queried(scale, sparsity=sparsity)),
        }
        for row, method in methods.items():
            paper = PAPER[row][sparsity] if at_paper else None
            found.append(Cell(row, sparsity, make, method, paper=paper))
    return found


FIGURE = Figure(
    name="fig4",
    title="ResNet-20 trained sparsely, by queries and by backprop",
    axis="sparsity",
    cells=cells,
    sizes=SIZES,
    notes={"cpu": CUT, "paper": WHOLE},
)

if __name__ == "__main__":
    main(FIGURE)
