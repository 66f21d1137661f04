"""Which coordinates are queried, and when they change: Sec. 4, Alg. 1, M1 and M2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from zoestim.sparsity._layerwise import (
    RANKINGS,
    draw_coordinates,
    layer_ratios,
    n_kept,
    n_kept_of,
    top_coordinates,
)

SCORES = ("zo-grasp", "fo-grasp", "random", "magnitude", "uniform")
SELECTIONS = ("dynamic", "renewed", "fixed")

Score = Callable[[str], Mapping[str, Tensor]]


class Pruning(BaseEstimator):
    """How the sparse coordinate sets of a fit are chosen.

    A string given as ``pruning=`` to an estimator stands for ``Pruning(string)``.

    Parameters
    ----------
    scores : {"zo-grasp", "fo-grasp", "random", "magnitude", "uniform"}, default="zo-grasp"
        What ranks the weights of all layers: ZO-GraSP, Eq. (3), from function values;
        GraSP by automatic differentiation, Eq. (2), for comparison; random numbers; the
        magnitude of the weights. ``"uniform"`` ranks nothing: each layer is pruned alike.
    selection : {"dynamic", "renewed", "fixed"}, default="dynamic"
        - ``"dynamic"``: layer-wise ratios from the scores once, then random sets that obey
          them, renewed every `mask_interval` (Alg. 1, the paper's choice).
        - ``"renewed"``: the best-scored coordinates, scored anew from the current weights
          at each renewal (M1 of Sec. 4). Each renewal costs the queries of the scores.
        - ``"fixed"``: the best-scored coordinates at the start, for good (M2 of Sec. 4).
    ranking : {"absolute", "signed"}, default="absolute"
        Keep the scores of largest magnitude, as the authors' code does, or the lowest
        ones, as GraSP has it.
    distribution : {"gaussian", "sphere", "per-tensor"}, default="gaussian"
        How ZO-GraSP draws its directions, see :class:`zoestim.gradients.RandomizedEstimator`;
        the authors' code has ``"per-tensor"``.

    References
    ----------
    Chen et al., DeepZero, ICLR 2024, Sec. 4 and Alg. 1.

    Examples
    --------
    >>> from zoestim import ZOClassifier
    >>> from zoestim.sparsity import Pruning
    >>> ZOClassifier(pruning=Pruning("magnitude", selection="fixed")).pruning.selection
    'fixed'
    """

    def __init__(
        self,
        scores: str = "zo-grasp",
        selection: str = "dynamic",
        ranking: str = "absolute",
        distribution: str = "gaussian",
    ):
        self.scores = scores
        self.selection = selection
        self.ranking = ranking
        self.distribution = distribution

    def check(self) -> None:
        """Refuse a rule that does not exist."""
        allowed = {"scores": SCORES, "selection": SELECTIONS, "ranking": RANKINGS}
        for name, known in allowed.items():
            if getattr(self, name) not in known:
                got = f"got {getattr(self, name)!r}"
                raise ValueError(f"Pruning: {name} must be one of {list(known)}; {got}.")


def _given_ratios(
    pruning: Pruning | Mapping[str, float], sparsity: float, sizes: Mapping[str, int]
) -> dict[str, float] | None:
    """Return the layer-wise ratios that are known without a score, or None."""
    if isinstance(pruning, Mapping):
        return {name: pruning.get(name, sparsity) for name in sizes}
    if pruning.scores == "uniform" or sparsity == 0:
        return dict.fromkeys(sizes, sparsity)
    return None


class CoordinateSchedule:
    """The sparse coordinate set of each moment of a fit, Alg. 1.

    Parameters
    ----------
    pruning : Pruning or mapping from layer name to float
        The rule, or the layer-wise ratios themselves.
    sparsity : float in [0, 1)
        The fraction of the prunable weights that is left out; layers that a mapping
        does not name are pruned by it too.
    sizes : mapping from layer name to int
        The prunable layers.
    interval : int or "batch"
        Epochs between renewals, or a new set at each batch.
    score : callable
        ``kind -> {layer: scores}``; asked only when the rule needs it.
    generator : torch.Generator
        Draws the random sets.
    state : dict, optional
        What `state_dict` gave: where to go on. By default a schedule starts by its rule.

    Attributes
    ----------
    ratios : dict from layer name to float
        The fraction of each layer that is pruned in the current set.
    """

    def __init__(
        self,
        pruning: Pruning | Mapping[str, float],
        sparsity: float,
        sizes: Mapping[str, int],
        interval: int | str,
        score: Score,
        generator: torch.Generator,
        state: dict[str, Any] | None = None,
    ):
        self.pruning = pruning
        self.sparsity = sparsity
        self.sizes = sizes
        self.interval = interval
        self.score = score
        self.generator = generator
        self._current: dict[str, Tensor] | None = None
        self._renewed_at: int | None = None
        if state is None:
            self.ratios = self._start()
        else:
            self.ratios, self._current = state["ratios"], state["current"]
            self._renewed_at = state["renewed_at"]

    def state_dict(self) -> dict[str, Any]:
        """Return the set in use, its ratios, and when it was made."""
        return {
            "ratios": self.ratios,
            "current": self._current,
            "renewed_at": self._renewed_at,
        }

    def _start(self) -> dict[str, float]:
        given = _given_ratios(self.pruning, self.sparsity, self.sizes)
        if given is not None:
            return given
        rule: Pruning = self.pruning  # type: ignore[assignment]  # a mapping gives its ratios
        if rule.selection != "dynamic":
            self._current = self._best(rule)
            return self.ratios
        return layer_ratios(self.score(rule.scores), self.sparsity, rule.ranking)

    def _best(self, rule: Pruning) -> dict[str, Tensor]:
        best = top_coordinates(self.score(rule.scores), self.sparsity, rule.ranking)
        self.ratios = {name: 1 - len(best[name]) / size for name, size in self.sizes.items()}
        return best

    def coordinates(self, epoch: int) -> dict[str, Tensor]:
        """Return the set for the next batch, renewing it first when that is due."""
        if self._current is None or self._due(epoch):
            self._current = self._renew()
            self._renewed_at = epoch
        elif self._renewed_at is None:  # scored by `_start`, for this batch
            self._renewed_at = epoch
        return self._current

    def scores_next(self, epoch: int) -> bool:
        """Return whether the next call of `coordinates` asks for scores."""
        return self._scores_anew() and self._due(epoch)

    @staticmethod
    def count(
        pruning: Pruning | Mapping[str, float], sparsity: float, sizes: Mapping[str, int]
    ) -> int:
        """Return how many coordinates a set will have, before any score is known."""
        ratios = _given_ratios(pruning, sparsity, sizes)
        if ratios is None:
            return n_kept_of(sparsity, list(sizes.values()))
        return sum(n_kept(ratios[name], size) for name, size in sizes.items())

    def _due(self, epoch: int) -> bool:
        fixed = isinstance(self.pruning, Pruning) and self.pruning.selection == "fixed"
        if fixed or self._renewed_at is None:
            return False
        return self.interval == "batch" or epoch - self._renewed_at >= int(self.interval)

    def _scores_anew(self) -> bool:
        rule = self.pruning
        if not isinstance(rule, Pruning) or rule.selection != "renewed":
            return False
        return rule.scores != "uniform" and self.sparsity > 0

    def _renew(self) -> dict[str, Tensor]:
        rule = self.pruning
        if isinstance(rule, Pruning) and self._scores_anew():
            return self._best(rule)
        return draw_coordinates(self.ratios, self.sizes, self.generator)
