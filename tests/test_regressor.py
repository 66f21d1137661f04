"""ZORegressor: what targets may look like, and in which units a module answers."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from zoestim import ZORegressor

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

X = np.random.default_rng(0).normal(size=(50, 2))
SLOPES = np.array([[2.0, 0.5, -1.0], [-3.0, 0.0, 2.0]])
SHIFT = np.array([1000.0, -20.0, 0.1])
MANY = X @ SLOPES + SHIFT
ONE = MANY[:, 0]
QUICK = {"sparsity": 0, "max_epochs": 5, "random_state": 0}


def make_linear(n_features_in: int, n_outputs: int) -> nn.Module:
    return nn.Linear(n_features_in, n_outputs)


def physical(params: np.ndarray, inputs: np.ndarray) -> np.ndarray:
    """Return the height of a ball over time, of unknown gravity and speed."""
    return -0.5 * params[0] * inputs[:, 0] ** 2 + params[1] * inputs[:, 0]


# --- Shapes


@pytest.mark.parametrize("module", [None, make_linear])
@pytest.mark.parametrize("y", [ONE, ONE[:, None], MANY], ids=["n", "n1", "nk"])
def test_predictions_have_the_shape_of_the_targets_and_are_float64(module, y: np.ndarray):
    found = ZORegressor(module, **QUICK).fit(X, y).predict(X[:7])
    assert found.shape == (7, *y.shape[1:])
    assert found.dtype == np.float64


@pytest.mark.parametrize("y", [ONE, ONE[:, None]], ids=["n", "n1"])
@pytest.mark.parametrize("columns", [(), (1,)], ids=["outputs_n", "outputs_n1"])
def test_one_output_may_have_a_column_or_not(y: np.ndarray, columns: tuple):
    def line(params: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        return (inputs @ params).reshape(len(inputs), *columns)

    small = y - SHIFT[0]
    model = ZORegressor(line, initial_params=np.zeros(2), lr=0.1, **QUICK | {"max_epochs": 60})
    assert model.fit(X, small).predict(X).shape == small.shape
    assert model.score(X, small) > 0.99


def test_integer_targets_are_numbers():
    model = ZORegressor(make_linear, **QUICK).fit(X, np.arange(50))
    assert np.isfinite(model.predict(X)).all()


def test_a_second_fit_may_have_other_targets_but_partial_fit_may_not():
    model = ZORegressor(**QUICK).fit(X, MANY).fit(X, ONE)
    assert model.predict(X).shape == (50,)
    with pytest.raises(ValueError, match=r"y has shape \(50, 3\); expected 1 target"):
        model.partial_fit(X, MANY)


# --- Units


def test_the_default_network_learns_targets_far_from_zero():
    model = ZORegressor(**QUICK | {"max_epochs": 60}).fit(X, MANY)
    assert model.score(X, MANY) > 0.95


def test_without_a_module_the_fit_sees_standardised_targets():
    # Outputs of a linear network without training are its weights': lr is too small to matter.
    model = ZORegressor(module__hidden=(), lr=1e-300, **QUICK).fit(X, ONE)
    with torch.no_grad():
        outputs = model.module_(torch.tensor(X)).numpy()[:, 0]
    expected = outputs * ONE.std() + ONE.mean()
    np.testing.assert_allclose(model.predict(X), expected, rtol=1e-12)
    standardised = (ONE - ONE.mean()) / ONE.std()
    assert model.loss_curve_[0] == pytest.approx(((outputs - standardised) ** 2).mean(), rel=1e-9)


def test_standardisation_takes_the_weights_into_account():
    weight = np.r_[np.ones(20), np.zeros(30)]
    model = ZORegressor(**QUICK).fit(X, MANY, weight)
    left_out = ZORegressor(**QUICK).fit(X[:20], MANY[:20])
    np.testing.assert_allclose(model.predict(X), left_out.predict(X), rtol=1e-9)


def test_constant_targets_are_predicted():
    model = ZORegressor(**QUICK | {"max_epochs": 60}).fit(X, np.full(50, 7.0))
    np.testing.assert_allclose(model.predict(X), 7, atol=0.2)


def test_standardised_fits_do_not_depend_on_the_units_of_the_targets():
    metres = ZORegressor(**QUICK).fit(X, ONE)
    millimetres = ZORegressor(**QUICK).fit(X, 1000 * ONE)
    np.testing.assert_allclose(millimetres.predict(X), 1000 * metres.predict(X), rtol=1e-6)


def test_a_module_of_ones_own_sees_the_targets_as_they_are():
    seen = []

    def squared(outputs: Tensor, y: Tensor) -> Tensor:
        seen.append(y.double())
        return (outputs - y) ** 2

    model = ZORegressor(make_linear, criterion=squared, **QUICK).fit(X, MANY)
    np.testing.assert_allclose(seen[0].sort(0).values, np.sort(MANY, 0), rtol=1e-6)
    with torch.no_grad():
        outputs = model.module_(torch.tensor(X).float()).double().numpy()
    np.testing.assert_array_equal(model.predict(X), outputs)


def test_the_physical_constants_of_a_black_box_are_found():
    times = np.linspace(-1, 1, 40)[:, None]
    height = physical(np.array([9.81, 3.0]), times)
    model = ZORegressor(
        physical, initial_params=np.ones(2), sparsity=0, lr=0.3, max_epochs=150, random_state=0
    ).fit(times, height)
    np.testing.assert_allclose(model.module_.params.detach(), [9.81, 3.0], rtol=0.02)
    assert model.score(times, height) > 0.999


# --- Losses and scores


def test_the_default_loss_is_the_mean_squared_error():
    own = ZORegressor(make_linear, **QUICK).fit(X, MANY)
    given = ZORegressor(make_linear, criterion=nn.MSELoss(reduction="none"), **QUICK).fit(X, MANY)
    # Its outputs and their mean are rounded in another order.
    assert own.loss_curve_ == pytest.approx(given.loss_curve_, rel=1e-9)


def test_another_criterion_gives_another_estimate():
    y = np.r_[np.zeros(45), np.full(5, 10.0)]

    def constant(params: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        return np.repeat(params, len(inputs))

    model = ZORegressor(constant, initial_params=np.full(1, 5.0), lr=0.05, smoothing=0.1)
    model.set_params(**QUICK | {"max_epochs": 150})
    mean = model.fit(X, y).predict(X)[0]
    median = model.set_params(criterion=nn.L1Loss, lr=0.2).fit(X, y).predict(X)[0]
    assert mean == pytest.approx(1, abs=0.2)
    assert median == pytest.approx(0, abs=0.2)


def test_a_smooth_function_is_learned():
    grid = np.linspace(-1, 1, 40)[:, None]
    y = np.sin(3 * grid[:, 0])
    model = ZORegressor(module__hidden=8, sparsity=0, lr=0.1, random_state=0)
    assert model.fit(grid, y).score(grid, y) > 0.9


def test_sparse_estimates_learn_too():
    model = ZORegressor(random_state=0).fit(X, ONE)
    assert model.score(X, ONE) > 0.9


@pytest.mark.parametrize("criterion", [nn.MSELoss, nn.L1Loss, nn.HuberLoss])
def test_torch_criteria_fit_one_column_of_outputs_to_flat_targets(criterion):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    y = X @ [1.0, -2.0, 0.5]
    model = ZORegressor(criterion=criterion, sparsity=0, lr=0.1, max_epochs=40, random_state=0)
    assert model.fit(X, y).score(X, y) > 0.8


def test_a_fit_in_which_no_query_changed_the_loss_warns():
    def counted(params, X):
        return np.round(X[:, :1] * params)

    model = ZORegressor(counted, initial_params=np.ones(1), max_epochs=2, random_state=0)
    with pytest.warns(ConvergenceWarning, match=r"No query changed the loss.*smoothing=0\.005"):
        model.fit(np.arange(6.0).reshape(-1, 1), np.arange(6.0) * 3)
    assert model.termination_condition_ == "max_epochs"
