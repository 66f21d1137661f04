"""What of a module is reused, what is said where it is not, and that its graph is proven."""

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import case_impure as impure
from cases import CASES, Case, ids
from zoestim import estimate_gradient
from zoestim.evaluation import (
    Batch,
    BatchLoss,
    BlackBox,
    FeatureReuseWarning,
    Objective,
    evaluate,
)
from zoestim.gradients import CoordinateEstimator

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

X = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(6, 4)
Y = torch.linspace(2, -1, 18, dtype=torch.float64).reshape(6, 3)
BATCH, MSE = Batch(X, Y), nn.MSELoss()
OPAQUE = {"assigns_item", "branch_inside", "numpy_inside"}
# What its warning says of a root that is not cut.
UNCUT = {
    "gru_root": "GRU: torch.fx could not trace it",
    "unrolled": "Unrolled: torch.fx could not trace it",
    "halving": "Halving: torch.fx could not trace it",
    "input_relu": "Sequential: _0 writes in place into a view or an input",
    "discarded_inplace": "DiscardedInplace: relu_ writes in place into a value that is used again",
    "writes_through_view": "WritesThroughView: mul_ writes in place into a view",
    "additive_noise": "AdditiveNoise: it draws random numbers that do not depend on its input",
    "stochastic_depth": "StochasticDepth: it draws random numbers",
    "moving_mean": "Sequential: mul_ writes in place into a view or an input",
    "reassigned_mean": "Sequential: its graph leaves out what its forward writes to a buffer",
}


def case_of(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def layers(*between: nn.Module) -> nn.Sequential:
    """Return a Linear, what is given, and another Linear, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), *between, nn.Linear(4, 3)).double()


@torch.no_grad()
def base(objective: Objective, batch: Batch = BATCH) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        return objective.base(batch)[1].output


def uncut(text: str) -> AbstractContextManager:
    return pytest.warns(FeatureReuseWarning, match=f"Cannot reuse features of {text}")


def queries_of_one_weight(objective: Objective, name: str) -> Tensor:
    """Return the losses of the queries of one parameter."""
    flat = objective.parameters.flatten({name: torch.arange(objective.parameters.sizes[name])})
    return evaluate(objective, BATCH, CoordinateEstimator().queries(flat)).losses


# --- What is said


@pytest.mark.parametrize("case", CASES, ids=ids)
def test_what_cannot_be_reused_is_said_once_and_by_name(case: Case):
    objective, batch = Objective(case.module(), case.criterion), Batch(case.X, case.y)
    warns: AbstractContextManager = nullcontext()
    if case.name in UNCUT:
        warns = uncut(UNCUT[case.name])
    elif case.name in OPAQUE:
        warns = pytest.warns(FeatureReuseWarning, match=r"features inside 1: torch\.fx could not")
    with warns:
        base(objective, batch)
    base(objective, batch)  # says nothing more
    reuse = objective.reuse
    assert bool(reuse) == reuse.active == (case.name not in UNCUT)
    assert list(reuse.opaque) == (["1"] if case.name in OPAQUE else [])
    assert bool(reuse.reason) == (case.name in UNCUT)
    if case.name in UNCUT:
        assert reuse.reason in UNCUT[case.name] or UNCUT[case.name].split(": ")[1] in reuse.reason


def test_every_opaque_submodule_is_named():
    objective = Objective(layers(impure.Branch(), impure.NumpySoftplus()), MSE)
    with pytest.warns(FeatureReuseWarning) as told:
        base(objective)
    texts = [str(warning.message) for warning in told]
    assert [text.split(":")[0] for text in texts] == [
        "Cannot reuse features inside 1",
        "Cannot reuse features inside 2",
    ]
    assert all("runs as one node; set feature_reuse=False to silence this." in t for t in texts)
    assert list(objective.reuse.opaque) == ["1", "2"]


def test_without_feature_reuse_nothing_is_said():
    objective = Objective(case_of("halving").module(), nn.CrossEntropyLoss(), feature_reuse=False)
    base(objective, Batch(case_of("halving").X, case_of("halving").y))
    assert not objective.reuse
    assert objective.reuse.reason == "feature_reuse=False"


def test_a_black_box_alone_has_nothing_to_reuse_and_says_so_without_a_warning():
    objective = Objective(BlackBox(lambda p, x: x @ p, np.eye(4)[:, :3]), MSE)
    base(objective)
    assert not objective.reuse
    assert objective.reuse.reason == "the whole module is a black box"


@pytest.mark.parametrize(
    ("layer", "folds"),
    [(impure.NumpySoftplus, False), (impure.Branch, False), (impure.AssignsItem, True)],
)
def test_queries_that_are_not_folded_are_named_with_the_reason(layer, folds: bool):
    objective = Objective(layers(layer()), MSE)
    with pytest.warns(FeatureReuseWarning, match="inside 1"):
        queries_of_one_weight(objective, "0.weight")
    queries_of_one_weight(objective, "2.weight")
    assert list(objective.reuse.unfolded) == ([] if folds else ["1"])
    assert all(objective.reuse.unfolded.values())


# --- A graph that is cut anew


def test_what_was_proven_of_another_graph_is_proven_again():
    objective = Objective(layers(), MSE)
    base(objective)
    objective.proven.add(("0.weight",))
    objective.foldable["0.weight",] = False
    objective.costs["key"] = None
    objective._program = None
    base(objective)
    assert (objective.proven, objective.foldable, objective.costs) == (set(), {}, {})


# --- A graph is proven on the first batch


class AsksForTensors(nn.Module):
    """Takes another branch when it is traced: a Proxy is no Tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * x if isinstance(x, Tensor) else x


def doubled(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda module, args, output: 2 * output)
    return module


class Boxed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.box = BlackBox(lambda p, x: np.tanh(x * p), np.ones(4))
        self.head = layers()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.box(x))


