"""Fig. 5: DeepZero and Pattern Search against data size: ``python -m benchmarks.paper.fig5``.

Both get the same queries, each a loss on a batch: as many as DeepZero's epochs take.
"""

import math
from collections.abc import Sequence

from benchmarks.paper.by_rule import BySearch
from benchmarks.paper.figure import ByQueries, Cell, Figure, main
from benchmarks.paper.networks import CUT, DIRECTIONS, RESNETS, SIZES, WHOLE, queried
from benchmarks.speed.problems import n_queried

SPARSITY = 0.9
DATA_SIZES = {
    "smoke": (64,),
    "cpu": (100, 500, 1000, 2000),
    "paper": (100, 500, 1000, 2000, 4000, 8000, 16_000, 32_000),
}
EPOCHS = {"smoke": 1, "cpu": 10, "paper": 40}
BATCH_SIZE = 128
MOST_AT_ONCE = 500  # images; beyond it such a search takes hours


def n_queries(scale: str, n: int) -> int:
    """Return the queries of DeepZero's epochs, those of ZO-GraSP among them."""
    a_step = 1 + n_queried(RESNETS[scale](), SPARSITY)
    return 2 * (DIRECTIONS[scale] + 1) + EPOCHS[scale] * math.ceil(n / BATCH_SIZE) * a_step


def cells(scale: str) -> Sequence[Cell]:
    """Return a cell for each method and number of images."""
    found = []
    for n in DATA_SIZES[scale]:
        batch_size, budget = min(n, BATCH_SIZE), n_queries(scale, n)
        methods = {
            "DeepZero": ByQueries(
                queried(scale, sparsity=SPARSITY, batch_size=batch_size, max_epochs=EPOCHS[scale])
            ),
            "Pattern Search": BySearch({"max_queries": budget, "batch_size": batch_size}),
            "Pattern Search on all images": BySearch({"max_queries": budget}),
        }
        if n > MOST_AT_ONCE:
            del methods["Pattern Search on all images"]
        for row, method in methods.items():
            found.append(Cell(row, n, RESNETS[scale], method, n_train=n))
    return found


FIGURE = Figure(
    name="fig5",
    title="DeepZero (90 % sparse) and Pattern Search on some of the images",
    axis="images",
    cells=cells,
    sizes=SIZES,
    notes={
        "cpu": (
            *CUT,
            "The paper shows curves: DeepZero is above Pattern Search from 500 images on.",
        ),
        "paper": WHOLE,
    },
)

if __name__ == "__main__":
    main(FIGURE)
