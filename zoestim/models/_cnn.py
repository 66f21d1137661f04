"""The simple CNN of a chosen depth, DeepZero, Fig. A1: the network of its comparison, Fig. 2."""

from torch import Tensor, nn


class SimpleCNN(nn.Module):
    """Convolutional network of a chosen depth, on which DeepZero compares CGE with RGE.

    Each of the `depth` blocks is a 3 x 3 convolution, a BatchNorm, a ReLU and a max pooling
    that halves the image. The average over all pixels goes through one linear layer.

    Parameters
    ----------
    depth : int, default=1
        Number of blocks. The paper has 1 to 5: 730, 3,700, 6,670, 9,640 and 12,610 parameters.

    num_classes : int, default=10
        Number of outputs.

    in_channels : int, default=3
        Number of channels of the images.

    width : int, default=18
        Number of channels of every block. The paper does not name it: 18 is the width that gives
        its numbers of parameters.

    Raises
    ------
    ValueError
        If `depth` is less than 1.

    Notes
    -----
    The poolings round up, so that an image is never pooled away: at any depth, an image of one
    pixel stays one. On the paper's 32 x 32 images, to depth 5, nothing is rounded. Inputs are of
    shape (n_samples, in_channels, height, width), outputs of shape (n_samples, num_classes).

    References
    ----------
    A. Chen et al. "DeepZero: scaling up zeroth-order optimization for deep model training",
    ICLR 2024, Sec. 3, Fig. 2 and Appendix B, Fig. A1.

    Examples
    --------
    >>> import torch
    >>> from zoestim.models import SimpleCNN
    >>> net = SimpleCNN(depth=2)
    >>> sum(parameter.numel() for parameter in net.parameters())
    3700
    >>> net(torch.zeros(4, 3, 32, 32)).shape
    torch.Size([4, 10])
    """

    def __init__(
        self, depth: int = 1, num_classes: int = 10, in_channels: int = 3, width: int = 18
    ) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(
                f"SimpleCNN needs a depth of at least 1; got depth={depth!r}. "
                "For a model without convolutions take MLP."
            )
        channels = [in_channels] + [width] * depth
        self.blocks = nn.Sequential(
            *(_make_block(channels[i], channels[i + 1]) for i in range(depth))
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, of shape (n_samples, num_classes)."""
        return self.linear(self.flatten(self.pool(self.blocks(x))))


def _make_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return one "Conv Block" of Fig. A1."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.MaxPool2d(2, ceil_mode=True),
    )
