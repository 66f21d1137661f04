"""suggest_smoothing: the noise it reads, the step it draws from it, and how few losses it asks."""

import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cases import CASES, Case, ids
from zoestim import BlackBox, QueryError, estimate_gradient, suggest_smoothing
from zoestim._balance import RULES
from zoestim._noise import read_noise

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

schemes = pytest.mark.parametrize("scheme", ["forward", "central"])
X = torch.linspace(-1, 1, 60, dtype=torch.float64).reshape(20, 3)
NONE = torch.zeros(20, dtype=torch.float64)
MOST = {"forward": 126, "central": 174}  # queries, with the default n_coordinates


class Counted:
    """A loss of parameters, with noise of its own generator, as a function for a BlackBox."""

    def __init__(self, loss: Callable[[Any], Any], noise: float = 0.0, seed: int = 0):
        self.loss, self.noise, self.generator = loss, noise, np.random.default_rng(seed)
        self.calls = 0

    def __call__(self, params: Any, X: Any) -> Any:
        self.calls += 1
        loss = self.loss(params) + self.noise * self.generator.normal()
        return loss.expand(len(X)) if isinstance(loss, Tensor) else np.full(len(X), loss)


def mean(outputs: Tensor, y: Tensor) -> Tensor:
    return outputs[0]  # all rows are the loss


def suggest(loss: Callable[[Any], Any], theta: Any, noise: float = 0.0, **arguments: Any):
    """Return the suggestion for a loss of parameters, each of its queries counted."""
    counted = Counted(loss, noise)
    found = suggest_smoothing(
        BlackBox(counted, theta), mean, X, NONE, **{"random_state": 0, **arguments}
    )
    assert found.n_queries == counted.calls
    assert 0 < found.smoothing < math.inf
    return found


# --- The noise


def losses_at(spacing: float, noise: float, seed: int) -> Tensor:
    t = spacing * torch.arange(-3, 4, dtype=torch.float64)
    drawn = np.random.default_rng(seed).normal(size=7)
    return torch.exp(0.7 * t).sin() + noise * torch.from_numpy(drawn)


@pytest.mark.parametrize("noise", [1e-12, 1e-8, 1e-4, 1e-2])
@pytest.mark.parametrize("spacing", [1e-4, 1e-3])
def test_a_table_of_differences_reads_noise_off_a_smooth_function(noise: float, spacing: float):
    readings = [read_noise(losses_at(spacing, noise, seed)) for seed in range(40)]
    assert sum(reading.spacing == "right" for reading in readings) >= 36
    right = [reading.noise for reading in readings if reading.spacing == "right"]
    assert 0.7 * noise < np.median(right) < 1.4 * noise


def test_a_table_says_that_its_spacing_is_large_where_it_sees_the_function():
    reading = read_noise(losses_at(0.5, 1e-9, 0))
    assert reading.spacing == "large"
    assert reading.noise > 1e-9


@pytest.mark.parametrize("losses", [[1.0] * 7, [1.0, 1, 1, 2, 2, 2, 2], [0.0] * 7], ids=str)
def test_a_table_says_that_its_spacing_is_small_where_losses_repeat(losses: list[float]):
    assert read_noise(torch.tensor(losses, dtype=torch.float64)).spacing == "small"


def test_an_exact_polynomial_has_no_noise():
    t = torch.arange(-3, 4, dtype=torch.float64)
    reading = read_noise(8 * t**2 + t)
    assert (reading.noise, reading.spacing) == (0.0, "right")


@given(st.integers(-600, 600), st.integers(0, 10**6))
def test_noise_scales_with_the_losses(power: int, seed: int):
    losses = losses_at(1e-3, 1e-6, seed)
    first, scaled = read_noise(losses), read_noise(2.0**power * losses)
    assert scaled.spacing == first.spacing
    assert scaled.noise == 2.0**power * first.noise


# --- The step of the rule


@given(st.floats(1e-15, 1), st.floats(1e-6, 1e6), st.sampled_from(sorted(RULES)))
def test_no_step_beside_the_rules_has_a_smaller_error(noise: float, bend: float, scheme: str):
    rule = RULES[scheme]
    step = rule.step(noise, bend)
    least = rule.error(step, noise, bend)
    for factor in (0.5, 0.98, 1.02, 2.0):
        assert rule.error(factor * step, noise, bend) > least


