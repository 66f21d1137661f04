"""The same graph somewhere else: on a module of another thread, process or device."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from zoestim.evaluation._cut import recut
from zoestim.evaluation._objective import Batch, Objective
from zoestim.evaluation._program import Known, Pass, Program
from zoestim.evaluation._random import RandomState

# The graph that this process traced last, as a worker, by its owner's name and the device.
_GRAPHS: dict[tuple[str, torch.device], Program] = {}


def apart(program: Program) -> Program:
    """Return the same graph on a module of its own, which shares the tensors.

    A call swaps parameters in the module: two threads need two modules.
    """
    module = program.module
    return _on(program, copy.deepcopy(module) if program.in_place else _alias(module))


def arrived(
    objective: Objective,
    batch: Batch,
    known: Mapping[str, Known],
    random: Mapping[str, RandomState],
) -> tuple[Program, Pass]:
    """Run the whole graph as a worker does, whose objective is a copy that was sent to it.

    Parameters
    ----------
    objective : Objective
        The copy; its graph is traced here, once.
    batch : Batch
        The data.
    known, random
        See :meth:`Program.run`.
    """
    name = objective.graph, batch.X.device  # the graph holds constants
    if name not in _GRAPHS:
        for other in [key for key in _GRAPHS if key[0] != objective.graph]:
            del _GRAPHS[other]
        _GRAPHS[name] = recut(objective.module, objective.reuse, objective.in_place)
    program = _on(_GRAPHS[name], objective.module)
    return program, program.run(batch.X.clone(), known, random)


def on_device(objective: Objective, device: torch.device) -> Objective:
    """Return a copy of an objective for another device of this process."""
    other = copy.deepcopy(objective)
    other.module, other.loss = other.module.to(device), other.loss.to(device)
    return other


def known_nodes(program: Program, done: Pass) -> dict[str, Known]:
    """Return what the nodes gave that ask black boxes."""
    return {
        node.name: Known(
            done.values[node],
            done.kept.get(node, {}),
            {name: done.tensors[name] for name in program.tensors[node].values()},
        )
        for node in program.nodes
        if program.boxes((node,))
    }


def _on(program: Program, module: nn.Module) -> Program:
    other = copy.copy(program)
    other.module, other.modules = module, {}
    return other


def _alias(module: nn.Module) -> nn.Module:
    """Return a module that shares tensors and attributes, but not the places that hold them."""
    aliases: dict[int, nn.Module] = {}

    def alias(own: nn.Module) -> nn.Module:
        if id(own) not in aliases:
            other = aliases[id(own)] = own.__new__(type(own))
            for name, value in vars(own).items():
                place = isinstance(value, list | dict)
                other.__dict__[name] = copy.copy(value) if place else value
            other._modules = {n: m and alias(m) for n, m in own._modules.items()}
        return aliases[id(own)]

    return alias(module)
