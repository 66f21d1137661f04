"""What of a graph runs again for which parameter, and what it reads instead of running the rest."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import case_impure as impure
from cases import CASES, Case, ids
from zoestim import BlackBox
from zoestim.evaluation._in_place import Untraceable
from zoestim.evaluation._program import Pass, Program
from zoestim.evaluation._trace import trace, whole

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

every_case = pytest.mark.parametrize("case", CASES, ids=ids)


def case_of(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def program_of(module: nn.Module) -> Program:
    """Return the program of the module's graph, or of its one node where it has none."""
    try:
        graph, root, _ = trace(module)
    except Untraceable:
        return Program(module, whole(), module)
    return Program(module, graph, root)


@torch.no_grad()
def run(name: str) -> tuple[nn.Module, Program, Pass]:
    """Return the module of a case, its program, and a pass from seed 0."""
    case, module = case_of(name), case_of(name).module()
    program = program_of(module)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return module, program, program.run(case.X)


def rerun(program: Program, done: Pass, parameters: dict[str, Tensor]) -> list[Tensor]:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(99)  # what a rerun draws is not up to the generator now
        return torch.utils._pytree.tree_leaves(program.rerun(done, parameters))


@torch.no_grad()
def eager(case: Case, moved: dict[str, Tensor]) -> list[Tensor]:
    module = copy.deepcopy(case.module())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.utils._pytree.tree_leaves(functional_call(module, moved, (case.X,)))


def names(program: Program, *parameters: str) -> list[str]:
    return [node.name for node in program.dependents(parameters)]


def count_calls(module: nn.Module) -> list[str]:
    """Return a list to which each Linear adds its name when it is called."""
    calls: list[str] = []
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear):
            child.register_forward_hook(lambda *_, name=name: calls.append(name))
    return calls


# --- Exactness


@every_case
def test_each_parameter_moved_alone_gives_what_the_whole_module_gives(case: Case):
    module, program, done = run(case.name)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            moved = {name: parameter.detach() * 1.1 + 0.05}
            for found, expected in zip(
                rerun(program, done, moved), eager(case, moved), strict=True
            ):
                torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


@every_case
def test_the_own_parameters_give_the_output_of_the_pass_again(case: Case):
    module, program, done = run(case.name)
    own = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}
    outputs = torch.utils._pytree.tree_leaves(done.output)
    for found, expected in zip(rerun(program, done, own), outputs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)


# --- What runs


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        ("0.weight", ["_0", "_1", "_2", "_3", "_4", "output"]),
        ("2.bias", ["_2", "_3", "_4", "output"]),
        ("4.weight", ["_4", "output"]),
    ],
)
def test_a_parameter_of_a_chain_reruns_its_layer_and_what_follows(parameter, expected):
    assert names(program_of(case_of("mlp").module()), parameter) == expected


def test_a_branch_that_does_not_see_the_parameter_is_not_rerun():
    program = program_of(case_of("residual").module())
    assert names(program, "second.weight") == ["second", "tanh", "add", "head", "output"]
    assert "first" in names(program, "first.bias")


def test_a_tied_parameter_reruns_every_use():
    program = program_of(case_of("tied").module())
    assert {"embed", "decode"} <= set(names(program, "embed.weight"))
    assert "embed" not in names(program, "mix.weight")


def test_a_parameter_read_by_name_reruns_the_node_that_reads_it():
    program = program_of(case_of("borrowed").module())
    found = names(program, "encode.weight")
    assert "encode" in found
    assert "encode_weight" in found
    assert "encode_weight" not in names(program, "encode.bias")


def test_several_parameters_rerun_what_any_of_them_changes():
    program = program_of(case_of("residual").module())
    both = names(program, "second.weight", "head.bias")
    assert both == names(program, "second.weight")


def test_a_parameter_that_forward_never_reads_runs_nothing():
    _, program, done = run("unused")
    assert names(program, "unused") == []
    assert program.rerun(done, {"unused": torch.full((2,), 7.0)}) is done.output


def test_layers_before_the_parameter_are_not_called():
    module = case_of("mlp").module()
    calls = count_calls(module)
    program = program_of(module)
    done = program.run(case_of("mlp").X)
    assert calls == ["0", "2", "4"]
    calls.clear()
    program.rerun(done, {"2.weight": module[2].weight.detach() + 1})
    assert calls == ["2", "4"]


