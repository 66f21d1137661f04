"""CorrectorCNN: the paper's sizes, one to three dimensions, and a start at no correction."""

import numpy as np
import pytest
import torch
from torch import fx, nn

from zoestim.models import CorrectorCNN


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (CorrectorCNN(2, 1), 1_010),
        (CorrectorCNN(2, 1, hidden=(32, 64)), 56_898),  # the paper's
        (CorrectorCNN(2, 1, hidden=8, kernel_size=3), 370),
        (CorrectorCNN(1, 2, n_dims=1), (3 * 5 + 1) * 8 + 8 * 5 + 1),
        (CorrectorCNN(3, hidden=()), 3 * (3 * 25 + 1)),
        (CorrectorCNN(np.int64(2), 1, hidden=[np.int64(8)], kernel_size=np.int64(5)), 1_010),
    ],
)
def test_parameters_are_counted(net, expected):
    assert count(net) == expected


@pytest.mark.parametrize("padding", ["zeros", "circular"])
@pytest.mark.parametrize("grid", [(7,), (6, 9), (4, 5, 6)])
def test_a_correction_lies_on_the_grid_of_the_state(grid, padding):
    net = CorrectorCNN(2, 1, n_dims=len(grid), padding=padding, zero_init=False)
    found = net(torch.randn(3, 3, *grid))
    assert (found.shape, found.dtype) == ((3, 2, *grid), torch.float32)
    assert found.abs().min() > 0


def test_a_new_corrector_corrects_nothing_and_learns():
    net, x = CorrectorCNN(2, hidden=(4, 4)), torch.randn(2, 2, 8, 8)
    assert torch.equal(net(x), torch.zeros(2, 2, 8, 8))
    (net(x) - 1).square().sum().backward()
    gradients = [parameter.grad.abs().max() for parameter in net.parameters()]
    assert [bool(gradient > 0) for gradient in gradients] == [False] * 4 + [True] * 2


def test_circular_padding_goes_round():
    torch.manual_seed(0)
    net, x = CorrectorCNN(1, padding="circular", zero_init=False), torch.randn(1, 1, 6, 8)
    moved = net(x.roll((2, 3), dims=(2, 3)))
    torch.testing.assert_close(moved, net(x).roll((2, 3), dims=(2, 3)))


def test_zero_padding_does_not():
    net, x = CorrectorCNN(1, zero_init=False), torch.randn(1, 1, 6, 8)
    moved = net(x.roll((2, 3), dims=(2, 3)))
    assert not torch.allclose(moved, net(x).roll((2, 3), dims=(2, 3)))


@pytest.mark.parametrize("padding", ["zeros", "circular"])
@pytest.mark.parametrize("n_dims", [1, 2, 3])
def test_traced_graph_gives_the_same_correction(n_dims, padding):
    net = CorrectorCNN(1, 1, n_dims=n_dims, padding=padding, zero_init=False)
    x = torch.randn(2, 2, *[6] * n_dims)
    assert torch.equal(fx.symbolic_trace(net)(x), net(x))


def test_same_seed_gives_the_same_weights():
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(CorrectorCNN(2, 1).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["net.0.weight"], states[2]["net.0.weight"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_channels": 0}, r"n_channels to be an integer of at least 1; got 0"),
        ({"n_channels": 2.5}, r"n_channels to be an integer of at least 1; got 2\.5"),
        ({"n_conditions": -1}, r"n_conditions to be an integer of at least 0; got -1"),
        ({"hidden": (8, 0)}, r"a positive integer or a tuple of them; got \(8, 0\)"),
        ({"hidden": "8"}, r"a positive integer or a tuple of them; got \('8',\)"),
        ({"kernel_size": 4}, r"odd kernel_size, .*; got 4"),
        ({"kernel_size": -1}, r"odd kernel_size, .*; got -1"),
        ({"kernel_size": (3, 3)}, r"odd kernel_size, .*; got \(3, 3\)"),
        ({"n_dims": 4}, r"to be 1, 2 or 3; got 4"),
        ({"n_dims": [2]}, r"to be 1, 2 or 3; got \[2\]"),
        ({"padding": "same"}, r"padding 'zeros' or 'circular'; got 'same'"),
    ],
)
def test_bad_parameters_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        CorrectorCNN(**{"n_channels": 2, **settings})
