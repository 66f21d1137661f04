"""Losses and scores of fits, drawn: which lines there are, over what, and of which numbers."""

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback, EpochScoring

import zoestim
from case_rollouts import data, loop_of
from defense.boxes import IMAGES, labels, scores
from defense.boxes import defense as defense_of
from zoestim import TrainingDisplay, ZOClassifier, ZORegressor

matplotlib = pytest.importorskip("matplotlib")
pytestmark = pytest.mark.usefixtures("no_window")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 3))
Y = (X[:, 0] > 0).astype(int)
TINY = {"max_epochs": 4, "batch_size": 20, "pruning": None, "gradient": "rge", "n_directions": 3}
ROWS = [
    {"epoch": 1, "train_loss": 2.0, "n_queries": 10, "dur": 0.5, "valid_acc": 0.1},
    {"epoch": 2, "train_loss": 1.0, "n_queries": 30, "dur": 0.25, "valid_acc": 0.6},
]


def norm(net, X, y) -> float:
    return float(next(net.module_.parameters()).detach().norm())


class Fixed(Callback):
    """Records a number that no scoring of skorch's made."""

    def __init__(self, name: str = "accuracy"):
        self.name = name

    def on_epoch_end(self, net, **kwargs):
        net.history.record(self.name, len(net.history) / 10)


def fit(**settings) -> ZOClassifier:
    return ZOClassifier(**{**TINY, "random_state": 0, **settings}).fit(X, Y)


@pytest.fixture(scope="module")
def fitted() -> ZOClassifier:
    return fit()


@pytest.fixture(scope="module")
def scored() -> ZOClassifier:
    scoring = EpochScoring(norm, name="valid_norm", lower_is_better=False)
    return fit(early_stopping=True, callbacks=[Fixed(), scoring])


def legend(display) -> list[str]:
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


# --- What is drawn


def test_the_loss_of_each_epoch_stands_over_the_queries_until_its_end(fitted):
    display = TrainingDisplay.from_estimator(fitted)
    line = display.lines_["ZOClassifier"]
    assert line.get_xdata().tolist() == fitted.history_[:, "n_queries"]
    assert line.get_xdata()[-1] == fitted.n_queries_
    assert line.get_ydata().tolist() == fitted.loss_curve_
    assert len(fitted.loss_curve_) == 4
    assert display.ax_.get_xlabel() == "Queries"
    assert display.ax_.get_ylabel() == "Loss"
    assert legend(display) == ["ZOClassifier"]
    assert display.validation_lines_ == display.score_lines_ == {}
    assert display.score_ is None
    assert display.score_ax_ is None
    assert len(display.figure_.axes) == 1


def test_the_x_axis_can_be_epochs_or_seconds(fitted):
    display = TrainingDisplay.from_estimator(fitted, x="epochs")
    assert display.lines_["ZOClassifier"].get_xdata().tolist() == [1, 2, 3, 4]
    assert display.ax_.get_xlabel() == "Epochs"
    assert all(tick == int(tick) for tick in display.ax_.get_xticks())
    display = TrainingDisplay.from_estimator(fitted, x="seconds")
    expected = np.cumsum(fitted.history_[:, "dur"])
    np.testing.assert_allclose(display.lines_["ZOClassifier"].get_xdata(), expected)
    assert display.ax_.get_xlabel() == "Seconds"


def test_the_loss_that_is_held_out_is_dashed_in_the_same_color(scored):
    display = TrainingDisplay.from_estimator(scored, name="mine")
    line, held_out = display.lines_["mine"], display.validation_lines_["mine"]
    assert held_out.get_ydata().tolist() == scored.history_[:, "valid_loss"]
    np.testing.assert_array_equal(held_out.get_xdata(), line.get_xdata())
    assert held_out.get_linestyle() == "--"
    assert held_out.get_color() == line.get_color()
    assert legend(display) == ["mine, training", "mine, validation"]


def test_a_score_has_a_panel_of_its_own(scored):
    display = TrainingDisplay.from_estimator(scored)
    line = display.score_lines_["ZOClassifier"]
    assert display.score_ == "valid_norm"  # rather than accuracy, which is recorded before it
    assert line.get_ydata().tolist() == scored.history_[:, "valid_norm"]
    assert line.axes is display.score_ax_ is not display.ax_
    assert display.score_ax_.get_ylabel() == "valid_norm"
    assert display.score_ax_.get_xlabel() == "Queries"
    assert display.ax_.get_xlabel() == ""


def test_the_score_can_be_chosen_or_left_out(scored):
    display = TrainingDisplay.from_estimator(scored, score="accuracy")
    line = display.score_lines_["ZOClassifier"]
    np.testing.assert_allclose(line.get_ydata(), np.arange(1, len(line.get_ydata()) + 1) / 10)
    display = TrainingDisplay.from_estimator(scored, score=None)
    assert display.score_ax_ is None
    assert display.score_lines_ == {}
    own = TrainingDisplay.from_estimator(fit(callbacks=[Fixed("event_lr"), Fixed()]))
    assert own.score_ == "accuracy"
    assert TrainingDisplay.from_estimator(fit(callbacks=[Fixed("event_lr")])).score_ is None


