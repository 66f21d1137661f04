"""Functions of single elements against themselves, and in float32 against float64."""

import operator
from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from propagation.lanes import check, dense, entry
from propagation.strategies import moved, normal, quick, shapes
from zoestim.propagation import RULES, Dense, Entry, Site, Slab, Value

# Each with what it is called with beside its argument.
CLAMPS = [
    *((torch.relu, {}), (F.relu, {}), ("relu", {}), (F.relu6, {}), (F.hardtanh, {})),
    (F.hardtanh, {"min_val": -0.5, "max_val": 0.25}),
    *((torch.clamp, {"min": 0.1}), (torch.clip, {"max": 0.1}), ("clamp", {"min": -1, "max": 1})),
    *(("clip", {"min": 0.0}), (F.hardsigmoid, {})),
    *((F.leaky_relu, {}), (F.leaky_relu, {"negative_slope": 3.0}), (torch.abs, {}), ("abs", {})),
]
SMOOTH = [
    *((torch.tanh, {}), (F.tanh, {}), ("tanh", {})),
    *((torch.sigmoid, {}), (F.sigmoid, {}), ("sigmoid", {}), (torch.exp, {}), ("exp", {})),
    *((F.elu, {}), (F.elu, {"alpha": 2.0}), (F.celu, {}), (F.celu, {"alpha": 0.5}), (F.selu, {})),
]
DIFFERENCES = [
    *((F.gelu, {}), (F.gelu, {"approximate": "tanh"}), (F.logsigmoid, {}), (F.mish, {})),
    *((F.silu, {}), (F.softplus, {}), (F.softplus, {"beta": 2.0, "threshold": 1.0})),
    *((F.hardswish, {}), (F.hardshrink, {}), (F.hardshrink, {"lambd": 0.1}), (F.softshrink, {})),
    *((F.softsign, {}), (F.tanhshrink, {}), (F.threshold, {"threshold": 0.1, "value": 2.0})),
    *((name, {}) for name in ("ceil", "cos", "erf", "expm1", "floor", "round", "sign", "sin")),
    *((name, {}) for name in ("square",)),
]
POSITIVE = [(name, {}) for name in ("log", "log1p", "reciprocal", "rsqrt", "sqrt")]
LINEAR = [(torch.neg, {}), ("neg", {}), (operator.neg, {})]
ALL = CLAMPS + SMOOTH + DIFFERENCES + POSITIVE + LINEAR


def name_of(row: Any) -> str:
    return row if isinstance(row, str) else getattr(row, "__name__", None)


def run(function: Any, x: Tensor, arguments: dict[str, Any]) -> Tensor:
    call = getattr(x, function) if isinstance(function, str) else lambda **kw: function(x, **kw)
    return call(**arguments)


def change_of(function: Any, x: Value, arguments: dict[str, Any]) -> Any:
    site = Site(Value(run(function, x.base, arguments)), lambda f: f())
    return RULES[function](site, x, **arguments)


@pytest.mark.parametrize(("function", "arguments"), ALL, ids=name_of)
@given(st.data(), shapes())
@quick
def test_any_change(function, arguments: dict[str, Any], data: st.DataObject, shape):
    x = data.draw(moved(shape))
    if (function, arguments) in POSITIVE:
        base = x.base.abs() + 10
        x = Value(base, x.change)
    found = check(function, x, **arguments)
    assert isinstance(found, Slab) == isinstance(x.change, Slab)


@pytest.mark.parametrize("slopes", [[0.3], [-0.5, 0.0, 2.0]], ids=["one", "channels"])
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5), (2, 3, 4, 5)], ids=str)
@given(st.data())
@quick
def test_prelu(shape: tuple[int, ...], slopes: list[float], data: st.DataObject):
    x, weight = data.draw(moved(shape)), Value(torch.tensor(slopes, dtype=torch.float64))
    check(F.prelu, x, weight)


def test_a_slope_of_prelu_that_changes_is_left_to_the_operation():
    x, weight = normal(4, 3), torch.tensor([0.25], dtype=torch.float64)
    site = Site(Value(F.prelu(x, weight)), lambda f: f())
    assert RULES[F.prelu](site, Value(x), entry(weight, [0])) is NotImplemented


def test_every_pointwise_rule_is_in_this_table():
    module = RULES[torch.relu].__module__
    tested = {function for function, _ in ALL}
    twins = {getattr(torch, function) for function in tested if isinstance(function, str)}
    rules = {function for function, r in RULES.items() if r.__module__ == module}
    assert rules - tested - twins == {F.prelu}


@pytest.mark.parametrize("function", [torch.relu, torch.tanh, torch.exp, F.gelu])
def test_entries_and_numbers_without_axes(function):
    check(function, entry(normal(2, 3), [0, 5, 5]))
    check(function, dense(normal(), 3))
    empty = check(function, dense(normal(0, 3), 2))
    assert empty.values.shape == (2, 0, 3)


