"""The networks of the paper as plain torch modules, all of them traceable by torch.fx."""

from zoestim.models._cnn import SimpleCNN
from zoestim.models._corrector import CorrectorCNN
from zoestim.models._dncnn import DnCNN
from zoestim.models._mlp import MLP
from zoestim.models._resnet import ResNet, resnet20, resnet32, resnet44, resnet56, resnet110

__all__ = [
    "MLP",
    "CorrectorCNN",
    "DnCNN",
    "ResNet",
    "SimpleCNN",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
]
