"""Differences at the input of a black box, and the chain rule through what is before it."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zoestim.evaluation import Batch, BlackBox, Objective
from zoestim.gradients import CoordinateEstimator, RandomizedEstimator
from zoestim.training import Chain, ChainStep, StepSettings

X = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(5, 4)
Y = torch.tensor([0, 2, 1, 1, 0])


def box(inputs: np.ndarray) -> np.ndarray:
    """Return three scores of rows with three numbers, in any number of leading axes."""
    return np.stack([np.sin(inputs).sum(-1), (inputs**2).sum(-1), inputs[..., 0] ** 3], -1)


def torch_box(inputs: Tensor) -> Tensor:
    columns = [torch.sin(inputs).sum(-1), (inputs**2).sum(-1), inputs[..., 0] ** 3]
    return torch.stack(columns, -1)


def white() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def step(chain: Chain, estimator, batch: Batch, **settings) -> ChainStep:
    objective = Objective(chain, nn.CrossEntropyLoss())
    made = ChainStep(torch.Generator().manual_seed(0))
    made.begin(StepSettings(estimator, None, 0.0, 1, 1, 5e-3, None, **settings), objective)
    made(batch)
    return made


def gradient(module: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters()])


def by_autograd(module: nn.Module, batch: Batch) -> Tensor:
    module.zero_grad()
    losses = nn.functional.cross_entropy(torch_box(module(batch.X)), batch.y, reduction="none")
    weight = torch.ones(len(losses)) if batch.weight is None else batch.weight
    (losses @ (weight / weight.sum()).double()).backward()
    return gradient(module)


@pytest.mark.parametrize("weight", [None, torch.tensor([1.0, 2.0, 0.0, 1.0, 3.0]).double()])
@pytest.mark.parametrize("vectorized", [False, True, 2])
def test_central_differences_at_the_input_give_the_gradient_of_all_weights(weight, vectorized):
    module, batch = white(), Batch(X, Y, weight)
    chain = Chain(module, BlackBox(box, vectorized=vectorized), width=3)
    done = step(chain, CoordinateEstimator(1e-4, "central"), batch)
    found = gradient(module)
    torch.testing.assert_close(found, by_autograd(white(), batch), rtol=1e-6, atol=1e-8)
    assert done.n_queries == 2 * 3 + 1


def test_differences_equal_the_obvious_loop_over_samples_and_inputs():
    module, batch, mu = white(), Batch(X, Y), 5e-3
    step(Chain(module, BlackBox(box, vectorized=True), width=3), CoordinateEstimator(mu), batch)
    found = gradient(module)
    inputs, slopes = module(X), torch.zeros(5, 3, dtype=torch.float64)

    def loss(row: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(torch_box(row[None]), label[None])

    for i in range(5):
        for k in range(3):
            moved = inputs[i].detach().clone()
            moved[k] += mu
            slopes[i, k] = (loss(moved, Y[i]) - loss(inputs[i].detach(), Y[i])) / mu
    module.zero_grad()
    inputs.backward(slopes / 5)
    torch.testing.assert_close(found, gradient(module), rtol=1e-9, atol=1e-12)


def test_random_directions_differ_between_samples_and_average_to_the_gradient():
    module, batch = white(), Batch(X, Y)
    chain = Chain(module, BlackBox(box, vectorized=True), width=3)
    done = step(chain, RandomizedEstimator(4000, 1e-5), batch)
    found, expected = gradient(module), by_autograd(white(), batch)
    assert done.n_queries == 4001
    assert float((found - expected).norm() / expected.norm()) < 0.25  # samples cancel


def test_queries_count_by_sample_where_the_settings_say_so():
    chain = Chain(white(), BlackBox(box, vectorized=True), width=3)
    done = step(chain, CoordinateEstimator(), Batch(X, Y), samples_a_query=4)
    assert done.n_queries == 5 * 4  # the batch has five samples
    assert done.next_cost() == 4 * 4
    assert done.next_cost(3) == 3 * 4


def test_queries_of_the_weights_are_those_of_the_whole():
    module, whole = white(), white()
    step(Chain(module, BlackBox(box)), CoordinateEstimator(), Batch(X, Y))
    found = gradient(module)
    loss = nn.functional.cross_entropy
    base = loss(torch_box(whole(X)), Y)
    weight = whole[2].weight
    with torch.no_grad():
        weight[1, 2] += 5e-3
        moved = loss(torch_box(whole(X)), Y)
    expected = float((moved - base).detach()) / 5e-3
    assert float(module[2].weight.grad[1, 2]) == pytest.approx(expected, rel=1e-8)
    assert len(found) == 4 * 6 + 6 + 6 * 3 + 3


@pytest.mark.parametrize("width", [None, 3])
def test_a_penalty_adds_its_exact_gradient(width):
    def penalty(inputs: Tensor, x: Tensor) -> Tensor:
        return (inputs**2).mean() * 0.5

    plain, module = white(), white()
    estimator = CoordinateEstimator()
    step(Chain(plain, BlackBox(box), width), estimator, Batch(X, Y))
    step(Chain(module, BlackBox(box), width, penalty), estimator, Batch(X, Y))
    without, found = gradient(plain), gradient(module)
    plain.zero_grad()
    penalty(plain(X), X).backward()
    torch.testing.assert_close(found - without, gradient(plain), rtol=1e-9, atol=1e-12)


def test_parts_stay_in_their_mode():
    chain = Chain(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval(), BlackBox(box), 3)
    chain.train()
    assert chain.training
    assert not chain.white.training
