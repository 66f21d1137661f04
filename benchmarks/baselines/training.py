"""The training that all rules share: SGD in batches, wherever the gradient comes from."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

SCHEDULES = ("cosine", "constant")


class Rule:
    """What gives a gradient: called with a module and a batch, it writes `.grad`, gives the loss.

    The loss is the mean cross entropy of the module's outputs. A rule that holds state is of one
    training; what it draws at random comes from its own seed.
    """

    def start(self, module: nn.Module, X: Tensor) -> list[nn.Parameter]:
        """Get ready to train the module as it is now; return parameters that the rule adds."""
        return []

    def __call__(self, module: nn.Module, X: Tensor, y: Tensor) -> float:
        """Write `.grad` of all parameters, those of the rule too, and return the loss."""
        raise NotImplementedError


def train(
    module: nn.Module,
    X: Any,
    y: Any,
    rule: Rule | Callable[[nn.Module, Tensor, Tensor], float],
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    schedule: str = "cosine",
    seed: int,
    max_steps: int | None = None,
    on_epoch: Callable[[], object] | None = None,
) -> list[float]:
    """Train a module in place, by SGD along what a rule calls its gradient.

    Parameters
    ----------
    module : Module
        It is left in train mode.
    X, y : array-like or Tensor
        All samples, in the module's dtype, and their classes; batches go to its device.
    rule : Rule or callable
        ``rule(module, X, y) -> loss``, which writes `.grad` of all parameters.
    epochs, batch_size, lr, momentum, weight_decay
        Of SGD.
    schedule : {"cosine", "constant"}, default="cosine"
        The learning rate: to zero at the last step, or as it is.
    seed : int
        Draws the batches, and what the module itself draws. The global generators are left as
        they were.
    max_steps : int, default=None
        Where to stop before all epochs are done; the cosine ends there too.
    on_epoch : callable, default=None
        Called after each epoch.

    Returns
    -------
    list of float
        The mean loss of the batches of each epoch.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"train: schedule must be one of {list(SCHEDULES)}; got {schedule!r}.")
    X, y = torch.as_tensor(X), torch.as_tensor(y)
    device = next(module.parameters()).device
    n_steps = epochs * math.ceil(len(X) / batch_size)
    if max_steps is not None:
        n_steps = min(n_steps, max_steps)
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module.train()
        added = rule.start(module, X[:batch_size].to(device)) if isinstance(rule, Rule) else []
        optimizer = torch.optim.SGD(
            [*module.parameters(), *added], lr, momentum=momentum, weight_decay=weight_decay
        )
        rate = _cosine(n_steps) if schedule == "cosine" else lambda step: 1.0
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        while n_steps > 0:
            batches = torch.randperm(len(X), generator=generator).split(batch_size)[:n_steps]
            total = 0.0
            for rows in batches:
                total += rule(module, X[rows].to(device), y[rows].to(device))
                optimizer.step()
                scheduler.step()
            losses.append(total / len(batches))
            n_steps -= len(batches)
            if on_epoch is not None:
                on_epoch()
    return losses


def _cosine(n_steps: int) -> Callable[[int], float]:
    return lambda step: (1 + math.cos(math.pi * step / n_steps)) / 2


def accuracy(module: nn.Module, X: Any, y: Any, batch_size: int = 1000) -> float:
    """Return the fraction of samples whose class is the largest output, in eval mode."""
    X, y = torch.as_tensor(X), torch.as_tensor(y)
    device = next(module.parameters()).device
    training = module.training
    module.eval()
    with torch.no_grad():
        predicted = [module(rows.to(device)).argmax(1).cpu() for rows in X.split(batch_size)]
    module.train(training)
    return (torch.cat(predicted) == y.cpu()).double().mean().item()


@torch.no_grad()
def settle(module: nn.Module, X: Any, batch_size: int = 1000) -> None:
    """Let BatchNorm take its statistics of samples by the weights as they are; train mode stays."""
    module.train()
    for each in module.modules():
        if isinstance(each, nn.modules.batchnorm._BatchNorm):
            each.reset_running_stats()
            each.momentum = None  # the plain mean
    device = next(module.parameters()).device
    for rows in torch.as_tensor(X).split(batch_size):
        module(rows.to(device))
