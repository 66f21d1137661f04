"""Layer-wise ratios and the sets that obey them: counts, range, order, ties."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoestim.sparsity import draw_coordinates, layer_ratios, top_coordinates

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

deterministic = settings(derandomize=True, deadline=None, max_examples=60)

# Small integers among the scores, so that ties are the rule; shapes of one to three axes.
shapes = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=4)
rankings = st.sampled_from(["absolute", "signed"])
sparsities = st.floats(0, 1, exclude_max=True)
RANK: dict[str, Callable[[Tensor], Tensor]] = {"absolute": Tensor.abs, "signed": Tensor.neg}


@st.composite
def scored_layers(draw: st.DrawFn) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return {
        f"layer{i}": torch.randint(-4, 5, shape, generator=generator).double()
        for i, shape in enumerate(draw(shapes))
    }


def sizes_of(scores: dict[str, Tensor]) -> dict[str, int]:
    return {name: score.numel() for name, score in scores.items()}


def assert_sets(coordinates: dict[str, Tensor], sizes: dict[str, int]) -> None:
    """Fail unless each layer has flat int64 indices in its range, ascending, none twice."""
    assert list(coordinates) == list(sizes)
    for name, indices in coordinates.items():
        assert indices.dtype == torch.int64
        assert indices.tolist() == sorted(set(indices.tolist()))
        assert set(indices.tolist()) <= set(range(sizes[name]))


# --- top_coordinates


@given(scored_layers(), sparsities, rankings)
@deterministic
def test_top_coordinates_keep_the_announced_number_and_one_a_layer_at_least(
    scores, sparsity, ranking
):
    kept, sizes = top_coordinates(scores, sparsity, ranking), sizes_of(scores)
    assert_sets(kept, sizes)
    d = sum(sizes.values())
    assert min(len(indices) for indices in kept.values()) > 0
    announced = max(1, round((1 - sparsity) * d), len(scores))
    assert sum(len(indices) for indices in kept.values()) == announced


@given(scored_layers(), sparsities, rankings)
@deterministic
def test_what_is_kept_beside_the_best_ranks_no_lower_than_what_is_dropped(
    scores, sparsity, ranking
):
    kept = top_coordinates(scores, sparsity, ranking)
    inside, outside = [], []
    for name, score in scores.items():
        rank = RANK[ranking](score.flatten())
        mask = torch.zeros(len(rank), dtype=torch.bool).index_fill(0, kept[name], True)
        inside.append(rank[mask].sort().values[:-1])  # the best of a layer is kept in any case
        outside.append(rank[~mask])
    if torch.cat(outside).numel() and torch.cat(inside).numel():
        assert torch.cat(inside).min() >= torch.cat(outside).max()


def test_absolute_keeps_large_magnitudes_and_signed_keeps_low_values():
    scores = {"a": torch.tensor([3.0, -9.0, 1.0]), "b": torch.tensor([[-2.0, 8.0]])}
    absolute = top_coordinates(scores, 0.6)
    signed = top_coordinates(scores, 0.6, "signed")
    assert {name: kept.tolist() for name, kept in absolute.items()} == {"a": [1], "b": [1]}
    assert {name: kept.tolist() for name, kept in signed.items()} == {"a": [1], "b": [0]}


def test_ties_fall_to_the_first_coordinates_of_the_first_layers():
    scores = {"a": torch.ones(100), "b": -torch.ones(100)}
    kept = top_coordinates(scores, 0.35)
    assert kept["a"].tolist() == list(range(100))
    assert kept["b"].tolist() == list(range(30))


def test_scores_are_left_alone():
    scores = {"a": torch.tensor([3.0, -9.0])}
    top_coordinates(scores, 0.5, "signed")
    assert scores["a"].tolist() == [3.0, -9.0]


# --- layer_ratios


@given(scored_layers(), sparsities, rankings)
@deterministic
def test_ratios_are_the_fractions_that_pruning_by_score_drops(scores, sparsity, ranking):
    ratios, kept = (rule(scores, sparsity, ranking) for rule in (layer_ratios, top_coordinates))
    assert list(ratios) == list(scores)
    for name, ratio in ratios.items():
        assert 0 <= ratio <= 1
        assert ratio == 1 - len(kept[name]) / scores[name].numel()


@given(scored_layers(), sparsities, rankings, st.integers(0, 2**31))
@deterministic
def test_drawn_sets_obey_the_ratios_of_the_scores_exactly(scores, sparsity, ranking, seed):
    sizes, kept = sizes_of(scores), top_coordinates(scores, sparsity, ranking)
    ratios = layer_ratios(scores, sparsity, ranking)
    drawn = draw_coordinates(ratios, sizes, torch.Generator().manual_seed(seed))
    assert_sets(drawn, sizes)
    assert {n: len(i) for n, i in drawn.items()} == {n: len(i) for n, i in kept.items()}


# --- draw_coordinates


@given(st.floats(0, 1), st.integers(1, 200), st.integers(0, 2**31))
@deterministic
def test_a_layer_keeps_one_coordinate_at_least_unless_its_ratio_is_one(ratio, size, seed):
    drawn = draw_coordinates({"a": ratio}, {"a": size}, torch.Generator().manual_seed(seed))
    assert_sets(drawn, {"a": size})
    assert len(drawn["a"]) == (0 if ratio == 1 else max(1, round((1 - ratio) * size)))


def test_same_seed_draws_the_same_set_and_another_seed_or_a_second_draw_another():
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 1, 2)]
    first, again, other = (draw_coordinates({"a": 0.5}, {"a": 100}, g)["a"] for g in generators)
    second = draw_coordinates({"a": 0.5}, {"a": 100}, generators[0])["a"]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, second)


def test_every_coordinate_is_drawn_equally_often():
    generator, counts = torch.Generator().manual_seed(0), torch.zeros(10)
    for _ in range(2_000):
        counts[draw_coordinates({"a": 0.7}, {"a": 10}, generator)["a"]] += 1
    assert counts.sum() == 6_000
    deviation = 5 * (2_000 * 0.3 * 0.7) ** 0.5  # five standard deviations of a binomial
    assert (counts - 600).abs().max() < deviation
