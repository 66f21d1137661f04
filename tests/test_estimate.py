"""estimate_gradient against the float64 loop, case by case, and what it leaves as it was."""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reference
from cases import CASES, Case, ids
from zoestim import BlackBox, FeatureReuseWarning, GradientEstimate, QueryError, estimate_gradient
from zoestim.gradients import CoordinateEstimator, DirectionQueries, RandomizedEstimator

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

every_case = pytest.mark.parametrize("case", CASES, ids=ids)
schemes = pytest.mark.parametrize("scheme", ["forward", "central"])
reuses = pytest.mark.parametrize("feature_reuse", [True, False], ids=["reuse", "whole"])

# The cases that torch.fx cannot cut, or not everywhere; test_objective.py says why.
WARNED = [
    "gru_root",
    "unrolled",
    "halving",
    "input_relu",
    "discarded_inplace",
    "writes_through_view",
    "additive_noise",
    "stochastic_depth",
    "moving_mean",
    "reassigned_mean",
    "assigns_item",
    "branch_inside",
    "numpy_inside",
]
MU = 5e-3
SEED = torch.Generator().manual_seed(11).get_state()


def case_of(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


@contextmanager
def warned(case: Case, feature_reuse: bool = True) -> Iterator[None]:
    """Expect the warning where it is due; elsewhere any warning is an error."""
    due = feature_reuse and case.name in WARNED
    with pytest.warns(FeatureReuseWarning, match="Cannot reuse") if due else nullcontext():
        yield


def estimate(module: nn.Module, case: Case, feature_reuse: bool = True, **arguments: Any):
    """Return the estimate on a case, the global generator as the reference has it."""
    with warned(case, feature_reuse), torch.random.fork_rng(devices=[]):
        torch.set_rng_state(SEED)
        return estimate_gradient(
            module, case.criterion, case.X, case.y, feature_reuse=feature_reuse, **arguments
        )


def loss_of(case: Case) -> reference.Loss:
    return reference.module_loss(case.module(), case.criterion, case.X, case.y, SEED)


@cache
def loop(name: str, scheme: str) -> Tensor:
    """Return the estimate of all coordinates by the loop of Eq. (1)."""
    case, theta = case_of(name), reference.flat_parameters(case_of(name).module())
    return reference.cge(loss_of(case), theta, range(len(theta)), MU, scheme)


def dense(found: GradientEstimate) -> Tensor:
    return torch.cat([value.flatten() for value in found.as_dict().values()])


# --- Exactness


@reuses
@schemes
@every_case
def test_cge_is_the_loop_of_equation_1(case: Case, scheme: str, feature_reuse: bool):
    module = case.module()
    found = estimate(module, case, feature_reuse, scheme=scheme)
    expected = loop(case.name, scheme)
    torch.testing.assert_close(dense(found), expected, rtol=1e-8, atol=1e-10)
    assert found.n_queries == 1 + (1 if scheme == "forward" else 2) * len(expected)
    assert found.loss == pytest.approx(loss_of(case)(reference.flat_parameters(module)), rel=1e-14)


class Recorded(RandomizedEstimator):
    """Keeps the directions that it drew."""

    def queries(self, *arguments: Any) -> DirectionQueries:
        self.asked = super().queries(*arguments)
        return self.asked

    def directions(self, size: int) -> Tensor:
        rows = torch.zeros(self.n_directions, size, dtype=torch.float64)
        for k, row in enumerate(rows):
            row[self.asked.coordinates] = self.asked.direction(k)
        return rows


@reuses
@every_case
def test_rge_is_the_loop_over_the_same_directions(case: Case, feature_reuse: bool):
    strategy = Recorded(n_directions=5)
    found = estimate(case.module(), case, feature_reuse, method=strategy, random_state=0)
    theta = reference.flat_parameters(case.module())
    expected = reference.rge(loss_of(case), theta, strategy.directions(len(theta)), MU)
    torch.testing.assert_close(dense(found), expected, rtol=1e-8, atol=1e-9)
    assert found.n_queries == 6


@pytest.mark.parametrize("distribution", ["gaussian", "sphere", "per-tensor"])
@pytest.mark.parametrize("name", ["mlp", "cnn_train", "tied"])
def test_central_rge_is_the_loop_whatever_the_distribution(name: str, distribution: str):
    case, strategy = case_of(name), Recorded(5, MU, "central", distribution)
    some = {next(n for n, _ in case.module().named_parameters()): [0, 2, 5]}
    found = estimate(case.module(), case, method=strategy, coordinates=some)
    theta = reference.flat_parameters(case.module())
    rows = strategy.directions(len(theta))
    expected = reference.rge(loss_of(case), theta, rows, MU, "central")
    torch.testing.assert_close(dense(found), expected, rtol=1e-8, atol=1e-9)
    assert dense(found).nonzero().flatten().tolist() == [0, 2, 5]
    assert found.n_queries == 11


def test_rge_by_name_is_the_gaussian_strategy_with_these_settings():
    case, arguments = case_of("mlp"), {"smoothing": 0.1, "scheme": "central"}
    strategy = RandomizedEstimator(n_directions=5, **arguments)
    first = estimate(case.module(), case, method=strategy, random_state=3)
    named = estimate(case.module(), case, method="rge", n_directions=5, random_state=3, **arguments)
    assert torch.equal(dense(first), dense(named))


def test_random_state_decides_the_directions_and_none_draws_afresh():
    case = case_of("mlp")

    def draw(random_state: Any) -> Tensor:
        return dense(
            estimate(case.module(), case, method="rge", n_directions=3, random_state=random_state)
        )

    assert torch.equal(draw(1), draw(1))
    assert torch.equal(draw(1), draw(np.random.RandomState(1)))
    assert not torch.equal(draw(1), draw(2))
    assert not torch.equal(draw(None), draw(None))


def test_a_strategy_object_brings_its_own_step():
    case = case_of("mlp")
    strategy = CoordinateEstimator(smoothing=0.1)
    own = estimate(case.module(), case, method=strategy, smoothing=1e-6, scheme="central")
    named = estimate(case.module(), case, smoothing=0.1)
    assert torch.equal(dense(own), dense(named))
    assert own.n_queries == named.n_queries


# --- The caller's module


def belongings(module: nn.Module) -> dict[str, Any]:
    """Return what must come back: which tensors, their values and flags, modes and hooks."""
    tensors = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    return {
        "identity": [(name, id(t), t.data_ptr(), t._version) for name, t in tensors],
        "values": [t.tolist() for _, t in tensors],
        "flags": [(type(t), t.dtype, t.requires_grad, t.grad) for _, t in tensors],
        "modes": [(name, id(m), m.training) for name, m in module.named_modules()],
        "hooks": [
            list(hooks)
            for m in module.modules()
            for hooks in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)
        ],
        "in place": [getattr(m, "inplace", None) for m in module.modules()],
    }


