"""When coordinate sets change, when scores are asked for, and how large the sets are."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from torch import Tensor

from zoestim.sparsity import SCORES, CoordinateSchedule, Pruning, top_coordinates

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

SIZES = {"a": 20, "b": 7, "c": 50}
SELECTIONS = ("dynamic", "renewed", "fixed")

rules = st.one_of(
    st.builds(
        Pruning,
        st.sampled_from(SCORES),
        st.sampled_from(SELECTIONS),
        st.sampled_from(["absolute", "signed"]),
    ),
    st.dictionaries(st.sampled_from("abc"), st.sampled_from([0.0, 0.25, 0.9, 0.999, 1.0])),
)
intervals = st.one_of(st.just("batch"), st.integers(1, 3))


class Scorer:
    """Gives other scores at each call, and remembers what it was asked for."""

    def __init__(self, sizes: dict[str, int] = SIZES):
        self.sizes = sizes
        self.asked: list[str] = []
        self.given: list[dict[str, Tensor]] = []

    def __call__(self, kind: str) -> dict[str, Tensor]:
        self.asked.append(kind)
        generator = torch.Generator().manual_seed(len(self.asked))
        self.given.append({n: torch.randn(s, generator=generator) for n, s in self.sizes.items()})
        return self.given[-1]


def make(pruning, interval=1, sparsity=0.9, sizes=SIZES) -> tuple[CoordinateSchedule, Scorer]:
    score, generator = Scorer(sizes), torch.Generator().manual_seed(0)
    return CoordinateSchedule(pruning, sparsity, sizes, interval, score, generator), score


def changes(schedule: CoordinateSchedule, epochs: list[int]) -> list[bool]:
    """Return for each batch, named by its epoch, whether its set is another than before."""
    sets = [schedule.coordinates(epoch) for epoch in epochs]
    return [not same(a, b) for a, b in pairwise(sets)]


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def size(coordinates: dict[str, Tensor]) -> int:
    return sum(len(indices) for indices in coordinates.values())


BATCHES = [0, 0, 1, 1, 2, 2, 3, 3]  # two batches an epoch

# --- When sets change


@pytest.mark.parametrize("selection", ["dynamic", "renewed"])
@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (1, [False, True, False, True, False, True, False]),
        (2, [False, False, False, True, False, False, False]),
        (9, [False] * 7),
        ("batch", [True] * 7),
    ],
)
def test_sets_change_every_k_epochs_or_at_every_batch(selection, interval, expected):
    schedule, _ = make(Pruning("random", selection), interval)
    assert changes(schedule, BATCHES) == expected


@pytest.mark.parametrize("pruning", [Pruning("uniform"), {"a": 0.5}], ids=["uniform", "mapping"])
def test_sets_without_scores_are_dynamic_too(pruning):
    schedule, _ = make(pruning, 2)
    assert changes(schedule, BATCHES) == [False, False, False, True, False, False, False]


@pytest.mark.parametrize("interval", [1, "batch"])
@pytest.mark.parametrize("scores", ["magnitude", "uniform"])
def test_fixed_keeps_one_set_for_good(scores: str, interval):
    schedule, score = make(Pruning(scores, "fixed"), interval)
    assert not any(changes(schedule, BATCHES))
    assert len(score.asked) == (scores != "uniform")


def test_a_schedule_that_starts_at_a_later_epoch_counts_from_there():
    schedule, _ = make(Pruning("random"), 2)
    assert changes(schedule, [5, 6, 7, 8, 9]) == [False, True, False, True]


@pytest.mark.parametrize("selection", SELECTIONS)
def test_same_generator_and_scores_give_the_same_sets(selection: str):
    first, second = (make(Pruning("random", selection), "batch")[0] for _ in range(2))
    assert all(same(first.coordinates(e), second.coordinates(e)) for e in BATCHES)


# --- What the sets are


@pytest.mark.parametrize("ranking", ["absolute", "signed"])
def test_m1_and_m2_start_from_the_best_scored_coordinates(ranking: str):
    for selection in ("renewed", "fixed"):
        schedule, score = make(Pruning("zo-grasp", selection, ranking))
        expected = top_coordinates(score.given[0], 0.9, ranking)
        assert same(schedule.coordinates(0), expected)


def test_m1_takes_the_best_of_the_new_scores_at_each_renewal():
    schedule, score = make(Pruning("zo-grasp", "renewed"))
    for epoch in range(3):
        found = schedule.coordinates(epoch)
        assert same(found, top_coordinates(score.given[epoch], 0.9))


def test_dynamic_sets_are_random_and_obey_the_ratios_of_the_scores():
    schedule, score = make(Pruning("zo-grasp"))
    best = top_coordinates(score.given[0], 0.9)
    drawn = schedule.coordinates(0)
    assert {n: len(i) for n, i in drawn.items()} == {n: len(i) for n, i in best.items()}
    assert not same(drawn, best)
    assert schedule.ratios == {n: 1 - len(i) / SIZES[n] for n, i in best.items()}


def test_uniform_prunes_each_layer_alike():
    schedule, _ = make(Pruning("uniform"), sparsity=0.5)
    assert schedule.ratios == {"a": 0.5, "b": 0.5, "c": 0.5}


def test_layers_that_a_mapping_does_not_name_are_pruned_by_the_sparsity():
    schedule, _ = make({"a": 0.5, "b": 1.0}, sparsity=0.8)
    assert schedule.ratios == {"a": 0.5, "b": 1.0, "c": 0.8}
    assert {n: len(i) for n, i in schedule.coordinates(0).items()} == {"a": 10, "b": 0, "c": 10}


# --- When scores are asked for


@pytest.mark.parametrize(
    ("selection", "interval", "times"),
    [
        ("dynamic", 1, 1),
        ("dynamic", "batch", 1),
        ("fixed", 1, 1),
        ("fixed", "batch", 1),
        ("renewed", 1, 4),
        ("renewed", 2, 2),
        ("renewed", "batch", 8),
    ],
)
def test_scores_are_asked_for_once_or_by_m1_at_each_renewal(selection, interval, times):
    schedule, score = make(Pruning("fo-grasp", selection), interval)
    assert score.asked == ["fo-grasp"]
    for epoch in BATCHES:
        schedule.coordinates(epoch)
    assert score.asked == ["fo-grasp"] * times


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize(
    ("pruning", "sparsity"), [("uniform", 0.9), ("zo-grasp", 0.0)], ids=["uniform", "dense"]
)
def test_uniform_and_dense_sets_ask_for_no_scores(pruning: str, sparsity: float, selection: str):
    schedule, score = make(Pruning(pruning, selection), "batch", sparsity)
    for epoch in BATCHES:
        schedule.coordinates(epoch)
    assert score.asked == []


def test_a_mapping_asks_for_no_scores():
    schedule, score = make({"a": 0.5}, "batch")
    for epoch in BATCHES:
        schedule.coordinates(epoch)
    assert score.asked == []


@given(rules, intervals, st.sampled_from([0.0, 0.5, 0.95]), st.lists(st.integers(0, 2), max_size=9))
@settings(derandomize=True, deadline=None, max_examples=150)
def test_scores_next_says_whether_the_next_call_asks_for_scores(pruning, interval, sparsity, steps):
    schedule, score = make(pruning, interval, sparsity)
    epoch = 0
    for step in steps:
        epoch += step
        announced, before = schedule.scores_next(epoch), len(score.asked)
        schedule.coordinates(epoch)
        assert announced == (len(score.asked) > before)


# --- How large the sets are


@given(
    rules,
    intervals,
    st.floats(0, 1, exclude_max=True),
    st.lists(st.integers(1, 60), min_size=3, max_size=3),
)
@settings(derandomize=True, deadline=None, max_examples=150)
def test_count_is_the_size_of_the_sets_that_are_drawn(pruning, interval, sparsity, counts):
    sizes = dict(zip("abc", counts, strict=True))
    schedule, _ = make(pruning, interval, sparsity, sizes)
    announced = CoordinateSchedule.count(pruning, sparsity, sizes)
    assert [size(schedule.coordinates(epoch)) for epoch in (0, 0, 1, 4)] == [announced] * 4


def test_pruning_is_cloned_with_its_parameters():
    pruning = Pruning("magnitude", "fixed", "signed")
    assert clone(pruning).get_params() == pruning.get_params()