def test_several_fits_lie_over_each_other(fitted, scored):
    display = TrainingDisplay.from_estimators({"a": fitted, "b": scored})
    assert list(display.lines_) == ["a", "b"]
    assert list(display.validation_lines_) == list(display.score_lines_) == ["b"]
    assert display.lines_["a"].get_ydata().tolist() == fitted.loss_curve_
    assert display.lines_["b"].get_ydata().tolist() == scored.loss_curve_
    assert display.lines_["a"].get_color() != display.lines_["b"].get_color()
    assert display.score_lines_["b"].get_color() == display.lines_["b"].get_color()
    assert legend(display) == ["a", "b, training", "b, validation"]


def test_in_a_list_fits_are_called_by_their_classes(fitted):
    regressor = ZORegressor(**TINY, random_state=0).fit(X, X[:, 1])
    display = TrainingDisplay.from_estimators([fitted, regressor, fitted])
    assert list(display.lines_) == ["ZOClassifier 1", "ZORegressor", "ZOClassifier 2"]
    assert display.lines_["ZORegressor"].get_ydata().tolist() == regressor.loss_curve_


def test_a_continued_fit_is_one_line():
    model = fit(warm_start=True).fit(X, Y).partial_fit(X, Y)
    line = TrainingDisplay.from_estimator(model, x="epochs").lines_["ZOClassifier"]
    assert line.get_xdata().tolist() == list(range(1, 10))


def test_a_single_epoch_is_seen():
    display = TrainingDisplay.from_estimator(fit(max_epochs=1, early_stopping=True))
    assert display.lines_["ZOClassifier"].get_marker() == "o"
    assert display.validation_lines_["ZOClassifier"].get_marker() == "o"


# --- Whose training


def test_an_estimator_may_be_the_end_of_a_pipeline_or_the_best_of_a_search():
    pipeline = make_pipeline(StandardScaler(), ZOClassifier(**TINY, random_state=0)).fit(X, Y)
    line = TrainingDisplay.from_estimator(pipeline).lines_["ZOClassifier"]
    assert line.get_ydata().tolist() == pipeline[-1].loss_curve_
    search = GridSearchCV(pipeline, {"zoclassifier__lr": [0.01, 0.1]}, cv=2).fit(X, Y)
    line = TrainingDisplay.from_estimator(search).lines_["ZOClassifier"]
    assert line.get_ydata().tolist() == search.best_estimator_[-1].loss_curve_


