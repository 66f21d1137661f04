"""Residual networks for small images, He et al. (2016), Sec. 4.2; ResNet-20 is DeepZero's."""

from torch import Tensor, nn
from torch.nn import functional


class _Subsample(nn.Module):
    """Shortcut "A": every second pixel, and zeros for the channels that the block adds."""

    def __init__(self, added_channels: int) -> None:
        super().__init__()
        # Half before, half after: the order in which most published weights expect them.
        before = added_channels // 2
        self.padding = (0, 0, 0, 0, before, added_channels - before)

    def forward(self, x: Tensor) -> Tensor:
        return functional.pad(x[:, :, ::2, ::2], self.padding)


class _BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around which the input is carried unchanged."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        shrinks = in_channels != out_channels
        stride = 2 if shrinks else 1
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = _Subsample(out_channels - in_channels) if shrinks else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        residual = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(residual)) + self.shortcut(x))


class ResNet(nn.Module):
    """Residual network for small images, with shortcuts that have no parameters.

    A 3 x 3 convolution is followed by three stages of `(depth - 2) / 6` blocks, of `width`,
    `2 * width` and `4 * width` channels; the second and the third stage halve the image.
    The average over all pixels goes through one linear layer.

    Parameters
    ----------
    depth : int, default=20
        Number of layers with weights; 6 n + 2 with n >= 1.

    num_classes : int, default=10
        Number of outputs.

    in_channels : int, default=3
        Number of channels of the images.

    width : int, default=16
        Number of channels of the first stage. The paper has 16; fewer make a small network
        of the same form.

    Raises
    ------
    ValueError
        If `depth` is not 6 n + 2.

    See Also
    --------
    resnet20 : The network of DeepZero's experiments.

    Notes
    -----
    Convolutions have no bias, since a BatchNorm follows each. All weights start from He's normal
    distribution, the last bias at zero. Inputs are of shape (n_samples, in_channels, height,
    width), outputs of shape (n_samples, num_classes); any image size will do.

    References
    ----------
    K. He, X. Zhang, S. Ren, J. Sun. "Deep residual learning for image recognition", CVPR 2016,
    Sec. 4.2 (the network, shortcut "A").

    A. Chen et al. "DeepZero: scaling up zeroth-order optimization for deep model training",
    ICLR 2024, Sec. 6.1.

    Examples
    --------
    >>> import torch
    >>> from zoestim.models import ResNet
    >>> net = ResNet(depth=8, num_classes=4, width=4)
    >>> net(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 4])
    """

    def __init__(
        self, depth: int = 20, num_classes: int = 10, in_channels: int = 3, width: int = 16
    ) -> None:
        super().__init__()
        n_blocks, rest = divmod(depth - 2, 6)
        if n_blocks < 1 or rest:
            raise ValueError(
                f"ResNet needs a depth of 6 n + 2 with n >= 1; got depth={depth!r}. "
                "Pass 8, 14, 20, 32, 44, 56 or 110, for instance."
            )
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _make_stage(width, width, n_blocks)
        self.layer2 = _make_stage(width, 2 * width, n_blocks)
        self.layer3 = _make_stage(2 * width, 4 * width, n_blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(4 * width, num_classes)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, of shape (n_samples, num_classes)."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(self.flatten(self.pool(x)))


def _make_stage(in_channels: int, out_channels: int, n_blocks: int) -> nn.Sequential:
    """Return `n_blocks` blocks, the first of which goes from `in_channels` to `out_channels`."""
    first = _BasicBlock(in_channels, out_channels)
    return nn.Sequential(
        first, *(_BasicBlock(out_channels, out_channels) for _ in range(n_blocks - 1))
    )


def resnet20(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """Return a ResNet-20: 269,722 parameters, the network of DeepZero's experiments.

    Parameters
    ----------
    num_classes : int, default=10
        Number of outputs.

    in_channels : int, default=3
        Number of channels of the images.

    Returns
    -------
    ResNet
        A new network, initialised from torch's global random generator.

    References
    ----------
    A. Chen et al. "DeepZero: scaling up zeroth-order optimization for deep model training",
    ICLR 2024, Sec. 6.1.

    Examples
    --------
    >>> from zoestim.models import resnet20
    >>> sum(parameter.numel() for parameter in resnet20().parameters())
    269722
    """
    return ResNet(20, num_classes, in_channels)


def resnet32(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """Return a ResNet-32: 464,154 parameters; see :func:`resnet20`."""
    return ResNet(32, num_classes, in_channels)


def resnet44(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """Return a ResNet-44: 658,586 parameters; see :func:`resnet20`."""
    return ResNet(44, num_classes, in_channels)


def resnet56(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """Return a ResNet-56: 853,018 parameters; see :func:`resnet20`."""
    return ResNet(56, num_classes, in_channels)


def resnet110(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """Return a ResNet-110: 1,727,962 parameters; see :func:`resnet20`."""
    return ResNet(110, num_classes, in_channels)
