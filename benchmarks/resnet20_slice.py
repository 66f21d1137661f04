"""Sparse steps of a ResNet-20 on some CIFAR-10 images: ``python -m benchmarks.resnet20_slice``.

Shown for each step: the loss on all the images before and after it, queries and seconds. The
loss is that of training, where BatchNorm normalises by the batch.

A step costs one query, the base loss, beside one for each coordinate: the unpruned weights and all
biases and BatchNorm scales. ZO-GraSP costs ``2 * (n_pruning_queries + 1)`` once. The budget
handed to the estimator is the sum of these, so that it ends the fit after the last step.
"""

import argparse
import copy
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from skorch.callbacks import Callback
from torch import nn

from benchmarks.speed.problems import n_queried
from zoestim import ZOClassifier
from zoestim.datasets import load_cifar10
from zoestim.models import resnet20


class StepTable(Callback):
    """Prints one line a step.

    Parameters
    ----------
    X : ndarray of shape (n_samples, 3, 32, 32)
        The images on which the loss is shown.
    y : ndarray of shape (n_samples,)
        Their classes, from 0 on.
    """

    def __init__(self, X: Any, y: Any):
        self.X = X
        self.y = y

    def loss(self, net: Any) -> float:
        """Return the training loss on all images; the module stays as it is."""
        module, device = copy.deepcopy(net.module_).train(), net.device
        with torch.no_grad():
            outputs = module(torch.as_tensor(self.X, device=device))
            return float(nn.functional.cross_entropy(outputs, torch.as_tensor(self.y).to(device)))

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Take the loss and the time at the start."""
        self.losses = [self.loss(net)]
        self.seconds: list[float] = []
        print(f"{'step':>4}{'loss before':>13}{'loss after':>12}{'queries':>10}{'seconds':>10}")
        self._queries, self._start = net.zo_step.n_queries, time.perf_counter()

    def on_batch_end(self, net: Any, training: bool = True, **kwargs: Any) -> None:
        """Print the step that has just been taken."""
        self.seconds.append(time.perf_counter() - self._start)
        self.losses.append(self.loss(net))
        before, after = self.losses[-2:]
        queries = net.zo_step.n_queries - self._queries
        print(
            f"{len(self.seconds):4}{before:13.4f}{after:12.4f}{queries:10,}{self.seconds[-1]:10.1f}",
            flush=True,
        )
        self._queries, self._start = net.zo_step.n_queries, time.perf_counter()


def n_coordinates(sparsity: float, n_classes: int) -> int:
    """Return how many coordinates one step queries."""
    return n_queried(resnet20(n_classes), sparsity)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10, see load_cifar10")
    parser.add_argument("--n-samples", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--sparsity", type=float, default=0.99)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--n-pruning-queries", type=int, default=192)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Print the table and return the losses at the start and after each step."""
    options = parse(arguments)
    X, y = load_cifar10(options.data, n_samples=options.n_samples, return_X_y=True)
    coordinates = n_coordinates(options.sparsity, len(set(y)))
    pruning = 2 * (options.n_pruning_queries + 1)
    table = StepTable(X, y)
    model = ZOClassifier(
        resnet20,
        sparsity=options.sparsity,
        n_pruning_queries=options.n_pruning_queries,
        lr=options.lr,
        lr_schedule="constant",
        optimizer__weight_decay=5e-4,
        batch_size=options.batch_size,
        max_queries=pruning + options.steps * (coordinates + 1),
        max_epochs=options.steps,
        device=options.device,
        callbacks=[table],
        random_state=options.seed,
    )
    print(
        f"ResNet-20, sparsity {options.sparsity:g}: {coordinates:,} coordinates a step; "
        f"{len(X)} images in batches of {options.batch_size}, {options.device}, "
        f"{torch.get_num_threads()} thread(s) of {os.cpu_count()} CPUs"
    )
    model.fit(X, y)

    seconds = sum(table.seconds)
    print(f"the first step includes {pruning} queries for ZO-GraSP")
    print(f"{model.n_queries_:,} queries in {seconds:.1f} s: ", end="")
    print(f"{1000 * seconds / model.n_queries_:.1f} ms a query", end="")
    if options.steps > 1:
        later = sum(table.seconds[1:]) / (len(table.seconds) - 1) / coordinates
        print(f", {1000 * later:.1f} ms a coordinate in the steps after the first", end="")
    kept = {name: ratio for name, ratio in model.layer_ratios_.items() if ratio}
    print(f"\nlayer-wise ratios: {min(kept.values()):.3f} to {max(kept.values()):.3f}")
    print(f"ended by {model.termination_condition_}; reused: {model.feature_reuse_}")
    return table.losses


if __name__ == "__main__":
    main()
