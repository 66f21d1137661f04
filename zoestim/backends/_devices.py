"""Several devices of one machine, each with a thread of this process that feeds it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

import torch

from zoestim.backends._serial import Answer
from zoestim.backends._shares import equal_shares

Result = TypeVar("Result")


class DevicesBackend:
    """Answers on several devices at once, each of which gets an equal share, Eq. (5).

    Parameters
    ----------
    devices : sequence of torch.device or str
        Where; the same one may be named twice.

    Examples
    --------
    >>> from zoestim.backends import DevicesBackend
    >>> DevicesBackend(["cuda:0", "cuda:1"]).devices
    (device(type='cuda', index=0), device(type='cuda', index=1))
    """

    own_memory = True

    def __init__(self, devices: Sequence[torch.device | str]):
        self.devices = tuple(map(torch.device, devices))

    def map(
        self, function: Answer[Any, Result], shared: Any, work: Sequence[float]
    ) -> Generator[tuple[list[int], Result], None, None]:
        """Give the share of each device; what is shared has a method `at` that moves it there."""
        shares = [share for share in equal_shares(work, len(self.devices)) if share]
        there = [shared.at(device) for device in self.devices]
        with ThreadPoolExecutor(len(self.devices), thread_name_prefix="device") as threads:
            tasks = {
                threads.submit(function, own, share): share
                for own, share in zip(there, shares, strict=False)
            }
            for done in as_completed(tasks):
                yield tasks[done], done.result()

    def once(self, function: Callable[[], Result]) -> Result:
        """Call the function here: there is one process that asks."""
        return function()

    def close(self) -> None:
        """There is nothing to let go of."""