def test_a_loaded_estimator_still_has_its_curve(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    line = TrainingDisplay.from_estimator(zoestim.load(tmp_path / "model")).lines_["ZOClassifier"]
    assert line.get_ydata().tolist() == fitted.loss_curve_


@pytest.mark.filterwarnings("ignore::zoestim.CorrectionWorseThanSolverWarning")
def test_a_defense_and_a_loop_have_curves():
    defense = defense_of(scores, max_epochs=2).fit(IMAGES, labels(IMAGES))
    loop = loop_of(max_epochs=2).fit(*data())
    for estimator in (defense, loop):
        name = type(estimator).__name__
        line = TrainingDisplay.from_estimator(estimator).lines_[name]
        assert line.get_ydata().tolist() == estimator.loss_curve_
        assert line.get_xdata()[-1] == estimator.n_queries_


# --- Where it is drawn


def test_one_axes_has_the_score_at_its_right(scored, tmp_path):
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    display = TrainingDisplay.from_estimator(scored, ax=ax)
    assert display.ax_ is ax
    assert display.figure_ is ax.figure
    assert display.score_ax_ is not ax
    assert display.score_ax_.get_position().bounds == ax.get_position().bounds
    assert ax.get_xlabel() == "Queries"
    names = ["training", "validation", "valid_norm"]
    assert legend(display) == [f"ZOClassifier, {name}" for name in names]
    display.figure_.savefig(tmp_path / "training.png")


def test_two_axes_are_for_losses_and_score(scored, fitted):
    from matplotlib.figure import Figure

    for columns in (1, 2):
        axes = Figure().subplots(3 - columns, columns)
        display = TrainingDisplay.from_estimator(scored, ax=axes)
        assert (display.ax_, display.score_ax_) == tuple(axes)
        assert [ax.get_xlabel() for ax in axes] == ["Queries", "Queries"]
        assert TrainingDisplay.from_estimator(fitted, ax=axes).score_ax_ is None


@pytest.mark.parametrize("beside", [True, False])
def test_displays_lie_over_each_other(scored, fitted, beside):
    from matplotlib.figure import Figure

    ax = Figure().subplots() if beside else None
    first = TrainingDisplay.from_estimator(scored, name="a", ax=ax)
    second = TrainingDisplay.from_estimator(scored, name="b", ax=first.ax_)
    assert second.score_ax_ is first.score_ax_
    third = TrainingDisplay.from_estimator(fitted, name="c", ax=first.ax_)
    assert third.score_ax_ is None
    assert len(first.figure_.axes) == 2
    expected = {f"{name}, {what}" for name in "ab" for what in ("training", "validation")}
    expected |= {"a, valid_norm", "b, valid_norm"} if beside else set()
    assert set(legend(third)) == {*expected, "c"}
    assert bool(first.ax_.get_xlabel()) == beside


def test_style_and_scale_can_be_given(scored):
    display = TrainingDisplay.from_estimator(scored, scale="log", color="red", linewidth=3)
    assert display.ax_.get_yscale() == "log"
    lines = [*display.ax_.lines, *display.score_ax_.lines]
    assert {line.get_color() for line in lines} == {"red"}
    assert {line.get_linewidth() for line in lines} == {3}


# --- Histories as numbers


def test_rows_of_ones_own_are_drawn():
    unfinished = {"epoch": 3, "n_queries": 35}
    display = TrainingDisplay(histories={"a": [*ROWS, unfinished], "b": ROWS[:1]})
    display.plot(x="seconds")
    assert display.lines_["a"].get_xydata().tolist() == [[0.5, 2.0], [0.75, 1.0]]
    assert display.score_lines_["a"].get_ydata().tolist() == [0.1, 0.6]
    assert display.score_lines_["b"].get_ydata().tolist() == [0.1]


def test_a_score_that_an_epoch_lacks_is_a_gap():
    rows = [ROWS[0], {**ROWS[1], "valid_acc": None}]
    line = TrainingDisplay(histories={"a": rows}).plot().score_lines_["a"]
    np.testing.assert_array_equal(line.get_ydata(), [0.1, np.nan])


# --- Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"x": "steps"}, r"x must be 'queries', 'epochs' or 'seconds'; got 'steps'"),
        ({"scale": "symlog"}, r"scale must be 'linear' or 'log'; got 'symlog'"),
        ({"score": "f1"}, r"score='f1' .*; expected one of \['valid_acc'\], 'auto' or None"),
        ({"ax": [1, 2, 3]}, r"ax must be one Axes, or two, .* got an array of shape \(3,\)"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        TrainingDisplay(histories={"a": ROWS}).plot(**settings)


def test_histories_that_lack_something_are_named():
    with pytest.raises(ValueError, match=r"at least one fit; got none"):
        TrainingDisplay(histories={}).plot()
    with pytest.raises(ValueError, match=r"'a' has no 'train_loss' in any of its 1 rows"):
        TrainingDisplay(histories={"a": [{"epoch": 1}]}).plot()
    rows = [{"train_loss": 1.0}]
    for x, key in (("queries", "n_queries"), ("seconds", "dur")):
        with pytest.raises(ValueError, match=rf"'a' has not recorded '{key}' .* Use x='epochs'"):
            TrainingDisplay(histories={"a": rows}).plot(x=x)
    assert TrainingDisplay(histories={"a": rows}).plot(x="epochs").lines_["a"].get_xdata() == [1]


def test_who_has_not_trained_is_refused(fitted):
    with pytest.raises(NotFittedError):
        TrainingDisplay.from_estimator(ZOClassifier())
    with pytest.raises(NotFittedError):
        TrainingDisplay.from_estimators([fitted, make_pipeline(StandardScaler(), ZOClassifier())])
    with pytest.raises(TypeError, match=r"LogisticRegression has no history_ after fit; expected"):
        TrainingDisplay.from_estimator(LogisticRegression().fit(X, Y))
    idle = defense_of(scores, max_epochs=0).fit(IMAGES)
    with pytest.raises(TypeError, match=r"ZODenoiserDefense has no history_ .* max_epochs=0"):
        TrainingDisplay.from_estimator(idle)
    with pytest.raises(TypeError, match=r"must be a fitted estimator such as ZOClassifier; got 3"):
        TrainingDisplay.from_estimator(3)
    with pytest.raises(TypeError, match=r"must be a fitted estimator"):
        TrainingDisplay.from_estimator(ZOClassifier)


def test_several_are_a_mapping_or_a_list(fitted):
    with pytest.raises(TypeError, match=r"got ZOClassifier. Use from_estimator for a single one"):
        TrainingDisplay.from_estimators(fitted)
    with pytest.raises(ValueError, match=r"at least one fitted estimator; got none"):
        TrainingDisplay.from_estimators([])


def test_without_matplotlib_it_says_what_to_install(without_matplotlib):
    with pytest.raises(ImportError, match=r'TrainingDisplay.plot .* pip install "zoestim\[plot\]"'):
        TrainingDisplay(histories={"a": ROWS}).plot()
