"""ResNets as sequences of blocks, for rules that stop gradients between blocks."""

from torch import nn

from zoestim.models import ResNet


def resnet_blocks(network: ResNet) -> nn.Sequential:
    """Return a ResNet as a sequence: the first layer, each residual block, the classifier.

    It shares its weights with the network, which computes the same.
    """
    return nn.Sequential(
        nn.Sequential(network.conv1, network.bn1, nn.ReLU()),
        *(block for stage in (network.layer1, network.layer2, network.layer3) for block in stage),
        nn.Sequential(network.pool, network.flatten, network.linear),
    )
