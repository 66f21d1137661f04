"""What a query costs, counted: the operations and bytes of one lane's way through the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from zoestim.evaluation._plan import FoldSize
from zoestim.evaluation._propagate import Propagation, Visit
from zoestim.propagation import Dense, Entry

# A computer of 2020 to 2026 does some twenty to a hundred operations while it moves a byte.
FLOPS_PER_BYTE = 10
# What the largest change of a fold may take, in bytes: it should stay in the cache.
FOLD_BYTES = 2**24
MAX_FOLD = 1024
# By how much changes must be smaller behind a node for more lanes to go together.
FAR_SMALLER = 8
# What operations take for themselves while they run, beside the changes that are alive.
PEAK_FACTOR = 3
# Of the memory that is free, the part that folds may take by default.
FREE_SHARE = 0.25
# What is taken to be free on a CPU where nobody says.
UNKNOWN = 2**32
_MEMORY = Path("/proc/meminfo")


@dataclass(frozen=True)
class Cost:
    """What one query of some parameters costs.

    Attributes
    ----------
    flops : int
        Floating-point operations of matrix products and convolutions.
    visits : tuple of Visit
        What became of the change at each node that is run.
    """

    flops: int
    visits: tuple[Visit, ...]

    @property
    def bytes(self) -> int:
        """Bytes moved: what changes at each node is written, and read beside the unperturbed."""
        return 3 * sum(self.sizes)

    @property
    def peak(self) -> int:
        """Bytes that the changes of one lane take at most, at one time."""
        return max((visit.alive for visit in self.visits), default=0)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Bytes of the change of each node that is run."""
        return tuple(visit.nbytes for visit in self.visits)

    @cached_property
    def work(self) -> int:
        """One number to compare queries by: the bytes moved, and operations in their unit."""
        return self.bytes + self.flops // FLOPS_PER_BYTE


def measure(propagation: Propagation, changes: Mapping[str, Entry | Dense]) -> Cost:
    """Return the cost of one lane, by running it.

    Parameters
    ----------
    propagation : Propagation
        The pass under evaluation.
    changes : dict from parameter name to Entry or Dense
        The changes of one lane.
    """
    propagation.run(changes)  # what is derived once a pass is no cost of a lane
    visits: list[Visit] = []
    propagation.visits = visits
    try:
        flops = counted(lambda: propagation.run(changes))
    finally:
        propagation.visits = None
    return Cost(flops, tuple(visits))


def counted(function: Callable[[], Any]) -> int:
    """Return how many floating-point operations a function does."""
    with FlopCounterMode(display=False) as flops:
        function()
    return flops.get_total_flops()


def assumed(values: list[Any]) -> Cost:
    """Return the cost of a lane that computes some values of the graph anew."""
    sizes = tuple(
        sum(leaf.nbytes for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))
        for value in values
    )
    visits = (Visit("", (), None, None, None, False, size, sum(sizes)) for size in sizes)
    return Cost(0, tuple(visits))


def fold_size(cost: Cost, memory_budget: int) -> FoldSize:
    """Return how many lanes of a cost go together: as many as stay in the cache, and fit."""
    largest = max(cost.sizes, default=1)
    cut = len(cost.sizes)
    while cut > 1 and FAR_SMALLER * cost.sizes[cut - 2] <= largest:
        cut -= 1  # behind a node whose result is small: what is joined is small
    fits = memory_budget // max(PEAK_FACTOR * cost.peak, 1)

    def together(sizes: tuple[int, ...]) -> int:
        return max(1, min(FOLD_BYTES // max(*sizes, 1, 1), fits, MAX_FOLD))

    return FoldSize(together(cost.sizes[max(cut - 1, 0) :]), together(cost.sizes), cut)


def free_memory(device: torch.device) -> int:
    """Return how many bytes are free on a device; for a CPU, in physical memory.

    Where the system does not say, as outside Linux, it is taken for `UNKNOWN`.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not _MEMORY.exists():
        return UNKNOWN
    sizes = dict(line.split(":") for line in _MEMORY.read_text().splitlines())
    return int(sizes["MemAvailable"].removesuffix("kB")) * 1024
