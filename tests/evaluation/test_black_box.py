"""A function as a module: what it is called with, how often, and what it may not be."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reference
from zoestim import BlackBox, estimate_gradient

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

X = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(6, 4)
Y = torch.linspace(2, -1, 18, dtype=torch.float64).reshape(6, 3)
W = np.linspace(-0.5, 1, 12).reshape(4, 3)
MSE = nn.MSELoss()


class Called:
    """A function that keeps its arguments."""

    def __init__(self, function: Callable[[Any, Any], Any]):
        self.function = function
        self.calls: list[tuple[Any, Any]] = []

    def __call__(self, params: Any, inputs: Any) -> Any:
        self.calls.append((params, inputs))
        return self.function(params, inputs)

    def __deepcopy__(self, memo: dict) -> "Called":
        return self  # also the calls of copies are counted


def layer(params: dict[str, Any], inputs: Any) -> Any:
    """Works for numpy and torch, for one parameter set and for a stack of them."""
    return (inputs @ params["w"] + params["b"][..., None, :]) ** 2


def start(kind: Callable[[Any], Any] = np.asarray) -> dict[str, Any]:
    return {"w": kind(W), "b": kind(np.array([0.5, 0.0, -1.0]))}


def around(box: BlackBox) -> nn.Sequential:
    """Return a network with a trained layer before the box and one behind it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), box, nn.Linear(3, 3)).double()


def loop(module: nn.Module, scheme: str = "forward") -> Tensor:
    loss = reference.module_loss(module, MSE, X, Y, torch.get_rng_state())
    theta = reference.flat_parameters(module)
    return reference.cge(loss, theta, range(len(theta)), 5e-3, scheme)


def found(module: nn.Module, **arguments: Any) -> tuple[Tensor, int]:
    estimate = estimate_gradient(module, MSE, X, Y, **arguments)
    d = len(reference.flat_parameters(module))
    return estimate.gradient.dense(d), estimate.n_queries


# --- What the function is given


def test_numpy_parameters_are_handed_over_as_numpy_arrays_of_their_names():
    function = Called(layer)
    outputs = BlackBox(function, start())(X)
    params, inputs = function.calls[0]
    assert {name: type(value) for name, value in params.items()} == {
        "w": np.ndarray,
        "b": np.ndarray,
    }
    assert isinstance(inputs, np.ndarray)
    np.testing.assert_array_equal(params["w"], W)
    torch.testing.assert_close(outputs, torch.as_tensor(layer(start(), X.numpy())))


def test_torch_parameters_are_handed_over_as_tensors():
    function = Called(layer)
    BlackBox(function, start(torch.tensor))(X)
    params, inputs = function.calls[0]
    assert isinstance(params["w"], Tensor)
    assert isinstance(inputs, Tensor)
    assert not params["w"].requires_grad


def test_a_single_array_is_handed_over_as_one():
    function = Called(lambda params, inputs: inputs @ params)
    box = BlackBox(function, W)
    torch.testing.assert_close(box(X), X @ torch.tensor(W))
    assert isinstance(function.calls[0][0], np.ndarray)
    assert [name for name, _ in box.named_parameters()] == ["params"]


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("kind", [np.asarray, torch.tensor], ids=["numpy", "torch"])
def test_what_the_function_writes_to_its_arguments_does_no_harm(kind, vectorized: bool):
    def writes(params: dict[str, Any], inputs: Any) -> Any:
        outputs = layer(params, inputs)
        params["w"] *= 0
        params["b"] += 7
        inputs *= 0
        del params["b"]
        return outputs

    given, X_before = start(kind), X.clone()
    box = BlackBox(writes, given, vectorized=vectorized)
    gradient, _ = found(around(box))
    torch.testing.assert_close(gradient, loop(around(BlackBox(layer, start()))), atol=1e-9, rtol=0)
    assert torch.equal(X, X_before)
    np.testing.assert_array_equal(np.asarray(given["w"]), W)
    assert torch.equal(box.w, torch.tensor(W))


def test_initial_arrays_are_copied_and_integers_become_float64():
    given = np.arange(3)
    box = BlackBox(lambda params, inputs: inputs, given)
    given[0] = 9
    assert box.params.tolist() == [0, 1, 2]
    assert box.params.dtype == torch.float64


def test_float32_parameters_stay_float32_and_so_do_the_outputs():
    box = BlackBox(layer, {name: value.astype(np.float32) for name, value in start().items()})
    assert {p.dtype for p in box.parameters()} == {torch.float32}
    assert box(X.float()).dtype == torch.float32


# --- Estimates: answers and numbers of calls


