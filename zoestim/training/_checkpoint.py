"""A fit in a file: written whole or not at all, now and then, and gone on from bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save
from skorch.callbacks import Callback
from torch import Tensor

from zoestim._nested import decode, encode
from zoestim._persistence import parse, read
from zoestim.backends import Backend, SerialBackend
from zoestim.evaluation import Journal
from zoestim.training._fingerprint import digest, refuse_another
from zoestim.training._lock import Lock
from zoestim.training._net import ZONet
from zoestim.training._state import Snapshot, capture, restore, shuffling, stored_in, storing

FORMAT = "zoestim-checkpoint-1"
WRITER = "a fit with checkpoint="
# Of the time of a fit, the part that writing may take between the ends of its epochs.
SHARE = 0.05


class Checkpoint(Callback):
    """Keeps the state of a fit after each step in memory, and often enough in a file.

    As a callback of the fit it has to come last: what others do at the end of a step belongs
    to the step.

    Parameters
    ----------
    path : str or path-like
        The file; read if it exists.
    backend : Backend, optional
        Of several processes that train together, the first one alone reads and writes.

    Attributes
    ----------
    journal : Journal
        For answers of the steps since the last write; forgotten with the next one.
    found : Snapshot or None
        The state in the file as it was found.
    finished : str or None
        Why the fit in that file ended, if it did.
    steps_done : int
        Training steps of this fit that the file holds.
    """

    def __init__(self, path: Any, backend: Backend | None = None):
        self.path = Path(path).resolve()
        self._is_first = getattr(backend, "rank", 0) == 0
        self.found: Snapshot | None = None
        self.finished: str | None = None
        self.steps_done = 0
        self._stored: dict[str, Any] = {}
        self._own: dict[str, Any] = {"seed": None}
        self._latest: Snapshot | None = None
        self._written: Snapshot | None = None
        self._seconds, self._at = 0.0, 0.0
        self._lock = Lock(self.path.with_name(f".{self.path.name}.lock"))
        read, journal = (backend or SerialBackend()).once(lambda: _opened(path, self._lock))
        self.journal: Journal = journal
        self._own["run"] = journal.run
        if read is not None:
            self._stored, self.found = read
            self.finished = self._stored["finished"]

    def seed(self, draw: Callable[[], int]) -> int:
        """Return the seed of the held-out samples: that of the file, or a new one."""
        seed = self._stored.get("seed")
        self._own["seed"] = draw() if seed is None else seed
        return self._own["seed"]

    def claim(self, net: ZONet, own: dict[str, Any]) -> None:
        """Tell which fit this is; with a file of it, restore the net, else refuse the file."""
        self._own |= {"fingerprint": own, "rows_before": len(net.history)}
        if self.found is None:
            return
        refuse_another(self.path, self._stored["fingerprint"], own)
        before = capture(net, shuffling(net).get_state(), callbacks=False)
        try:
            # Of the callbacks, those of a fit that goes on wait until the training begins.
            restore(net, self.found, callbacks=self.finished is not None)
            _check_rows(self.found, self._own["rows_before"])
        except Exception as error:
            restore(net, before, callbacks=False)
            raise _senseless(self.path, error) from error
        self._latest = self._written = self.found
        self.steps_done = self.found.n_steps - before.n_steps

    # What a net asks that is to go on

    def begin(self, net: ZONet) -> int:
        """Undo what callbacks did as the training began; return how many epochs are left."""
        try:
            restore(net, self.found)  # type: ignore[arg-type]
        except Exception as error:
            raise _senseless(self.path, error) from error
        return net.max_epochs - (len(net.history) - self._own["rows_before"])

    def enter_epoch(self, net: ZONet) -> int:
        """Undo what callbacks did as the epoch began; return how many batches are done."""
        found, self.found = self.found, None
        if found is None or found.row is None:
            return 0
        restore(net, found, under_way=True)
        return len(found.row["batches"])

    # What happens in a fit

    def on_epoch_begin(self, net: ZONet, **kwargs: Any) -> None:
        self._shuffler = shuffling(net).get_state()
        if self._written is None:  # before anything is asked: what is drawn then is settled
            self._latest = capture(net, self._shuffler, under_way=True)
            self.write()

    def on_batch_end(self, net: ZONet, training: bool = True, **kwargs: Any) -> None:
        if training:
            self._latest = capture(net, self._shuffler, under_way=True)
            if (time.monotonic() - self._at) * SHARE >= self._seconds:
                self.write()

    def on_epoch_end(self, net: ZONet, **kwargs: Any) -> None:
        self._latest = capture(net, shuffling(net).get_state())
        self.write()

    def end(self, net: ZONet, reason: str) -> None:
        """Write the state of a fit that ended by itself, so that it need not run again."""
        if reason == "callback":  # perhaps by hand: the next fit goes on
            self.write()
            return
        self._latest = capture(net, shuffling(net).get_state())
        self.write(finished=reason)

    def close(self) -> None:
        """Let another fit have the file."""
        self._lock.release()

    def write(self, finished: str | None = None) -> None:
        """Write the state as of the last whole step, unless the file has it."""
        snapshot = self._latest
        if snapshot is None or snapshot is self._written or not self._is_first:
            return
        began = time.monotonic()
        tensors = dict(snapshot.tensors)
        leaf = storing(tensors)
        rows = [{k: v for k, v in row.items() if k != "batches"} for row in snapshot.rows]
        content = {
            "format": FORMAT,
            **self._own,
            "finished": finished,
            "n_steps": snapshot.n_steps,
            "n_rounds": snapshot.n_rounds,
            "state": snapshot.content,
            "rows": encode(rows, leaf, ("history",)),
            "row": encode(snapshot.row, leaf, ("history", str(len(rows)))),
        }
        try:
            _replace(self.path, json.dumps(content), tensors)
        except OSError as error:
            raise OSError(
                error.errno,
                f"The checkpoint {self.path} could not be written ({error.strerror or error}); it "
                "is as the last write left it, and the estimator has all steps. Make room, or let "
                "it be written, and start the fit again: it goes on from the file.",
            ) from error
        self._written, self._at = snapshot, time.monotonic()
        self._seconds = self._at - began
        self.journal.forget(snapshot.n_rounds)


def _usable(path: Any) -> Path:
    """Return the file that a path means, also after a change of the working folder."""
    found = Path(path).resolve()
    is_file = found.is_file() or not found.exists()
    if not (is_file and found.parent.is_dir() and os.access(found.parent, os.W_OK)):
        raise _unwritable(path)
    return found


def _unwritable(path: Any) -> ValueError:
    return ValueError(
        f"checkpoint={os.fspath(path)!r} cannot be written: expected the path of a file in "
        "a folder that exists and may be written to. Make it first, or pass another path."
    )


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.being-written")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _opened(path: Any, lock: Lock) -> tuple[tuple[dict[str, Any], Snapshot] | None, Journal]:
    """Return what a file holds, if it is there, and the journal of its fit, or of a new one."""
    file = _usable(path)
    try:
        holder = lock.acquire()
    except OSError as error:
        raise _unwritable(path) from error
    if holder is not None:
        raise ValueError(
            f"checkpoint={os.fspath(path)!r} is in use by another fit, of the process {holder}; "
            "expected a path of its own for each fit. Wait until that one has ended, or pass "
            "another path."
        )
    try:
        _temporary(file).unlink(missing_ok=True)  # of a process that was killed
        read = _read(file) if file.exists() else None
    except BaseException:
        lock.release()
        raise
    run = uuid.uuid4().hex if read is None else read[0]["run"]
    return read, Journal(_beside(file, ".journal"), run)


def _replace(path: Path, header: str, tensors: dict[str, Tensor]) -> None:
    """Put a file in the place of another: whoever looks sees the one or the other, whole."""
    temporary = _temporary(path)
    metadata = {"zoestim": header, "sha256": digest(header, tensors)}
    try:
        # Not save_file: it makes temporary files of random names, which a kill leaves behind.
        with open(temporary, "wb") as file:
            file.write(save(tensors, metadata=metadata))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not every system can do that for a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _read(path: Path) -> tuple[dict[str, Any], Snapshot]:
    """Return what a file says of its fit, and the state; nothing in it is executed."""
    header, tensors, metadata = read(path, WRITER)
    stored = parse(header, path, FORMAT, WRITER)
    if metadata.get("sha256") != digest(header, tensors):
        raise ValueError(
            f"The checkpoint {path} does not hold what was written (its checksum differs); "
            "expected a file as a fit left it. Delete it to start anew."
        )
    try:
        leaf = stored_in(tensors)
        rows, row = decode(stored["rows"], leaf), decode(stored["row"], leaf)
        snapshot = Snapshot(
            stored["state"],
            tensors,
            [{**each, "batches": []} for each in rows],
            None if row is None else {**row, "batches": [dict(each) for each in row["batches"]]},
            stored["n_steps"],
            stored["n_rounds"],
        )
        _check_header(stored)
    except (AttributeError, KeyError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise _senseless(path, error) from error
    return stored, snapshot


def _check_header(stored: dict[str, Any]) -> None:
    kinds: dict[str, Any] = {"seed": int | None, "fingerprint": dict, "n_steps": int, "run": str}
    kinds |= {"n_rounds": int, "state": dict}
    for name, kind in kinds.items():
        if not isinstance(stored[name], kind):
            raise TypeError(f"{name} is {type(stored[name]).__name__}")
    if stored["seed"] is not None and not 0 <= stored["seed"] < 2**32:
        raise ValueError(f"its seed is {stored['seed']}")
    if stored["finished"] not in (None, "max_epochs", "max_queries", "early_stopping"):
        raise ValueError(f"it ended by {stored['finished']!r}")


def _check_rows(found: Snapshot, rows_before: int) -> None:
    if len(found.rows) < rows_before:
        raise ValueError(f"it has {len(found.rows)} epochs, fewer than {rows_before}")
    rows = [*found.rows, *([] if found.row is None else [found.row])]
    if not rows or [row["epoch"] for row in rows] != list(range(1, len(rows) + 1)):
        raise ValueError("its history is not one epoch after another")


def _senseless(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"The checkpoint {path} does not hold what this fit needs ({type(error).__name__}: "
        f"{error}); expected a file as a fit with checkpoint= left it. Delete it to start anew."
    )
