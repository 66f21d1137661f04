"""The mean of several evaluations: what noise of the losses calls for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from zoestim.evaluation._evaluate import Asking, Evaluation, evaluate
from zoestim.evaluation._objective import Batch, Objective
from zoestim.evaluation._random import RandomState
from zoestim.gradients import Queries


def evaluate_mean(
    objective: Objective,
    batch: Batch,
    queries: Queries,
    draws: Sequence[RandomState | None],
    asking: Asking,
) -> Evaluation:
    """Return the mean of as many evaluations as there are draws.

    Parameters
    ----------
    objective, batch, queries, asking
        See :func:`evaluate`.
    draws : sequence of RandomState or None
        The random numbers of each: all queries of one see the same, so that differences are of
        one and the same function.

    Returns
    -------
    Evaluation
        The outputs and tensors are those of the first.
    """
    journal, found = asking.journal, []
    for repeat, random in enumerate(draws):
        own = journal and journal.of(journal.round + repeat)
        found.append(evaluate(objective, batch, queries, random, replace(asking, journal=own)))
    if len(found) == 1:
        return found[0]
    return replace(
        found[0],
        base_losses=torch.stack([each.base_losses for each in found]).mean(0),
        losses=torch.stack([each.losses for each in found]).mean(0),
        records=tuple(record for each in found for record in each.records),
        lost=tuple(failure for each in found for failure in each.lost),
    )
