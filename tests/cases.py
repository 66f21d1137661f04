"""The table of models: each row is trouble for some shortcut, and its docstring says which."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import case_impure as impure
import case_modules as modules

TRAITS = {
    "opaque": "torch.fx cannot trace some submodule, or the root",
    "untraceable": "torch.fx cannot trace the root, even with its children as leaves",
    "misread": "torch.fx traces without complaint something else than what forward computes",
    "random": "forward draws from torch's global generator",
    "mixes_samples": "the output for one sample depends on the others",
    "tied": "one parameter is used at several places",
    "inplace": "forward writes into an activation",
    "writes_input": "forward writes into X",
    "stateful": "forward changes parameters, buffers or attributes of the module",
    "frozen": "some parameters do not train",
    "gradientless": "autograd gives no gradient, or not the one of the loss",
    "stepped": "most differences with a small step are exactly zero, those with a large one not",
}


@dataclass(frozen=True)
class Case:
    """A network, a batch and a criterion; all of them are made anew each time they are asked for.

    `network` makes the module, and its docstring says what the case is trouble for; `inputs` and
    `targets` make the batch; `criterion` takes (outputs, y) and returns a scalar or per-sample
    losses; `train` is the mode of the module; `traits` are keys of TRAITS.
    """

    name: str
    network: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    targets: Callable[[], Tensor]
    criterion: Callable[[Any, Tensor], Tensor | float]
    traits: frozenset[str] = frozenset()
    train: bool = True

    @property
    def X(self) -> Tensor:
        return self.inputs()

    @property
    def y(self) -> Tensor:
        return self.targets()

    def build(self) -> nn.Module:
        """Return a fresh float32 network, the same each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.network()

    def module(self) -> nn.Module:
        """Return a fresh float64 module in its mode, nothing in it left at 0 or 1 by default."""
        module = self.build().double().train(self.train)
        roughen(module, torch.Generator().manual_seed(1))
        return module


@torch.no_grad()
def roughen(module: nn.Module, generator: torch.Generator) -> None:
    """Move biases off 0, scales off 1, and BatchNorm's running statistics off both."""
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
        parameter += 0.1 * noise
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.3, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0, generator=generator)


# --- Batches


def normal(*shape: int, seed: int = 2) -> Callable[[], Tensor]:
    def draw() -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    return draw


def integers(high: int, *shape: int, seed: int = 3) -> Callable[[], Tensor]:
    return lambda: torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


# --- Criteria

CE, MSE = nn.CrossEntropyLoss(), nn.MSELoss()
PER_SAMPLE, SUMMED = nn.CrossEntropyLoss(reduction="none"), nn.CrossEntropyLoss(reduction="sum")
IGNORING = nn.CrossEntropyLoss(ignore_index=2)  # samples weigh by how many pixels count


def weighted(outputs: Tensor, y: Tensor) -> Tensor:
    """Its mean divides by the weights of the labels: it is not the mean of per-sample losses."""
    weight = torch.tensor([1.0, 2.0, 0.5], dtype=outputs.dtype)
    return nn.CrossEntropyLoss(weight=weight, label_smoothing=0.1)(outputs, y)


def zero_one(outputs: Tensor, y: Tensor) -> float:
    """A Python float, constant nearly everywhere."""
    return float((outputs.argmax(1) != y).double().mean())


def median_error(outputs: Tensor, y: Tensor) -> float:
    """A Python float out of numpy, and no mean over samples."""
    return float(np.median(np.abs(outputs.detach().numpy() - y.numpy())))


def output_itself(outputs: Tensor, _: Tensor) -> Tensor:
    """For modules that compute their loss themselves."""
    return outputs


def first_output(outputs: tuple[Tensor, Tensor], y: Tensor) -> Tensor:
    """Takes the tuple that the root returns."""
    return MSE(outputs[0], y)


# --- The table: name, network, (inputs, targets, criterion), traits


def row(
    name: str,
    network: Callable[[], nn.Module],
    inputs: Callable[[], Tensor],
    targets: Callable[[], Tensor],
    criterion: Callable[[Any, Tensor], Tensor | float],
    traits: str = "",
    train: bool = True,
) -> Case:
    """Return the case; `traits` are words in one string."""
    return Case(name, network, inputs, targets, criterion, frozenset(traits.split()), train)


LABELS, NUMBERS, PIXELS = integers(3, 6), normal(6, 3, seed=3), integers(3, 5, 6, 6)
VECTORS = normal(6, 4), LABELS, CE
REGRESSION = normal(6, 4), NUMBERS, MSE
ITSELF = normal(6, 4), normal(6, 4), MSE
IMAGES = normal(6, 2, 5, 5), LABELS, CE
SERIES = normal(6, 5, 4), LABELS, CE
TOKENS = integers(5, 6, 4, seed=2), LABELS, CE
NEXT_TOKEN = integers(5, 6, 4, seed=2), integers(5, 6), CE
SEGMENTATION = normal(5, 2, 3, 3), PIXELS, IGNORING
STATES = normal(6, 5, 4), normal(6, 5, 2, seed=3), first_output
MOVING = "stateful mixes_samples gradientless misread"

