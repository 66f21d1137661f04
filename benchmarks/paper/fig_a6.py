"""Fig. A6: steps an hour by the number of workers: ``python -m benchmarks.paper.fig_a6``.

The paper's workers are GPUs; at CPU scale they are processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from benchmarks.paper.figure import ByQueries, Cell, Figure, Images, main
from benchmarks.paper.networks import BATCH_SIZES, RESNETS, SIZES

SPARSITY = 0.9
WORKERS = {"smoke": (1, 2), "cpu": (1, 2), "paper": (2, 4, 6, 8)}
STEPS = {"smoke": 1, "cpu": 20, "paper": 20}


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
        """Fit, and count steps an hour."""
        workers: dict[str, Any] = {"n_jobs": self.n_workers, "backend": "loky"}
        if device.startswith("cuda"):
            workers = {}
            device = [f"cuda:{number}" for number in range(self.n_workers)]  # type: ignore[assignment]
        found = ByQueries({**self.settings, **workers}).fit(module, images, seed, device)
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
        Cell("DeepZero", n, RESNETS[scale], Speed(settings, n_workers=n), n_train=n_train)
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
            "ResNet-8 of width 4, batches of 64 images of 16 x 16 pixels; processes, not GPUs.",
        )
    },
)

if __name__ == "__main__":
    main(FIGURE)