@schemes
def test_a_rule_sees_its_derivative_and_the_first(scheme: str):
    rule, h = RULES[scheme], 1e-3
    points = torch.tensor([rule.points], dtype=torch.float64)
    losses = torch.exp(2 * h * points)
    expected = rule.factor * 2**rule.order * h**rule.order
    assert float(rule.difference(1.0, losses)) == pytest.approx(expected, rel=1e-3)
    assert float(rule.slope(losses, h)) == pytest.approx(2, rel=1e-5)


def test_the_error_of_the_rule_is_that_of_differences_of_a_noisy_parabola():
    noise, bend, generator = 1e-3, 4.0, np.random.default_rng(0)
    step = RULES["forward"].step(noise, bend)
    drawn = noise * generator.normal(size=(20_000, 2))
    errors = (bend * step**2 / 2 + drawn[:, 0] - drawn[:, 1]) / step
    expected = RULES["forward"].error(step, noise, bend)
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("noise", [1e-8, 1e-6, 1e-4, 1e-3])
@pytest.mark.parametrize("bend", [0.5, 50.0])
def test_noise_bending_and_step_of_a_parabola_are_found(noise: float, bend: float):
    found = suggest(lambda p: 1 + p.sum() + bend / 2 * (p @ p), np.full(9, 0.5), noise)
    assert found.noise == pytest.approx(noise, rel=0.6)
    assert found.derivative == pytest.approx(bend, rel=0.3)
    assert found.slope == pytest.approx(1 + bend / 2, rel=0.2)
    best = RULES["forward"].step(noise, bend)
    assert best / 1.5 < found.smoothing < 1.5 * best
    assert found.error == RULES["forward"].error(found.smoothing, found.noise, found.derivative)


def test_coordinates_of_unlike_bending_count_by_their_mean_square():
    bends = np.array([1e-3, 1e-2, 0.1, 1, 10, 100])
    found = suggest(lambda p: 1 + p.sum() + bends @ p**2 / 2, np.ones(6), 1e-6)
    assert found.derivative == pytest.approx(np.sqrt(np.mean(bends**2)), rel=0.2)


@schemes
@settings(max_examples=40)
@given(
    log_noise=st.integers(-14, 0),
    log_bend=st.integers(-4, 4),
    log_size=st.integers(-6, 6),
    level=st.sampled_from([0.0, 1.0, -1e6]),
)
def test_a_suggestion_is_always_a_step_within_bounds(scheme, log_noise, log_bend, log_size, level):
    size = 10.0**log_size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = suggest(
            lambda p: level + 10.0**log_bend * float(np.sin(p / size).sum()),
            np.full(3, size),
            10.0**log_noise,
            scheme=scheme,
        )
    assert found.n_queries <= MOST[scheme]
    assert 1e-16 * size < found.smoothing <= size * (1 + 1e-12)
    assert all(math.isfinite(v) for v in (found.noise, found.derivative, found.error, found.slope))


# --- Against the best step of a grid


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))


