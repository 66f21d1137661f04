"""Programs as solvers: what they answer, how they fail, and what they leave behind."""

import copy
import os
import pickle
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch

from zoestim.solvers import (
    SolverFailed,
    SolverFailedWarning,
    SubprocessSolver,
    check_solver,
    simulate,
)

# What becomes of a simulation is its condition "fate".
PROGRAM = """
case $(cat fate) in
    halve)   awk '{printf "%.17g\\n", $1 / 2}' in.txt > out.txt ;;
    refuse)  echo the mesh is twisted >&2; exit 3 ;;
    hang)    sleep 60 & echo $! > "$PIDS/$$"; wait ;;
    die)     kill -KILL $$ ;;
    silent)  echo nothing to do ;;
    garble)  echo 1 two three > out.txt ;;
    litter)  awk '{printf "%.17g\\n", $1 / 2}' in.txt > out.txt
             mkdir -p constant/new; echo 7 > constant/new/old; echo 7 > constant/mesh
             rm -r settings; sleep 60 & echo $! > "$PIDS/$$" ;;
    meet)    touch "$PIDS/$$"
             while [ $(ls "$PIDS" | wc -l) -lt 3 ]; do sleep 0.01; done
             cp in.txt out.txt ;;
esac
"""
STATES = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
HALVE = {"fate": "halve"}


def write(workdir, state, conditions):
    np.savetxt(workdir / "in.txt", state.ravel(), fmt="%.17g")
    (workdir / "fate").write_text(conditions["fate"] or "halve")
    state[:] = 0  # it is a copy


def read(workdir):
    assert (workdir / "program").exists()
    return np.loadtxt(workdir / "out.txt", ndmin=1).reshape(-1, 3)


@pytest.fixture
def template(tmp_path):
    folder = tmp_path / "template"
    for name in ("constant", "settings/deep"):
        (folder / name).mkdir(parents=True)
    (folder / "program").write_text(PROGRAM)
    (folder / "constant" / "mesh").write_text("a mesh")
    (folder / "settings" / "deep" / "dt").write_text("0.1")
    (folder / "settings" / "link").symlink_to("deep/dt")
    return folder


@pytest.fixture
def make(tmp_path, template):
    """Return a function that makes solvers, which must leave nothing behind."""
    root, pids, made = tmp_path / "root", tmp_path / "pids", []
    root.mkdir()
    pids.mkdir()

    def make(**parameters):
        made.append(
            SubprocessSolver(
                ["sh", "program"],
                write=write,
                read=read,
                workdir_template=template,
                workdir_root=root,
                env={"PIDS": str(pids)},
                **parameters,
            )
        )
        return made[-1]

    make.root, make.pids = root, pids
    yield make
    for solver in made:
        solver.close()
    assert list(root.iterdir()) == []
    assert_dead(pids)


def assert_dead(pids):
    """Wait until none of the processes named in a folder lives: they are init's to reap."""
    for file in pids.iterdir():
        for pid in (file.name, file.read_text().strip()):
            give_up = time.monotonic() + 20
            while pid and alive(pid):
                assert time.monotonic() < give_up, f"process {pid} was left behind"
                time.sleep(0.01)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_text() if path.is_file() else ""
        for path in folder.rglob("*")
    }


# --- What is asked and answered


@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.tensor])
@pytest.mark.parametrize("pool", [1, 3])
def test_files_go_in_and_come_out(make, kind, pool):
    states = kind(STATES)
    found = make(pool=pool).step(states, HALVE)
    assert isinstance(found, type(states))
    assert found.dtype == states.dtype
    assert np.array_equal(np.asarray(found), STATES / 2)
    assert np.array_equal(np.asarray(states), STATES)


PIPED = """
import io, sys, numpy as np
given = np.load(io.BytesIO(sys.stdin.buffer.read()))
if given["rate"] > 1:
    print("garbage")
    sys.exit()
np.save(sys.stdout.buffer, given["state"] * given["rate"] + given["field"])
"""


