"""Frames and errors of roll-outs: what is drawn, of which numbers, and where some diverged."""

import numpy as np
import pytest

from zoestim import ErrorCurveDisplay, RolloutDisplay
from zoestim.solvers import Simulations, WakeFlow2D, simulate, split_trajectories

matplotlib = pytest.importorskip("matplotlib")

N, STEPS = 4, 6


@pytest.fixture(autouse=True)
def small_figures(no_window):
    with matplotlib.rc_context({"figure.dpi": 30}):
        yield


class Stub:
    """Answers with the truth and an offset: 2 times the step without correction, 1 with it."""

    def __init__(self, y) -> None:
        self.y = np.stack(y) if len({len(frames) for frames in y}) == 1 else y
        self.asked: list[dict] = []

    def predict(self, X, n_steps=None, correct=True):
        X = Simulations.of(X)
        self.asked.append({"n": len(X), "n_steps": n_steps, "correct": correct})
        offset = np.arange(1.0, n_steps + 1) * (1 if correct else 2)
        found = []
        for number in X.states[:, 0].reshape(len(X), -1)[:, 0].astype(int):
            frames = np.zeros((n_steps, *X.shape[1:]))
            frames[: len(self.y[number])] = self.y[number]
            found.append(frames + offset.reshape(-1, *[1] * (frames.ndim - 1)))
        return np.stack(found)


def make(*grid: int, channels: int = 2, n: int = N, steps: int = STEPS):
    """Return X whose first number is the row, and y."""
    rng = np.random.default_rng(0)
    trajectories = rng.normal(size=(n, steps + 1, channels, *grid))
    trajectories[:, 0, 0] = np.arange(n).reshape(-1, *[1] * len(grid))
    return split_trajectories(trajectories, {"Re": np.arange(1.0, n + 1)})


def shown(display, row: int, column: int) -> np.ndarray:
    """Return what an image shows, with the grid's axes in their order."""
    return np.asarray(display.images_[row, column].get_array().filled(np.nan)).T


def titles(axes) -> list[str]:
    return [ax.get_title() for ax in axes]


def legend(display) -> list[str]:
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


# --- Frames


def test_rows_are_the_reference_both_roll_outs_and_their_errors():
    X, y = make(5, 3)
    stub = Stub(y)
    display = RolloutDisplay.from_estimator(stub, X, y, simulation=2, frames=(1, 4), channel=1)
    assert stub.asked == [
        {"n": 1, "n_steps": STEPS, "correct": False},
        {"n": 1, "n_steps": STEPS, "correct": True},
    ]
    assert display.axes_.shape == display.images_.shape == (5, 2)
    assert titles(display.axes_[0]) == ["step 1", "step 4"]
    for column, step in enumerate((1, 4)):
        truth = y[2, step - 1, 1]
        for row, expected in enumerate(
            (
                truth,
                truth + 2 * step,
                truth + step,
                np.full((5, 3), 2 * step),
                np.full((5, 3), step),
            )
        ):
            np.testing.assert_allclose(shown(display, row, column), expected)
        means = [display.axes_[row, column].texts[0].get_text() for row in (3, 4)]
        assert means == [f"mean {2 * step}", f"mean {step}"]
    labels = [ax.get_ylabel() for ax in display.axes_[:, 0]]
    expected = ["reference", "solver", "corrected", "error of\nsolver", "error of\ncorrected"]
    assert labels == expected
    assert display.colorbars_[0].ax.get_ylabel() == "channel 1"


def test_fields_have_one_scale_and_errors_another():
    X, y = make(5, 3)
    display = RolloutDisplay.from_estimator(Stub(y), X, y)
    limits = {image.get_clim() for image in display.images_[:3].ravel()}
    assert len(limits) == 1
    low, high = limits.pop()
    assert low == -high  # both signs
    assert {image.get_cmap().name for image in display.images_[:3].ravel()} == {"RdBu_r"}
    errors = {image.get_clim() for image in display.images_[3:].ravel()}
    assert len(errors) == 1
    assert errors.pop()[0] == 0.0
    assert len(display.colorbars_) == 2
    assert display.colorbars_[0].extend == "max"  # offsets are positive


