"""Callbacks of skorch and of scikit-learn, and what a fit prints."""

import copy
import pickle

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback, EarlyStopping, EpochScoring, LRScheduler
from torch.optim.lr_scheduler import ExponentialLR

from zoestim import ZOClassifier, ZORegressor
from zoestim.models import MLP

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

X = np.random.default_rng(0).normal(size=(20, 2))
Y = np.arange(20) % 2
PER_STEP = 1 + 6 + 3 + 6 + 2  # of an MLP with 3 hidden units, and the base loss


def make(**params) -> ZOClassifier:
    defaults = {"module__hidden": 3, "sparsity": 0, "max_epochs": 5, "random_state": 0}
    return ZOClassifier(MLP, **{**defaults, **params})


class Rates(Callback):
    def __init__(self):
        self.rates = []

    def on_batch_end(self, net, training=True, **kwargs):
        self.rates.append(net.optimizer_.param_groups[0]["lr"])


class Stop(Callback):
    """Stops as skorch's own callbacks do."""

    def __init__(self, epoch: int):
        self.epoch = epoch

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == self.epoch:
            raise KeyboardInterrupt


# --- skorch


def test_scores_of_an_epoch_are_in_the_history():
    def weight_norm(net, X, y) -> float:
        return float(net.module_.layers[1].weight.detach().norm())

    scoring = EpochScoring(weight_norm, on_train=True, name="norm")
    model = make(callbacks=[scoring]).fit(X, Y)
    assert len(model.history_[:, "norm"]) == 5
    assert model.history_[-1, "norm"] == float(model.module_.layers[1].weight.detach().norm())


def test_a_scheduler_of_skorch_rules_the_rate_where_ours_is_constant():
    rates = Rates()
    halving = LRScheduler(ExponentialLR, gamma=0.5)
    make(lr=0.8, lr_schedule="constant", callbacks=[halving, rates]).fit(X, Y)
    assert rates.rates == [0.8, 0.4, 0.2, 0.1, 0.05]


def test_a_callback_that_interrupts_ends_the_fit_as_callback():
    model = make(callbacks=[Stop(2)]).fit(X, Y)
    assert (model.termination_condition_, model.n_iter_) == ("callback", 2)
    assert model.n_queries_ == 2 * PER_STEP


def test_skorchs_early_stopping_on_the_training_loss_works():
    stopping = EarlyStopping("train_loss", patience=2, threshold=1e9, threshold_mode="abs")
    model = make(callbacks=[stopping]).fit(X, Y)
    assert (model.termination_condition_, model.n_iter_) == ("callback", 3)


def test_callbacks_have_names_and_their_parameters_prefixes():
    stopping = ("mine", Stop(1))
    model = make(callbacks=[stopping], callbacks__mine__epoch=4).fit(X, Y)
    assert model.n_iter_ == 4


def test_the_callbacks_of_a_net_after_its_fit_are_those_of_the_user():
    model = make(callbacks=[("mine", Stop(9))], verbose=0, early_stopping=True).fit(X, Y)
    names = [name for name, _ in model.net_.callbacks_]
    assert names[-1] == "mine"
    assert not {"Conductor", "LearningRate", "BudgetStop", "EarlyStopping"} & set(names)


def test_callbacks_see_the_loss_and_the_queries_of_each_step():
    seen = []

    class See(Callback):
        def on_batch_end(self, net, loss=None, y_pred=None, **kwargs):
            seen.append((float(loss), tuple(y_pred.shape), net.zo_step.n_queries))

    model = make(callbacks=[See()], batch_size=10, max_epochs=2).fit(X, Y)
    assert [shape for _, shape, _ in seen] == [(10, 2)] * 4
    assert [n for *_, n in seen] == [PER_STEP * k for k in (1, 2, 3, 4)]
    assert model.loss_curve_[0] == pytest.approx((seen[0][0] + seen[1][0]) / 2)


def test_gradients_are_in_reach_of_callbacks():
    norms = []

    class Norms(Callback):
        def on_grad_computed(self, net, named_parameters, **kwargs):
            norms.append([float(p.grad.norm()) for _, p in named_parameters])

    make(callbacks=[Norms()]).fit(X, Y)
    assert np.shape(norms) == (5, 4)
    assert (np.array(norms) > 0).all()


# --- scikit-learn >= 1.9


class StopAtThree:
    """A callback of a user's own for scikit-learn."""

    def __init__(self):
        self.ended: list[str] = []

    def setup(self, estimator, context):
        self.ended.append("setup")

    def teardown(self, estimator, context):
        self.ended.append("teardown")

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None, **kwargs):
        self.ended.append(context.task_name)
        return self.ended.count("epoch") == 3


