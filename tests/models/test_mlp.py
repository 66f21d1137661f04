"""MLP: widths, the linear model, Glorot's start, and what it refuses."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import fx, nn

from zoestim.models import MLP


@pytest.mark.parametrize(
    ("hidden", "widths"),
    [
        (32, [64, 32, 10]),
        (np.int64(7), [64, 7, 10]),
        ((32, 16), [64, 32, 16, 10]),
        ([5], [64, 5, 10]),
        ((), [64, 10]),
    ],
)
def test_hidden_gives_the_widths_between_features_and_outputs(hidden, widths):
    net = MLP(64, 10, hidden)
    linears = [layer for layer in net.modules() if isinstance(layer, nn.Linear)]
    found = [layer.in_features for layer in linears] + [linears[-1].out_features]
    assert found == widths
    n_activations = sum(isinstance(layer, nn.Tanh) for layer in net.modules())
    assert n_activations == len(widths) - 2


def test_outputs_are_those_of_the_formula():
    net = MLP(3, 2, hidden=4)
    first, second = net.layers[1], net.layers[3]
    x = torch.randn(5, 3)
    expected = torch.tanh(x @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(net(x), expected)


def test_samples_of_any_shape_are_flattened():
    net, x = MLP(24, 3), torch.randn(5, 2, 3, 4)
    assert torch.equal(net(x), net(x.reshape(5, 24)))


def test_weights_start_from_glorot_uniform_and_biases_at_zero():
    torch.manual_seed(0)
    linear = MLP(100, 10, hidden=50).layers[1]
    bound = (6 / (100 + 50)) ** 0.5
    assert linear.weight.abs().max().item() <= bound
    assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert not linear.bias.any()


def test_activation_is_made_anew_for_each_hidden_layer():
    net = MLP(4, 1, hidden=(3, 3), activation=partial(nn.PReLU, init=0.5))
    activations = [layer for layer in net.modules() if isinstance(layer, nn.PReLU)]
    assert len(activations) == 2
    assert activations[0].weight.item() == 0.5


def test_traced_graph_gives_the_same_outputs():
    net, x = MLP(16, 3, hidden=(8, 8), activation=nn.ReLU), torch.randn(6, 4, 4)
    assert torch.equal(fx.symbolic_trace(net)(x), net(x))


def test_same_seed_gives_the_same_outputs():
    x = torch.randn(2, 6)
    outputs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        outputs.append(MLP(6, 2)(x))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_float64_is_kept():
    assert MLP(6, 2).double()(torch.zeros(1, 6, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("hidden", [0, (8, -1), 2.5, "32", None])
def test_widths_that_are_no_positive_integers_are_refused(hidden):
    with pytest.raises(ValueError, match="hidden to be a positive integer or a tuple of them; got"):
        MLP(4, 1, hidden)


def test_activation_that_is_a_module_is_refused():
    with pytest.raises(TypeError, match=r"activation to be a class.*got the module ReLU\(\)"):
        MLP(4, 1, activation=nn.ReLU())
