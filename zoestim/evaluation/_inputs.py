"""Arrays and seeds of the user's, as the tensors and generators that are computed with."""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor, nn

from zoestim.backends import Backend
from zoestim.evaluation._black_box import BlackBox

# The type of module, data and losses by the name of a precision, and where it is another one
# that of the factors which matrix units multiply.
PRECISIONS = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.float32,
}
MATRIX_TYPES = {"bfloat16": torch.bfloat16}
SEED_LIMIT = 2**63 - 1


def as_tensor(data: Any) -> Tensor:
    """Share an array's memory where torch can: not if it is read-only or runs backwards."""
    if isinstance(data, Tensor):
        return data
    contiguous = np.ascontiguousarray(data)
    return torch.as_tensor(contiguous if contiguous.flags.writeable else contiguous.copy())


def as_input(X: Any, module: nn.Module) -> Tensor:
    """Return inputs in the module's floating type.

    Integers stay integers for a black box, and for a module with an embedding where they
    have a type of indices, 32 or 64 bits: smaller ones are pixels.
    """
    tensor, embeddings = as_tensor(X), (nn.Embedding, nn.EmbeddingBag)
    indices = tensor.dtype in (torch.int32, torch.int64)
    if isinstance(module, BlackBox) and not tensor.is_floating_point():
        return tensor
    if indices and any(isinstance(part, (*embeddings, BlackBox)) for part in module.modules()):
        return tensor
    return tensor.to(first_parameter(module).dtype)


def first_parameter(module: nn.Module) -> Tensor:
    """Return the trainable parameter that tells type and device; refuse what has none."""
    for parameter in module.parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(
                f"{type(module).__name__} has parameters without a shape; expected a module that "
                "has run once. Call it on one batch before you pass it."
            )
        if parameter.is_complex() and parameter.requires_grad:
            raise TypeError(
                f"{type(module).__name__} has complex parameters, of which a step moves the real "
                "part alone; expected real ones. Keep real and imaginary part as two."
            )
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


def shared_generator(random_state: Any, backend: Backend) -> torch.Generator:
    """Return a generator of one's own, the same for all processes of a backend."""
    state = backend.once(lambda: private_generator(random_state).get_state())
    return torch.Generator().set_state(state)


def draw_seed(generator: torch.Generator) -> int:
    """Draw a seed for another generator."""
    return int(torch.randint(SEED_LIMIT, (), generator=generator))
