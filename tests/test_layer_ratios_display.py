"""How much of each layer is queried, drawn: which bars there are, how long, and what they say."""

from itertools import pairwise

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression

import zoestim
from case_rollouts import data, loop_of
from defense.boxes import IMAGES, defense, labels, scores
from zoestim import LayerRatiosDisplay, ZOClassifier

matplotlib = pytest.importorskip("matplotlib")
pytestmark = pytest.mark.usefixtures("no_window")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 8))
Y = (X[:, 0] > 0).astype(int)
RATIOS = {"a": {"w": 0.75, "b": 0.0}, "b": {"w": 0.5, "v": 0.9}}
SIZES = {"a": {"w": 2000, "b": 3}, "b": {"w": 400, "v": 10}}


def fit(**settings) -> ZOClassifier:
    given = {"pruning": "magnitude", "sparsity": 0.8, "max_epochs": 1, "random_state": 0}
    return ZOClassifier(**{**given, **settings}).fit(X, Y)


@pytest.fixture(scope="module")
def fitted() -> ZOClassifier:
    return fit()


def widths(display, name: str) -> list[float]:
    return [bar.get_width() for bar in display.bars_[name]]


def said(display) -> list[str]:
    return [text.get_text() for text in display.ax_.texts]


def legend(display) -> list[str]:
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


# --- What is drawn


def test_bars_are_the_fractions_that_are_queried(fitted):
    display = LayerRatiosDisplay.from_estimator(fitted)
    ratios = fitted.layer_ratios_
    assert display.layers_ == list(ratios)
    assert widths(display, "ZOClassifier") == [1 - ratio for ratio in ratios.values()]
    assert [tick.get_text() for tick in display.ax_.get_yticklabels()] == list(ratios)
    sizes = {name: p.numel() for name, p in fitted.module_.named_parameters()}
    active = fitted.net_.zo_step.active
    assert legend(display) == [f"ZOClassifier: {len(active):,} of {sum(sizes.values()):,}"]
    for name, text in zip(ratios, said(display), strict=True):
        count = round((1 - ratios[name]) * sizes[name])
        assert text == (f"{count:,} of {sizes[name]:,}" if ratios[name] else f"all {sizes[name]}")


def test_the_first_layer_is_on_top_and_bars_do_not_overlap():
    display = LayerRatiosDisplay(ratios=RATIOS, sizes=SIZES).plot()
    bottom, top = display.ax_.get_ylim()
    assert bottom > top
    bars = sorted(
        (bar.get_y(), bar.get_y() + bar.get_height())
        for each in display.bars_.values()
        for bar in each
    )
    assert all(end <= start for (_, end), (start, _) in pairwise(bars))
    for i, tick in enumerate(display.ax_.get_yticks()):
        assert tick == i
        bars = [each[i] for each in display.bars_.values()]
        middles = [bar.get_y() + bar.get_height() / 2 for bar in bars]
        assert np.mean(middles) == pytest.approx(i)


def test_several_fits_have_a_bar_each():
    display = LayerRatiosDisplay(ratios=RATIOS, sizes=SIZES).plot()
    assert display.layers_ == ["w", "b", "v"]
    np.testing.assert_allclose(widths(display, "a"), [0.25, 1.0, np.nan])
    np.testing.assert_allclose(widths(display, "b"), [0.5, np.nan, 0.1])
    assert said(display) == ["500 of 2,000", "all 3", "", "200 of 400", "", "1 of 10"]
    assert legend(display) == ["a: 503 of 2,003", "b: 201 of 410"]
    colors = {bars[0].get_facecolor() for bars in display.bars_.values()}
    assert len(colors) == 2


def test_estimators_are_named(fitted):
    dense = fit(pruning=None)
    display = LayerRatiosDisplay.from_estimators({"sparse": fitted, "dense": dense})
    assert set(widths(display, "dense")) == {1.0}
    assert list(LayerRatiosDisplay.from_estimators([fitted, dense]).bars_) == [
        "ZOClassifier 1",
        "ZOClassifier 2",
    ]


