"""The denoiser DnCNN, Zhang et al. (2017), Fig. 1: it predicts the noise and subtracts it."""

from torch import Tensor, nn

# 95 % of the running statistics are kept at each batch; torch's momentum is the share of the new.
BATCH_NORM_MOMENTUM = 0.05
BATCH_NORM_EPS = 1e-4


class DnCNN(nn.Module):
    """Denoiser that subtracts the noise which a plain convolutional network finds.

    A 3 x 3 convolution and a ReLU, then `depth - 2` times a 3 x 3 convolution, a BatchNorm and
    a ReLU, then a 3 x 3 convolution back to the channels of the image. A new denoiser is the
    identity: its last convolution is zero.

    Parameters
    ----------
    depth : int, default=17
        Number of convolutions, at least 2.

    width : int, default=64
        Number of channels between the first and the last convolution.

    in_channels : int, default=1
        Number of channels of the images: 556,096 parameters with 1, 558,400 with 3.

    Raises
    ------
    ValueError
        If `depth` is less than 2.

    Notes
    -----
    Outputs have the shape of the inputs, (n_samples, in_channels, height, width), and their
    unit: the network knows no range of pixel values. The other convolutions start orthogonal. As
    the last one is zero, no other has a gradient in the very first step.

    References
    ----------
    K. Zhang, W. Zuo, Y. Chen, D. Meng, L. Zhang. "Beyond a Gaussian denoiser: residual learning
    of deep CNN for image denoising", IEEE Trans. Image Processing 26(7), 2017, Sec. III, Fig. 1.

    A. Chen et al. "DeepZero: scaling up zeroth-order optimization for deep model training",
    ICLR 2024, Sec. 6.2 (black-box defence).

    Examples
    --------
    >>> import torch
    >>> from zoestim.models import DnCNN
    >>> images = torch.rand(2, 1, 8, 8)
    >>> torch.equal(DnCNN(depth=5, width=16)(images), images)
    True
    """

    def __init__(self, depth: int = 17, width: int = 64, in_channels: int = 1) -> None:
        super().__init__()
        if depth < 2:
            raise ValueError(
                f"DnCNN needs a depth of at least 2, its first and its last convolution; "
                f"got depth={depth!r}."
            )
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width, eps=BATCH_NORM_EPS, momentum=BATCH_NORM_MOMENTUM),
                nn.ReLU(),
            ]
        last = nn.Conv2d(width, in_channels, 3, padding=1, bias=False)
        self.net = nn.Sequential(*layers, last)
        for layer in self.net:
            if isinstance(layer, nn.Conv2d):
                nn.init.orthogonal_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.zeros_(last.weight)

    def forward(self, y: Tensor) -> Tensor:
        """Return the images `y` less the noise that is found in them; same shape as `y`."""
        return y - self.net(y)
