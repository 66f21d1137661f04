"""How a fit spends its queries and moves its parameters: counted by hand, step by step."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skorch.callbacks import Callback
from torch import Tensor, nn

from zoestim import BlackBox, ZOClassifier, ZORegressor
from zoestim.models import MLP
from zoestim.sparsity import Pruning

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

RNG = np.random.default_rng(0)
X = RNG.normal(size=(20, 2))
Y = np.arange(20) % 3
W1, W2 = "layers.1.weight", "layers.3.weight"  # of sizes 6 and 9; the two biases have 3 each
# Sparsity 0.8 leaves 3 of the 15 weights and all 6 biases; one estimate of ZO-GraSP costs 2(5 + 1).
TINY = {
    "module": MLP,
    "module__hidden": 3,
    "sparsity": 0.8,
    "n_pruning_queries": 5,
    "max_epochs": 4,
    "random_state": 0,
}

STOPPING = {"early_stopping": True, "validation_fraction": 0.25}


class Watch(Callback):
    """Keeps what each step and each epoch did."""

    def __init__(self):
        self.rates: list[float] = []
        self.active: list[list[int]] = []
        self.before: list[Tensor] = []
        self.after: list[Tensor] = []
        self.epochs: list[dict] = []
        self.losses: list[float] = []

    def on_batch_begin(self, net, training=True, **kwargs):
        if training:
            self.before.append(flat(net.module_))

    def on_batch_end(self, net, training=True, **kwargs):
        if training:
            self.rates.append(net.optimizer_.param_groups[0]["lr"])
            self.active.append(net.zo_step.active.tolist())
            self.after.append(flat(net.module_))

    def on_epoch_end(self, net, **kwargs):
        self.epochs.append(copy.deepcopy(net.module_.state_dict()))
        self.losses.append(net.history[-1].get("valid_loss"))


class Counted:
    """A linear black box that counts its calls, also those of its copies."""

    def __init__(self):
        self.calls = 0

    def __call__(self, params: dict, inputs: np.ndarray) -> np.ndarray:
        self.calls += 1
        return inputs @ params["w"] + params["b"]

    def __deepcopy__(self, memo: dict) -> "Counted":
        return self


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()


def fitted(**params) -> ZOClassifier:
    return ZOClassifier(**{**TINY, **params}).fit(X, Y)


def watched(**params) -> tuple[ZOClassifier, Watch]:
    watch = Watch()
    return fitted(callbacks=[watch], **params), watch


def black_box(**params) -> tuple[ZOClassifier, Counted]:
    box = Counted()
    start = {"w": np.zeros((2, 3)), "b": np.zeros(3)}
    model = ZOClassifier(box, initial_params=start, n_pruning_queries=3, random_state=0, **params)
    return model, box


# --- Queries


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"sparsity": 0}, 4 * (1 + 21)),
        ({"pruning": None}, 4 * (1 + 21)),
        ({"sparsity": 0, "scheme": "central"}, 4 * (1 + 42)),
        ({}, 12 + 4 * (1 + 9)),
        ({"scheme": "central"}, 12 + 4 * (1 + 18)),
        ({"batch_size": 6}, 12 + 4 * 4 * (1 + 9)),
        ({"batch_size": 19}, 12 + 4 * (1 + 9)),
        ({"pruning": "random"}, 4 * (1 + 9)),
        ({"pruning": "uniform"}, 4 * (1 + 9)),
        ({"pruning": "magnitude"}, 4 * (1 + 9)),
        ({"pruning": "fo-grasp"}, 4 * (1 + 9)),
        ({"pruning": {W1: 0.5}}, 4 * (1 + 3 + 2 + 6)),
        ({"pruning": {W1: 0.5, W2: 1.0}}, 4 * (1 + 3 + 6)),
        ({"pruning": {W1: 0.5}, "sparsity": 0}, 4 * (1 + 3 + 9 + 6)),
        ({"gradient": "rge", "n_directions": 7}, 12 + 4 * (1 + 7)),
        ({"gradient": "rge", "n_directions": 7, "scheme": "central"}, 12 + 4 * (1 + 14)),
        ({"pruning": Pruning(selection="fixed")}, 12 + 4 * (1 + 9)),
        ({"pruning": Pruning(selection="renewed")}, 4 * (12 + 1 + 9)),
        ({"pruning": Pruning(selection="renewed"), "mask_interval": 2}, 2 * 12 + 4 * (1 + 9)),
        (
            {"pruning": Pruning(selection="renewed"), "mask_interval": "batch", "batch_size": 10},
            8 * (12 + 1 + 9),
        ),
        ({"pruning": Pruning("magnitude", selection="renewed")}, 4 * (1 + 9)),
        # 5 of the 20 samples are held out: two batches, and five for the other 15.
        (STOPPING | {"batch_size": 3}, 12 + 4 * (50 + 2)),
    ],
)
def test_a_fit_asks_as_often_as_counted_by_hand(params: dict, expected: int):
    model = fitted(**params)
    assert model.n_queries_ == expected
    assert model.history_[-1, "n_queries"] == expected
    assert (model.n_iter_, len(model.loss_curve_)) == (4, 4)


def test_one_weight_a_layer_at_least_is_asked_for():
    assert fitted(sparsity=0.99).n_queries_ == 12 + 4 * (1 + 2 + 6)


@pytest.mark.parametrize("reuse", [True, False])
def test_a_black_box_is_called_once_a_query(reuse: bool):
    model, box = black_box(sparsity=0.5, max_epochs=3, feature_reuse=reuse)
    model.fit(X, Y)
    assert model.n_queries_ == 8 + 3 * (1 + 4)  # 4 of the 9 numbers
    assert box.calls == model.n_queries_


def test_a_black_box_between_layers_is_called_no_oftener_than_the_method_asks():
    box = Counted()
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(
            nn.Linear(2, 2), BlackBox(box, {"w": np.eye(2), "b": np.zeros(2)}), nn.Linear(2, 3)
        ).double()
    model = ZOClassifier(net, sparsity=0, max_epochs=2, random_state=0).fit(X, Y)
    assert model.n_queries_ == 2 * (1 + 6 + 6 + 9)
    assert box.calls <= 2 * (1 + 6 + 6)  # the last layer's queries reuse its outputs


@settings(max_examples=25, deadline=None)
@given(
    budget=st.integers(13, 150),
    kind=st.sampled_from(["dynamic", "renewed", "fixed"]),
    interval=st.sampled_from([1, 2, "batch"]),
    batch_size=st.sampled_from([3, 7, 20]),
    scheme=st.sampled_from(["forward", "central"]),
    stopping=st.booleans(),
)
def test_no_budget_is_exceeded_and_none_is_left_that_would_buy_a_step(
    budget, kind, interval, batch_size, scheme, stopping
):
    model, box = black_box(sparsity=0.5, max_epochs=200, max_queries=budget, scheme=scheme)
    model.set_params(pruning=Pruning(selection=kind), mask_interval=interval)
    model.set_params(batch_size=batch_size, early_stopping=stopping, n_iter_no_change=200)
    model.set_params(validation_fraction=0.25)
    step = 1 + (8 if scheme == "central" else 4)
    validation = {3: 2, 7: 1, 20: 1}[batch_size] if stopping else 0
    if budget < 8 + step + validation:
        with pytest.raises(ValueError, match=rf"max_queries={budget} does not allow one"):
            model.fit(X, Y)
        assert box.calls == 0
        return
    model.fit(X, Y)
    assert model.termination_condition_ == "max_queries"
    assert box.calls == model.n_queries_ <= budget
    dearest = step + validation + (8 if kind == "renewed" else 0)
    assert budget - model.n_queries_ < dearest


def test_validation_batches_of_another_size_stay_within_the_budget():
    model, _ = black_box(sparsity=0, max_epochs=50, max_queries=71, early_stopping=True)
    model.set_params(validation_fraction=0.5, iterator_valid__batch_size=2)  # 5 batches
    assert model.fit(X, Y).n_queries_ == 4 * (1 + 9 + 5)


def test_the_budget_counts_from_the_first_of_continued_fits():
    model = fitted(warm_start=True, sparsity=0)
    model.set_params(max_queries=88 + 22 + 21).fit(X, Y)
    assert model.n_queries_ == 88 + 22
    with pytest.raises(
        ValueError, match=r"needs 22 queries, 0 of .* 110 were asked before\. .* above 131,"
    ):
        model.partial_fit(X, Y)


def test_a_continued_fit_may_have_another_sparsity():
    model, box = black_box(sparsity=0.5, pruning="random", max_epochs=2, warm_start=True)
    model.fit(X, Y).set_params(sparsity=0.1).fit(X, Y)  # 4 numbers, then 8
    assert model.n_queries_ == box.calls == 2 * (1 + 4) + 2 * (1 + 8)
    model.set_params(sparsity=0.5, max_queries=28 + 7, max_epochs=9).fit(X, Y)
    assert model.n_queries_ == box.calls == 28 + (1 + 4)


# --- Coordinates


def test_active_updates_leave_idle_coordinates_bitwise_unchanged():
    _, watch = watched(mask_interval="batch", batch_size=5, optimizer__weight_decay=0.1)
    for before, after, active in zip(watch.before, watch.after, watch.active, strict=True):
        moved = (before != after).nonzero().flatten().tolist()
        assert moved == active


def test_updates_of_all_move_idle_coordinates_by_momentum():
    _, watch = watched(mask_interval="batch", update="all")
    first, second = watch.active[:2]
    idle = sorted(set(first) - set(second))
    assert idle
    assert (watch.before[1][idle] != watch.after[1][idle]).all()
    step = watch.after[0][idle] - watch.before[0][idle]
    lr = watch.rates[1] / watch.rates[0]
    torch.testing.assert_close(watch.after[1][idle], watch.after[0][idle] + 0.9 * lr * step)


@pytest.mark.parametrize(
    ("interval", "changes"), [(1, [2, 4, 6]), (2, [4]), (9, []), ("batch", [1, 2, 3, 4, 5, 6, 7])]
)
def test_coordinate_sets_are_renewed_at_their_interval(interval, changes: list[int]):
    _, watch = watched(mask_interval=interval, batch_size=10)  # 2 steps an epoch
    sets = watch.active
    assert [k for k in range(1, 8) if sets[k] != sets[k - 1]] == changes


def test_one_fixed_set_is_kept_and_holds_the_largest_weights():
    _, watch = watched(pruning=Pruning("magnitude", selection="fixed"))
    assert all(active == watch.active[0] for active in watch.active)
    theta = watch.before[0]
    weights = [*range(6), *range(9, 18)]
    largest = sorted(weights, key=lambda i: -abs(theta[i]))[:3]
    assert watch.active[0] == sorted([*largest, *range(6, 9), *range(18, 21)])


def test_renewed_sets_hold_the_largest_weights_of_the_moment():
    _, watch = watched(pruning=Pruning("magnitude", selection="renewed"), lr=2.0)
    weights = [*range(6), *range(9, 18)]
    for theta, active in zip(watch.before, watch.active, strict=True):
        largest = sorted(weights, key=lambda i: -abs(theta[i]))[:3]
        assert [i for i in active if i in weights] == sorted(largest)


@pytest.mark.parametrize("pruning", ["zo-grasp", "random", "magnitude", "fo-grasp"])
def test_layer_ratios_leave_out_what_sparsity_says_and_no_bias(pruning: str):
    model, watch = watched(pruning=pruning)
    ratios = model.layer_ratios_
    assert 6 * ratios[W1] + 9 * ratios[W2] == pytest.approx(12)
    assert ratios["layers.1.bias"] == ratios["layers.3.bias"] == 0
    for active in watch.active:
        assert sum(i < 6 for i in active) == pytest.approx(6 * (1 - ratios[W1]))
        assert sum(9 <= i < 18 for i in active) == pytest.approx(9 * (1 - ratios[W2]))


def test_uniform_and_given_ratios_are_kept():
    assert fitted(pruning="uniform").layer_ratios_[W1] == 0.8
    ratios = fitted(pruning={W1: 0.5}).layer_ratios_
    assert (ratios[W1], ratios[W2]) == (0.5, 0.8)
    assert set(fitted(pruning=None).layer_ratios_.values()) == {0.0}


def test_the_layers_of_a_black_box_are_its_arrays():
    model, _ = black_box(sparsity=0.5, max_epochs=1)
    ratios = model.fit(X, Y).layer_ratios_
    assert set(ratios) == {"w", "b"}
    assert 6 * ratios["w"] + 3 * ratios["b"] == pytest.approx(5)


# --- Buffers


@pytest.mark.parametrize("sparsity", [0, 0.8])
def test_running_statistics_are_those_of_one_training_forward_a_step(sparsity: float):
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    expected = copy.deepcopy(net).train()
    model = ZOClassifier(net, sparsity=sparsity, lr=1e-300, max_epochs=4, n_pruning_queries=5)
    model.fit(X, Y)
    for _ in range(4):
        expected(torch.tensor(X))
    assert model.module_[1].num_batches_tracked == 4
    torch.testing.assert_close(model.module_.state_dict(), expected.state_dict())


# --- Learning rate


@pytest.mark.parametrize(
    ("params", "factors"),
    [
        ({}, [(1 + math.cos(math.pi * k / 8)) / 2 for k in range(8)]),
        ({"lr_schedule": "constant"}, [1] * 8),
        ({"lr_schedule": lambda done: 1 - done}, [1 - k / 8 for k in range(8)]),
        ({"lr_schedule": "constant", "warmup_epochs": 2}, [0.25, 0.5, 0.75] + [1] * 5),
        (
            {"lr_schedule": lambda done: 2 - done, "warmup_epochs": 1},
            [1] + [2 - k / 8 for k in range(1, 8)],
        ),
    ],
    ids=["cosine", "constant", "callable", "warmup", "both"],
)
def test_learning_rates_follow_their_schedule(params: dict, factors: list[float]):
    _, watch = watched(lr=0.5, batch_size=10, **params)  # 2 steps an epoch
    np.testing.assert_allclose(watch.rates, 0.5 * np.array(factors))


def test_a_cosine_ends_near_zero_where_the_budget_ends_the_fit():
    _, watch = watched(lr=1.0, sparsity=0, max_epochs=1000, max_queries=20 * 22)
    expected = [(1 + math.cos(math.pi * k / 20)) / 2 for k in range(20)]
    np.testing.assert_allclose(watch.rates, expected)


def test_groups_of_parameters_have_their_own_rates():
    groups = [("layers.1.*", {"lr": 0.01})]
    model = fitted(lr=0.5, optimizer__param_groups=groups, lr_schedule="constant", max_epochs=1)
    assert {group["lr"] for group in model.net_.optimizer_.param_groups} == {0.01, 0.5}


# --- Ends


def test_early_stopping_returns_to_the_best_epoch():
    watch, y = Watch(), RNG.normal(size=20)
    model = ZORegressor(module__hidden=8, sparsity=0, lr=0.2, random_state=0, callbacks=[watch])
    model.set_params(early_stopping=True, validation_fraction=0.4, n_iter_no_change=5, tol=0)
    model.fit(X, y)
    best = int(np.argmin(watch.losses))
    assert model.termination_condition_ == "early_stopping"
    assert model.n_iter_ == best + 1 + 5
    assert model.history_[:, "valid_loss"] == watch.losses
    torch.testing.assert_close(model.module_.state_dict(), watch.epochs[best], rtol=0, atol=0)


def test_weights_of_one_change_nothing_in_early_stopping():
    with_, without = (ZOClassifier(**TINY, **STOPPING).fit(X, Y, w) for w in (np.ones(20), None))
    np.testing.assert_allclose(with_.history_[:, "valid_loss"], without.history_[:, "valid_loss"])


def test_early_stopping_waits_for_a_fall_of_tol():
    model = fitted(**STOPPING, tol=1e9, n_iter_no_change=2, max_epochs=50)
    assert model.n_iter_ == 3


class Third(Callback):
    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("params", "expected", "epochs"),
    [
        ({}, "max_epochs", 4),
        ({"sparsity": 0, "max_queries": 50}, "max_queries", 2),
        (STOPPING | {"tol": 1e9, "n_iter_no_change": 1}, "early_stopping", 2),
        ({"callbacks": [Third()]}, "callback", 3),
    ],
)
def test_the_end_of_a_fit_has_a_reason(params: dict, expected: str, epochs: int):
    model = fitted(**params)
    assert (model.termination_condition_, model.n_iter_) == (expected, epochs)


def test_a_fit_that_fails_ends_by_error():
    def fails_later(outputs: Tensor, y: Tensor) -> float:
        losses.append(float(outputs[0, 0]))  # what torch.func.vmap cannot do
        return 1.0 if len(losses) < 40 else math.nan

    losses: list[float] = []
    model = ZOClassifier(**TINY | {"criterion": fails_later, "sparsity": 0, "feature_reuse": False})
    with pytest.raises(RuntimeError, match="NaN"):
        model.fit(X, Y)
    assert (model.termination_condition_, model.n_iter_) == ("error", 1)