def test_layers_can_be_chosen(fitted):
    display = LayerRatiosDisplay.from_estimator(fitted, layers="sparse", name="mine")
    assert display.layers_ == [name for name, ratio in fitted.layer_ratios_.items() if ratio]
    assert 0 < len(display.layers_) < len(fitted.layer_ratios_)
    whole = LayerRatiosDisplay.from_estimator(fitted, name="mine")
    assert legend(display) == legend(whole)  # of all layers, shown or not
    display = LayerRatiosDisplay(ratios=RATIOS, sizes=SIZES).plot(layers=["v", "w"])
    np.testing.assert_allclose(widths(display, "b"), [0.1, 0.5])


def test_many_layers_make_a_high_figure():
    ratios = {"a": {f"layer {i}": 0.5 for i in range(60)}}
    high = LayerRatiosDisplay(ratios=ratios, sizes={"a": dict.fromkeys(ratios["a"], 10)}).plot()
    low = LayerRatiosDisplay(ratios=RATIOS, sizes=SIZES).plot()
    assert high.figure_.get_figheight() > 5 * low.figure_.get_figheight()


def test_axes_and_style_can_be_given(tmp_path):
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    display = LayerRatiosDisplay(ratios=RATIOS, sizes=SIZES).plot(ax, color="red", height=0.1)
    assert display.ax_ is ax
    assert display.figure_ is ax.figure
    assert {bar.get_height() for bar in display.bars_["a"]} == {0.1}
    assert display.bars_["b"][0].get_facecolor() == (1, 0, 0, 1)
    display.figure_.savefig(tmp_path / "layers.png")


@pytest.mark.filterwarnings("ignore::zoestim.CorrectionWorseThanSolverWarning")
def test_a_defense_a_loop_and_a_loaded_estimator_have_layers(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    loop = loop_of(sparsity=0.5, pruning="uniform").fit(*data())
    estimators = [
        zoestim.load(tmp_path / "model"),
        defense(scores, max_epochs=1).fit(IMAGES, labels(IMAGES)),
        loop,
    ]
    display = LayerRatiosDisplay.from_estimators(estimators)
    for estimator in estimators:
        bars = dict(zip(display.layers_, widths(display, type(estimator).__name__), strict=True))
        found = {name: 1 - bars[name] for name in estimator.layer_ratios_}
        assert found == pytest.approx(estimator.layer_ratios_)
    assert any(loop.layer_ratios_.values())


# --- Bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"layers": "first"},
            r"'all', 'sparse' or a list of some of \['w', 'b', 'v'\]; .* 'first'",
        ),
        ({"layers": ["w", "u"]}, r"got \['w', 'u'\]"),
        ({"layers": []}, r"got \[\]"),
    ],
)
def test_bad_layers_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        LayerRatiosDisplay(ratios=RATIOS, sizes=SIZES).plot(**settings)


def test_bad_ratios_and_sizes_are_named():
    with pytest.raises(ValueError, match=r"at least one fit with a layer; got none"):
        LayerRatiosDisplay(ratios={}, sizes={}).plot()
    with pytest.raises(ValueError, match=r"ratios of 'a' .* in \[0, 1\]; got \{'w': 90\}"):
        LayerRatiosDisplay(ratios={"a": {"w": 90}}, sizes={"a": {"w": 100}}).plot()
    with pytest.raises(ValueError, match=r"sizes of 'a' .*; expected also \['b'\]"):
        LayerRatiosDisplay(ratios=RATIOS, sizes={"a": {"w": 9}, "b": {"w": 9, "v": 9}}).plot()
    with pytest.raises(ValueError, match=r"'sparse' leaves none: .* Use 'all'"):
        LayerRatiosDisplay(ratios={"a": {"w": 0.0}}, sizes={"a": {"w": 9}}).plot(layers="sparse")


def test_who_has_not_trained_is_refused(fitted):
    with pytest.raises(NotFittedError):
        LayerRatiosDisplay.from_estimator(ZOClassifier())
    with pytest.raises(TypeError, match=r"LogisticRegression has no layer_ratios_ and no net_"):
        LayerRatiosDisplay.from_estimators([fitted, LogisticRegression().fit(X, Y)])


def test_without_matplotlib_it_says_what_to_install(without_matplotlib):
    with pytest.raises(ImportError, match=r'LayerRatiosDisplay.plot .* "zoestim\[plot\]"'):
        LayerRatiosDisplay(ratios=RATIOS, sizes=SIZES).plot()