@pytest.mark.parametrize("scheme", ["forward", "central"])
@pytest.mark.parametrize("kind", [np.asarray, torch.tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("feature_reuse", [True, False])
def test_each_query_on_a_box_is_one_call(kind, scheme: str, feature_reuse: bool):
    function = Called(layer)
    box = BlackBox(function, start(kind))
    gradient, n_queries = found(box, scheme=scheme, feature_reuse=feature_reuse)
    assert len(function.calls) == n_queries == 1 + (15 if scheme == "forward" else 30)
    torch.testing.assert_close(gradient, loop(box, scheme), atol=1e-9, rtol=0)


def test_rge_calls_the_box_once_a_direction_and_once_for_the_base():
    function = Called(layer)
    _, n_queries = found(BlackBox(function, start()), method="rge", n_directions=4, random_state=0)
    assert len(function.calls) == n_queries == 5


def test_inside_a_network_only_what_is_before_the_box_or_in_it_calls_it():
    function = Called(layer)
    module = around(BlackBox(function, start()))
    gradient, n_queries = found(module)
    behind = sum(p.numel() for p in module[3].parameters())
    assert len(function.calls) == n_queries - behind
    torch.testing.assert_close(gradient, loop(module), atol=1e-9, rtol=0)


def test_without_feature_reuse_every_query_calls_the_box_once():
    function = Called(layer)
    module = around(BlackBox(function, start()))
    gradient, n_queries = found(module, feature_reuse=False)
    assert len(function.calls) == n_queries
    torch.testing.assert_close(gradient, loop(module), atol=1e-9, rtol=0)


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("network", [lambda box: box, around], ids=["alone", "inside"])
@pytest.mark.parametrize("method", ["cge", "rge"])
def test_a_vectorized_box_gives_the_same_answer_in_fewer_calls(network, kind, method: str):
    function = Called(layer)
    arguments = {"method": method, "n_directions": 20, "random_state": 0}
    gradient, n_queries = found(network(BlackBox(function, start(kind), True)), **arguments)
    expected, expected_queries = found(network(BlackBox(layer, start(kind))), **arguments)
    torch.testing.assert_close(gradient, expected, atol=1e-9, rtol=0)
    assert n_queries == expected_queries
    assert len(function.calls) <= n_queries / 2


def test_a_vectorized_box_is_asked_for_the_counted_sets_and_no_more():
    sets = []

    def counts(params: dict[str, np.ndarray], inputs: np.ndarray) -> np.ndarray:
        sets.append(len(params["w"]))
        return layer(params, inputs)

    _, n_queries = found(BlackBox(counts, start(), vectorized=True))
    assert sum(sets) == n_queries


def test_a_vectorized_function_always_gets_a_leading_axis():
    def strict(params: dict[str, np.ndarray], inputs: np.ndarray) -> np.ndarray:
        return np.einsum("ni,kij->knj", inputs, params["w"])

    box = BlackBox(strict, {"w": W}, vectorized=True)
    torch.testing.assert_close(box(X), X @ torch.tensor(W))
    gradient, _ = found(box)
    torch.testing.assert_close(gradient, loop(box), atol=1e-9, rtol=0)


def test_a_vectorized_box_behind_a_trained_layer_gets_one_batch_a_set():
    function = Called(layer)
    found(around(BlackBox(function, start(), True)))
    stacked = [(p["w"].shape, x.shape) for p, x in function.calls if x.ndim == 3]
    assert stacked
    assert all(w[0] == x[0] > 1 and x[1:] == (6, 4) for w, x in stacked)


# --- As a module


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_box_is_copied_and_pickled_with_its_parameters(again):
    box = BlackBox(layer, start(), vectorized=True)
    with torch.no_grad():
        box.w += 1
    other = again(box)
    assert torch.equal(other(X), box(X))
    assert other.vectorized
    with torch.no_grad():
        other.w += 1
    assert torch.equal(box.w, torch.tensor(W) + 1)


def test_state_dict_carries_the_parameters_to_another_box():
    box, other = BlackBox(layer, start()), BlackBox(layer, {"w": np.zeros((4, 3)), "b": np.ones(3)})
    other.load_state_dict(box.state_dict())
    assert torch.equal(other(X), box(X))


def test_it_prints_the_name_of_its_function():
    assert repr(BlackBox(layer, start())) == "BlackBox(layer, vectorized=False)"
    assert "Called" in repr(BlackBox(Called(layer), start()))


# --- What it refuses


@pytest.mark.parametrize("name", ["a.b", "forward", "training", "function", "vectorized", ""])
def test_a_name_that_a_module_cannot_hold_is_refused(name: str):
    with pytest.raises(ValueError, match=f"an array named '{name}'.* Rename it: no dot"):
        BlackBox(layer, {name: W})


@pytest.mark.parametrize("value", [np.array([True]), np.array([1j]), torch.tensor([1j])])
def test_what_is_no_real_number_is_refused(value):
    with pytest.raises(TypeError, match=r"initial_params\['w'\] holds torch\.(bool|complex)"):
        BlackBox(layer, {"w": value})


def test_no_array_at_all_is_refused():
    with pytest.raises(ValueError, match="initial_params is empty; expected at least one"):
        BlackBox(layer, {})