@reuses
@pytest.mark.parametrize("method", ["cge", "rge"])
@every_case
def test_the_module_comes_back_bitwise_equal(case: Case, method: str, feature_reuse: bool):
    module, X, y = case.module(), case.X, case.y
    for child in list(module.modules())[::3]:  # some other mode inside
        child.training = not child.training
    before = belongings(module)
    with warned(case, feature_reuse):
        estimate_gradient(
            module, case.criterion, X, y, method=method, n_directions=2, feature_reuse=feature_reuse
        )
    assert belongings(module) == before
    assert torch.equal(X, case.X)
    assert torch.equal(y, case.y)


def test_a_module_that_was_estimated_trains_on_by_backpropagation():
    case = case_of("cnn_train")
    first, second = case.module(), case.module()
    estimate(first, case)
    for module in (first, second):
        case.criterion(module(case.X), case.y).backward()
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


# --- Coordinates


@reuses
@schemes
def test_coordinates_not_asked_for_are_exactly_zero_and_cost_nothing(scheme, feature_reuse):
    case = case_of("cnn_train")
    some = {"3.weight": np.array([7, 2, 11]), "0.bias": torch.tensor([1])}
    found = estimate(case.module(), case, feature_reuse, scheme=scheme, coordinates=some)
    each = loop("cnn_train", scheme)
    parts = dict(case.module().named_parameters())
    expected = torch.cat(
        [
            torch.zeros(p.numel())
            .double()
            .index_fill(0, torch.as_tensor(some.get(n, [])).long(), 1)
            for n, p in parts.items()
        ]
    )
    torch.testing.assert_close(dense(found), each * expected, rtol=1e-8, atol=1e-10)
    assert dense(found)[expected == 0].eq(0).all()
    assert found.n_queries == 1 + (4 if scheme == "forward" else 8)
    assert len(found.gradient.indices) == 4


@pytest.mark.parametrize(
    "given", [[5, 1, 5], np.array([[1], [5]], dtype=np.int32), (1, 5)], ids=["list", "2d", "tuple"]
)
def test_indices_may_repeat_and_have_any_form_order_and_integer_type(given):
    case = case_of("linear")
    found = estimate(case.module(), case, coordinates={"weight": given})
    assert found.gradient.indices.tolist() == [1, 5]
    assert found.n_queries == 3


