"""Where a fit asks its queries, from an estimator's parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from skorch.callbacks import Callback

from zoestim.backends import resolve_backend
from zoestim.evaluation import Asking, Patience, state_hash
from zoestim.training._net import ZONet


def main_device(device: Any) -> torch.device:
    """Return the device that holds the module: the first, if there are several."""
    devices = device if isinstance(device, list) else [device]
    try:
        first, *_ = [torch.device(each) for each in devices]  # all of them have to be some
        return first
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"device={device!r} names no device of torch ({error}); expected such as 'cpu', "
            "'cuda:0', or a list of them with at least one."
        ) from error


def make_asking(estimator: Any) -> Asking:
    """Return where, and how patiently, an estimator asks."""
    main_device(estimator.device)  # refuses what is none
    devices = estimator.device if isinstance(estimator.device, list) else ()
    backend = resolve_backend(estimator.n_jobs, estimator.backend, devices)
    forgiving = getattr(estimator, "_forgiving", False)
    patience = Patience(estimator.query_timeout, estimator.max_retries, forgiving)
    return Asking(backend, patience)


@contextmanager
def asking_of(estimator: Any) -> Iterator[Asking]:
    """Lend what :func:`make_asking` returns, and close a backend that is not the user's own."""
    asking = make_asking(estimator)
    try:
        yield asking
    finally:
        if asking.backend is not estimator.backend:
            asking.backend.close()


class Agreement(Callback):
    """Proves, each epoch, that processes which train together hold the same state."""

    def on_epoch_end(self, net: ZONet, **kwargs: Any) -> None:
        same = getattr(net.zo_step.settings.asking.backend, "same", None)
        if same is None:
            return
        hashes = same(state_hash(net.module_, net.optimizer_, net.zo_step.generator))
        if len(set(hashes)) > 1:
            raise RuntimeError(
                f"The ranks hold different states after epoch {len(net.history)}: {hashes}; "
                "expected one. Give every rank the same data, parameters, libraries and kind of "
                "processor."
            )