def test_colors_can_be_given():
    X, y = make(5, 3)
    display = RolloutDisplay.from_estimator(
        Stub(y), X, y, vmin=-1, vmax=3, cmap="Blues", error_kw={"vmax": 9.0, "cmap": "Reds"}
    )
    assert display.images_[1, 0].get_clim() == (-1, 3)
    assert display.images_[1, 0].get_cmap().name == "Blues"
    assert display.images_[4, 0].get_clim() == (0, 9)
    assert display.images_[4, 0].get_cmap().name == "Reds"
    norm = matplotlib.colors.LogNorm(0.1, 10)
    assert display.plot(error_kw={"norm": norm}).images_[4, 0].norm is norm
    usual = display.plot().images_[1, 0]
    again = display.plot(vmin=None, vmax=None, origin="upper").images_[1, 0]
    assert again.get_clim() == usual.get_clim()
    assert (usual.origin, again.origin) == ("lower", "upper")


def test_by_default_the_first_the_middle_and_the_last_frame_are_shown():
    X, y = make(4, 3)
    display = RolloutDisplay.from_estimator(Stub(y), X, y)
    assert titles(display.axes_[0]) == ["step 0", "step 3", "step 6"]
    for row in range(3):
        np.testing.assert_array_equal(shown(display, row, 0), X.states[0, 0])
    assert titles(display.plot(frames=[5]).axes_[0]) == ["step 5"]
    assert titles(display.plot(frames=np.int64(5)).axes_[0]) == ["step 5"]
    X, y = make(4, 3, steps=1)
    assert titles(RolloutDisplay.from_estimator(Stub(y), X, y).axes_[0]) == ["step 0", "step 1"]


def test_a_list_of_dicts_and_trajectories_of_other_lengths_are_taken():
    X, y = make(4, 3)
    ragged = [frames[: STEPS - i] for i, frames in enumerate(y)]
    stub = Stub(ragged)
    display = RolloutDisplay.from_estimator(stub, list(X), ragged, simulation=-1)
    assert len(display.reference) == STEPS - 3 + 1
    assert {asked["n_steps"] for asked in stub.asked} == {STEPS - 3}
    np.testing.assert_array_equal(display.reference[0], X.states[-1, 0])


def test_several_predictions_stand_beside_each_other(tmp_path):
    X, y = make(4, 3)
    display = RolloutDisplay.from_predictions(
        X, y, {"a": y + 1, "b": y + 2, "c": y + 3}, simulation=1
    )
    assert display.axes_.shape == (7, 3)
    assert [ax.get_ylabel() for ax in display.axes_[:4, 0]] == ["reference", "a", "b", "c"]
    np.testing.assert_allclose(shown(display, 5, 2), 2.0)
    display.figure_.savefig(tmp_path / "frames.png")
    assert list(RolloutDisplay.from_predictions(X, y, y).predictions) == ["predicted"]


def test_one_axes_is_divided_and_many_are_taken():
    from matplotlib import pyplot

    X, y = make(4, 3)
    figure, (left, right) = pyplot.subplots(1, 2)
    display = RolloutDisplay.from_estimator(Stub(y), X, y, ax=left)
    assert display.figure_ is figure
    assert not left.axison
    assert right.axison
    axes = pyplot.subplots(5, 2)[1]
    assert display.plot(axes, frames=[0, 1]).axes_[4, 1] is axes[4, 1]
    assert display.plot(axes.tolist(), frames=[0, 1]).axes_[0, 0] is axes[0, 0]
    with pytest.raises(ValueError, match=r"of shape \(5, 3\), .* got shape \(5, 2\)"):
        display.plot(axes)
    with pytest.raises(ValueError, match=r"ax must have a place in a grid"):
        display.plot(figure.add_axes((0, 0, 1, 1)))


# --- What is looked at


def rotation(size: int = 8) -> np.ndarray:
    """Return velocities (-y, x): they turn at a rate of 1, so that the vorticity is 2."""
    x, y = np.meshgrid(np.arange(size) - 3.3, np.arange(size) - 3.3, indexing="ij")
    return np.stack([-y, x])


