"""Denoisers: those by name, those that are given, and what of them is trained."""

import numpy as np
import pytest
import torch
from torch import nn

from zoestim.defense import Layout, refuse_other_shape, trainable_names
from zoestim.defense._denoisers import build_autoencoder, build_denoiser
from zoestim.models import DnCNN

ROWS = Layout.of(np.ones((2, 6)), None, "channels_first")
IMAGES = Layout.of(np.ones((2, 3, 8, 8)), None, "channels_first")
LAST = ["net.5.weight"]


def build(*arguments) -> nn.Module:
    return build_denoiser(*arguments)


@pytest.mark.parametrize("layout", [ROWS, IMAGES])
def test_auto_is_the_identity_at_first(layout):
    denoiser = build("auto", layout, 3, 4)
    like = next(denoiser.parameters())
    X = torch.linspace(-1, 1, 2 * int(np.prod(layout.item))).reshape(2, *layout.item).to(like)
    assert torch.equal(denoiser.eval()(X), X)


def test_depth_and_width():
    default, small = build("dncnn", IMAGES, None, None), build("dncnn", IMAGES, 4, 5)
    assert sum(isinstance(part, nn.Conv2d) for part in default.modules()) == 17
    assert sum(isinstance(part, nn.Conv2d) for part in small.modules()) == 4
    assert small.net[0].weight.shape == (5, 3, 3, 3)
    shapes = [tuple(p.shape) for p in build("mlp", ROWS, 2, 5).parameters()]
    assert shapes == [(5, 6), (5,), (6, 5), (6,)]


def test_a_name_for_the_other_kind_of_data_is_refused():
    with pytest.raises(ValueError, match="denoiser='mlp' is for the rows of a table, and these"):
        build("mlp", IMAGES, None, None)
    with pytest.raises(ValueError, match="denoiser='dncnn' is for images, and X holds rows of a"):
        build("dncnn", ROWS, None, None)


def test_a_module_is_copied_and_a_class_is_called():
    given = nn.Linear(6, 6)
    copied = build(given, ROWS, None, None)
    assert copied is not given
    assert torch.equal(copied.weight, given.weight)
    assert isinstance(build(nn.Identity, ROWS, None, None), nn.Identity)
    with pytest.raises(TypeError, match="is a class, but none of modules"):
        build(int, ROWS, None, None)


@pytest.mark.parametrize("size", [4, 7, 8, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_autoencoder_of_images(size, channels):
    layout = Layout.of(np.ones((2, channels, size, size)), None, "channels_first")
    encoder, decoder = build_autoencoder(layout, 5, nn.Linear(1, 1))
    latent = encoder(torch.ones(2, channels, size, size))
    assert latent.shape == (2, 5)
    assert decoder(latent).shape == (2, channels, size, size)


def test_an_autoencoder_of_rows_has_the_type_of_the_denoiser():
    encoder, decoder = build_autoencoder(ROWS, 2, nn.Linear(1, 1).double())
    assert decoder(encoder(torch.ones(3, 6).double())).shape == (3, 6)


# --- What is trained


@pytest.mark.parametrize(
    ("trainable", "names"),
    [
        ("last", LAST),
        ("all", None),
        ("zo-grasp", None),
        (["net.0.weight"], ["net.0.weight"]),
        (("net.0.weight", "net.0.bias"), ["net.0.weight", "net.0.bias"]),
    ],
)
def test_what_is_trained(trainable, names):
    denoiser = build("dncnn", IMAGES, 3, 4)
    everything = [name for name, _ in denoiser.named_parameters()]
    assert trainable_names(denoiser, trainable) == set(everything if names is None else names)


def test_the_last_layer_has_its_bias():
    assert trainable_names(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), "last") == {
        "0.weight",
        "0.bias",
    }
    assert trainable_names(nn.Linear(2, 2), "last") == {"weight", "bias"}
    assert trainable_names(nn.Identity(), "last") == set()


@pytest.mark.parametrize("trainable", [["net.9.weight"], [], [7], ["net.0.weight", "x"]])
def test_unknown_names_are_refused(trainable):
    with pytest.raises(ValueError, match=r"trainable names .*; expected some of \['net.0.weight'"):
        trainable_names(DnCNN(3, 4), trainable)


def test_another_shape_is_refused_and_nothing_else_happens():
    module = nn.Sequential(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1))
    with pytest.raises(ValueError, match=r"returned \(2, 1, 6, 6\) for samples of shape \(2, 1, "):
        refuse_other_shape(module, np.ones((2, 1, 8, 8)))
    refuse_other_shape(nn.Dropout(), np.ones((2, 3)))
    assert module.training
    assert int(module[1].num_batches_tracked) == 0
