"""The grids of the paper's figures: that each runs, is resumed, and is shown in the report."""

import json

import pytest

from benchmarks import report
from benchmarks.paper.all import FIGURES
from benchmarks.paper.figure import SCALES, entry, load_images, main, table

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
SMOKE = ["--scale", "smoke", "--seeds", "0"]


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_a_figure_is_measured_once(figure, tmp_path, capsys):
    out = tmp_path / "results.json"
    first = main(figure, [*SMOKE, "--out", str(out)])
    assert len(first) == len(figure.cells("smoke"))
    assert all(each[figure.value] >= 0 for each in first)
    text = out.read_text()
    assert main(figure, [*SMOKE, "--out", str(out)]) == json.loads(text)["results"]
    assert out.read_text() == text
    assert "missing" not in capsys.readouterr().out


def test_a_fit_with_a_checkpoint_gives_the_same(tmp_path):
    figure = next(figure for figure in FIGURES if figure.name == "fig4")
    some = [*SMOKE, "--rows", "DeepZero"]
    (plain,) = main(figure, some)
    (kept,) = main(figure, [*some, "--checkpoints", str(tmp_path)])
    assert len(list(tmp_path.glob("fig4_DeepZero_0.9_0.ckpt"))) == 1
    (again,) = main(figure, [*some, "--checkpoints", str(tmp_path)])
    assert plain["accuracy"] == kept["accuracy"] == again["accuracy"]
    assert plain["queries"] == again["queries"]
    assert plain["method"] == kept["method"]


def test_cells_that_are_not_there_are_named():
    with pytest.raises(SystemExit, match=r"there is no such cell.*DeepZero"):
        main(FIGURES[0], [*SMOKE, "--rows", "magic"])


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_a_figure_has_all_its_rows_at_each_scale(figure):
    rows = [{cell.row for cell in figure.cells(scale)} for scale in SCALES]
    assert rows[0] == rows[1] == rows[2]
    assert figure.sizes.keys() == set(SCALES)


def test_what_decides_a_result_tells_cells_apart():
    for figure in FIGURES:
        for scale in SCALES:
            keys = [
                json.dumps([cell.row, cell.at, cell.n_train, cell.method.about()], default=str)
                for cell in figure.cells(scale)
            ]
            assert len(set(keys)) == len(keys)


def test_an_entry_has_mean_deviation_and_the_papers_number():
    figure = FIGURES[0]
    own = [{figure.value: 0.5}, {figure.value: 0.7}]
    assert entry(figure, own, 64.1) == "60 ± 14 (64.1)"
    assert entry(figure, own[:1], None) == "50"
    assert entry(figure, [], 64.1) == "missing (64.1)"


def test_images_held_out_are_training_images():
    figure = FIGURES[0]
    images = load_images(None, figure.sizes["smoke"])
    apart = images.held_out()
    assert len(apart.X) + len(apart.X_test) == len(images.X)
    assert images.X.mean() == pytest.approx(0, abs=1e-5)
    rows = {row.tobytes() for row in images.X}
    assert all(row.tobytes() in rows for row in apart.X_test)


def test_the_report_shows_what_was_run_and_what_is_missing(tmp_path):
    page = report.main(["--docs", str(tmp_path)])
    text = page.read_text()
    assert all(f"benchmarks.paper.{figure.name} " in text for figure in FIGURES)
    assert "missing" in text
    assert "ZO-SOL" in text
    for figure in FIGURES:
        assert all(f"\n| {line['row']} | " in text for line in table(figure, "paper", []))