def one_roll_out(state: np.ndarray, steps: int = 2, **settings) -> RolloutDisplay:
    states = np.stack([state] * (steps + 1))[None]
    return RolloutDisplay.from_predictions(states[:, 0], states[:, 1:], states[:, 1:], **settings)


def test_vorticity_is_the_curl():
    display = one_roll_out(rotation(), channel="vorticity")
    np.testing.assert_allclose(display.reference, np.full((3, 8, 8), 2.0))
    assert display.field_name == "vorticity"


def test_speed_is_the_length_of_velocities():
    display = one_roll_out(rotation(), channel="speed")
    np.testing.assert_allclose(display.reference[0], np.sqrt((rotation() ** 2).sum(0)))


def staggered_rotation(size: int) -> np.ndarray:
    state = np.zeros((2, size + 1, size + 1))
    faces, centres = np.arange(size + 1) - 3.3, np.arange(size) + 0.5 - 3.3
    state[0, :, :-1], state[1, :-1, :] = -centres, centres[:, None]
    state[0, :, :-1] += 0 * faces[:, None]
    return state


def test_staggered_velocities_are_taken_to_the_centres_of_cells():
    state = staggered_rotation(8)
    assert one_roll_out(state, channel="vorticity").reference.shape == (3, 8, 8)
    np.testing.assert_allclose(one_roll_out(state, channel="vorticity").reference, 2.0)
    np.testing.assert_allclose(
        one_roll_out(state).reference[0], np.broadcast_to(-(np.arange(8) + 0.5 - 3.3), (8, 8))
    )
    assert one_roll_out(state, staggered=False).reference.shape == (3, 9, 9)
    assert one_roll_out(rotation(), staggered=True).reference.shape == (3, 7, 7)


def test_zeros_along_all_edges_are_a_boundary_and_no_missing_faces():
    state = np.pad(rotation(6), ((0, 0), (1, 1), (1, 1)))
    assert one_roll_out(state).reference.shape == (3, 8, 8)


def test_speed_leaves_further_channels_out():
    state = np.concatenate([rotation(), np.full((1, 8, 8), 100.0)])
    assert one_roll_out(state, channel="speed").reference.max() < 10


def test_a_function_may_say_what_to_look_at():
    def energy(states):
        return (states**2).sum(1) / 2

    display = one_roll_out(rotation(), channel=energy)
    np.testing.assert_allclose(display.reference[1], (rotation() ** 2).sum(0) / 2)
    assert display.field_name == "energy"
    assert one_roll_out(rotation(), channel=lambda states: states[:, 1]).field_name == ""
    with pytest.raises(ValueError, match=r"first axis of 3 frames; got shape \(8, 8\)"):
        one_roll_out(rotation(), channel=lambda states: states[0, 0])


def test_of_three_dimensions_the_middle_of_the_last_is_shown():
    X, y = make(3, 4, 5, channels=1)
    display = RolloutDisplay.from_estimator(Stub(y), X, y)
    np.testing.assert_array_equal(display.reference[1:], y[0, :, 0, ..., 2])


def test_the_cylinder_of_a_wake_is_grey():
    flow = WakeFlow2D(resolution=16)
    states = flow.initial_states(1)
    y = simulate(flow, states, {"Re": 200.0}, n_steps=3)
    display = RolloutDisplay.from_predictions(Simulations(states, Re=200.0), y, y, channel="speed")
    rows, columns = np.nonzero(display.obstacle)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 9, 6, 9)
    assert display.obstacle.sum() == 12  # centres of cells within the radius
    assert display.obstacle.shape == display.reference.shape[1:] == (32, 16)
    assert len(display.axes_[0, 0].images) == 2
    X, y = make(4, 3)
    assert RolloutDisplay.from_estimator(Stub(y), X, y, channel="speed").obstacle is None


# --- One dimension