def test_pipes_carry_states_and_conditions():
    field = np.arange(12.0).reshape(2, 2, 3)
    with SubprocessSolver([sys.executable, "-c", PIPED], pool=2, timeout=60) as solver:
        found = solver.step(STATES[:2], {"rate": [0.5, 1.0], "field": field})
        assert np.array_equal(found, (STATES[:2] * [[[0.5]], [[1]]] + field).astype(np.float32))
        said = (
            r"(?s)begins with b'garbage.*messages belong .*as np.save writes it.*output:.*garbage"
        )
        with pytest.warns(SolverFailedWarning, match=said):
            found = solver.step(STATES[:1], {"rate": 2, "field": 0})
        assert np.isnan(found).all()
        with pytest.raises(ValueError, match="may not be called 'state'"):
            solver.step(STATES, {"state": 1})


def test_command_may_depend_on_the_folder(tmp_path):
    def copy_by(workdir):
        return ["cp", workdir / "a", str(workdir / "b")]

    solver = SubprocessSolver(
        copy_by,
        write=lambda folder, state, conditions: (
            np.save(folder / "a.npy", state) or (folder / "a.npy").rename(folder / "a")
        ),
        read=lambda folder: np.load(folder / "b"),
        workdir_root=tmp_path,
    )
    assert np.array_equal(solver.step(STATES, {}), STATES)


def test_it_keeps_to_what_is_asked_of_solvers(make):
    report = check_solver(make(pool=2), STATES.astype(np.float64), {"fate": 0.0})
    assert report.problems == ()
    assert report.noise < 1e-14
    assert np.array_equal(simulate(make(), STATES, HALVE, n_steps=2)[:, 1], STATES / 4)


def test_programs_of_a_pool_run_at_once(make):
    solver = make(pool=3, timeout=60)
    assert solver.batched
    assert np.array_equal(solver.step(STATES[:3], {"fate": "meet"}), STATES[:3])


def test_features_are_states():
    solver = SubprocessSolver(["true"])
    assert solver.to_features(STATES) is STATES
    assert np.array_equal(solver.apply_correction(STATES, STATES), 2 * STATES)
    assert (solver.batched, solver.deterministic, solver.max_batch) == (False, True, None)


# --- How it fails

FATES = {
    "refuse": r"(?s)sh ended with return code 3.*errors:\n +the mesh is twisted",
    "hang": r"sh was killed after timeout=0.5 s",
    "die": r"sh ended with signal SIGKILL",
    "silent": r"(?s)no next state: FileNotFoundError.*can read.*output:\n +nothing to do",
    "garble": r"(?s)no next state: ValueError.*nothing to its standard output",
}


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("fate", FATES)
def test_a_failure_is_nan_and_costs_no_other_answer(make, fate, pool):
    solver = make(pool=pool, timeout=0.5 if fate == "hang" else None)
    conditions = {"fate": ["halve", fate, "halve", fate]}
    with pytest.warns(SolverFailedWarning, match=FATES[fate]) as warned:
        found = solver.step(STATES, conditions)
    assert len(warned) == 1
    assert np.array_equal(found[::2], STATES[::2] / 2)
    assert np.isnan(found[1::2]).all()
    assert solver.n_failures == len(solver.failures) == 2
    assert f"{{'fate': '{fate}'}}" in str(solver.failures[1])
    assert str(pickle.loads(pickle.dumps(solver.failures[0]))) == str(solver.failures[0])
    assert np.array_equal(solver.step(STATES, HALVE), STATES / 2)


@pytest.mark.parametrize("pool", [1, 2])
def test_a_failure_may_be_raised(make, pool):
    solver = make(pool=pool, on_error="raise")
    with pytest.raises(SolverFailed, match="the mesh is twisted"):
        solver.step(STATES, {"fate": ["refuse", "hang", "hang", "hang"]})
    assert solver.n_failures >= 1


