"""Ranks of a process group give the bits of one process, and end together when one cannot."""

import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import time
import warnings
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backends import ranks
from benchmarks.faults.kill import same
from zoestim import BlackBox
from zoestim.evaluation import Asking, Batch, Journal, Objective, evaluate
from zoestim.gradients import CoordinateEstimator

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(ranks.__file__)
SECONDS = 90


def torchrun(n: int, scenario: str, folder: Path) -> list[Any]:
    """Return what each rank found that torchrun started."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*launcher, "--nproc-per-node", str(n), str(SCRIPT), scenario, str(folder)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, timeout=SECONDS, check=True)
    return found(n, folder)


def forked(n: int, scenario: str, folder: Path) -> list[BaseProcess]:
    """Start ranks that nobody watches over; they need not import anything."""
    store = folder / f"store{time.monotonic_ns()}"
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=ranks.unwatched, args=(rank, n, store, scenario, folder))
        for rank in range(n)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        for process in processes:
            process.start()
    return processes


def ended(processes: list[BaseProcess]) -> list[int | None]:
    """Wait for processes and return how they ended; none is left behind."""
    for process in processes:
        process.join(SECONDS)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes


def found(n: int, folder: Path) -> list[Any]:
    return [pickle.loads((folder / f"rank{rank}").read_bytes()) for rank in range(n)]


@pytest.fixture(scope="module", params=[2, 4], ids="{} ranks".format)
def together(request, tmp_path_factory) -> tuple[Path, list[Any]]:
    """Give the folder and the findings of all ranks that were started once."""
    folder = tmp_path_factory.mktemp("ranks")
    if request.param == 2:
        return folder, torchrun(2, "both", folder)
    assert ended(forked(request.param, "both", folder)) == [0] * request.param
    return folder, found(request.param, folder)


# --- What all of them find


@pytest.mark.parametrize("what", ["gradient", "directions", "fit", "drawn", "boxed"])
def test_all_ranks_find_the_same(together, what: str):
    first, *others = [each["equal"][what] for each in together[1]]
    assert all(same(first, other) for other in others)


def test_ranks_give_the_gradient_of_one_process_that_draws_as_the_first(together):
    assert same(together[1][0]["equal"]["gradient"], ranks.gradient(None, seed=0))


def test_ranks_give_the_fit_of_one_process(together):
    assert same(together[1][0]["equal"]["fit"], ranks.fit(None, 0))


def test_a_box_is_asked_once_by_all_ranks_together(together, tmp_path):
    folder, results = together
    alone = ranks.boxed(None, ranks.Counted(tmp_path / "calls"))
    assert same(results[0]["equal"]["boxed"], alone)
    asked = [line.split()[0] for line in (folder / "calls").read_text().splitlines()]
    expected = [line.split()[0] for line in (tmp_path / "calls").read_text().splitlines()]
    assert sorted(asked) == sorted(expected)
    assert len(asked) == len(set(asked))


def test_every_rank_asks_a_box(together):
    folder, results = together
    askers = {int(line.split()[1]) for line in (folder / "calls").read_text().splitlines()}
    assert askers == set(range(len(results)))


# --- What all of them raise


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("labels", r"RuntimeError: The ranks \[1\] do not ask what rank 0 asks: their data"),
        ("samples", r"RuntimeError: The ranks \[1\] do not ask what rank 0 asks: their data"),
        ("state", "RuntimeError: The ranks hold different states after epoch 1"),
        ("program", "RuntimeError: The ranks do different things: rank 0 .*, rank 1 compares"),
        ("query", r"QueryError: The query at coordinate .* <- OSError\('the wire is cut'\)"),
        ("base", "QueryError: The query at the current parameters .* OSError: the wire is cut"),
        ("strange", r"QueryError: The query at .* <- RuntimeError\(.Strange: .*strange"),
        ("strange base", "QueryError: The query at the current parameters .* Strange: .*strange"),
    ],
)
def test_what_goes_wrong_on_one_rank_is_raised_by_all(together, what: str, expected: str):
    for each in together[1]:
        assert re.match(expected, each["unequal"][what], re.DOTALL), each["unequal"][what]


def test_a_rank_that_is_gone_is_missed_by_the_others(tmp_path):
    codes = ended(forked(2, "lost", tmp_path))
    assert codes[1] == 9
    if codes[0] == -signal.SIGABRT:  # gloo itself, now and then: that is no hang either
        return
    assert codes[0] == 0
    assert "Rank 0 of 2 waited for the others, of which one is gone" in found(1, tmp_path)[0]


# --- Killed and gone on


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def test_a_fit_whose_ranks_were_killed_goes_on_to_the_same_bits(tmp_path):
    alone = ranks.boxed(None, ranks.Counted(tmp_path / "alone"))
    n_calls = len(lines(tmp_path / "alone"))
    processes = forked(2, "killed", tmp_path)
    deadline = time.monotonic() + SECONDS
    while len(lines(tmp_path / "calls")) < n_calls // 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    for process in processes:
        process.kill()
    assert ended(processes) == [-9, -9]
    asked = len(lines(tmp_path / "calls"))
    assert n_calls // 2 <= asked < n_calls
    assert ended(forked(2, "killed", tmp_path)) == [0, 0]
    first, second = found(2, tmp_path)
    assert same(first, second)
    assert same(first, alone)
    # Each rank had one query under way whose answer is lost.
    assert n_calls <= len(lines(tmp_path / "calls")) <= n_calls + 2
    assert set(lines(tmp_path / "writers")) == {"0"}
    assert not (tmp_path / "fit.journal").exists()


def test_answers_of_another_host_are_written_by_who_asks(tmp_path):
    box = BlackBox(lambda params, inputs: inputs @ params, np.zeros((3, 3)))
    objective, indices = Objective(box, ranks.LOSS), torch.arange(9)
    batch = Batch(torch.as_tensor(ranks.X), torch.as_tensor(ranks.Y))
    journal = Journal(tmp_path / "journal", host="elsewhere")
    queries = CoordinateEstimator().queries(indices, (9,), torch.Generator())
    found = evaluate(objective, batch, queries, asking=Asking(journal=journal))
    kept = journal.answers()
    assert [found.base_loss + kept[position] for position in range(9)] == found.losses.tolist()
