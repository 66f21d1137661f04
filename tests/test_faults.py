"""Every fault on every backend: no query is lost, and with a journal none is asked twice."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.faults import faulty
from benchmarks.faults.faulty import Faulty, Flaky
from zoestim import BlackBox, QueryError, ZOClassifier
from zoestim.backends import Backend, JoblibBackend, SerialBackend
from zoestim.evaluation import (
    Asking,
    Batch,
    BatchLoss,
    Evaluation,
    Journal,
    Objective,
    Patience,
    _patience,
)
from zoestim.evaluation import evaluate as ask
from zoestim.gradients import CoordinateEstimator

cloudpickle.register_pickle_by_value(faulty)  # a cluster does not know this folder

X = torch.linspace(-1, 1, 60, dtype=torch.float64).view(6, 10)
Y = torch.tensor([0, 1, 2] * 2)
N = 30  # coordinates
LOCAL = ["serial", "threading", "loky"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two workers of Dask, each a process, which are started anew when they die."""
    distributed = pytest.importorskip("distributed")
    processes = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0"}
    with distributed.LocalCluster(**processes) as local, distributed.Client(local):
        yield


@pytest.fixture(params=[*LOCAL, "dask"])
def backend(request) -> Iterator[Backend]:
    if request.param == "serial":
        yield SerialBackend()
        return
    if request.param == "dask":
        request.getfixturevalue("cluster")
    found = JoblibBackend(2, request.param)
    yield found
    found.close()


def evaluate(box, backend: Backend, patience: Patience | None = None, journal=None) -> Evaluation:
    objective = Objective(BlackBox(box, np.ones((10, 3))), BatchLoss(nn.CrossEntropyLoss()))
    queries = CoordinateEstimator().queries(torch.arange(N))
    patience = patience or Patience(timeout=2.0)
    return ask(objective, Batch(X, Y), queries, None, Asking(backend, patience, journal))


def sound(tmp_path: Path) -> Evaluation:
    (tmp_path / "sound").mkdir(exist_ok=True)
    return evaluate(Faulty(tmp_path / "sound"), SerialBackend())


@pytest.mark.parametrize("fault", ["exception", "nan", "hang"])
def test_a_fault_costs_that_query_and_no_other(fault: str, backend: Backend, tmp_path: Path):
    box = Faulty(tmp_path, fault)
    found = evaluate(box, backend)
    assert torch.equal(found.losses, sound(tmp_path).losses)
    answered, asked = box.counts("answered"), box.counts("asked")
    assert len(answered) == N + 1
    assert set(answered.values()) == {1}  # none that was answered was asked again
    assert asked.total() == N + 2
    assert sum(record.attempts for record in found.records) == N + 1


# A kill takes the other worker with it, which may have an answer that it has not written yet.
UNDER_WAY = 1


def positions(journal: Journal) -> list[int]:
    """Return the queries whose answers are in a journal, as often as they are in it."""
    lines = map(json.loads, journal.path.read_text().splitlines())
    return [position for line in lines for position in line.get("positions", ())]


@pytest.mark.parametrize("journalled", [True, False])
@pytest.mark.parametrize("kind", ["loky", "dask"])
def test_a_worker_that_is_killed_loses_nothing(kind: str, journalled: bool, request, tmp_path):
    """Without a journal, the answers that it had not sent back are asked for again."""
    if kind == "dask":
        request.getfixturevalue("cluster")
    box, backend = Faulty(tmp_path, "kill"), JoblibBackend(2, kind)
    journal = Journal(tmp_path / "journal") if journalled else None
    found = evaluate(box, backend, journal=journal)
    assert torch.equal(found.losses, sound(tmp_path).losses)
    answered = box.counts("answered")
    assert len(answered) == N + 1
    if journalled:
        assert answered.total() <= N + 1 + UNDER_WAY
        assert len(positions(journal)) == N


def test_a_worker_that_is_always_killed_is_given_up_with_what_is_known(tmp_path: Path):
    box, journal = Faulty(tmp_path, "kill", times=99), Journal(tmp_path / "journal")
    text = r"Workers were lost 2 times on the batch while \d+ queries were open, the first at coord"
    with pytest.raises(QueryError, match=text):
        evaluate(box, JoblibBackend(2, "loky"), Patience(max_retries=1), journal)
    kept = positions(journal)
    assert len(kept) >= box.counts("answered").total() - 1 - 2 * UNDER_WAY  # the base apart
    again = Faulty(tmp_path)
    found = evaluate(again, SerialBackend(), journal=journal)
    assert torch.equal(found.losses, sound(tmp_path).losses)
    assert again.counts("answered").total() <= N + 1 + 2 * UNDER_WAY
    assert sorted(positions(journal)) == list(range(N))


