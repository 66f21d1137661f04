"""ZO-GraSP, Eq. (3), against the reference and against automatic differentiation, Eq. (2)."""

import pytest
import torch
from torch import Tensor

import reference
from zoestim.gradients import RandomizedEstimator
from zoestim.sparsity import first_order_grasp_scores, grasp_scores

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

A = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, -0.3], [0.0, -0.3, 3.0]], dtype=torch.float64)
THETA = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def quadratic(theta: Tensor) -> Tensor:
    return theta @ A @ theta / 2


def smooth(theta: Tensor) -> Tensor:
    return theta.sin().prod() + (theta @ A @ theta / 4).exp()


def gradient_of_smooth(theta: Tensor) -> Tensor:
    return torch.func.grad(smooth)(theta)


@pytest.mark.parametrize("smoothing", [1.0, 5e-3])
def test_scores_are_those_of_the_reference(smoothing: float):
    found = grasp_scores(THETA, gradient_of_smooth, smoothing)
    expected = reference.grasp_scores(THETA, gradient_of_smooth, smoothing)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("smoothing", [1.0, 5e-3])
def test_scores_of_a_quadratic_are_exact_at_any_step(smoothing: float):
    found = grasp_scores(THETA, lambda theta: A @ theta, smoothing)
    torch.testing.assert_close(found, first_order_grasp_scores(THETA, quadratic))
    torch.testing.assert_close(found, -THETA * (A @ A @ THETA))


def test_scores_of_a_smooth_function_come_closer_to_first_order_as_the_step_falls():
    exact = first_order_grasp_scores(THETA, smooth)
    errors = [
        float((grasp_scores(THETA, gradient_of_smooth, mu) - exact).norm()) for mu in (1e-4, 1e-5)
    ]
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.05)
    assert errors[1] < 1e-3 * exact.norm()


def test_first_order_scores_hold_the_hessian_times_the_gradient():
    hessian = torch.autograd.functional.hessian(smooth, THETA)
    expected = -THETA * (hessian @ gradient_of_smooth(THETA))
    torch.testing.assert_close(first_order_grasp_scores(THETA, smooth), expected)


def test_first_order_scores_need_no_gradient_mode_and_leave_no_graph():
    with torch.no_grad():
        found = first_order_grasp_scores(THETA, smooth)
    assert not found.requires_grad
    assert not THETA.requires_grad
    torch.testing.assert_close(found, first_order_grasp_scores(THETA, smooth))


def test_the_gradient_is_asked_for_twice_and_theta_is_left_alone():
    asked, before = [], THETA.clone()
    grasp_scores(THETA, lambda theta: asked.append(theta.clone()) or A @ theta, smoothing=0.5)
    assert torch.equal(torch.stack(asked), torch.stack([THETA, THETA + 0.5 * A @ THETA]))
    assert torch.equal(THETA, before)


def test_scores_from_function_values_with_the_same_directions_both_times_are_near_exact():
    estimator = RandomizedEstimator(n_directions=20_000, smoothing=1e-4, scheme="central")
    asked = estimator.queries(torch.arange(3), (3,), torch.Generator().manual_seed(0))
    rows = torch.stack([asked.direction(k) for k in range(20_000)])

    def gradient(theta: Tensor) -> Tensor:
        moved = theta + asked.steps[:, None] * rows.repeat(2, 1)
        return estimator.combine(asked, 0.0, ((moved @ A) * moved).sum(1) / 2).values

    found, exact = grasp_scores(THETA, gradient, 5e-3), first_order_grasp_scores(THETA, quadratic)
    assert (found - exact).norm() < 0.1 * exact.norm()