MISREAD = {
    "misread branch": lambda: layers(AsksForTensors()),
    "misread branch, opaque inside": lambda: layers(AsksForTensors(), impure.Branch()),
    "hook of the root": lambda: doubled(layers()),
    "hook of the root, opaque inside": lambda: doubled(layers(impure.Branch())),
    "hook of the root, black box inside": lambda: doubled(Boxed()),
}


@pytest.mark.parametrize("make", MISREAD.values(), ids=MISREAD)
def test_a_graph_that_is_not_the_module_is_not_used(make):
    objective = Objective(make(), MSE)
    with uncut("(Sequential|Boxed): its (graph gives other outputs|own hooks)"):
        found = base(objective)
    assert not objective.reuse
    assert torch.equal(found, make()(X).detach())


def test_a_root_whose_hooks_change_nothing_is_cut():
    module, seen = layers(), []
    module.register_forward_hook(lambda module, args, output: seen.append(output.shape))
    objective = Objective(module, MSE)
    base(objective)
    assert objective.reuse


def test_the_graph_serves_batches_of_other_sizes():
    objective = Objective(case_of("channel_shuffle").module(), nn.CrossEntropyLoss())
    images = case_of("channel_shuffle").X
    for batch in (images, images[:2], torch.cat([images, images])):
        found = base(objective, Batch(batch, torch.zeros(len(batch), dtype=torch.int64)))
        assert torch.equal(found, case_of("channel_shuffle").module()(batch).detach())


