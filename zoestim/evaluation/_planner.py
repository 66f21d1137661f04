"""How many queries go through the graph together: as many as fit, where that is proven exact."""

from __future__ import annotations

import torch
from torch import Tensor

from zoestim.evaluation._asker import Asker
from zoestim.evaluation._cost import FREE_SHARE, Cost, assumed, fold_size, free_memory, measure
from zoestim.evaluation._lanes import in_brief, out_of_memory
from zoestim.evaluation._plan import FoldSize, Group, Part

ALONE = FoldSize(1, 1, 0)


class Planner:
    """Finds the sizes of folds on one batch; what it learns it tells the objective.

    Parameters
    ----------
    asker : Asker
        Runs what has to be tried.

    Attributes
    ----------
    answered : list of (Tensor, Tensor)
        The queries that were answered on the way, and by how much they change the loss.
    """

    def __init__(self, asker: Asker):
        self.asker = asker
        self.objective = asker.losses.objective
        self.answered: list[tuple[Tensor, Tensor]] = []
        free = free_memory(asker.losses.batch.X.device)
        self._budget = self.objective.memory_budget or int(FREE_SHARE * free)
        self._losses = asker.losses

    def size(self, group: Group) -> FoldSize:
        """Return how many queries of a group go together: one where that is not proven."""
        objective, names = self.objective, group.names
        boxes = self._losses.boxes(names)
        foldable = not self._losses.program.in_place and all(box.vectorized for box in boxes)
        if not objective.foldable.setdefault(names, foldable):
            return ALONE
        try:
            size = fold_size(self._cost(group), self._budget)
            most = [int(box.vectorized) for box in boxes if box.vectorized is not True]
            size = size.at_most(min(most)) if most else size
            if boxes or names in objective.proven or self._proves(group, size):
                return size
            reason: Exception | str = self.asker.unfolded.get(
                names, "its operations do not fold exactly"
            )
        except Exception as error:
            if out_of_memory(error):
                return ALONE
            reason = error
        self.unfold(names, reason)
        return ALONE

    def _cost(self, group: Group) -> Cost:
        """Return the cost of one query of a group, from its first one."""
        known, key = self.objective.costs, self._key(group)
        if key not in known:
            if self._losses.asks_box(group.names):  # a query on trial would be paid for
                known[key] = self._assumed(group)
            else:
                one = group.chunk(group.positions[:1])
                known[key] = measure(self._losses.propagation, one.changes)
        return known[key]

    def _key(self, group: Group) -> tuple[tuple[str, ...], torch.Size]:
        return group.names, self._losses.batch.X.shape

    def _assumed(self, group: Group) -> Cost:
        values = self._losses.done.values
        return assumed([values[node] for node in self._losses.program.dependents(group.names)])

    def _proves(self, group: Group, size: FoldSize) -> bool:
        """Judge the first fold of some parameters by two queries on their own.

        A query is judged by its difference from the base, which is what the gradient is
        made of: the losses themselves differ so little that any would pass. The one that
        changes the loss most is least hidden by rounding.
        """
        chunk = Part(group, next(group.folds(size)), size.cut).chunk()
        found = self.asker.answer(chunk, folded=True)
        if chunk.names in self.asker.unfolded:
            return False
        if found.failure is not None or not chunk.names:
            return True  # it is no worse than on its own
        precision = torch.finfo(chunk.theta[chunk.names[0]].dtype)
        rounding = 64 * precision.eps * max(1.0, float(self._losses.base_loss.abs().max()))
        changes = found.changes
        sizes = changes.abs()[:, None].flatten(1).sum(1)
        lanes = sorted({0, 1 + int(sizes[1:].argmax()) if len(chunk) > 1 else 0})
        rtol = 1e-6 if precision.eps < 1e-12 else 1e-2
        rtol = 0.2 if self.objective.matrix_type is not None else rtol
        expected = self._losses.alone(chunk, lanes)
        if not torch.allclose(changes[lanes], expected, rtol=rtol, atol=rounding):
            return False
        self.objective.proven.add(chunk.names)
        self.answered.append((chunk.positions, changes))
        return True

    def unfold(self, names: tuple[str, ...], reason: Exception | str) -> None:
        """Ask queries of some parameters on their own from now on, and say why."""
        self.objective.foldable[names] = False
        self.objective.reuse.unfolded[", ".join(names)] = in_brief(reason)

    def work(self, part: Part) -> float:
        """Return the cost of a part, in a unit of its own."""
        cost = self.objective.costs.get(self._key(part.group)) or self._assumed(part.group)
        return len(part) * float(max(1, cost.work))
