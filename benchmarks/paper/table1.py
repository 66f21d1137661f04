"""Table 1: an 8-layer CNN by methods without backprop: ``python -m benchmarks.paper.table1``."""

from collections.abc import Callable, Sequence
from functools import partial

from benchmarks.baselines.align_ada import AlignAda
from benchmarks.baselines.backprop import Backprop
from benchmarks.baselines.eight_layer_cnn import eight_layer_cnn
from benchmarks.baselines.feedback_alignment import DirectFeedbackAlignment, FeedbackAlignment
from benchmarks.baselines.training import Rule
from benchmarks.paper.by_rule import ByRule
from benchmarks.paper.figure import ByQueries, Cell, Figure, main
from benchmarks.paper.networks import SIZES, common, queried

PAPER = {
    ("DeepZero", 32): 57.7,
    ("DeepZero", 64): 64.1,
    ("FA", 64): 46.5,
    ("FA", 512): 45.4,
    ("DFA", 64): 49.9,
    ("DFA", 512): 54.1,
    ("Align-ada", 64): 49.9,
    ("Align-ada", 512): 58.0,
}
QUERIED = {"smoke": (2,), "cpu": (4, 8), "paper": (32, 64)}  # widths
RULED = {"smoke": (2,), "cpu": (8, 64), "paper": (64, 512)}
SPARSITY = 0.9
# Chosen on held-out training images (--held-out --lr), of 0.01, 0.03, 0.1 and 0.3.
RATES = {"backprop": 0.1, "FA": 0.1, "DFA": 0.3, "Align-ada": 0.03}
RULES: dict[str, Callable[[int], Rule]] = {
    "backprop": lambda seed: Backprop(),
    "FA": lambda seed: FeedbackAlignment(seed),
    "DFA": lambda seed: DirectFeedbackAlignment(seed),
    "Align-ada": lambda seed: AlignAda(),
}


def ruled(row: str, scale: str) -> ByRule:
    """Return the training by one of the rules."""
    make = RULES[row]
    return ByRule(row, lambda module, images, seed: make(seed), common(scale, lr=RATES[row]))


def cells(scale: str) -> Sequence[Cell]:
    """Return a cell for each method and width."""
    by_queries = ByQueries(queried(scale, sparsity=SPARSITY))
    methods = [("DeepZero", by_queries, width) for width in QUERIED[scale]]
    methods += [(row, ruled(row, scale), width) for row in RULES for width in RULED[scale]]
    return [
        Cell(
            row,
            width,
            partial(eight_layer_cnn, width),
            method,
            paper=PAPER.get((row, width)) if scale == "paper" else None,
        )
        for row, method, width in methods
    ]


FIGURE = Figure(
    name="table1",
    title="the 8-layer CNN of Boopathy and Fiete (2022), trained without backprop",
    axis="width",
    cells=cells,
    sizes=SIZES,
    notes={
        "cpu": (
            "Cut: widths 4 and 8 for DeepZero, 8 and 64 for the others, 2,048 images of 16 x 16",
            "pixels, 10 epochs in batches of 64: 320 steps. backprop is not in the paper's table.",
        )
    },
)

if __name__ == "__main__":
    main(FIGURE)