def test_on_a_line_fields_share_a_panel(tmp_path):
    X, y = make(9, channels=1)
    display = RolloutDisplay.from_estimator(Stub(y), X, y, simulation=1, linewidth=3)
    assert display.axes_.shape == (2, 3)
    assert display.images_ is None
    assert display.colorbars_ == ()
    lines = display.axes_[0, 2].lines
    assert [line.get_label() for line in lines] == ["reference", "solver", "corrected"]
    assert lines[0].get_linewidth() == 3
    np.testing.assert_allclose(lines[2].get_ydata(), y[1, -1, 0] + STEPS)
    np.testing.assert_allclose(display.axes_[1, 2].lines[0].get_ydata(), 2.0 * STEPS)
    assert len(display.lines_) == 15
    display.figure_.savefig(tmp_path / "lines.png")


# --- Roll-outs that diverge


@pytest.mark.parametrize(
    ("value", "channel", "dtype"),
    [
        (np.nan, "vorticity", np.float32),
        (-np.inf, "speed", np.float32),
        (1e30, 0, np.float32),
        (1e30, "speed", np.float32),
        (1e308, "vorticity", np.float64),
    ],
)
def test_diverged_frames_are_drawn_as_missing_or_beyond_the_scale(tmp_path, value, channel, dtype):
    X, y = make(6, 5)
    with np.errstate(over="ignore"):
        bad = (y * np.where(np.arange(STEPS) > 2, value, 1.0)[:, None, None, None]).astype(dtype)
    display = RolloutDisplay.from_predictions(X, y, {"bad": bad, "good": y + 1}, channel=channel)
    display.figure_.savefig(tmp_path / "frames.png")
    assert display.images_[0, 0].get_clim()[1] < 10
    assert display.images_[3, 0].get_clim()[1] < 20
    if not np.isfinite(value):
        assert display.axes_[3, 2].texts[0].get_text() == "diverged"


def test_diverged_frames_run(tmp_path):
    X, y = make(6, 5)
    y_pred = y * np.array([1, 1, 1, 1e30, np.inf, np.nan])[:, None, None, None]
    display = RolloutDisplay.from_predictions(X, y, {"bad": y_pred, "worse": y_pred * np.nan})
    display.animate(tmp_path / "frames.gif", frames=[0, 3, 6])


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300], ids=str)
def test_diverged_lines_end_or_leave_the_panel(tmp_path, value):
    X, y = make(6, channels=1)
    bad = y + 1e3
    bad[:, 2:] *= value
    display = RolloutDisplay.from_predictions(X, y, bad, frames=[1, 2, 6])
    display.figure_.savefig(tmp_path / "lines.png")
    for panel in display.axes_[:, 2]:
        low, high = panel.get_ylim()
        assert 0 < high - low < 15
    display.animate(tmp_path / "lines.gif", frames=[0, 6])


def test_a_constant_or_missing_reference_can_be_drawn(tmp_path):
    for value in (0.0, 2.5, np.nan):
        display = RolloutDisplay(
            reference=np.full((2, 4, 4), value), predictions={"x": np.zeros((2, 4, 4))}
        )
        display.plot().figure_.savefig(tmp_path / "flat.png")
    display.animate(tmp_path / "flat.gif")


# --- Animations


@pytest.mark.parametrize("grid", [(5, 4), (7,)])
def test_an_animation_has_a_picture_for_each_frame(tmp_path, grid):
    from matplotlib import pyplot
    from PIL import Image

    X, y = make(*grid)
    display = RolloutDisplay.from_predictions(X, y, y + 1)
    before = len(pyplot.get_fignums())
    display.animate(tmp_path / "run.gif", fps=10, frames=range(0, 7, 3))
    with Image.open(tmp_path / "run.gif") as image:
        assert image.n_frames == 3
        assert image.info["duration"] == 100
    assert len(pyplot.get_fignums()) == before