@pytest.mark.parametrize(
    ("fault", "cause", "text"),
    [
        ("exception", OSError, "OSError: the wire is cut. Mend its cause, or raise max_retries"),
        ("nan", None, "gave a loss that is NaN or infinite: nan"),
        ("hang", Exception, r"no answer within query_timeout=0\.3 s\. Raise query_timeout"),
    ],
)
def test_a_fault_that_stays_names_coordinate_batch_worker_and_cause(
    fault: str, cause, text: str, backend: Backend, tmp_path: Path
):
    box, journal = Faulty(tmp_path, fault, times=999), Journal(tmp_path / "journal")
    patience = Patience(timeout=0.3 if fault == "hang" else None, max_retries=1)
    match = rf"at coordinate params\[\d, \d\] .*on the batch, asked 2 times by worker \S+: .*{text}"
    if fault == "nan":
        match = rf"at coordinate params\[\d, \d\] .*{text} on the batch, asked 2 times by worker"
    with pytest.raises(QueryError, match=match) as raised:
        evaluate(box, backend, patience, journal)
    assert (raised.value.__cause__ is None) == (cause is None)
    # What was answered is kept: another day asks for the rest alone.
    again = Faulty(tmp_path)
    found = evaluate(again, SerialBackend(), journal=journal)
    assert torch.equal(found.losses, sound(tmp_path).losses)
    assert set(again.counts("answered").values()) == {1}


@pytest.mark.parametrize("kind", [None, "threading", "loky"])
def test_a_box_that_fails_now_and_then_trains_as_a_sound_one(kind, tmp_path: Path):
    settings = {"sparsity": 0, "max_epochs": 4, "random_state": 0, "n_jobs": 2, "backend": kind}
    (tmp_path / "sound").mkdir()
    models = [
        ZOClassifier(BlackBox(box, np.zeros((10, 3))), **settings).fit(X.numpy(), Y.numpy())
        for box in (Flaky(tmp_path), Faulty(tmp_path / "sound"))
    ]
    assert torch.equal(models[0].module_.params, models[1].module_.params)
    assert models[0].n_queries_ == models[1].n_queries_ == 4 * (N + 1)
    asked_again = int((models[0].query_log_.rows["attempts"] - 1).sum())
    assert asked_again >= 4 * (N + 1) // 20 - 4  # but for the base, which is not in the log


def test_a_base_that_fails_once_is_asked_again(tmp_path: Path):
    box = Faulty(tmp_path, "exception", at=1)
    assert evaluate(box, SerialBackend()).base_loss == sound(tmp_path).base_loss


