"""The 8-layer CNN of Boopathy and Fiete (2022) for CIFAR-10, of a chosen width: DeepZero, Table 1.

Seven 3 x 3 convolutions of the same width, the fourth and the sixth of stride 2, each followed by a
normalisation by the batch without scale and shift, and a ReLU; then the average over all pixels and
a linear layer. Weights start from N(0, 1 / fan-in).

References
----------
A. Boopathy, I. Fiete. "How to train your wide neural network without backprop: an input-weight
alignment perspective", ICML 2022; strides and normalisation are from the authors' program
(github.com/FieteLab/Wide-Network-Alignment, train_cifar.py).

Notes
-----
Two things differ. The authors normalise each pixel of each channel, by the batch in testing too:
here it is nn.BatchNorm2d, by channel, with running statistics in eval mode. Their convolutions have
biases, which a normalisation takes away again: here they have none. Which of both DeepZero had is
not known.
"""

from torch import nn

STRIDES = (1, 1, 1, 2, 1, 2, 1)


def eight_layer_cnn(width: int, n_classes: int = 10, in_channels: int = 3) -> nn.Sequential:
    """Return the CNN as a sequence of eight blocks, of one layer with weights each.

    A block begins with the ReLU of the block before, for rules that take an error to where a
    block ends: before its ReLU. The last convolution has its ReLU and the pooling behind it.
    """
    channels = [in_channels] + [width] * len(STRIDES)
    blocks = [
        nn.Sequential(
            nn.Conv2d(channels[i], width, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(width, affine=False),
        )
        for i, stride in enumerate(STRIDES)
    ]
    for block in blocks[1:]:
        block.insert(0, nn.ReLU())
    blocks[-1].extend([nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()])
    network = nn.Sequential(*blocks, nn.Linear(width, n_classes))
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
    nn.init.zeros_(network[-1].bias)
    return network
