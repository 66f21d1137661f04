"""The timings and errors of benchmarks/ run at a tiny size, and write what they print."""

import argparse
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import precision
from benchmarks.paper import attack, defense, fig6, fig6_data
from benchmarks.paper.defense_cases import CASES
from benchmarks.paper.query_attack import Effort, MeanUnderNoise, attacked
from benchmarks.speed import gradient, measure, memory, ranks, reuse, scaling, solvers, stages
from benchmarks.speed.problems import built, load_case, mlp_problem
from benchmarks.speed.rivals import AuthorsWorker, Kept, Vmapped, double_loop, loop, zoestim
from zoestim.solvers import WakeFlow2D

QUICK = ["--repeats", "1", "--batch-size", "2"]
FEW = ["--n-coordinates", "3"]
SCRIPTS = {
    "mlp": (gradient, [*FEW, "--cases", "mlp", "--n-vmap", "3", "--n-rivals", "3"]),
    "resnet": (
        gradient,
        [*FEW, "--cases", "resnet99", "--grasp-queries", "1", "--n-vmap", "1", "--n-rivals", "1"],
    ),
    "stages": (stages, [*FEW, "--case", "mlp", "--n-loop", "3"]),
    "reuse": (reuse, [*FEW, "--depth", "8", "--every", "3"]),
    "ranks": (ranks, ["--n-coordinates", "600", "--case", "mlp", "--processes", "2"]),
    "scaling": (scaling, [*FEW, "--series", "mlp-width", "--points", "2"]),
}