@pytest.mark.parametrize("function", [torch.tanh, torch.exp, torch.abs, F.silu])
def test_complex_numbers_are_left_to_the_operation(function):
    x = Value(torch.ones(2, dtype=torch.complex128), Dense(torch.ones(1, 2).to(torch.complex128)))
    assert RULES[function](Site(x, lambda f: f()), x) is NotImplemented


# --- Where floating-point numbers are short

BASES = [0.0, 1e-30, 1e-7, 1e-3, 0.5, 1.0, 3.0, 6.0, 9.5, 20.0, 60.0]
BASES = [*(-b for b in BASES), *BASES]


def float32_steps(scale: float) -> tuple[Value, Tensor]:
    """Return values changed by steps of one scale up and down, and the exact steps."""
    base = torch.tensor(BASES).expand(2, -1).flatten()
    step = torch.tensor([scale, -scale]).repeat_interleave(len(BASES))
    return Value(base, Dense(step[None])), step.double()


@pytest.mark.parametrize("scale", [1e-7, 1e-5, 1e-3, 0.3, 2.0, 30.0, 90.0])
@pytest.mark.parametrize(("function", "arguments"), CLAMPS, ids=name_of)
def test_clamps_are_exact_in_float32(function, arguments: dict[str, Any], scale: float):
    x, step = float32_steps(scale)
    found = change_of(function, x, arguments).values[0]
    b = x.base.double()
    expected = run(function, b + step, arguments) - run(function, b, arguments)
    # Beyond a bound, a value that comes back from b is what is left of d: |b| or |d| rounds.
    rounding = torch.where(expected.abs() < 0.9 * step.abs(), b.abs() + step.abs(), expected.abs())
    slope = max(1.0, arguments.get("negative_slope", 1.0))
    assert ((found - expected).abs() <= 4 * slope * 2**-24 * rounding).all()


def exp_minus(x: Decimal) -> Decimal:
    return x.exp() - 1


EXACT: dict[Any, Callable[[Decimal], Decimal]] = {
    torch.tanh: lambda x: exp_minus(2 * x) / (exp_minus(2 * x) + 2),
    torch.sigmoid: lambda x: 1 / (1 + (-x).exp()),
    torch.exp: Decimal.exp,
    F.elu: lambda x: max(x, Decimal(0)) + exp_minus(min(x, Decimal(0))),
}


def exact_difference(function: Callable[[Decimal], Decimal], b: float, d: float) -> float:
    """Return f(b + d) - f(b), of the floating-point numbers b and d, with 120 digits."""
    with localcontext(prec=120):
        return float(function(Decimal(b) + Decimal(d)) - function(Decimal(b)))


@pytest.mark.parametrize("scale", [1e-7, 1e-6, 1e-5, 1e-3, 0.3, 2.0, 25.0])
@pytest.mark.parametrize("function", EXACT, ids=name_of)
def test_smooth_functions_keep_their_digits_in_float32(function, scale: float):
    x, step = float32_steps(scale)
    found = change_of(function, x, {}).values[0].double()
    pairs = zip(x.base.tolist(), step.tolist(), strict=True)
    each = [exact_difference(EXACT[function], b, d) for b, d in pairs]
    expected = torch.tensor(each, dtype=torch.float64)
    normal_numbers = expected.abs() > 1e-37
    error = (found - expected).abs() / expected.abs()
    assert (error[normal_numbers] <= 1e-5).all()
    assert (found[~normal_numbers].abs() <= 2e-37).all()


@pytest.mark.parametrize("scale", [1e-7, 1e-5, 1e-3, 2.0])
@pytest.mark.parametrize(("function", "arguments"), DIFFERENCES, ids=name_of)
def test_differences_are_taken_in_float64(function, arguments: dict[str, Any], scale: float):
    x, step = float32_steps(scale)
    found = change_of(function, x, arguments).values[0]
    b = x.base.double()
    expected = run(function, b + step, arguments) - run(function, b, arguments)
    torch.testing.assert_close(found.double(), expected, rtol=1e-7, atol=1e-14)


@pytest.mark.parametrize("b", [0.0, 5.0, 20.0, 50.0, 400.0])
@pytest.mark.parametrize("d", [-1000.0, -800.0, -40.0, -20.0, -1.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_large_steps_back_and_forth_through_saturation(b: float, d: float, sign: int):
    base = torch.full((1,), sign * b, dtype=torch.float64)
    x = Value(base, Dense(torch.full((1, 1), sign * d, dtype=torch.float64)))
    for function in (torch.tanh, torch.sigmoid, F.elu):
        check(function, x)


def test_a_step_of_a_parameter_is_exact_too():
    x = Value(torch.tensor([1000.0, -0.5]), Entry(torch.tensor([0, 1]), torch.full((2,), 1e-5)))
    found = change_of(F.relu, x, {})
    assert found.values.tolist() == [[x.change.steps[0].item(), 0.0], [0.0, 0.0]]