def loss_of_network(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Return the loss of a small network as a function of its flat parameters."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(32, 3, generator=generator, dtype=torch.float64).to(dtype)
    classes = torch.randint(3, (32,), generator=generator)

    def loss(flat: Tensor) -> Tensor:
        first, bias, second, end = flat.split([24, 8, 24, 3])
        hidden = (inputs.to(flat) @ first.view(3, 8) + bias).tanh()
        return nn.functional.cross_entropy(hidden @ second.view(8, 3) + end, classes)

    return loss


@cache
def true_gradient() -> Tensor:
    theta = nn.utils.parameters_to_vector(network().parameters()).detach().double()
    return torch.func.grad(loss_of_network(torch.float64))(theta)


def relative_error(dtype: torch.dtype, noise: float, smoothing: float, scheme: str) -> float:
    theta = nn.utils.parameters_to_vector(network().parameters()).detach().to(dtype)
    box = BlackBox(Counted(loss_of_network(dtype), noise, seed=7), theta)
    found = estimate_gradient(box, mean, X, NONE, smoothing=smoothing, scheme=scheme)
    true = true_gradient()
    return float((found.gradient.values - true).norm() / true.norm())


GRID = [1e-7, 1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0]


def compared(dtype: torch.dtype, noise: float, scheme: str, seed: int) -> tuple[float, float]:
    """Return the error at the suggested step and at 5e-3, in that of the best of the grid."""
    theta = nn.utils.parameters_to_vector(network().parameters()).detach().to(dtype)
    found = suggest(loss_of_network(dtype), theta, noise, scheme=scheme, random_state=seed)
    steps = GRID if dtype == torch.float64 else GRID[2:]
    best = min(relative_error(dtype, noise, step, scheme) for step in steps)
    suggested = relative_error(dtype, noise, found.smoothing, scheme)
    return suggested / best, relative_error(dtype, noise, 5e-3, scheme) / best


@schemes
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("noise", [0, 1e-8, 1e-6, 1e-4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_the_suggested_step_is_nearly_the_best(dtype, noise: float, scheme: str, seed: int):
    suggested, default = compared(dtype, noise, scheme, seed)
    assert suggested < 2.5
    if noise not in (1e-8, 1e-6) and (dtype == torch.float64 or noise):
        assert suggested < default / 3  # elsewhere 5e-3 is about right by chance


@schemes
@pytest.mark.parametrize("noise", [1e-3, 1e-2])
@pytest.mark.filterwarnings("ignore:How the loss bends:UserWarning")
def test_loud_noise_gives_a_long_step_where_that_is_allowed(noise: float, scheme: str):
    theta = nn.utils.parameters_to_vector(network().parameters()).detach()
    found = suggest(loss_of_network(torch.float32), theta, noise, scheme=scheme, longest=1.0)
    errors = {h: relative_error(torch.float32, noise, h, scheme) for h in [5e-3, 0.1, 0.3, 1.0]}
    suggested = relative_error(torch.float32, noise, found.smoothing, scheme)
    assert suggested < 3 * min(errors.values())
    assert suggested < errors[5e-3] / 10


# --- Rounding and steps


def test_a_plain_float32_module_shows_its_rounding_and_a_torch_module_hides_it():
    module = network()
    inputs, classes = X.float(), torch.arange(20) % 3

    def plain(params: dict[str, Tensor], X: Tensor) -> Tensor:
        named = {name.replace("_", "."): value for name, value in params.items()}
        return torch.func.functional_call(module, named, (X,))

    named = {name.replace(".", "_"): p.detach() for name, p in module.named_parameters()}
    boxed, hidden = (
        suggest_smoothing(each, nn.CrossEntropyLoss(), inputs, classes, random_state=0)
        for each in (BlackBox(plain, named), module)
    )
    assert 1e-9 < boxed.noise < 1e-6
    assert hidden.noise < boxed.noise / 100
    assert hidden.smoothing < boxed.smoothing / 10


def test_outputs_that_are_rounded_give_a_step_that_changes_them():
    def counted_loss(params: np.ndarray) -> float:
        return float(np.round(200 * np.exp(params.sum())) / 200)

    found = suggest(counted_loss, np.full(4, 0.3))
    assert 1e-4 < found.noise < 5e-3  # rounding to 0.005 has a deviation of 0.0014
    assert found.smoothing > 0.01


@pytest.mark.parametrize("level", [0.0, 3.0])
def test_a_loss_that_never_changes_is_warned_of_and_gets_the_longest_step(level: float):
    with pytest.warns(UserWarning, match=r"did not change along 4 coordinates, at steps up to 2\."):
        found = suggest(lambda p: level, np.full(4, 2.0))
    assert (found.smoothing, found.noise, found.error) == (2.0, 0.0, 0.0)


@schemes
def test_bending_that_is_lost_in_the_noise_is_warned_of_with_a_bounded_step(scheme: str):
    with pytest.warns(UserWarning, match=r"is lost in its noise, .* Pass a longer step as longest"):
        found = suggest(lambda p: p.sum(), np.full(5, 0.5), 1e-3, scheme=scheme)
    assert 0.2 < found.smoothing <= 0.5
    assert 0 < found.error < 0.02


def test_differences_that_never_level_off_are_warned_of():
    scale = 6e-7  # of the function, beside parameters of 1: no table that is tried is short enough
    with pytest.warns(UserWarning, match="No noise of the loss stood out"):
        found = suggest(lambda p: np.exp((p - 1).sum() / scale), np.ones(3))
    assert found.smoothing < scale


def test_parameters_that_are_all_zero_are_taken_to_be_of_size_one():
    found = suggest(lambda p: 1 + p.sum() + p @ p, np.zeros(4), 1e-4)
    assert found.smoothing == pytest.approx(RULES["forward"].step(1e-4, 2.0), rel=0.5)


def test_steps_are_longer_than_the_rounding_of_the_parameters():
    theta = torch.tensor([1000.0, 1e-3, 1e-3, 1e-3])
    found = suggest(lambda p: 1e-4 * (p.double() ** 2).sum(), theta)
    assert found.smoothing > 1000 * torch.finfo(torch.float32).eps


def test_longest_bounds_what_is_tried_and_suggested():
    asked = []

    def loss(params: np.ndarray) -> float:
        asked.append(float(np.abs(params - 1).max()))
        return params.sum()

    with pytest.warns(UserWarning, match="lost in its noise"):
        found = suggest(loss, np.ones(3), 1e-2, longest=0.03)
    assert max(asked) == pytest.approx(0.03)
    assert found.smoothing <= 0.03


# --- Queries, draws, and what it leaves as it was


@schemes
def test_an_easy_loss_costs_one_round_of_either_kind(scheme: str):
    found = suggest(lambda p: 2 + np.cos(p).sum(), np.ones(10), 1e-5, scheme=scheme)
    assert found.n_queries <= {"forward": 59, "central": 91}[scheme]


@pytest.mark.parametrize(("n", "d", "expected"), [(2, 10, 12 + 1 + 4 + 1), (8, 1, 6 + 1 + 2 + 1)])
def test_few_coordinates_cost_few_queries(n: int, d: int, expected: int):
    found = suggest(lambda p: 1 + np.cos(p).sum(), np.ones(d), 1e-3, n_coordinates=n)
    assert expected <= found.n_queries <= 3 * expected


def test_coordinates_say_where_to_draw():
    bends = np.array([1.0, 1.0, 1e4, 1e4])
    few = [suggest(lambda p: bends @ p**2, np.ones(4), 1e-6, coordinates={"params": part})
           for part in ([0, 1], [2, 3])]  # fmt: skip
    assert few[0].derivative == pytest.approx(2, rel=0.3)
    assert few[1].derivative == pytest.approx(2e4, rel=0.3)


def test_random_state_decides_the_coordinates():
    def draw(random_state: int):
        bends = np.arange(1.0, 101)
        return suggest(lambda p: bends @ p**2, np.ones(100), random_state=random_state).derivative

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)


def test_what_dropout_draws_is_no_noise():
    module = nn.Sequential(network()[0], nn.Dropout(0.5), network()[2]).double()
    found = suggest_smoothing(module, nn.MSELoss(), X, X, random_state=0)
    assert found.noise < 1e-14


@schemes
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", CASES[::3], ids=ids[::3])
def test_any_module_gets_a_step_and_comes_back_as_it_was(case: Case, scheme: str):
    module = case.module()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    found = suggest_smoothing(
        module, case.criterion, case.X, case.y, scheme=scheme, n_coordinates=3, random_state=0
    )
    assert 0 < found.smoothing < math.inf
    assert found.noise < 1e-6
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name]), name


