"""One short text for all that training has changed: equal for equal states alone."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def state_hash(
    module: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> str:
    """Return a hash of every bit of a module, an optimizer and a generator.

    Parameters
    ----------
    module : nn.Module
        Its parameters and buffers count.
    optimizer : torch.optim.Optimizer
        Its state and settings count.
    generator : torch.Generator
        Its state counts.
    """
    return hash_of([module.state_dict(), optimizer.state_dict(), generator.get_state()])


def hash_of(state: Any) -> str:
    """Return a hash of every bit of nested tensors, numbers and texts."""
    digest = hashlib.blake2b(digest_size=8)
    for leaf in pytree.tree_leaves(state):
        if isinstance(leaf, Tensor):
            digest.update(leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            digest.update(repr(leaf).encode())
    return digest.hexdigest()