CASES = (
    # stock layers
    row("linear", modules.linear, *REGRESSION),
    row("mlp", modules.mlp, *VECTORS),
    row("mlp_per_sample", modules.mlp, *VECTORS[:2], PER_SAMPLE),
    row("mlp_sum", modules.mlp, *VECTORS[:2], SUMMED),
    row("mlp_weighted_smoothed", modules.mlp, *VECTORS[:2], weighted),
    row("mlp_zero_one", modules.mlp, *VECTORS[:2], zero_one, "gradientless stepped"),
    row("mlp_median_error", modules.mlp, *REGRESSION[:2], median_error, "gradientless"),
    row("frozen", modules.frozen, *VECTORS, "frozen"),
    row("hooked", modules.hooked, *VECTORS),
    row("weight_norm", modules.weight_normed, *REGRESSION),
    row("input_relu", modules.input_relu, *REGRESSION, "inplace writes_input"),
    row("cnn_train", modules.cnn, *IMAGES, "mixes_samples stateful"),
    row("cnn_eval", modules.cnn, *IMAGES, train=False),
    row("batch_statistics", modules.batch_statistics, *SERIES, "mixes_samples", train=False),
    row("grouped_dilated", modules.grouped_dilated, *IMAGES),
    row("padding_modes", modules.padding_modes, *IMAGES),
    row("conv_transpose", modules.conv_transpose, *SEGMENTATION),
    row("conv1d", modules.conv1d, *SERIES),
    row("layer_norm", modules.layer_norm, *REGRESSION),
    row("group_norm", modules.group_norm, *IMAGES),
    row("instance_norm", modules.instance_norm, *IMAGES),
    row("embedding_bag", modules.embedding_bag, *TOKENS),
    row("embedding_padding", modules.embedding_padding, *TOKENS, "gradientless"),
    row("embedding_max_norm", modules.embedding_max_norm, *TOKENS, "gradientless stateful"),
    # structure
    row("residual", modules.Residual, *VECTORS),
    row("resnet_train", modules.ResNetBlock, *IMAGES, "inplace mixes_samples stateful"),
    row("resnet_eval", modules.ResNetBlock, *IMAGES, "inplace", train=False),
    row("concat_gate", modules.ConcatGate, *IMAGES),
    row("channel_shuffle", modules.ChannelShuffle, *IMAGES),
    row("tied", modules.Tied, *NEXT_TOKEN, "tied"),
    row("twice", modules.Twice, *VECTORS, "tied"),
    row("borrowed", modules.Borrowed, *VECTORS, "tied"),
    row("bare_autoencoder", modules.BareAutoencoder, *ITSELF, "tied"),
    row("polynomial", modules.Polynomial, *ITSELF),
    row("unused", modules.Unused, *REGRESSION, "frozen"),
    row("standardised_conv", modules.standardised_conv, *IMAGES),
    row("tuple_between", modules.tuple_between, *REGRESSION),
    row("transposed_output", modules.TransposedOutput, IMAGES[0], normal(6, 9, 3, seed=3), MSE),
    # sequences
    row("gru", modules.LastState, *SERIES),
    row("gru_root", modules.gru_root, *STATES, "opaque untraceable"),
    row("unrolled", modules.Unrolled, *SERIES, "opaque untraceable tied"),
    row("multihead_attention", modules.SelfAttention, *SERIES),
    row("token_attention", modules.TokenAttention, *SERIES),
    row("transformer_train", modules.transformer, *SERIES, "random"),
    row("transformer_eval", modules.transformer, *SERIES, train=False),
    # writing in place
    row("inplace_residual", impure.InplaceResidual, *IMAGES, "inplace"),
    row("discarded_inplace", impure.DiscardedInplace, *IMAGES, "inplace"),
    row("writes_through_view", impure.WritesThroughView, *REGRESSION, "inplace"),
    row("assigns_item", impure.around(impure.AssignsItem), *VECTORS, "opaque inplace"),
    # randomness
    row("dropout_train", impure.dropout, *VECTORS, "random"),
    row("dropout_eval", impure.dropout, *VECTORS, train=False),
    row("dropout2d_train", impure.dropout2d, *IMAGES, "inplace random mixes_samples stateful"),
    row("always_dropout", impure.AlwaysDropout, *VECTORS, "random", train=False),
    row("additive_noise", impure.AdditiveNoise, *REGRESSION, "random misread"),
    row("stochastic_depth", impure.StochasticDepth, *VECTORS, "random misread"),
    # what torch.fx cannot read
    row("halving", impure.Halving, *VECTORS, "opaque untraceable mixes_samples"),
    row("branch_inside", impure.around(impure.Branch), *VECTORS, "opaque mixes_samples"),
    row("numpy_inside", impure.around(impure.NumpySoftplus), *VECTORS, "opaque gradientless"),
    row("quantised", impure.around(impure.Quantise), *REGRESSION, "stepped"),
    # samples that see each other
    row("centre", impure.around(impure.Centre), *VECTORS, "mixes_samples"),
    row("batch_softmax", impure.around(impure.batch_softmax), *VECTORS, "mixes_samples"),
    row("fixed_batch", impure.around(impure.FixedBatch), *VECTORS),
    row("returns_loss", impure.ReturnsLoss, *VECTORS[:2], output_itself, "mixes_samples"),
    # modules that change themselves
    row("moving_mean", impure.around(impure.MovingMean), *VECTORS, MOVING),
    row("reassigned_mean", impure.around(impure.ReassignedMean), *VECTORS, MOVING),
    row("remembers", impure.around(impure.Remembers), *VECTORS, "stateful"),
    row("counts", impure.around(impure.Counts), *VECTORS, "stateful"),
)
ids = [case.name for case in CASES]
