"""The reference and the table of cases are what the others are judged by: they come first."""

import pytest
import torch
from torch import Tensor, fx, nn

import reference
from cases import CASES, TRAITS, Case, ids

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

every_case = pytest.mark.parametrize("case", CASES, ids=ids)


def rng_state(seed: int = 0) -> Tensor:
    return torch.Generator().manual_seed(seed).get_state()


def loss_of(case: Case) -> reference.Loss:
    return reference.module_loss(case.module(), case.criterion, case.X, case.y, rng_state())


def run(module: nn.Module, X: Tensor, seed: int = 0) -> Tensor | tuple[Tensor, ...]:
    """Return what the module gives, which may change itself, with this seed."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.set_rng_state(rng_state(seed))
        return module(X)


def first_output(module: nn.Module, X: Tensor, seed: int = 0) -> Tensor:
    outputs = run(module, X, seed)
    return outputs[0] if isinstance(outputs, tuple) else outputs


# --- Eqs. (1) and (3) on a quadratic, whose differences are known

A = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 3.0]], dtype=torch.float64)
THETA = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def quadratic(theta: Tensor) -> float:
    return float(theta @ A @ theta / 2)


def test_forward_cge_is_off_by_half_the_curvature_of_each_coordinate():
    found = reference.cge(quadratic, THETA, range(3), smoothing=0.1)
    torch.testing.assert_close(found, A @ THETA + 0.05 * A.diagonal())


def test_central_cge_of_a_quadratic_is_its_gradient():
    found = reference.cge(quadratic, THETA, range(3), smoothing=0.1, scheme="central")
    torch.testing.assert_close(found, A @ THETA)


def test_coordinates_not_asked_for_are_exactly_zero():
    found = reference.cge(quadratic, THETA, [2, 0], smoothing=0.1, scheme="central")
    torch.testing.assert_close(found, A @ THETA * torch.tensor([1, 0, 1]))
    assert found[1] == 0


def test_rge_is_the_mean_of_difference_times_direction():
    directions = torch.tensor([[1.0, 2.0, -1.0], [0.0, -1.0, 3.0]], dtype=torch.float64)
    slopes = directions @ A @ THETA
    curvatures = (directions @ A * directions).sum(1)
    central = (slopes[:, None] * directions).mean(0)
    forward = ((slopes + 0.05 * curvatures)[:, None] * directions).mean(0)
    torch.testing.assert_close(reference.rge(quadratic, THETA, directions, 0.1), forward)
    torch.testing.assert_close(reference.rge(quadratic, THETA, directions, 0.1, "central"), central)


def test_rge_along_the_axes_is_cge_divided_by_their_number():
    axes = torch.eye(3, dtype=torch.float64)
    found = reference.rge(quadratic, THETA, axes, smoothing=0.1)
    torch.testing.assert_close(3 * found, reference.cge(quadratic, THETA, range(3), smoothing=0.1))


def test_grasp_scores_of_a_quadratic_hold_the_hessian_times_the_gradient():
    found = reference.grasp_scores(THETA, lambda theta: A @ theta, smoothing=0.1)
    torch.testing.assert_close(found, -THETA * (A @ A @ THETA))


def test_a_scheme_that_is_unknown_is_refused():
    with pytest.raises(ValueError, match=r"'forward' or 'central'\. Got 'backward'"):
        reference.cge(quadratic, THETA, [0], smoothing=0.1, scheme="backward")


# --- The loss of a module


@every_case
def test_loss_at_the_unperturbed_point_is_the_plain_forward(case: Case):
    module = case.module()
    theta = reference.flat_parameters(module)
    losses = torch.as_tensor(case.criterion(run(module, case.X), case.y), dtype=torch.float64)
    found = loss_of(case)(theta)
    assert isinstance(found, float)
    assert found == losses.mean()


@every_case
def test_queries_leave_module_and_batch_alone_and_repeat_bit_for_bit(case: Case):
    module, X, y = case.module(), case.X, case.y
    theta, before = reference.flat_parameters(module), fingerprint(module)
    loss = reference.module_loss(module, case.criterion, X, y, rng_state())
    elsewhere = theta + torch.linspace(-0.3, 0.4, len(theta), dtype=theta.dtype)
    first, other, again = loss(theta), loss(elsewhere), loss(theta)
    assert first == again
    assert first != other or "stepped" in case.traits
    assert fingerprint(module) == before
    assert torch.equal(X, case.X)
    assert torch.equal(y, case.y)


def test_parameters_are_written_in_the_order_in_which_they_are_read():
    module = next(case for case in CASES if case.name == "unused").module()
    theta = torch.arange(14, dtype=torch.float64)
    reference.write_parameters(module, theta)
    assert torch.equal(reference.flat_parameters(module), theta)
    assert torch.equal(module.transposed[0], torch.tensor([2, 3, 4], dtype=torch.float64))


@every_case
def test_central_cge_is_the_gradient_of_autograd_unless_the_traits_say_no(case: Case):
    theta = reference.flat_parameters(case.module())
    found = reference.cge(loss_of(case), theta, range(len(theta)), 1e-6, scheme="central")
    agrees = torch.allclose(found, autograd(case), rtol=1e-6, atol=1e-7)
    assert agrees != ("gradientless" in case.traits)
    assert (found.count_nonzero() < len(theta) / 2) == ("stepped" in case.traits)


def autograd(case: Case) -> Tensor:
    """Return the flat gradient by backpropagation, nan where there is none."""
    module = case.module()
    parameters = [p for p in module.parameters() if p.requires_grad]
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(rng_state())
        losses = torch.as_tensor(case.criterion(module(case.X), case.y))
    if not losses.requires_grad:
        return torch.full_like(reference.flat_parameters(module), torch.nan)
    gradients = torch.autograd.grad(losses.mean(), parameters, materialize_grads=True)
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


# --- The table of cases


def test_names_are_unique_and_traits_are_known():
    assert len(set(ids)) == len(ids) >= 24
    assert set().union(*(case.traits for case in CASES)) == set(TRAITS)


@every_case
def test_case_is_small_documented_and_made_anew_each_time(case: Case):
    first, second = case.module(), case.module()
    assert case.network.__doc__
    assert fingerprint(first) == fingerprint(second)
    assert first.training == case.train
    assert reference.flat_parameters(first).dtype == torch.float64
    assert memory(first).isdisjoint(memory(second))
    assert 0 < len(reference.flat_parameters(first)) <= 150
    assert 5 <= len(case.X) <= 8
    assert torch.isfinite(torch.tensor(loss_of(case)(reference.flat_parameters(first))))


def memory(module: nn.Module) -> set[int]:
    return {parameter.data_ptr() for parameter in module.parameters()}


@every_case
def test_traits_that_torch_fx_decides_are_true(case: Case):
    found = {"untraceable"} if trace(case.module(), enter_children=False) is None else set()
    graph, module = trace(case.module()), case.module()
    if graph is None:
        found.add("opaque")
    elif any(differ(graph, module, case.X, seed) for seed in range(4)):
        found.add("misread")
    assert found == case.traits & {"untraceable", "opaque", "misread"}


def differ(first: nn.Module, second: nn.Module, X: Tensor, seed: int) -> bool:
    outputs = [first_output(module, X.clone(), seed) for module in (first, second)]
    return not torch.equal(*outputs)


def trace(module: nn.Module, enter_children: bool = True) -> fx.GraphModule | None:
    """Return the graph of the module, which tracing may change; None if torch.fx gives up."""
    tracer = fx.Tracer()
    if not enter_children:
        tracer.is_leaf_module = lambda child, name: True
    with torch.random.fork_rng(devices=[]):
        try:
            return fx.GraphModule(module, tracer.trace(module))
        except Exception:  # torch.fx lets through whatever a Proxy meets on its way
            return None


@every_case
def test_traits_that_a_run_shows_are_true(case: Case):
    module, X, found = case.module(), case.X, set()
    before, base = fingerprint(module), first_output(module, X)
    if fingerprint(module) != before:
        found.add("stateful")
    if not torch.equal(X, case.X):
        found.add("writes_input")
    if not torch.equal(base, first_output(case.module(), case.X, seed=1)):
        found.add("random")
    if not all(p.requires_grad for p in module.parameters()):
        found.add("frozen")
    changed = first_output(case.module(), with_another_last_sample(case.X))
    if base.dim() == 0 or not torch.equal(base[:-1], changed[:-1]):
        found.add("mixes_samples")
    assert found == case.traits & {"stateful", "writes_input", "random", "frozen", "mixes_samples"}


def with_another_last_sample(X: Tensor) -> Tensor:
    """Return a batch whose last sample alone is other: much larger, or other tokens."""
    last = 100 * X[-1:] if X.is_floating_point() else 4 - X[-1:]
    return torch.cat([X[:-1], last])


def fingerprint(module: nn.Module) -> list[tuple[str, object]]:
    """Return all that the module and its children hold, as values that can be compared."""
    held = []
    for prefix, child in module.named_modules():
        for name, value in {**vars(child), **child._parameters, **child._buffers}.items():
            if isinstance(value, Tensor):
                held.append((f"{prefix}.{name}", value.tolist()))
            elif isinstance(value, bool | int | float | str | None):
                held.append((f"{prefix}.{name}", value))
    return sorted(held, key=lambda pair: pair[0])
