"""The ranks of a torch.distributed process group, as torchrun starts them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import torch

from zoestim.backends._serial import Answer
from zoestim.backends._shares import equal_shares

Shared = TypeVar("Shared")
Result = TypeVar("Result")


class DistributedBackend:
    """Each rank runs the same program and answers its share; all of them know all answers.

    Start it with ``torchrun``. Where no process group is there, one is made from the
    environment that ``torchrun`` sets: NCCL where each rank has a GPU, gloo elsewhere. What is
    gathered are scalars; every rank then takes the same step.

    Examples
    --------
    >>> from zoestim.backends import DistributedBackend
    >>> backend = DistributedBackend()  # nothing is started before the first query
    """

    own_memory = True

    def map(
        self, function: Answer[Shared, Result], shared: Shared, work: Sequence[float]
    ) -> Generator[tuple[list[int], Result], None, None]:
        """Give the share of each rank, Eq. (5), the same to all of them."""
        group = _group()
        shares = equal_shares(work, group.get_world_size())
        own = shares[group.get_rank()]
        results: list[Any] = [None] * len(shares)
        group.all_gather_object(results, function(shared, own) if own else None)
        for tasks, result in zip(shares, results, strict=True):
            if tasks:
                yield tasks, result

    def once(self, function: Callable[[], Result]) -> Result:
        """Call the function on the first rank, and tell the others what it returned or raised."""
        group = _group()
        told: list[Any] = [None, None]
        if group.get_rank() == 0:
            try:
                told[0] = function()
            except Exception as error:
                told[1] = error
        group.broadcast_object_list(told)
        if told[1] is not None:
            raise told[1]
        return told[0]

    def same(self, value: Any) -> list[Any]:
        """Return the value that each rank has."""
        group = _group()
        values: list[Any] = [None] * group.get_world_size()
        group.all_gather_object(values, value)
        return values

    @property
    def rank(self) -> int:
        """The number of this process."""
        return _group().get_rank()

    def close(self) -> None:
        """Keep the process group, which belongs to the whole program."""


def _group() -> Any:
    import torch.distributed as distributed

    if not distributed.is_available():
        raise RuntimeError(
            'backend="distributed" needs torch.distributed, which this torch was built without.'
        )
    if not distributed.is_initialized():
        if not distributed.is_torchelastic_launched():
            raise RuntimeError(
                'backend="distributed" found no process group; expected a program started by '
                "torchrun, as in: torchrun --nproc-per-node 4 train.py. Or call "
                "torch.distributed.init_process_group first."
            )
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return distributed