def test_an_animation_moves_fields_errors_and_curves():
    X, y = make(5, 4)
    animation = RolloutDisplay.from_estimator(Stub(y), X, y).animate()
    draw, figure = animation._func, animation._fig
    draw(4)
    assert figure.get_suptitle() == "step 4"
    panels = {ax.get_title(): ax for ax in figure.axes}
    np.testing.assert_allclose(panels["solver"].images[0].get_array().T, y[0, 3, 0] + 8)
    np.testing.assert_allclose(panels["error of corrected"].images[0].get_array(), 4.0)
    curve = panels["mean |error|"].lines[0]
    np.testing.assert_allclose(curve.get_xydata(), [(i, 2.0 * i) for i in range(5)])
    animation._draw_was_started = True  # matplotlib warns of animations that never ran


def test_an_animation_needs_frames_a_second():
    with pytest.raises(ValueError, match=r"fps, .*, must be above 0; got 0"):
        one_roll_out(rotation()).animate(fps=0)
    with pytest.raises(ValueError, match=r"frames must be steps from 0 to 2"):
        one_roll_out(rotation()).animate(frames=[3])


# --- Errors over time


def test_curves_are_the_mean_absolute_error_of_each_step():
    X, y = make(4, 3)
    stub = Stub(y)
    display = ErrorCurveDisplay.from_estimator(stub, X, y)
    assert stub.asked == [
        {"n": N, "n_steps": STEPS, "correct": False},
        {"n": N, "n_steps": STEPS, "correct": True},
    ]
    steps = np.arange(1.0, STEPS + 1)
    np.testing.assert_array_equal(display.lines_["solver"].get_xdata(), steps)
    np.testing.assert_allclose(display.lines_["solver"].get_ydata(), 2 * steps)
    np.testing.assert_allclose(display.lines_["corrected"].get_ydata(), steps)
    assert legend(display) == ["solver (MAE = 7)", "corrected (MAE = 3.5)"]
    assert display.ax_.get_legend().get_title().get_text() == "mean ± standard error, 4 simulations"
    assert display.ax_.get_ylim()[0] == 0.0


def band(display, name: str) -> np.ndarray:
    """Return the ends of the band at the last step."""
    vertices = display.bands_[name].get_paths()[0].vertices
    return np.unique(vertices[vertices[:, 0] == vertices[:, 0].max(), 1])


def test_the_band_is_what_it_says():
    errors = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 6.0]])
    display = ErrorCurveDisplay(errors={"x": errors}).plot()
    margin = errors[:, 1].std(ddof=1) / 3**0.5
    np.testing.assert_allclose(band(display, "x"), [3 - margin, 3 + margin])
    display.plot(band="quartiles")
    assert display.lines_["x"].get_ydata()[1] == 2.0
    np.testing.assert_allclose(band(display, "x"), [1.5, 4.0])
    assert display.ax_.get_legend().get_title().get_text().startswith("median and quartiles")
    display.plot(band=None)
    assert display.bands_ == {}
    assert ErrorCurveDisplay(errors={"x": errors[:1]}).plot().bands_ == {}


def test_lines_of_ones_own_do_not_change_the_scale():
    from matplotlib import pyplot

    _, y = make(4, 3)
    ax = pyplot.subplots()[1]
    ax.axvline(3)
    assert ErrorCurveDisplay.from_predictions(y, y + 1e-3, ax=ax).ax_.get_yscale() == "linear"


def test_estimators_lie_over_each_other():
    X, y = make(4, 3)
    first = ErrorCurveDisplay.from_estimator(Stub(y), X, y, name="a")
    second = ErrorCurveDisplay.from_estimator(
        Stub(y), X, y, name="b", baseline=False, ax=first.ax_, linestyle=":"
    )
    assert second.ax_ is first.ax_
    assert [name.partition(" (")[0] for name in legend(second)] == ["solver", "a", "b"]
    assert second.lines_["b"].get_linestyle() == ":"
    colors = {line.get_color() for line in second.ax_.lines}
    assert len(colors) == 3


def test_predictions_are_named():
    _, y = make(4, 3)
    display = ErrorCurveDisplay.from_predictions(y, {"a": y + 1, "b": y - 2.0})
    assert legend(display) == ["a (MAE = 1)", "b (MAE = 2)"]
    assert legend(ErrorCurveDisplay.from_predictions(y, y)) == ["predicted (MAE = 0)"]


