"""The comparison with peers: one counter for all, and no result measured twice."""

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import report
from benchmarks.paper.figure import Images
from benchmarks.peers import run, table, zoestim_methods
from benchmarks.peers.methods import METHODS
from benchmarks.peers.search import DIVERGED, BudgetSpent, Search, finite
from benchmarks.peers.tasks import TASKS, Task
from benchmarks.records import read
from benchmarks.speed.problems import built

# What a method needs beside zoestim's own dependencies.
NEEDS = {
    "CMA-ES": "cma",
    "CMA-ES (diagonal)": "cma",
    "nevergrad OnePlusOne": "nevergrad",
    "nevergrad NGOpt": "nevergrad",
    "EvoTorch SNES": "evotorch",
    "EvoTorch PGPE": "evotorch",
    "torchzero RDSA 16": "torchzero",
    "torchzero SPSA 1": "torchzero",
}
OWN = [name for name in METHODS if name not in NEEDS]
BUDGET = 1_500


def tiny():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    y = np.arange(240) % 3
    X = (rng.normal(size=(240, 4)) + 1.5 * np.eye(4)[y]).astype(np.float32)
    return Images(X[:180], y[:180], X[180:], y[180:], "three blobs")


@pytest.fixture
def task(images, monkeypatch):
    """Put three blobs in place of all tasks."""
    monkeypatch.setitem(TASKS, "blobs", Task("blobs", "three blobs", tiny, lambda data: images))
    return "blobs"


def run_one(name, images):
    """Return the search of a method, and what it found."""
    method, search = METHODS[name], Search(tiny, images, BUDGET, seed=0)
    first = search.found()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with contextlib.suppress(BudgetSpent):
            method.run(search, **method.settings[0])
    return search, first, search.found()


def test_the_counter_refuses_the_query_after_the_last(images):
    search = Search(tiny, images, 5, seed=0)
    batch = search.batch(16)
    for _ in range(5):
        search.loss(search.start, batch)
    with pytest.raises(BudgetSpent):
        search.loss(search.start, batch)
    assert search.n_queries == 5


def test_a_loss_is_the_cross_entropy_of_the_parameters_it_is_given(images):
    search = Search(tiny, images, 10, seed=0)
    other = torch.nn.utils.parameters_to_vector(built(tiny, 1).parameters())
    X, y = search.batch(None)
    expected = nn.functional.cross_entropy(built(tiny, 1)(X), y).item()
    for theta in (other, other.detach().double().numpy()):
        assert search.loss(theta, (X, y)) == pytest.approx(expected, rel=1e-6)
    assert search.loss(search.start, (X, y)) != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 1e9])
def test_a_loss_that_is_not_finite_is_a_large_number(loss):
    assert finite(loss) == DIVERGED


@pytest.mark.parametrize("name", METHODS)
def test_each_method_lowers_the_loss_within_the_budget(name, images):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    search, first, last = run_one(name, images)
    assert last["train_loss"] < 0.9 * first["train_loss"]
    assert search.n_queries <= BUDGET
    queries = [point["queries"] for point in search.curve]
    assert queries == sorted(set(queries))
    assert queries[0] == 0
    assert 2 <= len(queries) <= 11
    assert search.n_samples >= 60 * search.n_queries


@pytest.mark.parametrize("name", ["MeZO", "Pattern Search", "scipy Powell"])
def test_the_module_is_called_once_a_query(name, images, monkeypatch):
    calls = []
    layer = nn.Linear.forward

    def forward(self, X):
        calls.append(self.out_features)
        return layer(self, X)

    search = Search(tiny, images, 40, seed=0)
    monkeypatch.setattr(search, "look", lambda: None)  # what is shown asks the module too
    monkeypatch.setattr(nn.Linear, "forward", forward)
    with contextlib.suppress(BudgetSpent):
        METHODS[name].run(search, **METHODS[name].settings[0])
    assert calls.count(3) == search.n_queries == 40


@pytest.mark.parametrize("name", [name for name in OWN if name.startswith("zoestim")])
def test_the_search_counts_what_zoclassifier_counts(name, images, monkeypatch):
    fitted = []

    class Kept(zoestim_methods.ZOClassifier):
        def fit(self, X, y):
            fitted.append(self)
            return super().fit(X, y)

    Kept.__init__ = zoestim_methods.ZOClassifier.__init__
    monkeypatch.setattr(zoestim_methods, "ZOClassifier", Kept)
    search, _, _ = run_one(name, images)
    assert search.n_queries == sum(each.n_queries_ for each in fitted)