# --- What it refuses


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"scheme": "backward"}, ValueError, r"scheme must be one of \['forward', 'central'\]; go"),
        ({"n_coordinates": 0}, ValueError, r"n_coordinates must be an integer of at least 1; got"),
        ({"n_coordinates": 2.0}, ValueError, r"n_coordinates must be .* at least 1; got 2\.0\."),
        ({"longest": 0}, ValueError, r"longest must be .* at least 4\.4e-15; got 0\."),
        ({"longest": math.inf}, ValueError, r"longest must be a number .* got inf\."),
        ({"longest": math.nan}, ValueError, r"longest must be a number .* got nan\."),
        ({"coordinates": {}}, ValueError, r"coordinates names no coordinate; expected at least "),
        ({"coordinates": {"w": [0]}}, ValueError, r"coordinates names 'w', which is not a train"),
        ({"precision": "float16"}, ValueError, r"precision must be one of .*; got 'float16'\."),
        ({"memory_budget": 0}, ValueError, r"memory_budget must be a number of bytes"),
    ],
    ids=str,
)
def test_an_argument_that_means_nothing_is_refused(arguments: dict, error: type, text: str):
    with pytest.raises(error, match=f"^{text}"):
        suggest(lambda p: p.sum(), np.ones(3), **arguments)


def test_a_function_is_refused_with_the_way_to_wrap_it():
    with pytest.raises(TypeError, match=r"got function\. Wrap a function .* as BlackBox\(f, init"):
        suggest_smoothing(lambda params, X: X, mean, X, NONE)


def test_a_warning_points_at_the_call():
    box = BlackBox(Counted(lambda p: 1.0), np.ones(3))
    with pytest.warns(UserWarning, match="did not change") as caught:
        suggest_smoothing(box, mean, X, NONE)
    assert caught[0].filename == __file__


def test_a_loss_that_is_no_number_is_refused_with_advice():
    with pytest.raises(QueryError, match="NaN or infinite") as caught:
        suggest(lambda p: np.inf if (p > 1).any() else p.sum(), np.ones(3))
    assert "pass a shorter one as longest" in caught.value.__notes__[-1]