@pytest.fixture(autouse=True)
def same_number_of_threads():
    """Undo `--threads`, which is of the whole process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def medians(content):
    """Give every figure that is called a median, at any depth."""
    if isinstance(content, dict):
        yield from (value for key, value in content.items() if key == "median")
        content = list(content.values())
    for value in content if isinstance(content, list) else []:
        yield from medians(value)


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_prints_a_table_and_writes_positive_medians(name, tmp_path, capsys):
    script, arguments = SCRIPTS[name]
    path = tmp_path / "figures.json"
    script.main([*arguments, *QUICK, "--json", str(path)])
    assert "1 torch thread(s)" in capsys.readouterr().out
    written = json.loads(path.read_text())
    assert {"cpu", "device", "python", "torch", "zoestim"} <= written["environment"].keys()
    found = list(medians(written))
    unmoved = [0.0] if name == "stages" else []  # zoestim's perturbation is part of its inference
    assert len(found) >= 2
    assert all(math.isfinite(median) and (median > 0 or [median] == unmoved) for median in found)


def options(**given):
    return argparse.Namespace(**{"batch_size": 4, "seed": 0, "device": "cpu", **given})


def test_rivals_estimate_the_same_gradient():
    problem = mlp_problem(3, options()).sample(20, seed=0)
    exact = double_loop(problem)
    for estimate in (loop, Vmapped(chunk_size=4), zoestim, Kept(problem)):
        assert gradient.relative_difference(estimate(problem), exact) < 1e-2


def test_memory_is_measured_within_a_budget():
    asked = options(case="mlp", data=None)
    row = memory.row(asked, (3, 1))
    assert row["coordinates"] == 3
    assert row["before MiB"] > 0
    assert 0 <= row["grown MiB"] < row["before MiB"]


def test_loop_puts_every_parameter_back():
    problem = mlp_problem(3, options())
    before = {name: value.clone() for name, value in problem.module.state_dict().items()}
    loop(problem)
    assert all(
        torch.equal(value, before[name]) for name, value in problem.module.state_dict().items()
    )


def test_sample_takes_from_each_layer_in_proportion():
    problem = mlp_problem(32, options())
    sizes = {name: len(indices) for name, indices in problem.sample(241, 0).coordinates.items()}
    assert sum(sizes.values()) == 241
    for name, indices in problem.coordinates.items():
        assert abs(sizes.get(name, 0) - len(indices) / 10) <= 2
    assert problem.sample(0, 0) is problem


def test_resnet_keeps_the_ratios_that_it_scored(tmp_path):
    given = options(data=None, grasp_queries=1, ratios=tmp_path / "ratios.json", batch_size=2)
    first = load_case("resnet99", given)
    assert first.n_coordinates == round(0.01 * (269_722 - 1_386)) + 1_386
    assert len(json.loads(given.ratios.read_text())) == 1
    again = load_case("resnet99", given)
    assert all(torch.equal(again.coordinates[k], v) for k, v in first.coordinates.items())


def test_ranks_share_folds_and_repeat_the_rest():
    figures = {"folds": [1.0] * 8, "work": [3.0] * 8, "base pass": {"median": 2.0}, "bytes": 60}
    alone = ranks.modelled(figures, 1, latency=0.1, bandwidth=100)
    assert alone["step s"] == 10
    assert alone["efficiency %"] == 100
    four = ranks.modelled(figures, 4, latency=0.1, bandwidth=100)
    assert four["gather s"] == pytest.approx(3 * 0.1 * 2 + 0.6)
    assert four["step s"] == pytest.approx(2 + 2 + 1.2)
    uneven = ranks.modelled(figures, 3, latency=0, bandwidth=100)
    assert uneven["imbalance"] == pytest.approx(3 / (8 / 3))


def test_redrawn_set_has_as_many_of_each_layer():
    dense = mlp_problem(3, options())
    half = {name: indices[::2] for name, indices in dense.coordinates.items()}
    drawn = stages.redrawn(dense.at(half), seed=0).coordinates
    assert {k: len(v) for k, v in drawn.items()} == {k: len(v) for k, v in half.items()}
    assert not torch.equal(drawn["layers.1.weight"], half["layers.1.weight"])


def test_built_leaves_the_global_generator():
    before = torch.get_rng_state()
    built(lambda: torch.nn.Linear(2, 2), seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_exponent_of_a_square():
    assert measure.exponent([1, 10, 100], [3, 300, 30_000]) == pytest.approx(2)


def test_authors_code_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkout of"):
        AuthorsWorker(Path(tmp_path), mlp_problem(3, options()))


def test_precision_writes_two_errors_of_each_method_at_each_step(tmp_path, capsys):
    path = tmp_path / "errors.json"
    few = ["--models", "mlp", "--n-coordinates", "8", "--batch-size", "4"]
    rows = precision.main([*few, "--smoothings", "0.01", "1e-5", "--json", str(path)])
    assert "relative errors" in capsys.readouterr().out
    curves = {curve["method"]: curve for curve in json.loads(path.read_text())["curves"]}
    assert curves.keys() == precision.LINES.keys()
    assert len(rows) == 2 * len(curves)
    assert all(len(curve["error"]) == 2 for curve in curves.values())
    assert curves["zoestim float32"]["rounding"][1] < curves["plain float32"]["rounding"][1]


def test_steps_give_what_one_step_at_a_time_gives():
    problem = precision.sampled(mlp_problem(3, options()), 8, seed=0)
    forward, central = precision.by_zoestim(problem, (0.1, 0.01), "float64")
    exact = precision.doubled(problem)
    torch.testing.assert_close(forward[1], precision.plain(exact, 0.01))
    behind = precision.plain(exact, -0.1)
    torch.testing.assert_close(central[0], (precision.plain(exact, 0.1) + behind) / 2)
    assert precision.distance(central[1], precision.gradient(problem)) < 1e-3


def test_precision_draws_a_panel_a_model(tmp_path):
    pytest.importorskip("matplotlib")
    rows = precision.main(["--models", "mlp", "--n-coordinates", "4", "--smoothings", "0.01"])
    precision.plot(rows, tmp_path / "errors.png")
    assert (tmp_path / "errors.png").stat().st_size > 0


def test_precision_refuses_a_model_that_it_does_not_know():
    with pytest.raises(SystemExit):
        precision.main(["--models", "transformer"])


# --- The defense of a black box

SMALL = ["--n-train", "64", "--n-test", "6", "--pretrain-epochs", "1", "--budget", "20000"]


def test_defense_writes_each_row_once_and_goes_on(tmp_path, capsys):
    asked = [*SMALL, "--n", "50", "--seeds", "0", "--out", str(tmp_path / "figures.json")]
    first = defense.main([*asked, "--cases", "digits", "--rows", "mse,last"])
    written = json.loads((tmp_path / "figures.json").read_text())["results"]
    assert written == first["digits"]
    assert [each["row"] for each in written] == ["MSE only", "ZO last layer, CGE"]
    found = defense.main([*asked, "--cases", "digits,forest", "--rows", "mse,last,fo,input-labels"])
    again = json.loads((tmp_path / "figures.json").read_text())["results"]
    assert again[:2] == written  # seconds too: they were not measured again
    assert [len(found[name]) for name in ("digits", "forest")] == [3, 2]
    for each in again:
        assert len(each["certified"]) == len(defense.RADII)
        assert 0 <= each["certified"][0] <= 1
        assert 0 <= each["acr"] <= np.max(each["right_radii"]) + 1e-4
        assert each["queries"] is None or each["queries"] <= 20_000
        assert {"cpu", "torch", "zoestim", "scikit-learn"} <= each["environment"].keys()
    assert "86.02 / 76.61 / 61.80 / 43.05" in capsys.readouterr().out
    assert len(defense.main([*asked, "--n", "60", "--cases", "digits", "--rows", "mse"])) == 1
    assert len(json.loads((tmp_path / "figures.json").read_text())["results"]) == len(again) + 1


def test_rows_start_from_the_same_denoiser():
    case = CASES["digits"](defense.parse(SMALL), 0)
    measured = defense.Measured(case, 0)
    started = {"init_denoiser": measured.pretrained, "max_epochs": 0}
    coded = measured.fitted({**case.rows["ae4"].settings, **started}).white_[0]
    still = measured.defense(case.rows["mse"]).white_[0]
    for each in (coded, still):
        assert all(
            torch.equal(a, b)
            for a, b in zip(
                each.state_dict().values(), measured.pretrained.state_dict().values(), strict=True
            )
        )


def test_backprop_moves_the_last_layer_alone_where_it_is_told_to():
    case = CASES["digits"](defense.parse(SMALL), 0)
    measured = defense.Measured(case, 0)
    before = dict(measured.pretrained.named_parameters())
    for name, n_moved in (("fo-last", 1), ("fo", len(before))):
        after = measured.by_backprop(case.rows[name])
        moved = [k for k, v in after.named_parameters() if not torch.equal(v, before[k])]
        assert len(moved) == n_moved


def test_defense_knows_the_paths_that_it_needs():
    with pytest.raises(SystemExit, match="--data"):
        defense.main(["--cases", "cifar10", *SMALL])
    for wrong in (["--cases", "imagenet"], ["--rows", "fo,mes"]):
        with pytest.raises(SystemExit):
            defense.main(wrong)


def test_defense_runs_on_colour_images(tmp_path):
    rng = np.random.default_rng(0)
    for split, label, i in itertools.product(("train", "test"), range(10), range(2)):
        folder = tmp_path / split / f"class {label}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(256, size=(32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    few = ["--n-train", "10", "--n-box", "20", "--n-test", "2", "--box-epochs", "1"]
    asked = [*few, "--pretrain-epochs", "1", "--budget", "9000", "--n", "10", "--seeds", "0"]
    rows = ["--cases", "cifar10", "--data", str(tmp_path), "--rows", "undefended,last,ae192,fo"]
    results = defense.main([*asked, *rows])["cifar10"]
    assert [each["certified"][2:] for each in results] == [[None, None]] * 4  # beyond ten draws
    assert [each["queries"] for each in results] == [10, 10 + 433 * 10 * 2, 10 + 193 * 10 * 4, None]


def test_no_certificate_breaks_within_its_radius(tmp_path, capsys):
    sizes = ["--n-train", "300", "--n-test", "6", "--pretrain-epochs", "10", "--row", "mse"]
    tries = [
        "--n",
        "200",
        "--n-bank",
        "10",
        "--n-votes",
        "500",
        "--steps",
        "4",
        "--factors",
        "1,10",
    ]
    rows = attack.main([*sizes, *tries, "--out", str(tmp_path / "rows.json")])
    within, beyond, *plain = rows
    assert within["samples"] > 0
    assert within["below half"] == within["below floor"] == beyond["below floor"] == 0
    assert beyond["broken"] > 0
    assert plain[1]["broken"] > 0
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == rows
    assert "below floor" in capsys.readouterr().out


def test_attack_finds_the_nearest_border_of_a_linear_classifier():
    def two(rows):
        share = 1 / (1 + np.exp(-4 * rows[:, 0]))
        return np.stack([1 - share, share], axis=1)

    X, radii = np.array([[0.5, 0.0], [0.5, 0.0]]), np.array([0.4, 0.6])
    means = MeanUnderNoise(two, np.zeros((1, 2)))
    effort = Effort(n_steps=10, n_directions=4, n_starts=2)
    found = attacked(means, X, np.array([1, 1]), radii, effort, np.random.default_rng(0))
    assert (np.linalg.norm(found - X, axis=1) <= radii + 1e-12).all()
    assert found[:, 0] == pytest.approx(0.5 - radii, abs=0.02)
    assert two(found).argmax(1).tolist() == [1, 0]


def test_solvers_make_steps(tmp_path, capsys):
    path = tmp_path / "steps.json"
    rows = solvers.main(["--repeats", "1", "--most", "1", "--json", str(path)])
    assert [(row["grid"], row["simulations"]) for row in rows] == [("16 x 32", 1), ("32 x 64", 1)]
    assert all(row["steps/s"] > 0 for row in rows)
    assert json.loads(path.read_text())["rows"] == rows
    assert "prototype" in capsys.readouterr().out
    ready = solvers.Ready("burgers", 32, 3)
    assert ready().shape == (3, 1, 32)


# --- Fig. 6

TINY = ["--factor", "2", "--skip", "5", "--n-frames", "10", "--n-unroll", "2", "--queries", "130"]
TINY += ["--epochs", "1", "--resolution", "12"]
SHORT = {"resolution": 12, "factor": 2, "skip": 1, "n_frames": 3}


@pytest.mark.filterwarnings("ignore::zoestim.CorrectionWorseThanSolverWarning")
def test_fig6_writes_each_row_once_and_goes_on(tmp_path, capsys):
    path = tmp_path / "figures.json"
    asked = [*TINY, "--out", str(path), "--data-dir", str(tmp_path)]
    first = fig6.main([*asked, "--cases", "wake16", "--rows", "src,zo", "--seeds", "0"])["wake16"]
    assert json.loads(path.read_text())["results"] == first
    assert [each["row"] for each in first] == ["src", "zo"]
    found = fig6.main([*asked, "--cases", "wake16", "--rows", "src,non,zo,fo", "--seeds", "0,1"])
    found |= fig6.main([*asked, "--cases", "burgers", "--rows", "src,zo", "--seeds", "0"])
    again = json.loads(path.read_text())["results"]
    assert again[:2] == first  # seconds too: they were not measured again
    assert {name: len(each) for name, each in found.items()} == {"wake16": 7, "burgers": 2}
    for each in again:
        assert len(each["rollouts"]) == (25 if each["case"] == "wake16" else 32)
        assert each["mae"] == pytest.approx(np.mean(each["rollouts"]), rel=1e-4)
        assert each["row"] != "zo" or 0 < each["queries"] <= 130
    assert "gap closed" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore::zoestim.CorrectionWorseThanSolverWarning")
def test_fig6_tunes_on_simulations_that_are_held_out(tmp_path, capsys):
    path = tmp_path / "figures.json"
    asked = [*TINY, "--cases", "wake16", "--rows", "src,nog", "--seeds", "0", "--out", str(path)]
    found = fig6.main([*asked, "--tune"])["wake16"]
    assert len(found) == 3  # two rates
    assert all(each["truth"]["held_out"] == 3 for each in found)
    assert all(len(each["rollouts"]) == 2 * 5 for each in found)
    assert "*" in capsys.readouterr().out


def test_held_out_simulations_are_none_that_is_trained_on():
    truth = fig6_data.wake(12, 2, skip=0, n_frames=2)
    part = truth.held_out(3)
    trained, held = part.train_conditions["Re"], part.test_conditions["Re"]
    assert sorted([*trained, *held]) == sorted(truth.train_conditions["Re"])
    assert held.tolist() == truth.train_conditions["Re"][[1, 4]].tolist()
    assert np.array_equal(part.test, truth.train[[1, 4]])


def test_frames_come_back_from_their_file(tmp_path):
    made = [fig6_data.kept(tmp_path, fig6_data.wake, **SHORT) for _ in range(2)]
    assert len(list(tmp_path.iterdir())) == 1
    assert np.array_equal(made[0].train, made[1].train)
    assert np.array_equal(made[0].test_conditions["Re"], made[1].test_conditions["Re"])
    assert made[0].about == made[1].about


def test_frames_are_those_of_the_fine_solver():
    truth = fig6_data.wake(**SHORT)
    fine = WakeFlow2D(24)
    states, reynolds = fine.initial_states(6), {"Re": fig6_data.REYNOLDS_TRAIN}
    for t in range(4):
        states = fine.step(states, reynolds)
        np.testing.assert_allclose(truth.train[:, t], fine.coarsen(states, 2), atol=1e-6)


def test_part_of_a_gap_and_its_error():
    bare, mae = np.array([1.0, 2.0, 3.0]), np.array([0.5, 1.0, 1.5])
    assert fig6_data.gap_closed(mae, bare) == (0.5, 0.0)
    rng = np.random.default_rng(0)
    draws = rng.normal([2, 1], 0.1, size=(4000, 50, 2))
    closed = 1 - draws[..., 1].mean(1) / draws[..., 0].mean(1)
    _, error = fig6_data.gap_closed(draws[0, :, 1], draws[0, :, 0])
    assert error == pytest.approx(closed.std(), rel=0.3)


def test_a_rollout_that_diverged_has_no_error_that_is_a_number():
    truth = np.zeros((2, 3, 1, 4))
    found = truth + 0.5
    found[1, 2, 0, 3] = np.nan
    apart = fig6_data.errors(found, truth, np.array([[True, True, True, True]]))
    assert apart.tolist() == [[0.5, 0.5, 0.5], [0.5, 0.5, np.inf]]