def test_trajectories_that_end_early_leave_the_mean():
    X, y = make(4, 3)
    ragged = [frames[: 2 + i] for i, frames in enumerate(y)]
    display = ErrorCurveDisplay.from_estimator(Stub(ragged), X, ragged)
    assert np.isnan(display.errors["solver"]).sum() == 3 + 2 + 1
    np.testing.assert_allclose(display.lines_["corrected"].get_ydata(), np.arange(1.0, 6.0))


def test_a_diverged_roll_out_ends_the_mean_but_not_the_median(tmp_path):
    _, y = make(4, 3)
    y_pred = y + 1.0
    y_pred[1, 3:] = np.nan
    display = ErrorCurveDisplay.from_predictions(y, {"x": y_pred})
    assert legend(display) == ["x (1 of 4 diverged)"]
    np.testing.assert_array_equal(display.lines_["x"].get_ydata(), [1, 1, 1] + [np.nan] * 3)
    display.plot(band="quartiles")
    np.testing.assert_allclose(display.lines_["x"].get_ydata(), 1.0)
    display.figure_.savefig(tmp_path / "curves.png")


def test_an_error_that_explodes_is_seen_on_a_log_scale(tmp_path):
    _, y = make(4, 3)
    bad = y + np.exp(np.arange(STEPS) * 5.0)[:, None, None, None]
    display = ErrorCurveDisplay.from_predictions(y, {"good": y + 1, "bad": bad})
    assert display.ax_.get_yscale() == "log"
    display.figure_.savefig(tmp_path / "curves.png")
    assert display.plot(scale="linear").ax_.get_yscale() == "linear"
    only = ErrorCurveDisplay.from_predictions(y, {"good": y + 1})
    assert only.ax_.get_yscale() == "linear"


def test_errors_near_the_largest_number_are_drawn(tmp_path):
    y = np.zeros((3, 2, 1, 4))
    y_pred = np.full_like(y, 1e308)
    for band in ("standard_error", "quartiles", None):
        display = ErrorCurveDisplay.from_predictions(y, y_pred, band=band)
        display.figure_.savefig(tmp_path / "curves.png")


def test_missing_truth_counts_for_nobody():
    _, y = make(4, 3)
    y_true = y.copy()
    y_true[0, 2] = np.nan
    display = ErrorCurveDisplay.from_predictions(y_true, {"x": y + 1})
    np.testing.assert_allclose(display.lines_["x"].get_ydata(), 1.0)
    assert legend(display) == ["x (MAE = 1)"]