@pytest.mark.parametrize("method", ["cge", "rge"])
@pytest.mark.parametrize("given", [{}, {"weight": []}, {"bias": np.array([], dtype=np.int64)}])
def test_no_coordinate_gives_zeros_and_the_loss(given: dict, method: str):
    case = case_of("linear")
    found = estimate(case.module(), case, coordinates=given, method=method, n_directions=2)
    assert dense(found).tolist() == [0.0] * 15
    assert found.loss > 0


def test_as_dict_has_the_trainable_parameters_in_their_shapes_in_float64():
    case = case_of("frozen")
    found = estimate(case.module().float(), Case(**vars(case) | {"inputs": lambda: case.X.float()}))
    shapes = {name: tuple(value.shape) for name, value in found.as_dict().items()}
    assert shapes == {"2.bias": (5,), "4.weight": (3, 5), "4.bias": (3,)}
    assert {value.dtype for value in found.as_dict().values()} == {torch.float64}


# --- set_grad


def test_set_grad_writes_the_estimate_to_the_trainable_parameters_alone():
    case = case_of("frozen")
    module = case.module()
    found = estimate(module, case, set_grad=True).as_dict()
    for name, parameter in module.named_parameters():
        if name in found:
            assert torch.equal(parameter.grad, found[name])
        else:
            assert parameter.grad is None


def test_set_grad_replaces_what_was_there():
    case = case_of("mlp")
    module = case.module()
    first = estimate(module, case, set_grad=True).as_dict()
    second = estimate(module, case, set_grad=True, coordinates={"0.bias": [1]}).as_dict()
    assert not torch.equal(first["0.bias"], second["0.bias"])
    assert all(torch.equal(p.grad, second[name]) for name, p in module.named_parameters())


def losses_of_sgd(case: Case, step: Callable[[nn.Module], float]) -> list[float]:
    module = case.module()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        losses.append(step(module))
        optimizer.step()
    return losses


def test_set_grad_in_place_of_backward_trains_alike():
    case = case_of("mlp")

    def backward(module: nn.Module) -> float:
        loss = case.criterion(module(case.X), case.y)
        loss.backward()
        return loss.item()

    first = losses_of_sgd(case, backward)
    central = losses_of_sgd(
        case, lambda m: estimate(m, case, scheme="central", smoothing=1e-5, set_grad=True).loss
    )
    assert central == pytest.approx(first, rel=1e-6)
    assert all(after < before for before, after in pairwise(central))


def test_set_grad_of_random_directions_trains_too():
    case, seeds = case_of("mlp"), iter(range(20))
    arguments = {"method": "rge", "n_directions": 100, "set_grad": True}
    losses = losses_of_sgd(
        case, lambda module: estimate(module, case, random_state=next(seeds), **arguments).loss
    )
    assert losses[-1] < 0.85 * losses[0]
    assert sum(after < before for before, after in pairwise(losses)) >= 17


def test_a_black_box_is_trained_by_the_same_loop():
    X = torch.linspace(-1, 1, 30, dtype=torch.float64).reshape(10, 3)
    y = X @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    box = BlackBox(lambda params, X: np.tanh(X @ params), np.zeros(3))
    optimizer = torch.optim.SGD(box.parameters(), lr=0.5)
    for _ in range(40):
        found = estimate_gradient(box, nn.MSELoss(), X, y.tanh(), set_grad=True)
        optimizer.step()
    assert found.loss < 0.01


# --- Precision and input types


def test_float64_precision_of_a_float32_module_is_the_float64_estimate():
    case = case_of("cnn_eval")
    module, X = case.module().float(), case.X.float()
    before = belongings(module)
    found = estimate_gradient(module, case.criterion, X, case.y, precision="float64")
    double = copy.deepcopy(module).double()
    expected = estimate_gradient(double, case.criterion, X.double(), case.y)
    assert torch.equal(dense(found), dense(expected))
    assert found.loss == expected.loss
    assert belongings(module) == before


def test_float32_precision_of_a_float64_module_rounds():
    case = case_of("mlp")
    rounded = dense(estimate(case.module(), case, precision="float32"))
    exact = loop("mlp", "forward")
    assert 0 < (rounded - exact).norm() < 1e-3 * exact.norm()


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_set_grad_writes_to_the_callers_module_in_its_own_type(precision: str):
    case = case_of("cnn_train")
    module = case.module().float()
    found = estimate_gradient(
        module, case.criterion, case.X, case.y, precision=precision, set_grad=True
    ).as_dict()
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter.grad, found[name].float())


def test_arrays_and_lists_are_taken_for_tensors_of_the_modules_type():
    case = case_of("mlp")
    expected = dense(estimate(case.module(), case))
    for X, y in [(case.X.numpy(), case.y.numpy()), (case.X.tolist(), case.y.tolist())]:
        found = estimate_gradient(case.module(), case.criterion, X, y)
        torch.testing.assert_close(dense(found), expected, rtol=1e-4, atol=1e-5)


