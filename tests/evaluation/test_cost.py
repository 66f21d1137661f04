"""What a query costs, counted by hand; how many go together; shares of equal work, Eq. (5)."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from propagation.strategies import quick
from zoestim.evaluation import Batch, Cost, Objective, Propagation, Visit, measure
from zoestim.evaluation._cost import (
    FAR_SMALLER,
    MAX_FOLD,
    PEAK_FACTOR,
    UNKNOWN,
    fold_size,
    free_memory,
)
from zoestim.propagation import RULES, Entry

FOLD_BYTES = "zoestim.evaluation._cost.FOLD_BYTES"
DOUBLE = 8  # bytes
N = 5  # samples


def propagation_of(module: nn.Module, *shape: int) -> Propagation:
    X = torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=torch.float64).view(shape)
    objective = Objective(module.double(), nn.MSELoss())
    with torch.no_grad():
        return Propagation(*objective.base(Batch(X, X)), objective.ways)


def coordinate(propagation: Propagation, name: str) -> dict[str, Entry]:
    parameter = dict(propagation.program.module.named_parameters())[name]
    return {name: Entry(torch.tensor([0]), parameter.detach().new_tensor([1e-3]))}


def cost_of(propagation: Propagation, name: str) -> Cost:
    with torch.no_grad():
        return measure(propagation, coordinate(propagation, name))


def mlp(*sizes: int) -> Propagation:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    return propagation_of(nn.Sequential(*layers[:-1]), N, sizes[0])


# --- One query


@pytest.mark.parametrize("name", ["0.weight", "0.bias"])
def test_a_first_layer_moves_one_feature_all_the_way(name: str):
    cost = cost_of(mlp(3, 4, 2), name)
    feature = N * DOUBLE
    assert [visit.name for visit in cost.visits] == ["0", "1", "2", "output"]
    assert cost.sizes == (feature,) * 4  # behind the last layer a column and a row of weights
    assert cost.peak == 2 * feature  # what is read and what is made of it
    assert cost.flops == 0


@pytest.mark.parametrize("name", ["2.weight", "2.bias"])
def test_a_last_layer_moves_one_output(name: str):
    cost = cost_of(mlp(3, 4, 2), name)
    assert [visit.name for visit in cost.visits] == ["2", "output"]
    assert cost.sizes == (N * DOUBLE,) * 2
    assert cost.flops == 0


@pytest.mark.parametrize(
    ("name", "flops"),
    [("0.weight", 2 * N * 6 * 2), ("0.bias", 2 * N * 6 * 2), ("2.weight", 0), ("4.bias", 0)],
)
def test_only_what_is_behind_two_layers_is_multiplied(name: str, flops: int):
    assert cost_of(mlp(3, 4, 6, 2), name).flops == flops


def test_a_layer_of_which_all_changes_is_counted_in_full():
    cost = cost_of(mlp(3, 4, 6, 2), "0.weight")
    feature = N * DOUBLE
    assert cost.sizes == (feature, feature, feature, 6 * feature, 2 * feature, 2 * feature)
    assert cost.peak == 8 * feature  # all six features and both outputs


@pytest.mark.parametrize(("name", "flops"), [("0.weight", 2 * N * 16 * 9 * 7), ("1.weight", 0)])
def test_a_convolution_multiplies_the_one_channel_that_changes(name: str, flops: int):
    layers = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 7, 3, padding=1))
    assert cost_of(propagation_of(layers, N, 2, 4, 4), name).flops == flops


def test_bytes_are_what_changes_written_and_read_beside_the_unperturbed():
    cost = cost_of(mlp(3, 4, 2), "2.bias")
    assert cost.bytes == 3 * 2 * N * DOUBLE
    assert cost.work == cost.bytes


def test_work_adds_operations_to_bytes():
    visits = (Visit("", (), None, None, None, True, 2, 5),)
    assert Cost(1000, visits).work == 106
    assert Cost(0, ()).peak == 0


# --- What measuring sees


class Sorted(nn.Module):
    """An operation that has no rule between two that have one."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.cummax(self.fc(x), 1)[0])


@pytest.mark.parametrize("name", ["fc.weight", "fc.bias", "last.weight", "last.bias"])
def test_measuring_visits_each_dependent_node_once(name: str):
    propagation = propagation_of(Sorted(), N, 3)
    nodes = propagation.program.dependents((name,))
    names = [str(n.target) if n.op == "call_module" else n.name for n in nodes]
    assert [visit.name for visit in cost_of(propagation, name).visits] == names


