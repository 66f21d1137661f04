"""Answers of the queries under way, kept as they come: what was paid for is not asked again."""

from __future__ import annotations

import base64
import json
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zoestim.evaluation._program import Known


@dataclass(frozen=True)
class Journal:
    """The answers of one round, in a file to which every process of this host appends lines.

    A line is written by one call and counts if it is whole, so that a process may be killed
    at any moment. Workers of other hosts leave it to the process that asks.

    Parameters
    ----------
    path : Path
        The file; it holds the rounds since the last checkpoint.
    run : str
        Which fit's answers are meant: others in the file are not read.
    round : int
        Which of the fit's rounds this is.
    host : str
        Where the file is.
    """

    path: Path
    run: str = ""
    round: int = 0
    host: str = socket.gethostname()

    def of(self, round_: int) -> Journal:
        """Return the journal of another round, in the same file."""
        return replace(self, round=round_)

    def forget(self, n_rounds: int) -> None:
        """Forget the first rounds: a checkpoint holds what they led to."""
        later = [line for line in self._lines() if line["round"] >= n_rounds]
        if not later:
            self.path.unlink(missing_ok=True)
            return
        temporary = self.path.with_name(f".{self.path.name}.being-written")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in later))
        os.replace(temporary, self.path)

    @property
    def is_here(self) -> bool:
        """Whether this process is on the host of the file."""
        return socket.gethostname() == self.host

    def append(self, positions: Tensor, changes: Tensor) -> None:
        """Keep by how much some queries change the loss."""
        if len(positions):
            self._write({"positions": positions.tolist(), "changes": changes.tolist()})

    def append_base(self, base_loss: Tensor, known: Mapping[str, Known]) -> None:
        """Keep the loss at the parameters and what black boxes gave, if that is plain tensors."""
        plain = all(
            isinstance(node.value, Tensor) and not node.kept and not node.tensors
            for node in known.values()
        )
        if plain:
            nodes = {name: _packed(node.value) for name, node in known.items()}
            self._write({"base_loss": base_loss.tolist(), "known": nodes})

    def answers(self) -> dict[int, Any]:
        """Return by how much queries change the loss, as far as they were answered."""
        found: dict[int, Any] = {}
        for line in self._lines():
            if line["round"] == self.round and "positions" in line:
                found.update(zip(line["positions"], line["changes"], strict=True))
        return found

    def base(self) -> tuple[Tensor, dict[str, Known]] | None:
        """Return the loss at the parameters and what black boxes gave, if that is known."""
        for line in self._lines():
            if line["round"] == self.round and "known" in line:
                known = {name: _unpacked(value) for name, value in line["known"].items()}
                loss = torch.tensor(line["base_loss"], dtype=torch.float64)
                return loss, {n: Known(v, {}, {}) for n, v in known.items()}
        return None

    def _write(self, content: dict[str, Any]) -> None:
        line = json.dumps({"run": self.run, "round": self.round, **content}) + "\n"
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(file, line.encode())
            finally:
                os.close(file)
        except OSError as error:
            raise OSError(
                error.errno,
                f"The journal {self.path} could not be written ({error.strerror}); expected room "
                "for an answer. Make some, or set journal_queries=False, and start the fit again.",
            ) from error

    def _lines(self) -> list[dict[str, Any]]:
        """Return the lines of this fit; a process may have been killed within the last."""
        found = []
        text = self.path.read_text() if self.path.exists() else ""
        for line in text.splitlines(keepends=True):
            try:
                content = json.loads(line) if line.endswith("\n") else {}
            except ValueError:
                continue
            if isinstance(content, dict) and content.get("run") == self.run:
                found.append(content)
        return found


def _packed(value: Tensor) -> dict[str, Any]:
    array = value.detach().cpu().numpy()
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"dtype": array.dtype.str, "shape": array.shape, "data": data}


def _unpacked(stored: Mapping[str, Any]) -> Tensor:
    array = np.frombuffer(base64.b64decode(stored["data"]), np.dtype(stored["dtype"]))
    return torch.from_numpy(array.reshape(stored["shape"]).copy())
