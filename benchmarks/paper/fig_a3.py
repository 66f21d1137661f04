"""Fig. A3: three ways to integrate ZO-GraSP: ``python -m benchmarks.paper.fig_a3``.

Trained by backprop, as in the paper: by random coordinates that obey ZO-GraSP's layer-wise ratios
(SR), by ZO-GraSP's coordinates, found anew each epoch (M1), or once, of a pruned network (M2).
"""

from collections.abc import Callable, Sequence

from torch import nn

from benchmarks.baselines.backprop import Backprop
from benchmarks.baselines.training import Rule
from benchmarks.paper.by_rule import ByRule
from benchmarks.paper.figure import Cell, Figure, Images, main
from benchmarks.paper.networks import BATCH_SIZES, CUT, DIRECTIONS, RESNETS, SIZES, WHOLE, common
from benchmarks.paper.pruned import (
    Alternating,
    Scores,
    sparse_gradients,
    sparse_weights,
    zeroth_order,
)

RATIOS = {"smoke": (0.9,), "cpu": (0.8, 0.9, 0.95), "paper": (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)}


def alternating(
    scores: Scores, sparsity: float, batch_size: int
) -> Callable[[nn.Module, Images, int], Rule]:
    """Return what makes M1, which scores once an epoch."""

    def make(module: nn.Module, images: Images, seed: int) -> Rule:
        every = -(-len(images.X) // batch_size)
        return Alternating(scores, sparsity, images, every, seed)

    return make


def cells(scale: str) -> Sequence[Cell]:
    """Return a cell for each way and ratio, and the dense one."""
    make, given = RESNETS[scale], common(scale)
    scores = zeroth_order(DIRECTIONS[scale])
    dense = ByRule("backprop", lambda *others: Backprop(), given)
    found = [Cell("dense", 0.0, make, dense)]
    for ratio in RATIOS[scale]:
        ways = {
            "SR": sparse_gradients(scores, ratio),
            "M1": alternating(scores, ratio, BATCH_SIZES[scale]),
            "M2": sparse_weights(scores, ratio),
        }
        for row, rule in ways.items():
            found.append(Cell(row, ratio, make, ByRule(f"{row}, {ratio:g}", rule, given)))
    return found


FIGURE = Figure(
    name="fig_a3",
    title="ZO-GraSP and training integrated: by layer-wise ratios, alternately, before",
    axis="sparsity",
    cells=cells,
    sizes=SIZES,
    notes={
        "cpu": (*CUT, "The paper's numbers are curves; it finds SR above M1 and M2."),
        "paper": WHOLE,
    },
)

if __name__ == "__main__":
    main(FIGURE)
