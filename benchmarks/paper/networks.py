"""The networks of the figures, in the size of each scale."""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.paper.figure import Sizes
from zoestim.models import ResNet, resnet20

Make = Callable[[], nn.Module]


class CropAndFlip(nn.Module):
    """Random crops of an image with a margin of zeros, some mirrored, while a network trains.

    Parameters
    ----------
    margin : int, default=4
        Pixels on each side.
    """

    def __init__(self, margin: int = 4):
        super().__init__()
        self.margin = margin

    def forward(self, x: Tensor) -> Tensor:
        """Return images of the same shape; queries of a step get the same ones."""
        if not self.training:
            return x
        n, _, height, width = x.shape
        rows, columns = (
            torch.randint(2 * self.margin + 1, (n, 1), device=x.device)
            + torch.arange(size, device=x.device)
            for size in (height, width)
        )
        mirrored = torch.rand(n, 1, device=x.device) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
        wide = nn.functional.pad(x, [self.margin] * 4).movedim(1, -1)
        each = torch.arange(n, device=x.device)[:, None, None]
        return wide[each, rows[:, :, None], columns[:, None]].movedim(-1, 1)


def augmented(make: Make) -> nn.Module:
    """Return a network behind random crops and flips, as is usual for CIFAR-10."""
    return nn.Sequential(CropAndFlip(), make())


# In place of ResNet-20: 5,006 parameters on two cores.
RESNETS: dict[str, Make] = {
    "smoke": partial(ResNet, 8, width=2),
    "cpu": partial(ResNet, 8, width=4),
    "paper": partial(augmented, resnet20),
}
SIZES = {
    "smoke": Sizes(64, 128, 8),
    "cpu": Sizes(2048, 2000, 16),
    "paper": Sizes(50_000, 10_000, 32),
}
BATCH_SIZES = {"smoke": 64, "cpu": 64, "paper": 512}
EPOCHS = {"smoke": 1, "cpu": 10, "paper": 50}
# Of sparse gradients; at CPU scale chosen on held-out images, of 0.1, 0.3 and 1, at 90 %.
RATES = {"smoke": 0.1, "cpu": 0.3, "paper": 0.1}
DIRECTIONS = {"smoke": 4, "cpu": 192, "paper": 192}  # of ZO-GraSP, Sec. 6.1
CUT = (
    "Cut: ResNet-8 of width 4 (5,006 parameters) in place of ResNet-20 (269,722), 2,048 images of",
    "16 x 16 pixels, 10 epochs in batches of 64: 320 steps.",
)


def common(scale: str, **given: object) -> Mapping[str, object]:
    """Return what all fits of a scale have in common, for `train`, with more settings."""
    return {"batch_size": BATCH_SIZES[scale], "epochs": EPOCHS[scale], **given}


def queried(scale: str, **given: object) -> Mapping[str, object]:
    """Return the same for ZOClassifier."""
    sizes = {"batch_size": BATCH_SIZES[scale], "max_epochs": EPOCHS[scale]}
    return {**sizes, "lr": RATES[scale], "n_pruning_queries": DIRECTIONS[scale], **given}


WHOLE = (
    "Images are cropped and flipped at random: the paper does not say so, and its accuracy of",
    "dense backprop is not reached without.",
)


class _Block(nn.Module):
    """Two 3 x 3 convolutions, around which a 1 x 1 convolution carries what changes its shape."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(n_in, n_out, 3, stride),
            nn.ReLU(),
            *_convolution(n_out, n_out, 3, 1),
        )
        same = n_in == n_out and stride == 1
        self.around = (
            nn.Identity() if same else nn.Sequential(*_convolution(n_in, n_out, 1, stride))
        )

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu(self.layers(x) + self.around(x))


def _convolution(n_in: int, n_out: int, size: int, stride: int) -> list[nn.Module]:
    padding = size // 2
    return [nn.Conv2d(n_in, n_out, size, stride, padding, bias=False), nn.BatchNorm2d(n_out)]


def resnet18(width: int = 64) -> nn.Module:
    """Return a ResNet-18 for small images, as is usual for CIFAR-10: 11.2 million parameters.

    Parameters
    ----------
    width : int, default=64
        Channels of the first of four stages of two blocks; each later one has twice as many.

    References
    ----------
    K. He et al. "Deep residual learning for image recognition", CVPR 2016; with a first
    convolution of 3 x 3 and no pooling before the blocks.
    """
    blocks, n_in = [], width
    for stage in range(4):
        n_out = width * 2**stage
        blocks += [_Block(n_in, n_out, 1 if stage == 0 else 2), _Block(n_out, n_out, 1)]
        n_in = n_out
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, 10)]
    return nn.Sequential(*_convolution(3, width, 3, 1), nn.ReLU(), *blocks, *head)
