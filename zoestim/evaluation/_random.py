"""Common random numbers: the global torch generators, saved and restored around queries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class RandomState:
    """The state of torch's global generators: the CPU's, and the device's if it has one."""

    cpu: Tensor
    cuda: Tensor | None
    device: torch.device

    @classmethod
    def current(cls, device: torch.device) -> RandomState:
        """Return the state now."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), cuda, device)

    @classmethod
    def seeded(cls, seed: int, device: torch.device) -> RandomState:
        """Return the state that a seed gives, without touching the generators."""
        cpu = torch.Generator().manual_seed(seed).get_state()
        if device.type != "cuda":
            return cls(cpu, None, device)
        return cls(cpu, torch.Generator(device).manual_seed(seed).get_state(), device)

    def restore(self) -> None:
        """Put the generators into this state."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RandomState):
            return NotImplemented
        same_cuda = self.cuda is None or (
            other.cuda is not None and torch.equal(self.cuda, other.cuda)
        )
        return same_cuda and torch.equal(self.cpu, other.cpu)

    __hash__ = None  # type: ignore[assignment]
