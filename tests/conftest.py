"""One thread for every test, and what tests of several files do around theirs."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import builtins
import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

torch.set_num_threads(1)


def global_rng_states() -> dict[str, object]:
    """Return the states of the global generators, such that == compares them."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": (name, keys.tolist(), *rest),
        "random": random.getstate(),
    }


@pytest.fixture
def global_rng_untouched() -> Iterator[None]:
    """Fail the test if it draws from, or seeds, a global generator."""
    before = global_rng_states()
    yield
    touched = [name for name, state in global_rng_states().items() if state != before[name]]
    if touched:
        pytest.fail(f"Global generators were touched: {', '.join(touched)}.")


@pytest.fixture
def no_window() -> Iterator[None]:
    """Draw into memory, and close all figures after the test."""
    matplotlib = pytest.importorskip("matplotlib")
    from matplotlib import pyplot

    backend = matplotlib.get_backend()
    pyplot.switch_backend("Agg")
    yield
    pyplot.close("all")
    pyplot.switch_backend(backend)


@pytest.fixture
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let imports fail as where matplotlib is not installed."""
    real = builtins.__import__

    def without(name: str, *given: object) -> object:
        if name.partition(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *given)

    monkeypatch.setattr(builtins, "__import__", without)