def test_a_fabricated_feature_before_the_cut_is_what_the_query_starts_from():
    module, program, done = run("mlp")
    before = next(node for node in program.nodes if node.name == "_1")
    done.values[before] = torch.full((6, 6), 2.0, dtype=torch.float64)
    bias = module[2].bias.detach() + 1
    (found,) = rerun(program, done, {"2.bias": bias})
    hidden = torch.tanh(done.values[before] @ module[2].weight.T + bias)
    torch.testing.assert_close(found, (hidden @ module[4].weight.T + module[4].bias).detach())


def test_an_opaque_submodule_runs_as_one_node():
    module = case_of("branch_inside").module()
    program = program_of(module)
    assert names(program, "0.weight") == ["_0", "_1", "_2", "output"]
    assert names(program, "2.weight") == ["_2", "output"]


def test_without_a_graph_every_parameter_reruns_the_whole_module():
    module = case_of("mlp").module()
    program = Program(module, whole(), module)
    assert len(names(program, "4.bias")) == 2
    assert names(program, "4.bias") == names(program, "0.weight")


# --- State and randomness


@pytest.mark.parametrize("name", ["cnn_train", "resnet_train", "dropout2d_train", "moving_mean"])
def test_a_pass_keeps_the_buffers_of_one_training_forward_and_queries_change_none(name: str):
    module, program, done = run(name)
    trained, before = case_of(name).module(), case_of(name).module().state_dict()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        trained(case_of(name).X)
    for parameter, value in list(module.named_parameters()):
        rerun(program, done, {parameter: value.detach() + 1})
    for buffer, value in trained.named_buffers():
        assert torch.equal(done.tensors[buffer], value)
        assert torch.equal(module.state_dict()[buffer], before[buffer])
    assert any(not torch.equal(done.tensors[b], before[b]) for b, _ in module.named_buffers())


def test_only_nodes_that_drew_have_a_random_state():
    _, _, done = run("dropout_train")
    assert [node.name for node in done.random] == ["_1", "_4"]
    assert run("dropout_eval")[2].random == {}


def test_a_query_behind_a_dropout_that_it_does_not_rerun_sees_the_draws_of_the_pass():
    case, (module, program, done) = case_of("dropout_train"), run("dropout_train")
    moved = {"2.bias": module[2].bias.detach() + 1}
    (found,), (expected,) = rerun(program, done, moved), eager(case, moved)
    assert names(program, "2.bias") == ["_2", "_3", "_4", "_5", "output"]
    torch.testing.assert_close(found, expected)


class KeepsMaximum(nn.Module):
    """Writes to its buffer only when the data exceed it, as observers of ranges do."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("top", torch.tensor(1.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        if x.max() > self.top:
            self.top.copy_(x.max())
        return x / self.top


@pytest.mark.parametrize("reuse", [True, False])
def test_a_query_that_writes_where_the_pass_did_not_changes_no_buffer(reuse: bool):
    fc = nn.utils.skip_init(nn.Linear, 1, 1, dtype=torch.float64)
    module = nn.Sequential(fc, KeepsMaximum()).requires_grad_(False)
    fc.weight.fill_(1.0), fc.bias.fill_(0.0)
    program = program_of(module) if reuse else Program(module, whole(), module)
    X = torch.tensor([[0.5], [1.0]], dtype=torch.float64)
    done = program.run(X)
    assert rerun(program, done, {"0.weight": fc.weight + 1})[0].flatten().tolist() == [0.5, 1.0]
    assert float(module[1].top) == 1.0
    assert rerun(program, done, {"0.weight": fc.weight.clone()})[0].tolist() == X.tolist()


def test_the_boxes_that_a_query_asks_are_known():
    box, tanh = BlackBox(lambda p, X: X * p, np.ones(1)), nn.Tanh()
    program = program_of(nn.Sequential(box, tanh, nn.PReLU()))
    assert program.boxes(program.nodes) == [box]
    assert program.boxes(program.dependents(["2.weight"])) == []
    inside = nn.Sequential(nn.Sequential(box, impure.Branch()))
    assert Program(inside, whole(), inside).boxes(whole().nodes) == [box]
