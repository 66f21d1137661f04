"""Fits whose checkpoints are tested: each has something to keep that another has not."""

import numpy as np
import torch
from skorch.callbacks import (
    Callback,
    EarlyStopping,
    EpochScoring,
    Freezer,
    Initializer,
    LRScheduler,
)
from torch import nn

from benchmarks.faults.kill import CASES, X, Y, outcome, same
from zoestim import BlackBox, ZOClassifier
from zoestim.sparsity import Pruning

BASE = {"batch_size": 11, "max_epochs": 2, "random_state": 0, "n_pruning_queries": 3}
TINY = {**BASE, "module__hidden": 3, "sparsity": 0.6}
STEPS = 2 * 4  # of TINY: 40 samples in batches of 11


class Killed(BaseException):
    """Stands for the end of the process."""


class Counts(Callback):
    """Counts the steps of a fit, and ends it by an error before some step."""

    def __init__(self, last: int = 10**9, error: BaseException | None = None):
        self.last = last
        self.error = error or Killed()
        self.steps = 0

    def on_batch_begin(self, net, training=True, **kwargs):
        if training and self.steps == self.last:
            raise self.error
        self.steps += training


class Memory(Callback):
    """Has a state of its own, which decides the learning rate."""

    def __init__(self):
        self.sum = torch.zeros(2)

    def on_batch_end(self, net, training=True, **kwargs):
        if training:
            self.sum += torch.tensor([1.0, net.history[-1, "batches", -1, "train_loss"]])
            net.optimizer_.param_groups[0]["lr"] = 0.1 / float(self.sum[1])

    def state_dict(self):
        return {"sum": self.sum.clone()}

    def load_state_dict(self, state):
        self.sum = state["sum"]


class Late(Callback):
    """Has no state before the training begins."""

    def on_train_begin(self, net, **kwargs):
        self.epochs = 0

    def on_epoch_end(self, net, **kwargs):
        self.epochs += 1
        net.history.record("told", self.epochs)

    def state_dict(self):
        return {"epochs": self.epochs}

    def load_state_dict(self, state):
        self.epochs = state["epochs"]


class Hidden(nn.Module):
    """Has a buffer that its state_dict leaves out, and one of integers."""

    def __init__(self, n_features_in: int, n_outputs: int):
        super().__init__()
        self.linear = nn.Linear(n_features_in, n_outputs)
        self.norm = nn.BatchNorm1d(n_outputs)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int16), persistent=False)

    def forward(self, x):
        if self.training:
            self.calls.add_(1)
        return self.norm(self.linear(x)) * (1 + 0.01 * self.calls)


def box(params: dict, inputs: np.ndarray) -> np.ndarray:
    return inputs @ params["w"]


START = {"w": np.zeros((3, 3))}
BOXED = {"module": box, "initial_params": START}
GROUPS = [("layers.1.*", {"lr": 0.01})]
AT_ONCE = {"early_stopping": True, "tol": 1e9, "n_iter_no_change": 1, "max_epochs": 9}


def made() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return nn.Sequential(nn.Linear(3, 3).double(), BlackBox(box, START))


def norm(net, X, y) -> float:
    return float(net.module_.layers[1].weight.detach().norm())


def cyclic() -> list[Callback]:
    return [LRScheduler("CyclicLR", base_lr=0.01, max_lr=0.2, step_every="batch")]


# Parameters, and what makes the callbacks, which have a state and serve one fit.
OTHERS = {
    "stops at once": ({**TINY, **AT_ONCE}, list),
    "budget in mid-epoch": ({**TINY, "max_epochs": 99, "max_queries": 100}, list),
    "the best for good": ({**TINY, "pruning": Pruning(selection="fixed")}, list),
    "the best anew": ({**TINY, "pruning": Pruning(selection="renewed")}, list),
    "all": ({**TINY, "pruning": None}, list),
    "ratios": ({**TINY, "pruning": {"layers.1.weight": 0.5}}, list),
    "groups": ({**TINY, "optimizer__param_groups": GROUPS}, list),
    "warm-up": ({**TINY, "warmup_epochs": 2}, list),
    "averages": ({**TINY, "optimizer": torch.optim.ASGD, "optimizer__t0": 2}, list),
    "factored": ({**TINY, "optimizer": torch.optim.Adafactor}, list),
    "amsgrad": ({**TINY, "optimizer": torch.optim.Adam, "optimizer__amsgrad": True}, list),
    "hidden buffers": ({**BASE, "module": Hidden, "feature_reuse": False}, list),
    "a black box": ({**BASE, **BOXED}, list),
    "a box inside": ({**BASE, "module": made()}, list),
    "a rate a batch": ({**TINY, "lr_schedule": "constant"}, cyclic),
    "a rate an epoch": (
        {**TINY, "lr_schedule": "constant"},
        lambda: [LRScheduler("StepLR", step_size=1)],
    ),
    "state of a callback": ({**TINY, "lr_schedule": "constant"}, lambda: [Memory()]),
    "frozen in mid-fit": (TINY, lambda: [Freezer("layers.1.*", at=2)]),
    "set as it begins": (TINY, lambda: [Initializer("layers.3.bias", fn=nn.init.ones_)]),
    "a state from the start on": (TINY, lambda: [EarlyStopping(monitor="train_loss"), Late()]),
    "a score": (TINY, lambda: [EpochScoring(norm, name="norm", on_train=True)]),
}
FITS = {
    **{n: (kind, {**p, "max_epochs": 2}, y, list) for n, (kind, p, y) in CASES.items()},
    **{n: (ZOClassifier, params, Y, callbacks) for n, (params, callbacks) in OTHERS.items()},
}


def fitted(name: str = "tiny", *callbacks: Callback, **more):
    kind, params, y, make = FITS.get(name, (ZOClassifier, TINY, Y, list))
    return kind(**{**params, **more}, callbacks=[*make(), *callbacks]).fit(X, y)


def alike(model, expected) -> None:
    """Compare two fits bit for bit."""
    found, wanted = outcome(model), outcome(expected)
    assert [key for key in wanted if not same(found[key], wanted[key])] == []
