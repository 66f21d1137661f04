"""One fit at a time at a checkpoint's path; neither a kill nor a refusal leaves it locked."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from skorch.callbacks import Callback

from case_checkpoints import Counts, Killed, alike, fitted
from zoestim.evaluation import Journal
from zoestim.training import _checkpoint

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

IN_USE = r"is in use by another fit, of the process \S+:\d+; expected a path of its own"


class Meanwhile(Callback):
    """Calls a function once in mid-fit."""

    def __init__(self, function):
        self.function = function

    def on_epoch_end(self, net, **kwargs):
        function, self.function = self.function, lambda: None
        function()


@pytest.mark.parametrize("threaded", [True, False])
def test_a_second_fit_of_this_process_is_refused(threaded: bool, tmp_path: Path):
    def refused() -> None:
        with pytest.raises(ValueError, match=IN_USE):
            fitted(checkpoint=tmp_path / "fit")
        tried.append(True)

    def meanwhile() -> None:
        thread = threading.Thread(target=refused)
        thread.start() if threaded else refused()
        threaded and thread.join()

    tried: list[bool] = []
    model = fitted("tiny", Meanwhile(meanwhile), checkpoint=tmp_path / "fit")
    assert tried
    alike(model, fitted())
    assert os.listdir(tmp_path) == ["fit"]


SCRIPT = """
import sys, time
from case_checkpoints import Counts, fitted

class Waits(Counts):
    def on_batch_begin(self, net, training=True, **kwargs):
        if self.steps == 5:
            print("here", flush=True)
            time.sleep(60)
        super().on_batch_begin(net, training)

fitted("tiny", Waits(), checkpoint=sys.argv[1])
"""


def test_a_path_belongs_to_one_process_until_it_is_killed(tmp_path: Path):
    tests = Path(__file__).parent
    path = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "fit")]
    environment = {**os.environ, "PYTHONPATH": path}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "here\n"
            content = (tmp_path / "fit").read_bytes()
            with pytest.raises(ValueError, match=rf"{IN_USE}.*Wait until that one has ended"):
                fitted(checkpoint=tmp_path / "fit")
            assert (tmp_path / "fit").read_bytes() == content
        finally:
            other.kill()
    watch = Counts()
    alike(fitted("tiny", watch, checkpoint=tmp_path / "fit"), fitted())
    assert watch.steps < 8
    assert os.listdir(tmp_path) == ["fit"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12 on
def test_a_fork_neither_holds_a_path_nor_lets_go_of_it(tmp_path: Path):
    """As workers of multiprocessing, which outlive the process that was killed."""
    lock = _checkpoint.Lock(tmp_path / "lock")
    assert lock.acquire() is None
    reader, writer = os.pipe()
    if not (child := os.fork()):
        lock.release()
        os.read(reader, 1)
        os._exit(0)
    assert (tmp_path / "lock").exists()
    lock.release()  # while the child, which has the file open, is still there
    assert _checkpoint.Lock(tmp_path / "lock").acquire() is None
    os.write(writer, b"x")
    os.waitpid(child, 0)


def test_an_error_or_a_refusal_lets_go_of_the_path(tmp_path: Path):
    path = tmp_path / "fit"
    with pytest.raises(Killed):
        fitted("tiny", Counts(3), checkpoint=path)
    assert os.listdir(tmp_path) == ["fit"]
    with pytest.raises(ValueError, match=r"lr is 0\.7"):
        fitted(checkpoint=path, lr=0.7)
    with pytest.raises(ValueError, match="does not allow one training step"):
        fitted(checkpoint=path, max_queries=1)
    content = path.read_bytes()
    path.write_bytes(content[:100])
    with pytest.raises(ValueError, match="truncated"):
        fitted(checkpoint=path)
    path.write_bytes(content)
    alike(fitted(checkpoint=path), fitted())
    assert os.listdir(tmp_path) == ["fit"]


def test_a_full_disk_is_named_with_the_file_and_what_is_left(tmp_path: Path, monkeypatch):
    def full(*args, **kwargs) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "fit"
    with monkeypatch.context() as patch:
        patch.setattr(_checkpoint.os, "fsync", full)
        text = rf"checkpoint {path} could not be written \(No space left.*start the fit again"
        with pytest.raises(OSError, match=text) as caught:
            fitted(checkpoint=path)
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []
    alike(fitted(checkpoint=path), fitted())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_journal_without_room_says_so():
    with pytest.raises(OSError, match=r"journal /dev/full could not be written \(No space left"):
        Journal(Path("/dev/full")).append(torch.tensor([0]), torch.tensor([0.5]))
