"""Arrays and seeds of the user's, as the tensors and generators that are computed with."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor, nn

from zoestim.evaluation._black_box import BlackBox

PRECISIONS = {"float32": torch.float32, "float64": torch.float64}
SEED_LIMIT = 2**63 - 1


def as_tensor(data: Any) -> Tensor:
    """Share an array's memory where torch can: not if it is read-only or runs backwards."""
    if isinstance(data, Tensor):
        return data
    contiguous = np.ascontiguousarray(data)
    return torch.as_tensor(contiguous if contiguous.flags.writeable else contiguous.copy())


def as_input(X: Any, module: nn.Module) -> Tensor:
    """Return inputs in the module's floating type.

    Integers stay integers where they may be indices: for embeddings and black boxes.
    """
    tensor, takes_integers = as_tensor(X), (nn.Embedding, nn.EmbeddingBag, BlackBox)
    indices = any(isinstance(m, takes_integers) for m in module.modules())
    if indices and not tensor.is_floating_point():
        return tensor
    return tensor.to(first_parameter(module).dtype)


def first_parameter(module: nn.Module) -> Tensor:
    """Return the trainable parameter that tells type and device; refuse to have none."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            return parameter
    raise ValueError(
        f"{type(module).__name__} has no trainable parameter; expected at least one with "
        "requires_grad=True."
    )


def private_generator(random_state: Any) -> torch.Generator:
    """Return a generator of one's own; no seed means a fresh one, not numpy's global state."""
    if random_state is None:
        return torch.Generator().manual_seed(secrets.randbits(63))
    seed = check_random_state(random_state).randint(np.iinfo(np.int32).max)
    return torch.Generator().manual_seed(int(seed))


def draw_seed(generator: torch.Generator) -> int:
    """Draw a seed for another generator."""
    return int(torch.randint(SEED_LIMIT, (), generator=generator))
