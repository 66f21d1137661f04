"""The skorch net whose gradients come from function values, and its in-memory batches."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import cloudpickle
import torch
from skorch import NeuralNet
from skorch.dataset import unpack_data
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import TensorDataset

from zoestim.evaluation import (
    Batch,
    Patience,
    as_input,
    as_tensor,
    first_parameter,
    has_boxes,
    unchanged_generators,
)
from zoestim.training._step import TrainingStep


class Resumption(Protocol):
    """A fit that goes on where another process left it."""

    steps_done: int

    def begin(self, net: Any) -> int:
        """Restore a net, and return how many epochs are left."""

    def enter_epoch(self, net: Any) -> int:
        """Restore the epoch under way, and return how many of its batches are done."""


class ZONet(NeuralNet):
    """A skorch net in which ``loss.backward()`` is replaced by queries.

    Optimizers, callbacks, history and the loop over epochs are skorch's own.

    Attributes
    ----------
    zo_step : TrainingStep
        Estimates the gradients.
    zo_resumption : Resumption or None
        The fit that is to go on, until it does.
    zo_interrupted : bool
        Whether queries were interrupted, by hand or by a black box: callbacks end a fit by the
        same exception, which skorch keeps to itself.
    """

    zo_step: TrainingStep
    zo_resumption: Resumption | None = None
    zo_interrupted: bool = False

    def __getstate__(self) -> dict[str, Any]:
        try:
            return super().__getstate__()
        except Exception:
            # skorch pickles by itself what may be on a GPU, by references alone: a function or
            # class of a script is out of its reach where a worker sends its net back.
            state = dict(vars(self))
            kinds = tuple(self.cuda_dependent_attributes_)
            apart = {key: state.pop(key) for key in vars(self) if key.startswith(kinds)}
            return {**state, "__cuda_dependent_attributes__": cloudpickle.dumps(apart)}

    def fit_loop(self, X: Any, y: Any = None, epochs: int | None = None, **kwargs: Any) -> Any:
        """Run the epochs, or those that an earlier process left."""
        if self.zo_resumption is not None:
            epochs = self.zo_resumption.begin(self)
        return super().fit_loop(X, y, epochs, **kwargs)

    def run_single_epoch(
        self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any
    ) -> None:
        """Run the batches of an epoch, without those that an earlier process has done."""
        done, resumption = 0, self.zo_resumption
        if training and resumption is not None:
            self.zo_resumption = None
            done = resumption.enter_epoch(self)
            iterator = itertools.islice(iterator, done, None) if done else iterator
        super().run_single_epoch(iterator, training, prefix, step_fn, **fit_params)
        if done:
            count = f"{prefix}_batch_count"
            self.history.record(count, done + self.history[-1][count])

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Estimate the gradient on one batch and write it to ``.grad``."""
        self._set_training(True)
        X, target = unpack_data(batch)
        y, weight = target if isinstance(target, tuple) else (target, None)
        number = len(self.history[-1]["batches"])
        label = f"batch {number} of epoch {len(self.history)}"
        started = time.perf_counter()
        with self._noticing_interrupts():
            loss, outputs = self.zo_step(Batch(X, y, weight, label))
        self.zo_step.seconds += time.perf_counter() - started
        return {"loss": torch.tensor(loss, dtype=torch.float64), "y_pred": outputs}

    def validation_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """Return the loss of one batch of the validation, asked once and with patience."""
        asking, step = self.zo_step.settings.asking, super().validation_step
        retries = asking.patience.max_retries if has_boxes(self.zo_step.objective.module) else 0
        patience = Patience(asking.patience.timeout, retries)

        def ask() -> dict[str, Any]:
            # Another thread may be tracing or drawing, each for the whole process.
            with unchanged_generators(torch.device(self.device)):
                return patience.insist(lambda: step(batch, **fit_params))

        with self._noticing_interrupts():
            found, device = asking.backend.once(ask), torch.device(self.device)
        return pytree.tree_map_only(Tensor, lambda value: value.to(device), found)

    @contextlib.contextmanager
    def _noticing_interrupts(self) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            self.zo_interrupted = True
            raise


def batch_sizes(n_samples: int, batch_size: int) -> list[int]:
    """Return the sizes of the batches of one epoch.

    One sample that is left over joins the last batch: BatchNorm cannot train on one.
    """
    sizes = [batch_size] * (n_samples // batch_size)
    left = n_samples % batch_size
    if left == 1 and sizes:
        sizes[-1] += 1
    elif left:
        sizes.append(left)
    return sizes


def in_memory(X: Any, y: Any, weight: Any, module: nn.Module) -> TensorDataset:
    """Return samples, targets and weights, if there are any, as a module takes them."""
    targets = as_tensor(y)
    if targets.is_floating_point():
        targets = targets.to(first_parameter(module).dtype)
    weights = () if weight is None else (as_tensor(weight),)
    return TensorDataset(as_input(X, module), targets, *weights)


class ArrayBatches:
    """Mini-batches of tensors in memory: one indexing operation a batch.

    Parameters
    ----------
    dataset : Dataset
        Gives X and y, and sample weights if there are any, for a tensor of indices.
    batch_size : int
        Samples a batch, see :func:`batch_sizes`.
    shuffle : bool, default=False
        Whether each epoch has its own order.
    generator : torch.Generator, optional
        Draws the orders.
    proceed : callable, optional
        Asked before each batch with its size; False ends the epoch.
    device : torch.device or str, default="cpu"
        Where the batches go.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        proceed: Callable[[int], bool] | None = None,
        device: torch.device | str = "cpu",
    ):
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.generator = generator
        self.proceed = proceed
        self.device = device

    def __len__(self) -> int:
        return len(batch_sizes(len(self.dataset), self.batch_size))

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        n = len(self.dataset)
        order = torch.randperm(n, generator=self.generator) if self.shuffle else torch.arange(n)
        for indices in order.split(batch_sizes(n, self.batch_size)):
            if self.proceed is not None and not self.proceed(len(indices)):
                return
            X, *target = (part.to(self.device) for part in self.dataset[indices])
            yield X, tuple(target) if len(target) > 1 else target[0]
