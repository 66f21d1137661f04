"""Queries grouped into chunks that share what they change and fit into one fold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zoestim.evaluation._parameters import ParameterMap
from zoestim.gradients import CoordinateQueries, DirectionQueries, Queries


@dataclass(frozen=True)
class Chunk:
    """Some queries that perturb the same parameters.

    Parameters
    ----------
    positions : Tensor of shape (k,), int64
        Which of the queries these are.
    names : tuple of str
        The parameters that they perturb.
    stack : callable
        ``stack(base)`` returns ``{name: (k, *shape)}``, one perturbed value a query; with
        ``base=True`` the unperturbed value comes first, ``(k + 1, *shape)``.
    stretch : Tensor of shape (k,), float64, or None
        The steps over what is left of them in the parameter's floating type: large values
        and short types round them. None where no step is rounded by itself.
    """

    positions: Tensor
    names: tuple[str, ...]
    stack: Callable[[bool], dict[str, Tensor]]
    stretch: Tensor | None = None

    def __len__(self) -> int:
        return len(self.positions)


def make_chunks(
    queries: Queries,
    parameters: ParameterMap,
    theta: dict[str, Tensor],
    fold_size: Callable[[tuple[str, ...]], int],
) -> Iterator[Chunk]:
    """Cut queries into chunks of at most ``fold_size(names)`` each.

    The chunks depend on the queries, the model and the batch alone, so that the arithmetic,
    and with it every bit of the result, is the same wherever they run.
    """
    if isinstance(queries, DirectionQueries):
        yield from _direction_chunks(queries, parameters, theta, fold_size)
    else:
        yield from _coordinate_chunks(queries, parameters, theta, fold_size)


def _coordinate_chunks(
    queries: CoordinateQueries,
    parameters: ParameterMap,
    theta: dict[str, Tensor],
    fold_size: Callable[[tuple[str, ...]], int],
) -> Iterator[Chunk]:
    for name, start in parameters.starts.items():
        size = parameters.sizes[name]
        inside = (queries.indices >= start) & (queries.indices < start + size)
        positions = inside.nonzero().flatten()
        for part in positions.split(fold_size((name,))) if len(positions) else ():
            offsets, steps = queries.indices[part] - start, queries.steps[part]

            def stack(
                base: bool,
                name: str = name,
                offsets: Tensor = offsets,
                steps: Tensor = steps,
            ) -> dict[str, Tensor]:
                value, lead = theta[name], int(base)
                stacked = value.repeat(len(steps) + lead, *[1] * value.ndim)
                lanes = torch.arange(lead, len(steps) + lead, device=value.device)
                flat = stacked.view(len(stacked), -1)
                flat[lanes, offsets.to(value.device)] += steps.to(value)
                return {name: stacked}

            yield Chunk(part, (name,), stack, _stretch(theta[name], offsets, steps))


def _stretch(value: Tensor, offsets: Tensor, steps: Tensor) -> Tensor:
    """Return by how much each step is longer than what it moves the parameter by."""
    at = value.flatten()[offsets.to(value.device)]
    made = ((at + steps.to(value)) - at).double().cpu()
    return steps / made


def _direction_chunks(
    queries: DirectionQueries,
    parameters: ParameterMap,
    theta: dict[str, Tensor],
    fold_size: Callable[[tuple[str, ...]], int],
) -> Iterator[Chunk]:
    held = zip(parameters.names, queries.segments, strict=True)
    names = tuple(name for name, count in held if count)
    for part in torch.arange(len(queries)).split(fold_size(names)):

        def stack(base: bool, part: Tensor = part) -> dict[str, Tensor]:
            moves = torch.zeros(len(part) + base, parameters.size, dtype=torch.float64)
            for lane, query in enumerate(part.tolist(), start=int(base)):
                moves[lane, queries.coordinates] = queries.steps[query] * queries.direction(query)
            stacked = {}
            for name in names:
                start, size = parameters.starts[name], parameters.sizes[name]
                move = moves[:, start : start + size].to(theta[name])
                stacked[name] = theta[name] + move.view(-1, *theta[name].shape)
            return stacked

        yield Chunk(part, names, stack)
