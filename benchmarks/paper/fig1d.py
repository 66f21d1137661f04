"""Fig. 1D: DeepZero and methods without backprop: ``python -m benchmarks.paper.fig1d``.

DeepZero and Pattern Search ask for losses alone; the others go through the computational graph.
"""

from collections.abc import Sequence
from functools import partial

import torch

from benchmarks.baselines.eight_layer_cnn import eight_layer_cnn
from benchmarks.baselines.forward_gradient import LocalGreedy, WeightPerturbed
from benchmarks.paper.by_rule import ByRule, BySearch
from benchmarks.paper.figure import ByQueries, Cell, Figure, Method, main
from benchmarks.paper.networks import BATCH_SIZES, SIZES, common, queried
from benchmarks.paper.table1 import SPARSITY, ruled

WIDTHS = {"smoke": 2, "cpu": 4, "paper": 64}
# Chosen on held-out training images (--held-out --lr), of 0.01, 0.03, 0.1 and 0.3.
RATES = {"LG-FG-A": 0.1, "FG-W": 0.03}
BUDGETS = {"smoke": 500, "cpu": 400_000, "paper": 20_000_000}  # of Pattern Search


def cells(scale: str) -> Sequence[Cell]:
    """Return a cell for each method."""
    methods: dict[str, Method] = {
        "DeepZero": ByQueries(queried(scale, sparsity=SPARSITY)),
        "Pattern Search": BySearch(
            {"max_queries": BUDGETS[scale], "batch_size": BATCH_SIZES[scale]}
        ),
        "Align-ada": ruled("Align-ada", scale),
        "LG-FG-A": ByRule(
            "LG-FG-A",
            lambda module, images, seed: LocalGreedy(activation=torch.relu, seed=seed),
            common(scale, lr=RATES["LG-FG-A"]),
        ),
        "FG-W": ByRule(
            "FG-W",
            lambda module, images, seed: WeightPerturbed(seed=seed),
            common(scale, lr=RATES["FG-W"]),
        ),
    }
    make = partial(eight_layer_cnn, WIDTHS[scale])
    return [Cell(row, WIDTHS[scale], make, method) for row, method in methods.items()]


FIGURE = Figure(
    name="fig1d",
    title="DeepZero beside methods without backprop, with and without computational graph",
    axis="width of the 8-layer CNN",
    cells=cells,
    sizes=SIZES,
    notes={
        "cpu": (
            "The paper names neither network nor settings of this figure, and shows no numbers:",
            "here it is the 8-layer CNN of Table 1, cut as there.",
        )
    },
)

if __name__ == "__main__":
    main(FIGURE)
