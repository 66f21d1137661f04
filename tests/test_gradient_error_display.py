"""The error of estimates against the step, drawn: of which numbers, beside which reference."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from zoestim import BlackBox, GradientErrorDisplay, QueryError, estimate_gradient

matplotlib = pytest.importorskip("matplotlib")

RNG = np.random.default_rng(0)
X = torch.as_tensor(RNG.normal(size=(12, 3)))
Y = torch.arange(12) % 2
LOSS = nn.CrossEntropyLoss()
STEPS = [1e-6, 1e-4, 1e-2, 1.0]
CURVE = {"smoothings": [1e-3, 1e-2, 1e-1], "errors": {"x": [0.3, 0.1, 0.2]}}
pytestmark = pytest.mark.usefixtures("global_rng_untouched", "no_window")


def net(dtype: torch.dtype = torch.float64) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


def true_gradient(module: nn.Module) -> dict[str, torch.Tensor]:
    module = copy.deepcopy(module).double()
    LOSS(module(X), Y).backward()
    return {name: p.grad for name, p in module.named_parameters()}


def draw(module=None, criterion=LOSS, **settings) -> GradientErrorDisplay:
    given = {"smoothings": STEPS, **settings}
    return GradientErrorDisplay.from_module(module or net(), criterion, X, Y, **given)


def legend(display) -> list[str]:
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


# --- What is drawn


@pytest.mark.parametrize("scheme", ["forward", "central"])
def test_errors_and_cosines_are_those_of_the_estimates(scheme):
    module = net()
    display = draw(module, scheme=scheme)
    truth = torch.cat([part.flatten() for part in true_gradient(module).values()])
    for i, step in enumerate(STEPS):
        made = estimate_gradient(module, LOSS, X, Y, smoothing=step, scheme=scheme).as_dict()
        found = torch.cat([part.flatten() for part in made.values()])
        error = float((found - truth).norm() / truth.norm())
        cosine = float(nn.functional.cosine_similarity(found, truth, dim=0))
        assert display.lines_[scheme].get_ydata()[i] == pytest.approx(error, rel=1e-6)
        assert display.cosine_lines_[scheme].get_ydata()[i] == pytest.approx(cosine)
    np.testing.assert_array_equal(display.lines_[scheme].get_xdata(), STEPS)
    assert display.ax_.get_xscale() == display.ax_.get_yscale() == "log"
    assert display.cosine_ax_.get_yscale() == "linear"
    assert display.cosine_ax_.get_xlabel() == "Smoothing, in units of the parameters"


def test_forward_differences_err_in_proportion_to_the_step_and_central_ones_to_its_square():
    display = draw(smoothings=[1e-3, 1e-2], scheme=["forward", "central"])
    forward, central = (display.errors[name] for name in ("forward", "central"))
    assert forward[1] / forward[0] == pytest.approx(10, rel=0.1)
    assert central[1] / central[0] == pytest.approx(100, rel=0.1)
    assert len({line.get_color() for line in display.lines_.values()}) == 2


def test_the_least_error_is_marked():
    display = GradientErrorDisplay(**CURVE).plot()
    assert display.minima_["x"].get_xydata().tolist() == [[0.01, 0.1]]
    assert display.minima_["x"].get_marker() == "o"
    assert display.minima_["x"].get_color() == display.lines_["x"].get_color()
    assert legend(display) == ["x (least 0.1 at 0.01)"]
    lost = {"x": [0.0, np.nan, 0.2]}  # 0 is not on a logarithmic scale
    display = GradientErrorDisplay(smoothings=CURVE["smoothings"], errors=lost).plot()
    assert display.minima_["x"].get_xydata().tolist() == [[0.1, 0.2]]


def test_without_an_error_to_be_seen_there_is_no_mark(tmp_path):
    display = GradientErrorDisplay(smoothings=[1.0], errors={"x": [np.nan]}).plot()
    assert display.minima_ == {}
    assert legend(display) == ["x"]
    display.figure_.savefig(tmp_path / "errors.png")


def test_steps_are_sorted_and_by_default_many():
    display = draw(smoothings=[0.1, 0.001])
    assert display.smoothings.tolist() == [0.001, 0.1]
    assert display.errors["forward"][0] < display.errors["forward"][1]
    display = draw(smoothings=None, name="mine")
    assert len(display.lines_["mine, forward"].get_xdata()) == len(display.smoothings) > 10


def test_the_module_comes_back_as_it_was():
    module, before = net(torch.float32), net(torch.float32).state_dict()
    draw(module)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(p.grad is None and p.dtype == torch.float32 for p in module.parameters())


def test_precision_and_other_arguments_of_estimates_can_be_given():
    fine = draw(smoothings=[1e-6])
    plain = {"precision": "float32", "feature_reuse": False}
    coarse = draw(smoothings=[1e-6], estimate_kw=plain)
    assert coarse.errors["forward"][0] > 100 * fine.errors["forward"][0]


def test_randomised_estimates_have_a_cosine_below_one():
    settings = {"method": "rge", "random_state": 0, "estimate_kw": {"n_directions": 6}}
    display = draw(**settings)
    assert 0 < display.cosines["forward"][0] < 0.95
    np.testing.assert_array_equal(draw(**settings).errors["forward"], display.errors["forward"])


def test_a_negative_cosine_is_in_sight():
    display = GradientErrorDisplay(**CURVE, cosines={"x": [-0.5, 0.2, np.nan]}).plot()
    assert display.cosine_ax_.get_ylim()[0] < -0.5
    assert (
        GradientErrorDisplay(**CURVE, cosines={"x": [1, 1, 1]}).plot(cosine=False).cosine_ax_
        is None
    )


# --- The reference


def test_only_the_coordinates_asked_for_are_compared():
    module, chosen = net(), {"0.weight": [1, 5], "2.bias": [0]}
    truth = true_gradient(module)
    display = draw(module, smoothings=[1e-2], coordinates=chosen)
    made = estimate_gradient(module, LOSS, X, Y, smoothing=1e-2, coordinates=chosen).as_dict()
    pairs = [(made[n].flatten()[i], truth[n].flatten()[i]) for n, at in chosen.items() for i in at]
    found, expected = torch.tensor(pairs).T
    error = float((found - expected).norm() / expected.norm())
    assert display.errors["forward"][0] == pytest.approx(error, rel=1e-6)
    given = draw(
        module, smoothings=[1e-2], coordinates=chosen, gradient={n: truth[n] for n in chosen}
    )
    assert given.errors["forward"] == pytest.approx(display.errors["forward"])


def test_a_reference_can_be_given_for_a_black_box():
    box = BlackBox(lambda params, X: X @ params["w"], {"w": np.ones((3, 2))})
    weight = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    LOSS(X @ weight, Y).backward()
    (name,) = dict(box.named_parameters())
    display = draw(box, gradient={name: weight.grad.numpy()})
    assert display.errors["forward"][1] < 1e-3
    assert display.cosines["forward"][1] > 0.999
    with pytest.raises(
        ValueError, match=r"module has a BlackBox, .* Pass gradient=\{name: array\}"
    ):
        draw(box)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_layers_that_draw_draw_the_same_for_the_reference(dtype):
    module = nn.Sequential(net(dtype)[0], nn.BatchNorm1d(4), nn.Dropout(), net(dtype)[2]).to(dtype)
    assert draw(module, smoothings=[1e-4]).errors["forward"][0] < 1e-2


def test_a_parameter_without_influence_has_no_gradient():
    module = net()
    module.register_parameter("idle", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    assert draw(module).errors["forward"][0] < 1e-4


def test_what_autograd_cannot_see_is_refused():
    def in_numpy(outputs, y):
        return float(outputs.detach().numpy().var())

    with pytest.raises(ValueError, match=r"no gradient by autograd: .* Pass gradient="):
        draw(criterion=in_numpy)

    class Rounds(nn.Linear):
        def forward(self, x):
            return super().forward(x).round()

    with torch.random.fork_rng(devices=[]):
        module = Rounds(3, 2).double()
    with pytest.raises(ValueError, match=r"has the norm 0; .* autograd gives zero: pass gradient"):
        draw(module)


def test_a_gradient_of_another_shape_is_refused():
    truth = true_gradient(net())
    with pytest.raises(ValueError, match=r"shape \(4, 3\) for '0.weight'; got shape \(12,\)"):
        draw(gradient={**truth, "0.weight": truth["0.weight"].flatten()})
    with pytest.raises(ValueError, match=r"shape \(2,\) for '2.bias'; got none"):
        draw(gradient={name: value for name, value in truth.items() if name != "2.bias"})


# --- Where queries fail


def test_steps_at_which_queries_fail_are_gaps():
    def fragile(outputs, y):
        # The loss at the parameters as they are is about 0.7.
        loss = nn.functional.cross_entropy(outputs, y)
        return loss if loss < 1.0 else loss * torch.nan

    module = net()
    display = draw(module, fragile, smoothings=[1e-3, 50.0], estimate_kw={"max_retries": 0})
    assert np.isfinite(display.errors["forward"]).tolist() == [True, False]
    assert np.isfinite(display.cosines["forward"]).tolist() == [True, False]
    with pytest.raises(QueryError):
        draw(module, fragile, smoothings=[50.0], estimate_kw={"max_retries": 0})


# --- Axes, and bad input


def test_axes_and_style_can_be_given(tmp_path):
    from matplotlib.figure import Figure

    ax = Figure().subplots()
    first = draw(ax=ax, linewidth=3)
    assert first.ax_ is ax
    assert first.figure_ is ax.figure
    assert {line.get_linewidth() for line in first.lines_.values()} == {3}
    names = [name.partition(" (")[0] for name in legend(first)]
    assert names == ["forward", "forward, cosine"]
    second = draw(ax=ax, scheme="central")
    assert second.cosine_ax_ is first.cosine_ax_
    assert len(legend(second)) == 4
    pair = Figure().subplots(2)
    third = draw(ax=pair)
    assert (third.ax_, third.cosine_ax_) == tuple(pair)
    first.figure_.savefig(tmp_path / "errors.png")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"smoothings": []}, r"finite numbers above 0, at least one; got \[\]"),
        ({"smoothings": [0.0, 1.0]}, r"finite numbers above 0"),
        ({"smoothings": 0.1}, r"must be a list of finite numbers above 0.*; got 0.1"),
        ({"scheme": "backward"}, r"scheme must be one of \['forward', 'central'\]"),
        ({"scheme": []}, r"or a list of them; got \[\]"),
        ({"method": "spsa"}, r"method must be 'cge' or 'rge'; got 'spsa'"),
        ({"coordinates": {"bias": [0]}}, r"coordinates names 'bias'"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        draw(**settings)


def test_bad_modules_and_curves_are_named():
    with pytest.raises(TypeError, match=r"module must be a torch.nn.Module instance; got function"):
        draw(lambda params, X: X)
    with pytest.raises(ValueError, match=r"at least one curve; got none"):
        GradientErrorDisplay(smoothings=[1.0], errors={}).plot()
    with pytest.raises(
        ValueError, match=r"errors .* of the 1 smoothings; got shape \(2,\) for 'x'"
    ):
        GradientErrorDisplay(smoothings=[1.0], errors={"x": [1, 2]}).plot()
    with pytest.raises(ValueError, match=r"cosines must hold one number for each"):
        GradientErrorDisplay(**CURVE, cosines={"x": [1.0]}).plot()
    with pytest.raises(ValueError, match=r"cosines are of \['y'\]; expected some of \['x'\]"):
        GradientErrorDisplay(**CURVE, cosines={"y": [1.0, 1.0, 1.0]}).plot()


def test_without_matplotlib_it_says_what_to_install(without_matplotlib):
    with pytest.raises(ImportError, match=r'GradientErrorDisplay.plot .* "zoestim\[plot\]"'):
        GradientErrorDisplay(**CURVE).plot()