def test_states_that_are_not_finite_are_not_asked_about(make):
    states = STATES.copy()
    states[1, 0, 0], states[2, 1, 1] = np.nan, np.inf
    solver = make()
    found = solver.step(states, {"fate": ["halve", "refuse", "refuse", "halve"]})
    assert np.isnan(found[1:3]).all()
    assert np.array_equal(found[::3], STATES[::3] / 2)
    assert solver.n_failures == 0


def test_what_no_other_state_would_make_better_is_raised(make):
    solver = make(pool=2)
    solver.read = lambda workdir: np.ones((1, 3))
    with pytest.raises(ValueError, match=r"shape of the state, \(2, 3\); got shape \(1, 3\)"):
        solver.step(STATES, HALVE)
    with pytest.raises(KeyError, match="fate"):  # of write
        make(pool=2).step(STATES, {})
    for command in ("./no-such-program", "no-such-program"):
        with pytest.raises(FileNotFoundError, match=f"{command} cannot be started: No such file"):
            SubprocessSolver([command]).step(STATES)
    with pytest.raises(TypeError, match=r"command must be a list .* got 'true'. .* \['bash', '-c'"):
        SubprocessSolver(lambda workdir: "true").step(STATES)
    with pytest.raises(TypeError, match="floating type, such as float32; got int64"):
        make().step(np.ones((1, 2, 3), dtype=int), HALVE)
    with pytest.raises(ValueError, match=r"'fate' must have one value for each of 4 .* got 2"):
        make().step(STATES, {"fate": ["halve", "halve"]})


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"command": "icoFoam -help"}, TypeError, "list of the program and its arguments"),
        ({"command": []}, TypeError, "list of the program and its arguments"),
        ({"command": ["sleep", 3]}, TypeError, "strings or paths"),
        ({"write": write}, TypeError, "write and read belong together"),
        ({"workdir_template": "/nowhere"}, ValueError, "workdir_template must be a folder"),
        ({"workdir_root": "/nowhere"}, ValueError, "workdir_root must be a folder"),
        ({"timeout": 0}, ValueError, "timeout must be seconds above 0, or None; got 0"),
        ({"pool": 0}, ValueError, "pool must be an integer of at least 1; got 0"),
        ({"on_error": "skip"}, ValueError, "'nan' or 'raise'; got 'skip'"),
    ],
)
def test_parameters_are_refused(parameters, error, message):
    with pytest.raises(error, match=message):
        SubprocessSolver(**{"command": ["true"], **parameters})


# --- What it leaves behind: `make` looks for files and processes


def test_nothing_goes_from_one_step_to_the_next(make, template):
    as_given, solver = tree(template), make()
    for _ in range(2):
        assert np.array_equal(solver.step(STATES[:1], {"fate": "litter"}), STATES[:1] / 2)
        (work,) = make.root.glob("*/*/work")
        assert tree(work) == as_given
        assert (work / "settings" / "link").is_symlink()
    with pytest.warns(SolverFailedWarning, match="FileNotFoundError"):  # not the last answer
        solver.step(STATES[:1], {"fate": "silent"})
    assert tree(template) == as_given


def test_folders_are_made_when_needed_and_go_with_the_solver(make):
    solver = make(pool=2)
    assert list(make.root.iterdir()) == []
    solver.step(STATES, HALVE)
    (home,) = make.root.iterdir()
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert 1 <= len(list(home.glob("*/work"))) <= 2
    solver.close()
    assert list(make.root.iterdir()) == []
    solver.step(STATES, HALVE)

    forgotten = copy.deepcopy(solver)
    forgotten.step(STATES, HALVE)
    assert len(list(make.root.iterdir())) == 2
    del forgotten
    assert len(list(make.root.iterdir())) == 1


def test_copies_have_folders_and_failures_of_their_own(make):
    solver = make()
    with pytest.warns(SolverFailedWarning, match="twisted"):
        solver.step(STATES, {"fate": ["halve", "halve", "refuse", "halve"]})
    for other in (copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))):
        assert (other.n_failures, other.failures) == (0, ())
        assert other.command == solver.command
        assert np.array_equal(other.step(STATES, HALVE), STATES / 2)
        assert len(list(make.root.iterdir())) == 2
        other.close()


