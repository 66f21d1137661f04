"""Fig. A6: steps an hour by the number of workers: ``python -m benchmarks.paper.fig_a6``.

The paper's workers are GPUs; at CPU scale they are processes.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from benchmarks.paper.figure import ByQueries, Cell, Figure, Images, main
from benchmarks.paper.networks import BATCH_SIZES, RESNETS, SIZES
from zoestim.models import ResNet

SPARSITY = 0.9
WORKERS = {"smoke": (1, 2), "cpu": (1, 2), "paper": (2, 4, 6, 8)}
STEPS = {"smoke": 1, "cpu": 32, "paper": 20}
# Wider than elsewhere: a step of the narrow one is over before it is shared out.
NETWORKS = {**RESNETS, "cpu": partial(ResNet, 8, width=8)}


@dataclass(frozen=True)
class Speed(ByQueries):
    """The steps an hour of a fit, of its coordinates alone; one GPU a worker, or one process.

    Parameters
    ----------
    settings : mapping
        As of ByQueries.
    n_workers : int
        How many.
    """

    n_workers: int = 1

    def about(self) -> dict[str, Any]:
        """Return the parameters."""
        return {**super().about(), "n_workers": self.n_workers}

    def fit(self, module: nn.Module, images: Images, seed: int, device: str) -> dict[str, Any]:
        """Fit twice, the first time to start the workers, and count the second's steps an hour."""
        workers: dict[str, Any] = {"n_jobs": self.n_workers, "backend": "loky"}
        if device.startswith("cuda"):
            workers = {}
            device = [f"cuda:{number}" for number in range(self.n_workers)]  # type: ignore[assignment]
        speed = ByQueries({**self.settings, **workers})
        speed.fit(deepcopy(module), images, seed, device)
        found = speed.fit(module, images, seed, device)
        return {**found, "steps_per_hour": 3600 * found["steps"] / found["seconds"]}


def cells(scale: str) -> Sequence[Cell]:
    """Return a cell for each number of workers."""
    size = BATCH_SIZES[scale]
    settings = {
        "sparsity": SPARSITY,
        "pruning": "uniform",
        "batch_size": size,
        "max_epochs": 1,
    }
    n_train = STEPS[scale] * size
    return [
        Cell("DeepZero", n, NETWORKS[scale], Speed(settings, n_workers=n), n_train=n_train)
        for n in WORKERS[scale]
    ]


FIGURE = Figure(
    name="fig_a6",
    title="steps an hour of DeepZero (90 % sparse)",
    axis="workers",
    cells=cells,
    sizes=SIZES,
    value="steps_per_hour",
    unit=1.0,
    notes={
        "cpu": (
            "ResNet-8 of width 8 (19,218 parameters), batches of 64 images of 16 x 16 pixels;",
            "processes, not GPUs.",
        )
    },
)

if __name__ == "__main__":
    main(FIGURE)
