"""estimate_gradient on what users bring: criteria, layers and parameters of every kind."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import cloudpickle
import numpy as np
import pytest
import torch
from torch import nn

from zoestim import (
    BlackBox,
    FeatureReuseWarning,
    QueryError,
    ZORegressor,
    estimate_gradient,
)

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


class Refusal(Exception):
    """Asks for arguments that it does not hand to its base, so that it cannot be unpickled."""

    def __init__(self, device: str, code: int):
        super().__init__(f"{device} refused with {code}.")
        self.code = code


class Mute(Exception):
    """Cannot tell its text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def raises(error):
    """Return a black box that raises an error where its parameter is moved."""

    def box(params, X):
        if params[0]:
            raise error()
        return X[:, :1] * params

    return BlackBox(box, np.zeros(1))


def estimate_with(error, backend: str):
    """Return the error of an estimate whose queries raise another."""
    how = {"n_jobs": 2, "backend": backend, "max_retries": 0}
    with pytest.raises(QueryError) as raised:
        estimate_gradient(raises(error), nn.MSELoss(), INPUTS, INPUTS[:, :1], **how)
    return raised.value


def refuse():
    return Refusal("The meter", 7)


@pytest.mark.parametrize("backend", ["sequential", "threading"])
def test_an_error_in_this_process_is_the_cause_itself(backend: str):
    error = estimate_with(refuse, backend)
    assert "Refusal: The meter refused with 7. Mend its cause" in str(error)
    assert isinstance(error.__cause__, Refusal)
    assert error.__cause__.code == 7


def test_an_error_of_another_process_says_where_it_was_raised():
    cause = estimate_with(refuse, "loky").__cause__
    assert str(cause) == "Refusal: The meter refused with 7."
    assert "raise error()" in cause.__notes__[0]
    cause = estimate_with(ZeroDivisionError, "loky").__cause__
    assert isinstance(cause, ZeroDivisionError)
    assert "raise error()" in cause.__notes__[0]


@pytest.mark.parametrize("backend", ["sequential", "threading", "loky"])
def test_an_error_that_cannot_tell_its_text_is_named(backend: str):
    assert r"Mute: (its text cannot be had). Mend" in str(estimate_with(Mute, backend))


def test_a_fit_of_functions_of_a_script_comes_back_from_a_worker():
    """As with `cross_validate(..., return_estimator=True, n_jobs=2)`."""
    inputs = np.linspace(-1, 1, 24).reshape(12, 2)
    model = ZORegressor(lambda params, X: X @ params, initial_params=np.zeros(2), max_epochs=2)
    model.fit(inputs, inputs.sum(1))
    again = pickle.loads(cloudpickle.dumps(model))
    assert np.array_equal(again.predict(inputs), model.predict(inputs))
    assert again.fit(inputs, inputs.sum(1)).n_queries_ == model.n_queries_
