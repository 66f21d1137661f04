"""SimpleCNN: the parameters of Fig. A2, and images that no depth pools away."""

import pytest
import torch
from torch import fx

from zoestim.models import SimpleCNN


@pytest.mark.parametrize(
    ("depth", "n_parameters"), [(1, 730), (2, 3_700), (3, 6_670), (4, 9_640), (5, 12_610)]
)
def test_parameters_are_those_of_figure_a2(depth, n_parameters):
    net = SimpleCNN(depth)
    assert sum(parameter.numel() for parameter in net.parameters()) == n_parameters


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_each_block_halves_the_image(depth):
    blocks = SimpleCNN(depth).blocks
    assert blocks(torch.randn(2, 3, 32, 32)).shape == (2, 18, 32 >> depth, 32 >> depth)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_small_image_is_never_pooled_away(size):
    net = SimpleCNN(depth=6, num_classes=4, in_channels=1, width=2)
    assert net(torch.randn(5, 1, size, size)).shape == (5, 4)


@pytest.mark.parametrize("training", [True, False])
def test_traced_graph_gives_the_same_logits(training):
    net = SimpleCNN(depth=3).train(training)
    x = torch.randn(4, 3, 9, 9)
    assert torch.equal(fx.symbolic_trace(net)(x), net(x))


def test_same_seed_gives_the_same_logits():
    x = torch.randn(2, 3, 8, 8)
    logits = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        logits.append(SimpleCNN(depth=2)(x))
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


def test_float64_is_kept_and_agrees_with_float32():
    net = SimpleCNN(depth=2).eval()
    x = torch.randn(2, 3, 8, 8)
    single = net(x)
    double = net.double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single)


def test_depth_below_one_is_refused():
    with pytest.raises(ValueError, match=r"depth of at least 1; got depth=0\. For a model without"):
        SimpleCNN(depth=0)
