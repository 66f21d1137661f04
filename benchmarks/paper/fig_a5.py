"""Fig. A5: DeepZero in batches of different sizes: ``python -m benchmarks.paper.fig_a5``."""

from collections.abc import Sequence

from benchmarks.paper.figure import ByQueries, Cell, Figure, main
from benchmarks.paper.networks import CUT, RESNETS, SIZES, WHOLE, queried

SPARSITY = 0.9
PAPER = {
    128: 85.04,
    256: 86.24,
    512: 86.46,
    1024: 85.88,
    2048: 85.69,
    4096: 77.74,
    8192: 58.22,
}
BATCHES = {"smoke": (32, 64), "cpu": (32, 64, 128, 256, 512), "paper": tuple(PAPER)}


def cells(scale: str) -> Sequence[Cell]:
    """Return a cell for each batch size."""
    return [
        Cell(
            "DeepZero",
            size,
            RESNETS[scale],
            ByQueries(queried(scale, sparsity=SPARSITY, batch_size=size)),
            paper=PAPER[size] if scale == "paper" else None,
        )
        for size in BATCHES[scale]
    ]


FIGURE = Figure(
    name="fig_a5",
    title="DeepZero (90 % sparse) in batches of different sizes, for the same epochs",
    axis="batch size",
    cells=cells,
    sizes=SIZES,
    notes={"cpu": CUT, "paper": WHOLE},
)

if __name__ == "__main__":
    main(FIGURE)