def test_a_call_of_many_sets_is_asked_again_for_those_that_failed():
    sizes: list[int] = []

    def many(params: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        sizes.append(len(params))
        outputs = inputs @ params
        if len(sizes) == 3:
            outputs[1] = np.nan
        return outputs

    objective = Objective(BlackBox(many, np.ones((10, 3)), vectorized=10), nn.CrossEntropyLoss())
    queries = CoordinateEstimator().queries(torch.arange(N))
    found = ask(objective, Batch(X, Y), queries)
    assert torch.isfinite(found.losses).all()
    assert sizes == [1, 10, 10, 1, 10]


@pytest.mark.parametrize("kind", [None, "threading"])
def test_a_timeout_changes_nothing_of_a_network_around_a_box(kind: str | None, tmp_path: Path):
    with torch.random.fork_rng(devices=[]):
        layers = nn.Linear(10, 10).double(), nn.Dropout(), nn.Linear(3, 3).double()
    net = nn.Sequential(*layers[:2], BlackBox(Faulty(tmp_path), np.ones((10, 3))), layers[2])
    settings = {"sparsity": 0.9, "pruning": "uniform", "max_epochs": 2, "early_stopping": True}
    settings |= {"validation_fraction": 0.5, "random_state": 0, "n_jobs": 2, "backend": kind}
    models = [
        ZOClassifier(net, query_timeout=timeout, max_retries=0, **settings).fit(X.numpy(), Y)
        for timeout in (None, 5.0)
    ]
    assert models[0].loss_curve_ == models[1].loss_curve_
    assert np.array_equal(*(model.predict_proba(X.numpy()) for model in models))


def test_an_answer_in_the_instant_of_the_timeout_counts(monkeypatch):
    class Late(Future):
        def result(self, timeout=None):
            found = super().result()
            if timeout is not None:
                raise TimeoutError
            return found

    monkeypatch.setattr(_patience, "Future", Late)
    assert Patience(timeout=1.0).within_time(lambda: 7) == 7


# --- Killed fits

SCRIPT = """
import sys
import numpy as np
from benchmarks.faults.faulty import Faulty
from zoestim import BlackBox, ZOClassifier

folder, at, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
box = Faulty(folder, "kill" if at else "", at)
X = np.linspace(-1, 1, 60).reshape(6, 10)
model = ZOClassifier(
    BlackBox(box, np.zeros((10, 3))), sparsity=0, max_epochs=3, batch_size=3, random_state=None,
    checkpoint=folder + "/fit", journal_queries=True, n_jobs=2, backend=kind,
)
model.fit(X, [0, 1, 2] * 2)
print(model.module_.params.detach().numpy().tobytes().hex())
"""


def run(folder: Path, at: int, kind: str) -> subprocess.CompletedProcess:
    tests = str(Path(__file__).parent)
    path = os.pathsep.join([tests, str(Path(tests).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", SCRIPT, str(folder), str(at), kind]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_a_killed_fit_asks_no_answered_query_again(tmp_path: Path):
    """Even of a fit without a seed: its draws are in the checkpoint."""
    kills = (4, 20, 75, 120)
    for at in (*kills, 0):
        done = run(tmp_path, at, "threading")
        assert done.returncode == (-signal.SIGKILL if at else 0), done.stderr
    answered = Faulty(tmp_path).counts("answered")
    assert len(answered) == 6 * (N + 1)  # each set of parameters of the whole fit
    assert answered.total() <= 6 * (N + 1) + len(kills) * UNDER_WAY
    assert not (tmp_path / "fit.journal").exists()


CLUSTER = """
import subprocess, sys, time
import numpy as np
from distributed import Client
from zoestim import BlackBox, QueryError, ZOClassifier

folder = sys.argv[1]

def box(params, inputs):
    time.sleep(0.01)
    return inputs @ params

def model(**more):
    return ZOClassifier(
        BlackBox(box, np.zeros((10, 3))), sparsity=0, max_epochs=4, random_state=0,
        checkpoint=folder + "/fit", **more,
    )

def end_the_scheduler(net, *args, **kwargs):
    if net.zo_step.n_steps == 2:
        scheduler.kill()
        scheduler.wait()

def start(*command):
    command = [sys.executable, "-m", "distributed.cli." + command[0], *command[1:]]
    return subprocess.Popen([*command, "--scheduler-file", folder + "/cluster", "--no-dashboard"])

if __name__ == "__main__":
    from skorch.callbacks import Callback
    scheduler = start("dask_scheduler", "--port", "0")
    worker = start("dask_worker", "--nthreads", "2", "--death-timeout", "10", "--no-nanny")
    try:
        X = np.linspace(-1, 1, 60).reshape(6, 10)
        Client(scheduler_file=folder + "/cluster").wait_for_workers(1)
        cut = Callback()
        cut.on_batch_begin = end_the_scheduler
        fit = model(n_jobs=2, backend="dask", callbacks=[cut], max_retries=1)
        try:
            fit.fit(X, [0, 1, 2] * 2)
        except QueryError as error:
            print(error)
        print(fit.n_iter_, "epochs are kept")
        print(len(model().fit(X, [0, 1, 2] * 2).query_log_), "queries were left")
    finally:
        worker.kill(), scheduler.kill()
"""


def test_a_cluster_whose_scheduler_ends_is_given_up_and_nothing_is_lost(tmp_path: Path):
    pytest.importorskip("distributed")
    (tmp_path / "script.py").write_text(CLUSTER)
    root = str(Path(__file__).parents[1])
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
        "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "2s",
    }
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (
        "Workers were lost 2 times on batch 1 of epoch 3 while 30 queries were open" in done.stdout
    )
    assert "the end of a cluster" in done.stdout
    assert "2 epochs are kept" in done.stdout
    assert "60 queries were left" in done.stdout


def test_the_journal_needs_a_checkpoint():
    model = ZOClassifier(journal_queries=True)
    with pytest.raises(ValueError, match=r"journal_queries=True .* expected checkpoint=PATH too"):
        model.fit(X.numpy(), Y.numpy())


def test_a_journal_of_another_fit_is_not_read(tmp_path: Path):
    journal = Journal(tmp_path / "journal", run="one")
    journal.append(torch.tensor([0, 1]), torch.tensor([0.5, 0.25], dtype=torch.float64))
    assert journal.answers() == {0: 0.5, 1: 0.25}
    assert Journal(tmp_path / "journal", run="two").answers() == {}
    assert journal.of(1).answers() == {}


def test_a_line_that_was_cut_short_does_not_count(tmp_path: Path):
    journal = Journal(tmp_path / "journal", run="one")
    journal.append(torch.tensor([0]), torch.tensor([0.5], dtype=torch.float64))
    whole = journal.path.read_text()
    for n in range(len(whole)):
        journal.path.write_text(whole + whole[:n])
        journal.append(torch.tensor([1]), torch.tensor([0.25], dtype=torch.float64))
        found = journal.answers()
        assert found[0] == 0.5
        with contextlib.suppress(KeyError):
            assert found[1] == 0.25