def callbacks_of_sklearn():
    return pytest.importorskip("sklearn.callback", reason="scikit-learn has callbacks from 1.9 on")


def test_a_progress_bar_of_scikit_learn_shows_the_epochs(capsys):
    pytest.importorskip("rich")
    bar = callbacks_of_sklearn().ProgressBar()
    model = make().set_callbacks(bar).fit(X, Y)
    printed = capsys.readouterr().out
    assert "ZOClassifier" in printed
    assert "100%" in printed
    assert model.n_iter_ == 5


def test_a_score_is_monitored_epoch_by_epoch():
    monitor = callbacks_of_sklearn().ScoringMonitor(scoring="accuracy")
    words = np.array(["fig", "kiwi"])[Y]
    model = make(lr=0.5).set_callbacks(monitor).fit(X, words)
    scores = monitor.get_logs().data_as_pandas["accuracy"].dropna()
    assert len(scores) == 5
    assert scores.iloc[-1] == model.score(X, words)


def test_a_score_of_a_regressor_is_monitored_in_units_of_the_targets():
    monitor = callbacks_of_sklearn().ScoringMonitor(scoring="r2")
    y = 100 + X[:, 0]
    model = ZORegressor(module__hidden=3, sparsity=0, max_epochs=3, random_state=0)
    model.set_callbacks(monitor).fit(X, y)
    scores = monitor.get_logs().data_as_pandas["r2"].dropna()
    assert scores.iloc[-1] == pytest.approx(model.score(X, y), rel=1e-12)


def test_a_callback_of_scikit_learn_stops_a_fit():
    callbacks_of_sklearn()
    stop = StopAtThree()
    model = make().set_callbacks(stop).fit(X, Y)
    assert (model.termination_condition_, model.n_iter_) == ("callback", 3)
    assert stop.ended == ["setup", "epoch", "epoch", "epoch", "fit", "teardown"]


def test_callbacks_of_scikit_learn_also_see_partial_fits():
    callbacks_of_sklearn()
    stop = StopAtThree()
    make().set_callbacks(stop).partial_fit(X, Y)
    assert stop.ended == ["setup", "epoch", "fit", "teardown"]


def test_callbacks_do_not_change_what_is_learned():
    callbacks_of_sklearn()
    watched = make(callbacks=[Rates()]).set_callbacks(StopAtThree())
    plain = make(callbacks=[Stop(3)])
    for ours, theirs in zip(
        watched.fit(X, Y).module_.parameters(), plain.fit(X, Y).module_.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


# --- Copies


def test_an_estimator_pickles_after_a_fit_with_callbacks():
    module = callbacks_of_sklearn()
    monitor = module.ScoringMonitor(scoring="accuracy")
    model = make(verbose=1, early_stopping=True, callbacks=[Rates(), Stop(4)])
    model.set_callbacks(monitor, StopAtThree()).fit(X, Y)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(X), model.predict_proba(X))
    np.testing.assert_array_equal(copy.deepcopy(model).predict(X), model.predict(X))


# --- What is printed


def test_nothing_is_printed_by_default(capsys):
    make(early_stopping=True, n_iter_no_change=1).fit(X, Y).predict(X)
    assert capsys.readouterr() == ("", "")


def test_a_progress_bar_names_queries_and_loss(capsys):
    model = make(verbose=1).fit(X, Y)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"queries={model.n_queries_}" in printed.err
    assert f"loss={model.loss_curve_[-1]:.4g}" in printed.err
    assert "5/5" in printed.err


def test_a_progress_bar_ends_where_the_budget_does(capsys):
    make(verbose=1, max_epochs=1000, max_queries=3 * PER_STEP + 1).fit(X, Y)
    assert "3/3" in capsys.readouterr().err


def test_a_progress_bar_is_closed_when_a_fit_fails(capsys):
    def box(params: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        calls.append(1)
        return inputs @ params if len(calls) < 20 else inputs @ params * np.nan

    calls: list[int] = []
    model = ZOClassifier(box, initial_params=np.zeros((2, 2)), sparsity=0, verbose=1)
    with pytest.raises(RuntimeError, match="NaN"):
        model.fit(X, Y)
    assert capsys.readouterr().err.endswith("\n")


def test_a_table_of_epochs_is_printed_on_demand(capsys):
    model = make(verbose=2).fit(X, Y)
    printed = capsys.readouterr().out
    heads = printed.splitlines()[0].split()
    assert {"epoch", "n_queries", "train_loss"} <= set(heads)
    assert len(printed.strip().splitlines()) == 2 + 5
    assert str(model.n_queries_) in printed
