"""Layer-wise pruning ratios and the coordinate sets that obey them, Alg. 1 l. 2 and 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

RANKINGS = ("absolute", "signed")


def n_kept(ratio: float, size: int) -> int:
    """Return how many of `size` weights a pruning ratio leaves: one at least, unless 1."""
    return 0 if ratio == 1 else max(1, round((1 - ratio) * size))


def n_kept_of(sparsity: float, sizes: Sequence[int]) -> int:
    """Return how many weights pruning over all layers leaves: one a layer at least."""
    return max(n_kept(sparsity, sum(sizes)), len(sizes))


def top_coordinates(
    scores: Mapping[str, Tensor], sparsity: float, ranking: str = "absolute"
) -> dict[str, Tensor]:
    """Return the coordinates that pruning by score over all layers at once leaves.

    Parameters
    ----------
    scores : mapping from layer name to Tensor
        One score per weight.
    sparsity : float in [0, 1)
        The fraction of all weights that is pruned. At least one a layer is left: a layer
        without would go untrained for the whole fit, as it may in the authors' code.
    ranking : {"absolute", "signed"}, default="absolute"
        ``"absolute"`` keeps the largest magnitudes, as the authors' code does;
        ``"signed"`` keeps the lowest values, the rule of GraSP (Wang et al., 2020).

    Returns
    -------
    dict from layer name to Tensor of int64
        Flat indices into each layer, ascending.

    Examples
    --------
    >>> import torch
    >>> from zoestim.sparsity import top_coordinates
    >>> top_coordinates({"a": torch.tensor([3.0, -9.0]), "b": torch.tensor([1.0, 4.0])}, 0.5)
    {'a': tensor([1]), 'b': tensor([1])}
    """
    flat = torch.cat([score.flatten() for score in scores.values()])
    sizes = [score.numel() for score in scores.values()]
    rank = flat.abs() if ranking == "absolute" else -flat
    starts = accumulate(sizes[:-1], initial=0)
    best = [
        start + int(part.argmax()) for start, part in zip(starts, rank.split(sizes), strict=True)
    ]
    rank = rank.index_fill(0, torch.tensor(best), float("inf"))  # the best of each layer first
    kept = torch.zeros(len(flat), dtype=torch.bool)
    # A stable sort, so that ties fall the same way on every machine.
    order = rank.sort(descending=True, stable=True).indices
    kept[order[: n_kept_of(sparsity, sizes)]] = True
    parts = kept.split(sizes)
    return {name: part.nonzero().flatten() for name, part in zip(scores, parts, strict=True)}


def layer_ratios(
    scores: Mapping[str, Tensor], sparsity: float, ranking: str = "absolute"
) -> dict[str, float]:
    """Return the layer-wise pruning ratios (LPRs) that scores imply, Alg. 1 l. 2.

    Parameters
    ----------
    scores : mapping from layer name to Tensor
        One score per weight, from :func:`grasp_scores` or any other rule.
    sparsity : float in [0, 1)
        The fraction of all weights that is pruned.
    ranking : {"absolute", "signed"}, default="absolute"
        See :func:`top_coordinates`.

    Returns
    -------
    dict from layer name to float
        The fraction of each layer that is pruned.

    References
    ----------
    Chen et al., DeepZero, ICLR 2024, Sec. 4 and Alg. 1.

    Examples
    --------
    >>> import torch
    >>> from zoestim.sparsity import layer_ratios
    >>> layer_ratios({"a": torch.tensor([3.0, -9.0, 7.0]), "b": torch.tensor([1.0])}, 0.5)
    {'a': 0.6666666666666667, 'b': 0.0}
    """
    kept = top_coordinates(scores, sparsity, ranking)
    return {name: 1 - len(kept[name]) / score.numel() for name, score in scores.items()}


def draw_coordinates(
    ratios: Mapping[str, float], sizes: Mapping[str, int], generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw a random coordinate set that obeys the layer-wise ratios, Alg. 1 l. 4.

    Parameters
    ----------
    ratios : mapping from layer name to float in [0, 1]
        The fraction of each layer that is left out.
    sizes : mapping from layer name to int
        The number of weights of each layer.
    generator : torch.Generator
        Where the randomness comes from.

    Returns
    -------
    dict from layer name to Tensor of int64
        Flat indices into each layer, ascending, drawn without replacement.

    Examples
    --------
    >>> import torch
    >>> from zoestim.sparsity import draw_coordinates
    >>> drawn = draw_coordinates({"a": 0.5}, {"a": 10}, torch.Generator().manual_seed(0))
    >>> len(drawn["a"])
    5
    """
    drawn = {}
    for name, ratio in ratios.items():
        order = torch.randperm(sizes[name], generator=generator)
        drawn[name] = order[: n_kept(ratio, sizes[name])].sort().values
    return drawn
