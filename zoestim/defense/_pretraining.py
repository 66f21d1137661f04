"""Backprop on what is white: the denoiser, and an autoencoder, by their squared error."""

from __future__ import annotations

import numpy as np
import torch
from skorch import NeuralNet
from skorch.callbacks import LRScheduler
from torch import nn
from torch.utils.data import TensorDataset

from zoestim.evaluation import as_input, drawing_from
from zoestim.training import ArrayBatches

# The rate falls tenfold this often within the epochs (Salman et al., 2020: after 30 of 90).
N_RATES = 3
WEIGHT_DECAY = 1e-4


def pretrain(
    module: nn.Module,
    X: np.ndarray,
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    device: torch.device,
    seed: int,
) -> list[float]:
    """Train a module to give samples back, by Adam and backprop, in place.

    Parameters
    ----------
    module : nn.Module
        From samples, to which it adds noise itself, to samples.
    X : ndarray of shape (n, ...)
        Clean samples, as the module takes them.
    epochs, lr, batch_size, device
        As in skorch.
    seed : int
        Draws batches and noise.

    Returns
    -------
    list of float
        The mean squared error of each epoch.

    References
    ----------
    Salman et al., Denoised smoothing, NeurIPS 2020, Sec. 3 (the objective MSE).
    """
    data = as_input(X, module)
    shuffler = torch.Generator().manual_seed(seed)
    net = NeuralNet(
        module.to(device),
        nn.MSELoss,
        optimizer=torch.optim.Adam,
        optimizer__weight_decay=WEIGHT_DECAY,
        lr=lr,
        max_epochs=epochs,
        batch_size=min(batch_size, len(data)),
        iterator_train=ArrayBatches,
        iterator_train__shuffle=True,
        iterator_train__generator=shuffler,
        iterator_train__device=device,
        train_split=None,
        device=device,
        callbacks=[LRScheduler("StepLR", step_size=max(1, -(-epochs // N_RATES)), gamma=0.1)],
        callbacks__print_log=None,
        verbose=0,
    )
    with drawing_from(seed, device):
        net.fit(TensorDataset(data, data), None)
    module.eval()
    return [float(loss) for loss in net.history[:, "train_loss"]]
