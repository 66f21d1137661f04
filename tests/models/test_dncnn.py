"""DnCNN: the sizes of the paper; a new one is the identity, and it can learn not to be."""

import pytest
import torch
from torch import fx, nn

from zoestim.models import DnCNN


def test_parameters_are_those_of_the_paper():
    gray, color = DnCNN(), DnCNN(in_channels=3)
    assert sum(parameter.numel() for parameter in gray.parameters()) == 556_096
    assert sum(parameter.numel() for parameter in color.parameters()) == 558_400
    assert color.net[-1].weight.numel() == 1_728


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("depth", [2, 3, 6])
def test_a_new_denoiser_is_the_identity(depth, training):
    denoiser = DnCNN(depth, width=4, in_channels=3).train(training)
    y = torch.randn(2, 3, 7, 5)
    assert torch.equal(denoiser(y), y)


def test_what_the_network_finds_is_subtracted():
    denoiser = DnCNN(depth=3, width=4)
    nn.init.normal_(denoiser.net[-1].weight)
    y = torch.randn(2, 1, 6, 6)
    denoiser.eval()
    noise = denoiser.net(y)
    assert noise.abs().max() > 0
    assert torch.equal(denoiser(y), y - noise)


def test_hidden_convolutions_start_orthogonal():
    weight = DnCNN(depth=3, width=8).net[2].weight.flatten(1)
    torch.testing.assert_close(weight @ weight.T, torch.eye(8), atol=1e-5, rtol=0)


def test_batch_norm_keeps_most_of_its_statistics():
    batch_norm = DnCNN(depth=3, width=4).net[3]
    assert (batch_norm.eps, batch_norm.momentum) == (1e-4, 0.05)


def trained_a_little(seed):
    """Return a denoiser whose last convolution is not zero."""
    torch.manual_seed(seed)
    denoiser = DnCNN(depth=4, width=4)
    nn.init.normal_(denoiser.net[-1].weight)
    return denoiser


@pytest.mark.parametrize("training", [True, False])
def test_traced_graph_gives_the_same_images(training):
    denoiser, y = trained_a_little(0).train(training), torch.randn(3, 1, 8, 8)
    assert torch.equal(fx.symbolic_trace(denoiser)(y), denoiser(y))


def test_same_seed_gives_the_same_weights():
    states = [trained_a_little(seed).state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["net.0.weight"], states[2]["net.0.weight"])


def test_float64_is_kept_and_agrees_with_float32():
    denoiser, y = trained_a_little(0).eval(), torch.randn(2, 1, 8, 8)
    single = denoiser(y)
    double = denoiser.double()(y.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single)


def test_depth_below_two_is_refused():
    with pytest.raises(ValueError, match=r"depth of at least 2, .*; got depth=1\."):
        DnCNN(depth=1)
