"""estimate_gradient on what users bring: criteria, layers and parameters of every kind."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from zoestim import BlackBox, FeatureReuseWarning, QueryError, estimate_gradient

pytestmark = pytest.mark.usefixtures("global_rng_untouched")


def drawn(build):
    """Build a module without touching the global generators."""
    with torch.random.fork_rng(devices=[]):
        return build().double()


INPUTS = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(6, 4)
TARGETS = torch.linspace(1, 0, 18, dtype=torch.float64).reshape(6, 3)


def test_a_criterion_that_draws_sees_the_same_draws_in_every_query():
    def criterion(outputs, y):
        return ((outputs - y) ** 2 * (torch.rand(len(y), 1) > 0.5)).mean()

    found = estimate_gradient(drawn(lambda: nn.Linear(4, 3)), criterion, INPUTS, TARGETS)
    assert found.gradient.values.abs().max() < 5


def test_a_criterion_may_write_to_what_it_is_given():
    def criterion(outputs, y):
        outputs -= y
        y += 1
        return (outputs**2).mean()

    module, before = drawn(lambda: nn.Linear(4, 3)), TARGETS.clone()
    found = estimate_gradient(module, criterion, INPUTS, TARGETS)
    expected = estimate_gradient(module, nn.MSELoss(), INPUTS, TARGETS)
    torch.testing.assert_close(found.gradient.values, expected.gradient.values)
    assert torch.equal(TARGETS, before)


def test_a_step_that_is_rounded_is_divided_by_what_is_left_of_it():
    pressure = np.array([101325.0], np.float32)  # its neighbours are 1 / 128 away, mu is 1 / 200
    box = BlackBox(lambda p, X: (p["P"] - pressure) * X, {"P": pressure})
    found = estimate_gradient(box, lambda o, y: o.mean(), torch.ones(3, 1), torch.zeros(3))
    assert found.gradient.values.item() == pytest.approx(1, rel=1e-6)


def test_complex_parameters_are_refused():
    module = nn.ParameterList([nn.Parameter(torch.ones(3, dtype=torch.complex128))])
    with pytest.raises(TypeError, match="complex parameters"):
        estimate_gradient(module, nn.MSELoss(), INPUTS, TARGETS)


def test_what_a_forward_stores_of_a_query_is_gone_with_it():
    class Stores(nn.Module):
        def forward(self, x):
            self.last = x
            return x[: len(x)]

    module = drawn(lambda: nn.Sequential(nn.Linear(4, 3), Stores()))
    with pytest.warns(FeatureReuseWarning):
        estimate_gradient(module, nn.MSELoss(), INPUTS, TARGETS)
    pickle.dumps(module[1].last)  # a lane of a fold could not be


def test_estimates_in_threads_do_not_disturb_each_other():
    module = drawn(lambda: nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 3)))
    state = torch.get_rng_state()

    def once(_):
        return estimate_gradient(
            copy.deepcopy(module), nn.MSELoss(), INPUTS, TARGETS
        ).gradient.values

    expected = once(0)
    with ThreadPoolExecutor(4) as threads:
        assert all(torch.equal(found, expected) for found in threads.map(once, range(8)))
    assert torch.equal(torch.get_rng_state(), state)


def test_an_error_of_a_black_box_says_what_was_moved():
    def refuses(params, X):
        if params["b"] != 0:
            raise OSError("out of paper")
        return X[:, :1] * params["a"]

    box = BlackBox(refuses, {"a": np.ones(1), "b": np.zeros(1)})
    text = (
        r"^The query at coordinate b\[0\] \(step 0\.005\) failed on the batch, asked 3 times by "
        r"worker \S+: OSError: out of paper\. Mend its cause"
    )
    with pytest.raises(QueryError, match=text) as raised:
        estimate_gradient(box, nn.MSELoss(), INPUTS, INPUTS[:, :1])
    assert isinstance(raised.value.__cause__, OSError)