class Doubles(nn.Module):
    """Writes into its input where torch.fx does not see it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(2) if x.sum() > -1e9 else x


@pytest.mark.parametrize("place", ["first", "inside"])
def test_an_opaque_module_that_overwrites_its_input_overwrites_a_copy(place: str):
    module = nn.Sequential(Doubles(), layers()) if place == "first" else layers(Doubles())
    objective, before = Objective(module, MSE), X.clone()
    with pytest.warns(FeatureReuseWarning, match="It runs as one node"):
        found = base(objective)
    assert objective.reuse
    assert torch.equal(X, before)
    assert torch.equal(found, module(X.clone()).detach())


class Overwritten(nn.Module):
    """Reads a feature again after code that torch.fx does not see has written into it."""

    def __init__(self):
        super().__init__()
        self.first, self.doubles = layers(), Doubles()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.doubles(h) + h


def test_a_module_that_reads_what_was_overwritten_is_not_cut():
    module = Overwritten()
    objective = Objective(module, MSE)
    with pytest.warns(FeatureReuseWarning, match="gives other outputs than its forward"):
        found = base(objective)
    assert not objective.reuse
    assert torch.equal(found, module(X.clone()).detach())


class Stale(nn.Module):
    """Uses its parameters by ways of which a graph sees nothing."""

    def __init__(self, way: str):
        super().__init__()
        self.first, self.way = layers(), way
        self.alias = list(self.first.parameters())

    def forward(self, x: Tensor) -> Tensor:
        parameters = self.alias if self.way == "list" else self.first.parameters()
        return self.first(x) + sum((p**2).sum() for p in parameters)


@pytest.mark.parametrize("way", ["list", "iterator"])
@pytest.mark.filterwarnings("ignore::zoestim.FeatureReuseWarning")
@pytest.mark.parametrize("feature_reuse", [True, False])
def test_parameters_that_a_graph_takes_for_constants_are_moved_too(way: str, feature_reuse: bool):
    module = Stale(way).double()
    inputs, targets = X.double(), Y.double()
    given = {"smoothing": 1e-6, "feature_reuse": feature_reuse}
    found = estimate_gradient(module, MSE, inputs, targets, **given).as_dict()
    MSE(module(inputs), targets).backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-3)


def test_a_module_under_two_names_comes_back_whole():
    with torch.random.fork_rng(devices=[]):
        shared = nn.Linear(4, 4).double()
    module = nn.Sequential(shared, nn.Tanh(), shared)
    inputs = torch.ones(3, 4, dtype=torch.float64)
    for feature_reuse in (True, False):
        estimate_gradient(module, MSE, inputs, inputs, feature_reuse=feature_reuse)
    assert isinstance(shared.weight, nn.Parameter)
    assert len(list(module.parameters())) == 2


# --- Batches, parameters, buffers


def test_the_target_of_a_batch_carries_its_weights():
    weight = torch.ones(6)
    assert BATCH.target is Y
    assert Batch(X, Y, weight).target == (Y, weight)


def test_a_batch_loss_is_used_as_it_is():
    loss = BatchLoss(MSE)
    assert Objective(layers(), loss).loss is loss


def test_outputs_are_checked_once_a_batch_before_any_loss():
    seen = []

    def check(outputs: Tensor, batch: Batch) -> None:
        seen.append(batch)
        raise ValueError(f"outputs of shape {tuple(outputs.shape)}")

    objective = Objective(layers(), MSE, check_outputs=check)
    with pytest.raises(ValueError, match=r"outputs of shape \(6, 3\)"):
        evaluate(objective, BATCH, CoordinateEstimator().queries(torch.arange(3)))
    assert seen == [BATCH]


def test_theta_shares_memory_with_the_module_and_its_copy_does_not():
    module = case_of("frozen").module()
    objective = Objective(module, MSE)
    theta, copies = objective.theta(), objective.theta_copy()
    assert list(theta) == list(copies) == ["2.bias", "4.weight", "4.bias"]
    assert theta["2.bias"].data_ptr() == module[2].bias.data_ptr()
    assert not theta["2.bias"].requires_grad
    assert copies["2.bias"].data_ptr() != module[2].bias.data_ptr()
    assert torch.equal(copies["2.bias"], module[2].bias)


def test_a_flat_gradient_is_written_to_the_parameters_in_their_own_type():
    module = case_of("unused").module().float()
    Objective(module, MSE).write_gradient(torch.arange(14, dtype=torch.float64))
    assert module.unused.grad.tolist() == [0, 1]
    assert module.transposed.grad.dtype == torch.float32
    assert module.transposed.grad.tolist() == torch.arange(2, 14).view(4, 3).tolist()
    assert module.frozen.grad is None


def test_buffers_of_a_pass_are_kept_in_place():
    case = case_of("cnn_train")
    module, trained = case.module(), case.module()
    buffers = dict(module.named_buffers())
    objective = Objective(module, case.criterion)
    queries = CoordinateEstimator().queries(torch.arange(3))
    objective.keep_buffers(evaluate(objective, Batch(case.X, case.y), queries).tensors)
    trained(case.X)
    for name, expected in trained.named_buffers():
        assert torch.equal(buffers[name], expected)
    assert all(buffers[name] is buffer for name, buffer in module.named_buffers())
