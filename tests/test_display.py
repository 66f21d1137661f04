"""The curve of certified accuracy: what is drawn, and by which numbers."""

import numpy as np
import pytest
from sklearn.utils import Bunch

from zoestim import CertifiedAccuracyDisplay, max_certifiable_radius
from zoestim.certification import certified_accuracy

matplotlib = pytest.importorskip("matplotlib")
pytestmark = pytest.mark.usefixtures("no_window")

Y = ["a", "b", "b", "c", "a"]
LABEL = ["a", "b", "a", "c", "a"]
RADIUS = [0.5, 0.25, 0.9, 0.5, 0.0]  # the last one abstained
CURVE = {"radii": [0.0, 0.25, 0.5], "accuracies": [0.75, 0.75, 0.5]}


class Stub:
    """Certifies what it is told, and remembers how it was asked."""

    noise_std = 0.25

    def __init__(self) -> None:
        self.asked: list[dict] = []

    def certify(self, X, *, defended: bool = True, **settings):
        self.asked.append({"defended": defended, **settings})
        abstained = np.array(RADIUS) == 0
        # Radius and label of a sample that abstained must not matter.
        radius = np.where(abstained, 5.0, RADIUS) * (1.0 if defended else 0.5)
        return Bunch(label=np.array(LABEL), radius=radius, abstained=abstained)


def height(line, radius: float) -> float:
    """Return the height of a drawn curve just left of, or at, a radius."""
    x, y = line.get_data()
    assert line.get_drawstyle() == "steps-pre"
    return float(y[np.searchsorted(x, radius)])


def legend(display) -> list[str]:
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


def test_the_curve_has_the_certified_accuracy_at_every_radius():
    display = CertifiedAccuracyDisplay.from_predictions(Y, LABEL, RADIUS)
    for radius in (0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.9):
        expected = certified_accuracy(Y, LABEL, RADIUS, radius)
        assert height(display.line_, radius) == pytest.approx(expected), radius
    assert display.line_.get_data()[1][-1] == 0.0
    assert display.average_radius == pytest.approx(1.25 / 5)
    assert display.radii.tolist() == [0.0, 0.25, 0.5, 0.9]


def test_behind_the_last_radius_nothing_is_certified():
    line = CertifiedAccuracyDisplay(**CURVE).plot().line_
    assert line.get_xydata()[-2:].tolist() == [[0.5, 0.5], [0.5, 0.0]]


def test_names_and_the_average_radius_are_in_the_legend():
    display = CertifiedAccuracyDisplay.from_predictions(Y, LABEL, RADIUS, name="mine")
    assert legend(display) == ["mine (ACR = 0.250)"]
    assert legend(display.plot(name="yours")) == ["yours (ACR = 0.250)"]
    assert legend(CertifiedAccuracyDisplay(**CURVE, average_radius=0.5).plot()) == ["ACR = 0.500"]
    assert legend(CertifiedAccuracyDisplay(**CURVE, estimator_name="x").plot()) == ["x"]
    assert CertifiedAccuracyDisplay(**CURVE).plot().ax_.get_legend() is None


def test_a_dotted_line_stands_at_the_largest_radius():
    display = CertifiedAccuracyDisplay.from_predictions(Y, LABEL, RADIUS, max_radius=0.616)
    assert list(display.max_line_.get_xdata()) == [0.616, 0.616]
    assert display.max_line_.get_linestyle() == ":"
    assert legend(display)[1] == "largest that can be certified: 0.616"
    assert CertifiedAccuracyDisplay(**CURVE).plot().max_line_ is None


def test_axes_and_style_can_be_given():
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    display = CertifiedAccuracyDisplay(**CURVE).plot(ax, color="red", label="own")
    assert display.ax_ is ax
    assert display.figure_ is ax.figure
    assert display.line_.get_color() == "red"
    assert legend(display) == ["own"]


def test_an_estimator_certifies_once():
    stub = Stub()
    display = CertifiedAccuracyDisplay.from_estimator(stub, np.zeros((5, 2)), Y, n=500)
    settings = {"n0": 100, "n": 500, "alpha": 0.001, "random_state": None}
    assert stub.asked == [{"defended": True, **settings}]
    assert display.max_radius == max_certifiable_radius(500, 0.001, 0.25)
    assert display.baseline_ is None
    assert display.estimator_name == "Stub"


def test_who_abstains_is_wrong_whatever_label_and_radius():
    display = CertifiedAccuracyDisplay.from_estimator(Stub(), np.zeros((5, 2)), Y)
    assert display.accuracies.tolist() == [3 / 5, 3 / 5, 2 / 5, 0.0]
    assert display.radii.max() == 0.9


def test_the_undefended_curve_is_laid_beside():
    stub = Stub()
    display = CertifiedAccuracyDisplay.from_estimator(
        stub, np.zeros((5, 2)), Y, baseline=True, random_state=0, color="red", name="mine"
    )
    assert [asked["defended"] for asked in stub.asked] == [True, False]
    assert stub.asked[0]["random_state"] == stub.asked[1]["random_state"] == 0
    assert display.baseline_.ax_ is display.ax_
    assert display.baseline_.line_.get_linestyle() == "--"
    assert display.baseline_.average_radius == pytest.approx(display.average_radius / 2)
    names = [name.partition(" (")[0] for name in legend(display)]
    assert names == ["mine", "largest that can be certified: 0.616", "undefended"]


def test_without_a_noise_std_there_is_no_dotted_line():
    stub = Stub()
    stub.noise_std = None
    display = CertifiedAccuracyDisplay.from_estimator(stub, np.zeros((5, 2)), Y)
    assert display.max_line_ is None


def test_where_all_abstain_the_curve_is_zero(tmp_path):
    display = CertifiedAccuracyDisplay.from_predictions(Y, [-1] * 5, [0.0] * 5)
    assert display.accuracies.tolist() == [0.0]
    display.figure_.savefig(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 0


def test_an_estimator_that_does_not_certify_is_refused():
    with pytest.raises(TypeError, match=r"object has no method certify; .* from_predictions"):
        CertifiedAccuracyDisplay.from_estimator(object(), [[0.0]], [0])


def test_without_matplotlib_it_says_what_to_install(without_matplotlib):
    with pytest.raises(ImportError, match=r'pip install "zoestim\[plot\]"'):
        CertifiedAccuracyDisplay(**CURVE).plot()