def test_integer_inputs_stay_integers():
    case = case_of("tied")
    found = estimate_gradient(case.module(), case.criterion, case.X.numpy(), case.y.numpy())
    assert torch.equal(dense(found), dense(estimate(case.module(), case)))


# --- What it refuses

LINEAR = case_of("linear")


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (
            {"method": "spsa"},
            ValueError,
            r"method must be 'cge', 'rge' or an object with queries and combine.* got 'spsa'\.",
        ),
        (
            {"scheme": "backward"},
            ValueError,
            r"scheme must be one of \['forward', 'central'\]; got 'backward'\.",
        ),
        ({"smoothing": 0}, ValueError, r"smoothing must be a positive number; got 0\."),
        ({"smoothing": -1e-3}, ValueError, r"smoothing must be a positive number; got -0\.001\."),
        (
            {"method": "rge", "n_directions": 0},
            ValueError,
            r"n_directions must be an integer of at least 1; got 0\.",
        ),
        (
            {"precision": "float16"},
            ValueError,
            r"precision must be one of .*'bfloat16'\]; got 'float16'\.",
        ),
        *(
            (
                {"memory_budget": budget},
                ValueError,
                rf"memory_budget must be a number of bytes, an integer .*; got {budget!r}\.",
            )
            for budget in (0, -1, 1e9, "1GB")
        ),
        (
            {"coordinates": {"weigth": [0]}},
            ValueError,
            r"coordinates names 'weigth', which is not a trainable parameter; expected some of "
            r"\['weight', 'bias'\]\.",
        ),
        (
            {"coordinates": {"weight": [0, 12]}},
            ValueError,
            r"coordinates\['weight'\] holds 0 to 12; expected flat indices in \[0, 12\)\.",
        ),
        (
            {"coordinates": {"bias": [-1]}},
            ValueError,
            r"coordinates\['bias'\] holds -1 to -1; expected flat indices in \[0, 3\)\.",
        ),
        (
            {"coordinates": {"weight": [1.0]}},
            TypeError,
            r"coordinates\['weight'\] holds torch\.float32; expected integer flat indices\.",
        ),
        (
            {"coordinates": {"bias": [True, False, True]}},
            TypeError,
            r"coordinates\['bias'\] holds torch\.bool; expected integer flat indices\.",
        ),
    ],
    ids=str,
)
def test_an_argument_that_means_nothing_is_refused(arguments: dict, error: type, text: str):
    with pytest.raises(error, match=f"^{text}$"):
        estimate(LINEAR.module(), LINEAR, **arguments)


def test_a_function_is_refused_with_the_way_to_wrap_it():
    text = (
        r"^module must be a torch\.nn\.Module instance; got function\. Wrap .* as BlackBox\(f, init"
    )
    with pytest.raises(TypeError, match=text):
        estimate(lambda params, X: X @ params, LINEAR)


def test_a_module_class_is_refused():
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module instance; got type"):
        estimate(nn.Linear, LINEAR)


@pytest.mark.parametrize("module", [nn.Tanh(), LINEAR.module().requires_grad_(False)], ids=repr)
def test_a_module_without_a_trainable_parameter_is_refused(module: nn.Module):
    name = type(module).__name__
    with pytest.raises(ValueError, match=f"^{name} has no trainable parameter; expected at least"):
        estimate(module, LINEAR)


def test_a_frozen_parameter_is_no_coordinate():
    case = case_of("frozen")
    with pytest.raises(
        ValueError, match=r"coordinates names '0\.weight', which is not a trainable"
    ):
        estimate(case.module(), case, coordinates={"0.weight": [0]})


def test_a_criterion_that_drops_samples_is_refused():
    text = (
        r"<lambda> returned losses of shape \(4,\) for 6 samples; expected one number, or one loss"
    )
    with pytest.raises(ValueError, match=text):
        estimate_gradient(LINEAR.module(), lambda outputs, y: outputs[:4, 0], LINEAR.X, LINEAR.y)


def test_a_loss_that_is_no_number_is_refused():
    with pytest.raises(
        QueryError, match=r"^The loss at the current parameters is nan on the batch"
    ):
        estimate_gradient(LINEAR.module(), LINEAR.criterion, LINEAR.X * np.nan, LINEAR.y)


def test_a_module_that_torch_cannot_cut_is_warned_of_unless_reuse_is_off():
    case = case_of("halving")
    with pytest.warns(FeatureReuseWarning, match="Cannot reuse features of Halving"):
        estimate_gradient(case.module(), case.criterion, case.X, case.y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate_gradient(case.module(), case.criterion, case.X, case.y, feature_reuse=False)
