"""ResNet: the sizes of the paper, shortcuts without parameters, a graph that torch.fx can read."""

import pytest
import torch
from torch import fx, nn

from zoestim.models import ResNet, resnet20, resnet32, resnet44, resnet56, resnet110
from zoestim.models._resnet import _BasicBlock


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("factory", "n_layers", "n_parameters"),
    [
        (resnet20, 20, 269_722),
        (resnet32, 32, 464_154),
        (resnet44, 44, 658_586),
        (resnet56, 56, 853_018),
        (resnet110, 110, 1_727_962),
    ],
)
def test_depth_and_parameters_are_those_of_the_paper(factory, n_layers, n_parameters):
    net = factory()
    assert count(net) == n_parameters
    assert sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in net.modules()) == n_layers


def test_classes_and_channels_change_the_first_and_the_last_layer_only():
    # 16 kernels of 9 less for each channel, 64 weights and a bias less for each class
    assert count(resnet20(num_classes=4, in_channels=1)) == 269_722 - 2 * 16 * 9 - 6 * 65


@pytest.mark.parametrize("size", [1, 4, 7, 28, 32, 33])
def test_any_image_size_gives_one_row_of_logits_each(size):
    net = ResNet(depth=8, num_classes=5, in_channels=2, width=3)
    assert net(torch.randn(3, 2, size, size)).shape == (3, 5)


def test_shortcut_takes_every_second_pixel_and_adds_zero_channels():
    shortcut = _BasicBlock(2, 5).shortcut
    x = torch.randn(1, 2, 5, 5)
    out = shortcut(x)
    assert count(shortcut) == 0
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2])
    assert not out[:, [0, 3, 4]].any()


def test_block_without_residual_is_the_rectified_shortcut():
    block = _BasicBlock(4, 4)
    nn.init.zeros_(block.bn2.weight)
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(x), x.clamp(min=0))


def test_weights_start_from_he_normal_and_biases_at_zero():
    torch.manual_seed(0)
    net = resnet20()
    weight = net.layer3[2].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=1e-3)
    assert not net.linear.bias.any()


def test_same_seed_gives_the_same_weights():
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(ResNet(depth=8, width=4).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["conv1.weight"], states[2]["conv1.weight"])


@pytest.mark.parametrize("training", [True, False])
def test_traced_graph_gives_the_same_logits(training):
    net = resnet20().train(training)
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(fx.symbolic_trace(net)(x), net(x))


def test_input_is_left_as_it_was():
    net, x = ResNet(depth=8, width=4), torch.randn(2, 3, 8, 8)
    before = x.clone()
    net(x)
    assert torch.equal(x, before)


def test_float64_is_kept_and_agrees_with_float32():
    net = ResNet(depth=8, width=4).eval()
    x = torch.randn(2, 3, 8, 8)
    single = net(x)
    double = net.double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single)


@pytest.mark.parametrize("depth", [2, 18, 21, -4])
def test_other_depths_are_refused(depth):
    with pytest.raises(ValueError, match=rf"depth of 6 n \+ 2 with n >= 1; got depth={depth}\."):
        ResNet(depth=depth)