def test_measuring_tells_rules_from_operations_that_ran_themselves():
    assert torch.cummax not in RULES
    visits = cost_of(propagation_of(Sorted(), N, 3), "fc.bias").visits
    ruled = {visit.name: visit.by_rule for visit in visits}
    assert ruled.pop("output") is False
    assert ruled == {"fc": True, "cummax": False, "getitem": True, "last": True}


def test_measuring_leaves_no_trace_even_where_it_fails():
    propagation = mlp(3, 4, 2)
    cost_of(propagation, "0.weight")
    assert propagation.visits is None
    with pytest.raises(IndexError), torch.no_grad():
        measure(propagation, {"0.weight": Entry(torch.tensor([99]), torch.ones(1).double())})
    assert propagation.visits is None


def test_what_is_derived_once_a_pass_is_no_cost_of_a_lane():
    propagation = mlp(3, 4, 6, 2)
    first, second = (cost_of(propagation, "0.weight") for _ in range(2))
    assert (first.flops, first.bytes) == (second.flops, second.bytes)


# --- How many lanes go together


def cost(sizes: list[int], peak: int = 0) -> Cost:
    visits = [Visit(str(k), (), None, None, None, True, size, peak) for k, size in enumerate(sizes)]
    return Cost(0, tuple(visits))


def test_as_many_lanes_go_together_as_stay_in_the_cache(monkeypatch):
    monkeypatch.setattr(FOLD_BYTES, 1000)
    assert fold_size(cost([50, 100, 10, 5, 12]), 2**40) == (1000 // 12, 10, 3)
    assert fold_size(cost([80, 5000, 5, 2000]), 2**40) == (1, 1, 3)


@pytest.mark.parametrize("sizes", [[100, 100, 100], [5000, 5000], [10, 100, 90]], ids=str)
def test_lanes_whose_changes_stay_large_are_joined_no_further_than_the_cache(sizes, monkeypatch):
    monkeypatch.setattr(FOLD_BYTES, 1000)
    assert fold_size(cost(sizes), 2**40).lanes <= max(1, 1000 // sizes[-1])


@pytest.mark.parametrize("sizes", [[], [0, 0], [1, 1]])
def test_no_more_than_the_largest_fold_go_together(sizes: list[int]):
    assert fold_size(cost(sizes), 2**40)[:2] == (MAX_FOLD, MAX_FOLD)


@pytest.mark.parametrize(("n_lanes", "missing"), [(4, 0), (3, 1), (1, 1), (1, 2**30)])
def test_lanes_fit_into_the_memory_budget(n_lanes: int, missing: int):
    fitting = (n_lanes + (missing > 0)) * PEAK_FACTOR * 100
    budget = max(1, fitting - missing)
    assert fold_size(cost([10, 10], peak=100), budget)[:2] == (n_lanes, n_lanes)


@pytest.mark.parametrize(
    ("sizes", "cut"),
    [
        ([800, 800, 100, 100, 100], 3),  # the third node's result is small
        ([800, 100, 800, 100, 100], 4),  # what follows the last large one
        ([800, 800, 101, 101], 4),
        ([800, 800, 800], 3),
        ([100, 100], 2),
        ([0, 0, 0], 1),
        ([100], 1),
    ],
    ids=["small", "twice large", "not far smaller", "all large", "equal", "nothing", "one node"],
)
def test_the_cut_lies_behind_a_node_whose_result_is_small(sizes: list[int], cut: int):
    assert FAR_SMALLER == 8
    assert fold_size(cost(sizes), 2**40).cut == cut


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=8), st.integers(1, 10**6))
@quick
def test_a_fold_is_never_smaller_than_its_pieces(sizes: list[int], budget: int):
    found = fold_size(cost(sizes, peak=max(sizes)), budget)
    assert 1 <= found.piece <= found.lanes <= MAX_FOLD
    assert 1 <= found.cut <= len(sizes)
    assert found.lanes == 1 or found.lanes * PEAK_FACTOR * max(sizes) <= budget
    small = found.cut == len(sizes) or FAR_SMALLER * sizes[found.cut - 1] <= max(sizes)
    assert small


# --- Free memory


def test_free_memory_is_what_the_system_calls_available(tmp_path, monkeypatch):
    told = tmp_path / "meminfo"
    told.write_text("MemTotal:  900 kB\nMemFree:  10 kB\nMemAvailable:     300 kB\nHugePages: 0\n")
    monkeypatch.setattr("zoestim.evaluation._cost._MEMORY", told)
    assert free_memory(torch.device("cpu")) == 300 * 1024


def test_free_memory_is_assumed_where_the_system_does_not_say(tmp_path, monkeypatch):
    monkeypatch.setattr("zoestim.evaluation._cost._MEMORY", tmp_path / "nothing")
    assert free_memory(torch.device("cpu")) == UNKNOWN > 0