# --- Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"simulation": 4}, r"simulation must be an integer below 4, .*; got 4"),
        ({"simulation": "first"}, r"simulation must be an integer below 4, .*; got 'first'"),
        ({"frames": [7]}, r"steps from 0 to 6, where 0 is before any step; got \[7\]"),
        ({"frames": []}, r"steps from 0 to 6"),
        ({"frames": [-1]}, r"steps from 0 to 6"),
        ({"frames": [0.5]}, r"steps from 0 to 6"),
        ({"channel": 2}, r"an integer below 2, 'speed', 'vorticity' or a function .*; got 2"),
        ({"channel": "pressure"}, r"; got 'pressure'"),
        ({"name": "solver"}, r"name must not be 'solver'"),
        ({"name": "reference"}, r"by names other than 'reference'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    X, y = make(4, 3)
    with pytest.raises(ValueError, match=message):
        RolloutDisplay.from_estimator(Stub(y), X, y, **settings)


def test_shapes_that_differ_are_named():
    X, y = make(4, 3)
    with pytest.raises(ValueError, match=r"same simulations; got 4 and 3"):
        RolloutDisplay.from_estimator(Stub(y), X, y[:3])
    with pytest.raises(ValueError, match=r"\(n_steps, 2, 4, 3\) .*; got \(6, 2, 4, 2\)"):
        RolloutDisplay.from_estimator(Stub(y), X, y[..., :2])
    with pytest.raises(ValueError, match=r"'x' must have the shape of the truth, \(6, .* \(5, "):
        RolloutDisplay.from_predictions(X, y, {"x": y[:, :5]})
    with pytest.raises(ValueError, match=r"'x' must have the 4 simulations of y_true; got 2"):
        RolloutDisplay.from_predictions(X, y, {"x": y[:2]})
    with pytest.raises(ValueError, match=r"At least one prediction"):
        RolloutDisplay.from_predictions(X, y, {})
    with pytest.raises(ValueError, match=r"got 0 trajectories without any"):
        RolloutDisplay.from_predictions(X, [], {})
    with pytest.raises(ValueError, match=r"needs two channels, .* shape \(2, 9\)"):
        RolloutDisplay.from_predictions(*make(9), make(9)[1], channel="vorticity")
    with pytest.raises(ValueError, match=r"Only grids of 1, 2 or 3 dimensions"):
        RolloutDisplay.from_predictions(*make(), make()[1])


def test_a_display_says_what_arrays_it_takes():
    field = np.zeros((3, 4, 4))
    with pytest.raises(ValueError, match=r"grid of 1 or 2 dimensions; got shape \(3,\)"):
        RolloutDisplay(reference=np.zeros(3), predictions={"x": np.zeros(3)}).plot()
    with pytest.raises(ValueError, match=r"the reference, \(3, 4, 4\); got \(2, 4, 4\) for 'x'"):
        RolloutDisplay(reference=field, predictions={"x": field[:2]}).plot()
    with pytest.raises(ValueError, match=r"at least one, .*; got \[\]"):
        RolloutDisplay(reference=field, predictions={}).plot()
    with pytest.raises(ValueError, match=r"shape of the grid, \(4, 4\); got \(4,\)"):
        RolloutDisplay(reference=field, predictions={"x": field}, obstacle=[True] * 4).plot()
    lists = RolloutDisplay(reference=field.tolist(), predictions={"x": field.tolist()}).plot()
    assert lists.axes_.shape == (3, 3)


def test_bad_curves_are_named():
    _, y = make(4, 3)
    with pytest.raises(ValueError, match=r"same simulations, at least one; got 4 and 3"):
        ErrorCurveDisplay.from_predictions(y, y[:3])
    with pytest.raises(ValueError, match=r"\(6, 2, 4, 3\) for the truth and \(5, .* 'predicted'"):
        ErrorCurveDisplay.from_predictions(y, y[:, :5])
    with pytest.raises(ValueError, match=r"'standard_error', 'quartiles' or None; got 'std'"):
        ErrorCurveDisplay.from_predictions(y, y, band="std")
    with pytest.raises(ValueError, match=r"got \(3,\) for 'x'"):
        ErrorCurveDisplay(errors={"x": [1, 2, 3]}).plot()
    with pytest.raises(ValueError, match=r"at least one curve"):
        ErrorCurveDisplay(errors={}).plot()
    with pytest.raises(ValueError, match=r"y must hold frames; got 4 trajectories without any"):
        ErrorCurveDisplay.from_estimator(Stub(y), make(4, 3)[0], y[:, :0])


@pytest.mark.parametrize("display", [RolloutDisplay, ErrorCurveDisplay])
def test_an_estimator_that_does_not_predict_is_refused(display):
    X, y = make(4, 3)
    with pytest.raises(TypeError, match=r"object has no method predict\(X, n_steps=, correct=\)"):
        display.from_estimator(object(), X, y)


@pytest.mark.parametrize("asker", ["RolloutDisplay.plot", "RolloutDisplay.animate", "ErrorCurve"])
def test_without_matplotlib_it_says_what_to_install(without_matplotlib, asker):
    field = np.zeros((3, 4, 4))
    rollout = RolloutDisplay(reference=field, predictions={"x": field})
    curve = ErrorCurveDisplay(errors={"x": field[0]})
    draw = {"RolloutDisplay.plot": rollout.plot, "RolloutDisplay.animate": rollout.animate}
    with pytest.raises(ImportError, match=asker + r'.* pip install "zoestim\[plot\]"'):
        draw.get(asker, curve.plot)()
