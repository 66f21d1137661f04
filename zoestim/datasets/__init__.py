"""Loaders of the data that the paper trains on, from files that the user already has."""

from zoestim.datasets._cifar10 import load_cifar10

__all__ = ["load_cifar10"]
