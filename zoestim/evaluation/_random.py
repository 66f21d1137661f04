"""Common random numbers: the global generators, saved and restored around queries."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

_BORROWED = threading.RLock()


@dataclass(frozen=True, eq=False)
class RandomState:
    """The state of the global generators of torch (CPU and device), numpy and Python.

    A layer or a black box may draw from any of them; every query must see the same draws.
    """

    cpu: Tensor
    cuda: Tensor | None
    numpy: Any
    python: Any
    device: torch.device

    @classmethod
    def current(cls, device: torch.device) -> RandomState:
        """Return the state now."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        numpy = np.random.get_state(legacy=True)  # noqa: NPY002
        return cls(torch.get_rng_state(), cuda, numpy, random.getstate(), device)

    @classmethod
    def seeded(cls, seed: int, device: torch.device) -> RandomState:
        """Return the state that a seed gives, without touching the generators."""
        cpu = torch.Generator().manual_seed(seed).get_state()
        cuda = None
        if device.type == "cuda":
            cuda = torch.Generator(device).manual_seed(seed).get_state()
        numpy = np.random.RandomState(seed % 2**32).get_state(legacy=True)
        return cls(cpu, cuda, numpy, random.Random(seed).getstate(), device)

    def on(self, device: torch.device) -> RandomState:
        """Return the state for another device: the same draws there."""
        return replace(self, device=device)

    def restore(self) -> None:
        """Put the generators into this state."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RandomState):
            return NotImplemented
        same_cuda = self.cuda is None or (
            other.cuda is not None and torch.equal(self.cuda, other.cuda)
        )
        return (
            same_cuda
            and torch.equal(self.cpu, other.cpu)
            and self.python == other.python
            and self.numpy[2:] == other.numpy[2:]
            and np.array_equal(self.numpy[1], other.numpy[1])
        )

    __hash__ = None  # type: ignore[assignment]


@contextmanager
def unchanged_generators(device: torch.device) -> Iterator[None]:
    """Leave the global generators as they were; they are the process's, so one at a time."""
    with _BORROWED:
        state = RandomState.current(device)
        try:
            yield
        finally:
            state.restore()


@contextmanager
def drawing_from(seed: int, device: torch.device) -> Iterator[None]:
    """Let the global generators draw from a seed, and leave them as they were."""
    with unchanged_generators(device):
        RandomState.seeded(seed, device).restore()
        yield
