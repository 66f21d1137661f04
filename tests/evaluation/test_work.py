"""The work of a query, counted node by node: an optimisation that is lost fails here."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zoestim import estimate_gradient
from zoestim.evaluation import Batch, Cost, Objective, Propagation, Visit, counted, measure
from zoestim.evaluation._program import Program
from zoestim.models import MLP, DnCNN, SimpleCNN, resnet20
from zoestim.propagation import Dense, Entry, RankOne
from zoestim.propagation._pending import Pending

N, SIZE, IN, MIDDLE, OUT = 6, 8, 3, 4, 5  # images, pixels a side, channels
DOUBLE = 8  # bytes


def blocks(pooled: int = 2, after: int = 1) -> nn.Sequential:
    """Return two blocks of convolutions, and linear layers behind them."""
    widths = [OUT * (SIZE // pooled // 2) ** 2] + [7] * (after - 1)
    linear = [nn.Linear(width, 7) for width in widths]
    return nn.Sequential(
        *(nn.Conv2d(IN, MIDDLE, 3, padding=1), nn.BatchNorm2d(MIDDLE), nn.ReLU()),
        *(nn.MaxPool2d(pooled), nn.Conv2d(MIDDLE, OUT, 3, padding=1), nn.BatchNorm2d(OUT)),
        *(nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), *linear),
    ).double()


def images(n: int = N, channels: int = IN, size: int = SIZE) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, channels, size, size, generator=generator).double()


def propagation_of(module: nn.Module, X: Tensor) -> Propagation:
    objective = Objective(module, nn.MSELoss())
    with torch.no_grad():
        return Propagation(*objective.base(Batch(X, X)), objective.ways)


def changes(module: nn.Module, name: str, indices: list[int]) -> dict[str, Entry]:
    parameter = dict(module.named_parameters())[name].detach()
    return {name: Entry(torch.tensor(indices), parameter.new_full((len(indices),), 1e-3))}


def cost_of(module: nn.Module, X: Tensor, name: str, *indices: int) -> Cost:
    with torch.no_grad():
        return measure(propagation_of(module, X), changes(module, name, list(indices or (0,))))


def form(visit: Visit) -> Any:
    """Return how many channels or features change; of what is dense, the class."""
    return visit.kind if visit.dim is None else (visit.width, visit.dim)


def forms(cost: Cost) -> dict[str, Any]:
    return {visit.name: form(visit) for visit in cost.visits}


# --- What changes at each node

FIRST = [("0.weight", "0"), ("0.bias", "0"), ("1.weight", "1"), ("1.bias", "1")]
SECOND = [("4.weight", "4"), ("4.bias", "4"), ("5.weight", "5"), ("5.bias", "5")]
CHANNEL = (1, 1)
ORDER = ["0", "1", "3", "2", "4", "5", "7", "6", "8", "9", "output"]  # poolings before ReLUs


@pytest.mark.parametrize(("name", "node"), FIRST)
def test_one_channel_changes_up_to_the_second_convolution(name: str, node: str):
    found = forms(cost_of(blocks(), images(), name))
    assert list(found) == ORDER[ORDER.index(node) :]
    assert all(found[each] == CHANNEL for each in ORDER[ORDER.index(node) : 4])
    assert all(issubclass(found[each], Dense) for each in ORDER[4:])


@pytest.mark.parametrize(("name", "node"), SECOND)
def test_behind_the_last_convolution_one_channel_changes_to_the_end(name: str, node: str):
    found = forms(cost_of(blocks(), images(), name))
    assert list(found) == ORDER[ORDER.index(node) :]
    assert all(found[each] == CHANNEL for each in ORDER[ORDER.index(node) : 8])
    assert found["8"] == (4, 1)  # the pixels of a channel, as features
    assert found["9"] is Dense


@pytest.mark.parametrize("name", ["4.weight", "4.bias", "5.weight", "5.bias"])
def test_one_pixel_of_a_channel_is_one_feature_and_rank_one_behind_the_linear_layer(name: str):
    found = forms(cost_of(blocks(pooled=4), images(), name))
    assert found["8"] == (1, 1)
    assert found["9"] is RankOne


@pytest.mark.parametrize("name", ["9.weight", "9.bias"])
def test_a_linear_layer_moves_one_feature_and_the_next_one_all_by_rank_one(name: str):
    found = forms(cost_of(blocks(after=2), images(), name))
    assert found == {"9": (1, 1), "10": RankOne, "output": RankOne}


@pytest.mark.parametrize("name", ["10.weight", "10.bias"])
def test_the_last_layer_runs_alone(name: str):
    assert forms(cost_of(blocks(after=2), images(), name)) == {"10": (1, 1), "output": (1, 1)}


@pytest.mark.parametrize("name", [name for name, _ in FIRST + SECOND])
def test_lanes_of_several_channels_change_one_channel_each(name: str):
    size = dict(blocks().named_parameters())[name].numel()
    several = forms(cost_of(blocks(), images(), name, 0, size // 2, size - 1))
    assert several == forms(cost_of(blocks(), images(), name))


# --- Bytes and operations

BYTES = {
    "0": N * SIZE**2,
    "1": N * SIZE**2,
    "3": N * (SIZE // 2) ** 2,
    "2": N * (SIZE // 2) ** 2,
    "4": N * OUT * (SIZE // 2) ** 2,
    "5": N * OUT * (SIZE // 2) ** 2,
    "7": N * OUT * (SIZE // 4) ** 2,
    "6": N * OUT * (SIZE // 4) ** 2,
    "8": N * OUT * (SIZE // 4) ** 2,
    "9": N * 7,
    "output": N * 7,
}


@pytest.mark.parametrize(("name", "node"), FIRST)
def test_each_node_takes_the_bytes_of_what_changes(name: str, node: str):
    visits = cost_of(blocks(), images(), name).visits
    expected = [DOUBLE * BYTES[each] for each in ORDER[ORDER.index(node) :]]
    assert [visit.nbytes for visit in visits] == expected


@pytest.mark.parametrize(("name", "node"), SECOND)
def test_behind_the_last_convolution_it_takes_those_of_one_channel(name: str, node: str):
    visits = cost_of(blocks(), images(), name).visits[:-2]
    expected = [DOUBLE * BYTES[each] // OUT for each in ORDER[ORDER.index(node) : -2]]
    assert [visit.nbytes for visit in visits] == expected


MULTIPLIED = 2 * N * (SIZE // 2) ** 2 * 9 * OUT  # one input channel, all outputs
LINEAR = 2 * N * OUT * (SIZE // 4) ** 2 * 7


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        *((name, MULTIPLIED + LINEAR) for name, _ in FIRST),
        *((name, LINEAR // OUT) for name, _ in SECOND),
        *(("9.weight", 0), ("9.bias", 0)),
    ],
)
def test_only_what_a_channel_touches_is_multiplied(name: str, flops: int):
    assert cost_of(blocks(), images(), name).flops == flops


@pytest.mark.parametrize("name", [name for name, _ in FIRST + SECOND])
def test_what_changes_is_written_and_read_beside_the_unperturbed(name: str):
    cost = cost_of(blocks(), images(), name)
    assert cost.bytes == 3 * sum(cost.sizes)


def test_the_operations_of_all_coordinates_are_far_fewer_than_those_of_a_loop():
    module, X = SimpleCNN(2, width=6).eval(), images(2).float()
    propagation = propagation_of(module, X)
    with torch.no_grad():
        forward = counted(lambda: module(X))
        flops = [
            measure(propagation, changes(module, name, [0])).flops * parameter.numel()
            for name, parameter in module.named_parameters()
        ]
    size = sum(parameter.numel() for parameter in module.parameters())
    assert 50 * sum(flops) < forward * size


# --- Models

MODELS = {
    "cnn 1": (lambda: SimpleCNN(1, width=4), images(2).float()),
    "cnn 3": (lambda: SimpleCNN(3, width=4), images(2).float()),
    "mlp": (lambda: MLP(4, 3, hidden=(6, 5)), torch.ones(3, 4)),
    "mlp relu": (lambda: MLP(4, 3, hidden=(6,), activation=nn.ReLU), torch.ones(3, 4)),
    "dncnn": (lambda: DnCNN(4, width=3), images(2, 1).float()),
}


def visits_of(module: nn.Module, X: Tensor) -> list[Visit]:
    """Return the visits of a coordinate of each parameter."""
    propagation, found = propagation_of(module, X), []
    for name, parameter in module.named_parameters():
        propagation.visits = []
        with torch.no_grad():
            propagation.run(changes(module, name, [0, parameter.numel() - 1]))
        found += propagation.visits
    return found


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", MODELS)
def test_every_node_of_a_model_has_a_rule(name: str, training: bool):
    make, X = MODELS[name]
    visits = visits_of(make().train(training), X)
    assert {visit.name for visit in visits if not visit.by_rule} == {"output"}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_every_node_of_a_resnet_has_a_rule(training: bool):
    visits = visits_of(resnet20().train(training), images(2).float())
    assert {visit.name for visit in visits if not visit.by_rule} == {"output"}


@pytest.fixture(scope="module")
def forms_of_a_resnet() -> dict[str, Any]:
    return forms(cost_of(resnet20(), images(2).float(), "layer2.1.conv1.weight"))


def test_a_resnet_moves_one_channel_up_to_the_second_convolution_of_a_block(forms_of_a_resnet):
    single = [name for name, found in forms_of_a_resnet.items() if found == CHANNEL]
    assert single == ["layer2.1.conv1", "layer2.1.bn1", "relu_9"]
    assert forms_of_a_resnet["pad_1"] == (32, 1)  # the shortcut's new channels never change


def test_a_resnet_takes_the_last_steps_of_a_block_together(forms_of_a_resnet):
    together = [name for name, found in forms_of_a_resnet.items() if found is Pending]
    assert together[:5] == ["layer2.1.bn2", "add_4", "layer2.2.bn1", "relu_11", "layer2.2.bn2"]


# --- What a query does not run


def test_nothing_upstream_of_a_parameter_is_run():
    module = SimpleCNN(2, width=4)
    X = images(2).float()
    reached = ["blocks.1.0", "blocks.1.1", "blocks.1.3", "blocks.1.2", "pool", "flatten", "linear"]
    for name in ("blocks.1.0.weight", "blocks.1.0.bias"):
        visits = cost_of(module, X, name).visits
        assert [visit.name for visit in visits] == [*reached, "output"]


def test_coordinates_of_the_last_layer_call_no_other():
    module = SimpleCNN(1, width=4)
    called: list[str] = []
    for name, part in module.named_modules():
        if not list(part.children()):
            part.register_forward_hook(lambda *_, name=name: called.append(name))
    X, y = images(2).float(), torch.tensor([0, 1])
    estimate_gradient(module, nn.CrossEntropyLoss(), X, y, coordinates={"linear.bias": []})
    base = called.copy()
    called.clear()
    coordinates = {"linear.weight": range(40), "linear.bias": range(10)}
    estimate_gradient(module, nn.CrossEntropyLoss(), X, y, coordinates=coordinates)
    assert "blocks.0.0" in base
    assert [name for name in called if name != "linear"] == [n for n in base if n != "linear"]


def test_a_batch_is_passed_through_the_whole_graph_once_however_many_are_queried(monkeypatch):
    run, passes, module = Program.run, [], SimpleCNN(1, width=4)
    monkeypatch.setattr(Program, "run", lambda *given: passes.append(len(passes)) or run(*given))
    given = module, nn.CrossEntropyLoss(), images(2).float(), torch.tensor([0, 1])
    for n_queried in (1, 8, 40):
        passes.clear()
        estimate_gradient(*given, coordinates={"linear.weight": range(n_queried)})
        assert len(passes) == 2  # one of them proves the graph


@pytest.mark.parametrize("feature_reuse", [True, False])
@pytest.mark.parametrize("budget", [None, 1, 10**6])
def test_the_number_of_queries_is_that_of_the_coordinates_and_one(
    feature_reuse: bool, budget: int | None
):
    module = SimpleCNN(1, width=2)
    settings = {"feature_reuse": feature_reuse, "memory_budget": budget}
    X, y = images(2).float(), torch.tensor([0, 1])
    coordinates = {"linear.weight": range(20), "blocks.0.0.bias": [0, 1]}
    for queried, n_queries in ((coordinates, 23), ({"linear.bias": [4]}, 2)):
        found = estimate_gradient(
            module, nn.CrossEntropyLoss(), X, y, coordinates=queried, **settings
        )
        assert found.n_queries == n_queries


@pytest.mark.parametrize("feature_reuse", [True, False])
def test_all_coordinates_and_central_differences_are_counted(feature_reuse: bool):
    module, y = nn.Linear(3, 2), torch.tensor([0, 1])
    given = module, nn.CrossEntropyLoss(), torch.ones(2, 3), y
    for scheme, n_queries in (("forward", 9), ("central", 17)):
        found = estimate_gradient(*given, scheme=scheme, feature_reuse=feature_reuse)
        assert found.n_queries == n_queries
