"""Fig. 2: CGE, RGE and backprop on a CNN of growing depth: ``python -m benchmarks.paper.fig2``.

RGE takes as many directions as there are parameters, so that a step of both costs the same.
"""

from collections.abc import Sequence
from functools import partial

from benchmarks.baselines.backprop import Backprop
from benchmarks.paper.by_rule import ByRule
from benchmarks.paper.figure import ByQueries, Cell, Figure, Sizes, main
from benchmarks.speed.problems import n_parameters
from zoestim.models import SimpleCNN

# By depth, 1 to 5.
PAPER = {
    "backprop": (42.09, 60.47, 70.69, 76.64, 77.01),
    "CGE": (41.65, 59.66, 70.04, 76.07, 76.95),
    "RGE": (37.53, 50.06, 65.31, 70.05, 68.38),
}
DEPTHS = {"smoke": (1,), "cpu": (1, 2, 3, 4), "paper": (1, 2, 3, 4, 5)}
WIDTHS = {"smoke": 2, "cpu": 4, "paper": 18}
EPOCHS = {"smoke": 1, "cpu": 8, "paper": 50}
# At CPU scale each method's is the best of 0.1, 0.3 and 1 on held-out images.
RATES = {"backprop": 0.3, "CGE": 0.3, "RGE": 0.1}


def cells(scale: str) -> Sequence[Cell]:
    """Return a cell for each method and depth."""
    found = []
    for depth in DEPTHS[scale]:
        make = partial(SimpleCNN, depth, width=WIDTHS[scale])
        size = n_parameters(make())
        dense = {"sparsity": 0.0, "pruning": None, "max_epochs": EPOCHS[scale]}
        lr = {row: {"lr": RATES[row]} if scale == "cpu" else {} for row in PAPER}
        # A direction moves every weight: there is nothing to reuse, and plain passes are faster.
        directions = {"gradient": "rge", "n_directions": size, "feature_reuse": False}
        methods = {
            "backprop": ByRule(
                "backprop",
                lambda *given: Backprop(),
                {"epochs": EPOCHS[scale], **lr["backprop"]},
            ),
            "CGE": ByQueries({**dense, "gradient": "cge", **lr["CGE"]}),
            "RGE": ByQueries({**dense, **directions, **lr["RGE"]}),
        }
        for row, method in methods.items():
            paper = PAPER[row][depth - 1] if scale == "paper" else None
            found.append(Cell(row, size, make, method, paper=paper))
    return found


FIGURE = Figure(
    name="fig2",
    title="a CNN of 1 to 5 blocks by backprop, CGE and RGE with q = d",
    axis="parameters",
    cells=cells,
    sizes={
        "smoke": Sizes(128, 128, 8),
        "cpu": Sizes(2048, 2000, 16),
        "paper": Sizes(50_000, 10_000, 32),
    },
    notes={
        "cpu": (
            "Cut: 2,048 images of 16 x 16 pixels, 8 epochs (128 steps) in place of 50, blocks of 4",
            "channels in place of 18. The paper's order is CGE, close to backprop, above RGE.",
        )
    },
)

if __name__ == "__main__":
    main(FIGURE)
