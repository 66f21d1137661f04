"""How tasks are shared out, Eq. (5): equal work for each, or less and less to whoever is free."""

from __future__ import annotations

from collections.abc import Sequence

# How many shares a worker gets that takes one whenever it is free, if all cost the same: the
# last of them are small, so that no worker waits long for another.
SHARES = 2


def equal_shares(work: Sequence[float], n_shares: int) -> list[list[int]]:
    """Split tasks into shares of nearly equal work, Eq. (5): the largest to the least loaded.

    Parameters
    ----------
    work : sequence of float
        The work of each task.
    n_shares : int
        How many shares to make.

    Returns
    -------
    list of list of int
        The tasks of each share, in their order. No share has more than the mean and the
        largest task together.
    """
    loads = [0.0] * n_shares
    shares: list[list[int]] = [[] for _ in loads]
    for task in sorted(range(len(work)), key=lambda task: -work[task]):
        least = loads.index(min(loads))
        loads[least] += work[task]
        shares[least].append(task)
    return [sorted(share) for share in shares]


def guided_shares(work: Sequence[float], n_workers: int, least: float = 0.0) -> list[list[int]]:
    """Split tasks, in their order, into shares that become smaller: guided self-scheduling.

    Each share is a fixed fraction of the work that is left, so that workers that take one
    whenever they are free end at nearly the same time, whatever a task turns out to cost.

    Parameters
    ----------
    work : sequence of float
        The work of each task.
    n_workers : int
        How many workers take shares.
    least : float, default=0.0
        The work below which a share is not worth sending.

    Returns
    -------
    list of list of int
        The tasks of each share, ascending.

    References
    ----------
    Polychronopoulos and Kuck, Guided self-scheduling, IEEE Trans. Computers 36 (1987).
    """
    shares: list[list[int]] = []
    left, taken, share = float(sum(work)), 0.0, []
    for task, amount in enumerate(work):
        share.append(task)
        taken += amount
        if taken >= max(left / (SHARES * n_workers), least):
            shares.append(share)
            left, taken, share = left - taken, 0.0, []
    return [*shares, share] if share else shares