def test_a_fit_that_diverges_ends_there(images):
    search = Search(tiny, images, BUDGET, seed=0)
    METHODS["zoestim CGE"].run(search, sparsity=0, lr=1e38)
    assert 0 < search.n_queries < BUDGET / 2
    assert search.found()["train_loss"] == DIVERGED


def test_all_methods_try_as_many_settings():
    assert {len(method.settings) for method in METHODS.values()} == {4}


def test_tasks_have_the_parameters_they_say():
    sizes = {
        name: sum(parameter.numel() for parameter in task.make().parameters())
        for name, task in TASKS.items()
    }
    assert sizes == {"T1": 2_410, "T2": 1_466, "T3a": 730, "T3b": 3_700}
    shapes = {name: TASKS[name].load(None).X.shape for name in ("T1", "T2")}
    assert shapes == {"T1": (1347, 64), "T2": (1347, 1, 8, 8)}


def test_tuning_takes_the_setting_of_the_best_held_out_accuracy(task, tmp_path, monkeypatch):
    arguments = ["--tasks", task, "--budgets", "200", "--seeds", "0,1", "--methods", "MeZO"]
    arguments += ["--tune", "--out", str(tmp_path / "peers.json")]
    results = run.main(arguments)
    held_out = [each for each in read(tmp_path / "peers.json") if each.get("tuning")]
    best = min(held_out, key=lambda each: (-each["accuracy"], each["test_loss"]))
    assert len(held_out) == 4
    assert [each["settings"] for each in results] == [best["settings"]] * 2
    # Again: nothing is trained.
    monkeypatch.setattr(run, "train", lambda *given: pytest.fail("trained again"))
    assert run.main(arguments) == results


def test_the_tables_have_a_row_for_each_method_and_mark_the_best(task, capsys):
    names = ["MeZO", "zoestim RGE 16 then CGE", "backprop (1000 steps)"]
    results = run.main(["--tasks", task, "--budgets", "100,200", "--methods", ",".join(names)])
    lines = {line["row"]: line for line in table.by_budget(results)}
    assert set(lines) == set(names)
    for column in ("blobs 100", "blobs 200"):
        stars = {row: line[column].count("*") for row, line in lines.items()}
        assert sum(stars.values()) >= 2
        assert stars["backprop (1000 steps)"] == 0
    assert "±" in lines["MeZO"]["blobs 100"]
    assert {line["row"] for line in table.by_effort(results, "seconds")} == set(names)
    assert all(name in capsys.readouterr().out for name in names[:1])


def test_the_report_shows_tables_and_curves(images, task, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert list(report.peers(tmp_path))[-1] == "missing"
    arguments = ["--tasks", task, "--budgets", "40", "--methods", "MeZO,backprop", "--tune"]
    run.main([*arguments, "--out", str(tmp_path / "peers.json")])
    paragraphs = list(report.peers(tmp_path / "pictures"))
    assert all("| MeZO |" in paragraphs[place] for place in (2, 4, 6))
    assert (tmp_path / "pictures" / f"peers_{task}.png").stat().st_size > 10_000


def test_the_table_in_equal_time_takes_what_was_reached_by_then():
    curve = [
        {"seconds": s, "train_loss": loss, "accuracy": 0.5} for s, loss in ((1, 3), (5, 2), (9, 1))
    ]
    results = [{"row": "MeZO", "case": "T1", "seed": 0, "curve": curve}]
    assert [table.reached_by(limit, "seconds", results) for limit in (0, 6, 60)] == [
        [],
        [curve[1]],
        [curve[2]],
    ]


def test_a_missing_package_is_named_and_the_others_go_on(task, monkeypatch, capsys):
    def lacks(search, **settings):
        raise ModuleNotFoundError("No module named 'cma'", name="cma")

    monkeypatch.setitem(METHODS, "CMA-ES", METHODS["CMA-ES"]._replace(run=lacks))
    results = run.main(["--tasks", task, "--budgets", "50", "--methods", "CMA-ES,MeZO"])
    assert {each["row"] for each in results} >= {"MeZO"}
    assert "CMA-ES needs cma: pip install 'zoestim[peers]'" in capsys.readouterr().err


def test_methods_are_picked_by_name_or_by_a_part_of_many():
    pick = run.known(METHODS)
    assert pick("zoestim CGE,MeZO") == ["zoestim CGE", "MeZO"]
    assert pick("EvoTorch") == ["EvoTorch SNES", "EvoTorch PGPE"]


def test_a_method_that_does_not_exist_is_refused(capsys):
    with pytest.raises(SystemExit):
        run.main(["--methods", "gradient descent by hand"])
    assert "are not among" in capsys.readouterr().err