@pytest.mark.parametrize("pool", [1, 2])
def test_an_interrupt_ends_the_programs(make, pool):
    solver, main = make(pool=pool), threading.get_ident()

    def interrupt():
        while len(list(make.pids.iterdir())) < pool:
            time.sleep(0.01)
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        solver.step(STATES, {"fate": "hang"})
    assert_dead(make.pids)
    assert np.array_equal(solver.step(STATES, HALVE), STATES / 2)


def test_closing_ends_the_programs(make):
    solver = make()
    raised = []

    def ask():
        try:
            solver.step(STATES, {"fate": "hang"})
        except InterruptedError as error:
            raised.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not list(make.pids.iterdir()):
        time.sleep(0.01)
    solver.close()
    thread.join(30)
    assert "were stopped" in str(raised[0])


def step_and_count(solver, fate):
    return solver.step(STATES, {"fate": fate}), os.getpid(), str(solver._mine.workdirs.home)


@pytest.mark.parametrize("backend", ["threading", "multiprocessing"])
def test_workers_share_no_folder(make, backend):
    solver = make()
    solver.step(STATES, HALVE)
    found = joblib.Parallel(2, backend=backend)(
        joblib.delayed(step_and_count)(solver, "halve") for _ in range(4)
    )
    assert all(np.array_equal(answer, STATES / 2) for answer, _, _ in found)
    here = {str(path) for path in make.root.iterdir()}
    for _, pid, home in found:
        assert (home in here and pid == os.getpid()) == (backend == "threading")
    again = make()
    again.step(STATES, HALVE)  # removes what killed workers have left
    assert {Path(home).name for _, _, home in found if backend != "threading"}.isdisjoint(
        path.name for path in make.root.iterdir()
    )


ENDING = """
import sys, threading, time
from pathlib import Path
import numpy as np
from zoestim.solvers import SubprocessSolver

root = Path(sys.argv[1])
hanging = SubprocessSolver(["sh", "-c", "echo $$ > pid; sleep 60"], workdir_root=root, pool=2)
threading.Thread(target=hanging.step, args=(np.ones((2, 1, 1)),), daemon=True).start()
while sum(bool(file.read_text()) for file in root.glob("*/*/work/pid")) < 2:
    time.sleep(0.01)
print(*(file.read_text() for file in root.glob("*/*/work/pid")))
failing = SubprocessSolver(["false"], workdir_root=root, on_error="raise")
failing.step(np.ones((1, 1, 1)))
"""


def test_folders_and_programs_go_with_the_process(make):
    ended = subprocess.run(
        [sys.executable, "-c", ENDING, make.root], capture_output=True, text=True, timeout=50
    )
    assert "SolverFailed: false ended with return code 1" in ended.stderr
    assert list(make.root.iterdir()) == []
    for pid in ended.stdout.split():
        (make.pids / pid).touch()  # `make` looks for them
    assert len(list(make.pids.iterdir())) == 2


@pytest.mark.parametrize("clearing", [False, True])
def test_the_next_solver_removes_what_a_killed_process_left(make, clearing):
    solver = make()
    if not (child := os.fork()):
        try:
            solver.step(STATES, HALVE)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (left,) = make.root.iterdir()
    if clearing:  # a pool ends its workers as they remove their folders
        (left / "lock").unlink()
    solver.step(STATES, HALVE)
    (home,) = make.root.iterdir()
    assert home != left


def test_a_folder_in_memory_only_where_there_is_room(monkeypatch, tmp_path):
    from zoestim.solvers import _workdirs

    monkeypatch.setattr(_workdirs.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(_workdirs, "ROOMY", 2**62)
    assert _workdirs.default_root() == tmp_path
    monkeypatch.setattr(_workdirs, "ROOMY", 0)
    monkeypatch.setattr(_workdirs, "MEMORY", tmp_path.parent)
    assert _workdirs.default_root() == tmp_path.parent
