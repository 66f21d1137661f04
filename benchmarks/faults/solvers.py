"""Every fault of a solver in a fit: ``python -m benchmarks.faults.solvers``.

The solver moves a wave along a ring and cannot bear large states, to which the queries of some
weights drive it. One row is one fit of two steps. With "reject", all have to end with the weights
of the first row.
"""

import dataclasses
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch

from benchmarks.speed.measure import print_table
from zoestim import CorrectionWorseThanSolverWarning, QueryError, SolverInTheLoop
from zoestim.models import CorrectorCNN
from zoestim.solvers import FunctionSolver, SolverFailedWarning, SubprocessSolver

N_CELLS, N_STEPS, LIMIT = 8, 4, 3.0
PROGRAM = """
import io, sys, numpy as np
state = np.load(io.BytesIO(sys.stdin.buffer.read()))["state"]
if abs(state).max() > 3:
    sys.exit("the flow is too fast")
np.save(sys.stdout.buffer, 0.9 * np.roll(state, 1, -1))
"""


@dataclasses.dataclass
class Frail:
    """A step of one state, which goes wrong where the state is large."""

    fault: str
    parent: int

    def __call__(self, state: np.ndarray, conditions: Mapping[str, Any]) -> np.ndarray:
        """Return the next state, or go wrong."""
        after = np.float32(0.9) * np.roll(state, 1, -1)
        if np.abs(state).max() <= LIMIT:
            return after
        if self.fault == "raises":
            raise FloatingPointError("the flow is too fast")
        if self.fault == "hangs":
            time.sleep(3)
        if self.fault == "kills its process" and os.getpid() != self.parent:
            os._exit(1)
        return np.full_like(state, 1e38 if self.fault == "diverges" else np.nan)


@dataclasses.dataclass
class Batch:
    """The same for a batch, of which one copy spoils its own state or the whole call."""

    frail: Frail

    def __call__(self, states: np.ndarray, conditions: Mapping[str, Any]) -> np.ndarray:
        """Return the next states."""
        return np.stack([self.frail(state, conditions) for state in states])


def data() -> tuple[np.ndarray, np.ndarray]:
    """Return three waves and their next frames, which lose less than the solver says."""
    waves = np.random.default_rng(0).normal(size=(3, 1, N_CELLS)).clip(-2, 2).astype(np.float32)
    frames = [np.float32(0.95**k) * np.roll(waves, k, -1) for k in range(1, N_STEPS + 1)]
    return waves, np.stack(frames, 1)


def fitted(solver: Any, **given: Any) -> SolverInTheLoop:
    """Return a fit, also one that a failure has ended."""
    torch.manual_seed(0)
    corrector = CorrectorCNN(1, hidden=(2,), kernel_size=3, n_dims=1, zero_init=False)
    with torch.no_grad():
        for parameter in corrector.parameters():
            parameter *= 0.1
    loop = SolverInTheLoop(
        solver, corrector, n_unroll=N_STEPS, gradient="cge", smoothing=3.0, sparsity=0.0,
        check_gradient=False, max_epochs=2, max_retries=1, random_state=0, lr=1e-4, **given,
    )  # fmt: skip
    try:
        return loop.fit(*data())
    except QueryError as error:
        loop.error_ = error
        return loop


def cases(fault: str) -> tuple[Any, dict[str, Any]]:
    """Return the solver of a fault, and what the fit needs for it."""
    frail = Frail(fault, os.getpid())
    if fault == "raises in one of a batch":
        return FunctionSolver(Batch(Frail("raises", 0)), batched=True), {}
    if fault == "a program fails":
        return SubprocessSolver([sys.executable, "-c", PROGRAM], timeout=30), {}
    if fault == "hangs":
        return FunctionSolver(frail), {"query_timeout": 0.3}
    if fault == "kills its process":
        return FunctionSolver(frail), {"n_jobs": 2, "backend": "loky"}
    return FunctionSolver(frail), {}


FAULTS = (
    "raises",
    "raises in one of a batch",
    "gives NaN",
    "diverges",
    "hangs",
    "a program fails",
    "kills its process",
)


def row(fault: str, on_failure: str, sound: list[bytes]) -> dict[str, Any]:
    """Return what came of a fit."""
    solver, also = cases(fault)
    with tempfile.TemporaryDirectory() as name:
        kept = {"checkpoint": Path(name) / "fit"}
        loop = fitted(solver, on_failure=on_failure, **also, **kept)
        saved = kept["checkpoint"].exists()
    error = getattr(loop, "error_", None)
    weights = b"".join(p.detach().numpy().tobytes() for p in loop.corrector_.parameters())
    if on_failure == "reject":
        sound.append(weights)
    return {
        "fault": fault,
        "on_failure": on_failure,
        "ends with": "a fit" if error is None else type(error).__name__,
        "says": "" if error is None else str(error)[:60],
        "failed": loop.n_failed_queries_,
        "queries": loop.n_queries_,
        "steps": loop.n_updates_,
        "saved": "yes" if saved else "NO",
        "same bits": ("yes" if weights == sound[0] else "NO") if on_failure == "reject" else "",
    }


def main() -> None:
    """Print the table."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    warnings.simplefilter("ignore", CorrectionWorseThanSolverWarning)
    warnings.simplefilter("ignore", SolverFailedWarning)
    sound: list[bytes] = []
    hows = ("reject", "penalize", "raise")
    print_table([row(fault, how, sound) for fault in FAULTS for how in hows])


if __name__ == "__main__":
    main()
