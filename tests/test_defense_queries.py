"""What a defense asks: so many images and no more, no layer twice, and what failures leave."""

import copy
import time

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from skorch.callbacks import Callback

from defense.boxes import IMAGES, N_LAST, Client, defense, labels, same, scores, weights
from zoestim import QueryError
from zoestim.models import DnCNN

pytestmark = pytest.mark.usefixtures("global_rng_untouched")
X, Y, N = IMAGES, labels(IMAGES), len(IMAGES)


def denoiser_of(depth: int) -> DnCNN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return DnCNN(depth, 4)


# --- How many images


@pytest.mark.parametrize(
    ("settings", "a_sample"),
    [
        ({}, N_LAST + 1),
        ({"scheme": "central"}, 2 * N_LAST + 1),
        ({"n_repeats": 2}, 2 * (N_LAST + 1)),
        ({"gradient": "rge", "n_directions": 5}, 6),
        ({"space": "input"}, 16 + 1),
        ({"space": "input", "scheme": "central"}, 2 * 16 + 1),
        ({"space": "input", "gradient": "rge", "n_directions": 5}, 6),
        ({"space": "input", "latent_dim": 3}, 4),
        ({"trainable": ["net.0.bias"]}, 4 + 1),
        ({"mse_weight": 0.1}, N_LAST + 1),
        ({"on_error": "penalize"}, N_LAST + 1),
        ({"feature_reuse": False}, N_LAST + 1),
    ],
)
def test_queries_are_the_images_that_the_box_got(settings, a_sample):
    client = Client()
    model = defense(client, **settings).fit(X)
    assert model.n_queries_ == client.n_images == N + 2 * N * a_sample
    assert client.largest <= 1024
    assert model.termination_condition_ == "max_epochs"


def test_labels_take_central_differences():
    client = Client(labels)
    model = defense(client).fit(X)
    assert model.n_queries_ == client.n_images == N + 2 * N * (2 * N_LAST + 1)


def test_scores_of_zo_grasp_count_too():
    client = Client()
    settings = {"trainable": "zo-grasp", "sparsity": 0.5, "max_epochs": 1, "depth": 3}
    model = defense(client, **settings).fit(X)
    assert model.n_queries_ == client.n_images
    assert 0 < sum(model.layer_ratios_.values()) < len(model.layer_ratios_)


@pytest.mark.parametrize("query_batch_size", [1, 7, 16, 100])
def test_a_call_holds_no_more_images_than_it_may(query_batch_size):
    client, plain = Client(), Client()
    model = defense(client, query_batch_size=query_batch_size, max_epochs=1).fit(X)
    assert client.largest <= query_batch_size
    expected = defense(plain, max_epochs=1).fit(X)
    assert client.n_images == plain.n_images
    for one, other in zip(weights(model), weights(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


STEP = 16 * (N_LAST + 1)
LAST_STEP = 8 * (N_LAST + 1)


@pytest.mark.parametrize("space", ["params", "input"])
@pytest.mark.parametrize("extra", [0, 1, 500, 592, 887, 888, 1184, 1479, 1480, 2000, 2960, 10_000])
def test_a_budget_is_never_exceeded_and_used_as_far_as_steps_go(extra, space):
    a_sample = N_LAST + 1 if space == "params" else 17
    steps = [16 * a_sample, 16 * a_sample, 8 * a_sample] * 2
    client = Client()
    model = defense(client, max_queries=N + steps[0] + extra, space=space).fit(X)
    spent, affordable = N, N + steps[0] + extra
    for cost in steps:
        if spent + cost > affordable:
            break
        spent += cost
    assert client.n_images == model.n_queries_ == spent <= affordable
    all_steps = spent == N + sum(steps)
    assert model.termination_condition_ == ("max_epochs" if all_steps else "max_queries")


def test_a_budget_without_a_step_is_refused_and_denoising_is_kept():
    client = Client()
    text = rf"max_queries={N + 100} does not allow one training step: it needs {STEP} queries"
    model = defense(client, max_queries=N + 100)
    with pytest.raises(ValueError, match=text):
        model.fit(X)
    assert client.n_images == model.n_queries_ == N
    assert same(weights(model), weights(defense(scores, max_epochs=0).fit(X)))
    assert model.predict(X).shape == (N,)
    with pytest.raises(ValueError, match=f"max_queries={N - 1} is less than the {N} clean"):
        defense(Client(), max_queries=N - 1).fit(X)


# --- No layer twice


@pytest.mark.parametrize("settings", [{}, {"space": "input"}])
def test_a_query_of_the_last_layer_runs_no_other_layer(settings):
    runs: list[int] = []

    def count(*_):
        runs.append(1)

    given = denoiser_of(4)
    for layer in given.net[:-1]:
        layer.register_forward_hook(count)

    class Marked(Callback):
        def on_train_begin(self, net, **kwargs):
            runs.clear()

    plain = defense(scores, denoiser=given, callbacks=[Marked()], max_epochs=1, batch_size=40)
    plain.set_params(**settings).fit(X)
    layers = len(given.net) - 1
    assert len(runs) == layers  # in the one step, for its base alone
    if not settings:
        reuse = plain.feature_reuse_
        assert reuse.active
        assert not reuse.unfolded
    statistics = [b for n, b in plain.white_.named_buffers() if "tracked" in n]
    assert {int(count) for count in statistics} == {2}  # the batches of the pretraining


# --- The gradient


class Gradient(Callback):
    """Keeps the last gradient."""

    def on_grad_computed(self, net, **kwargs):
        found = net.module_.white.parameters()
        self.grads = [p.grad.clone() for p in found if p.grad is not None]


@pytest.mark.parametrize("scheme", ["forward", "central"])
def test_the_gradient_equals_the_obvious_loop(scheme, monkeypatch):
    given, kept, mu = denoiser_of(2).double(), Gradient(), 1e-2
    noise = torch.linspace(-1, 1, 16, dtype=torch.float64).view(1, 1, 4, 4)
    monkeypatch.setattr(
        "zoestim.defense._denoisers.torch.randn_like", lambda x: noise
    )  # of all samples, in whatever order
    defense(
        scores, denoiser=given, pretrain_epochs=0, max_epochs=1, batch_size=40, scheme=scheme,
        smoothing=mu, callbacks=[kept], noise_std=0.1,
    ).fit(X)  # fmt: skip

    def loss() -> float:
        with torch.no_grad():
            cleaned = denoiser.eval()(noisy).numpy().reshape(40, 16)
        return -log_softmax(scores(cleaned), axis=1)[np.arange(40), Y].mean()

    denoiser, noisy = copy.deepcopy(given), torch.from_numpy(X).view(40, 1, 4, 4) + 0.1 * noise
    weight = denoiser.net[2].weight.data.view(-1)
    base, expected = loss(), []
    for k in range(N_LAST):
        before = float(weight[k])
        weight[k] = before + mu
        up = loss()
        weight[k] = before - mu
        expected.append((up - base) / mu if scheme == "forward" else (up - loss()) / (2 * mu))
        weight[k] = before
    found = kept.grads[0].numpy().ravel()
    assert np.abs(found).max() > 1e-3
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)


def test_training_by_queries_lowers_the_loss():
    settings = {"max_epochs": 8, "pretrain_epochs": 0, "lr": 0.01, "noise_std": 0.5}
    curve = defense(scores, **settings).fit(X).loss_curve_
    assert np.mean(curve[-2:]) < np.mean(curve[:2])


def test_the_steps_of_the_paper_are_a_schedule():
    model = defense(scores, max_epochs=4, lr_schedule="step", lr_decay_epochs=2, lr=0.1)
    rates = []

    class Rates(Callback):
        def on_epoch_end(self, net, **kwargs):
            rates.append(net.optimizer_.param_groups[0]["lr"])

    model.set_params(callbacks=[Rates()]).fit(X)
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01])


# --- Failures


@pytest.mark.parametrize("error", ["cut", None])
@pytest.mark.parametrize("space", ["params", "input"])
def test_a_failure_keeps_what_was_learned(space, error):
    client = Client(fails_from=8, error=error)
    before = weights(defense(scores, max_epochs=0).fit(X))
    model = defense(client, space=space, query_batch_size=100, scheme="forward")
    text = "OSError: cut. Mend its cause" if error else "NaN"
    with pytest.raises(QueryError, match=text):
        model.fit(X)
    assert model.termination_condition_ == "error"
    assert model.n_queries_ > N
    client.fails_from = None
    assert model.predict(X).shape == (N,)
    client.fails_from = client.n_calls + 20
    with pytest.raises(QueryError):
        model.set_params(max_epochs=50).fit(X)
    assert not same(weights(model), before)


def test_a_failure_on_clean_samples_leaves_an_earlier_fit_as_it_was():
    client = Client()
    model = defense(client).fit(X)
    before, n_queries = weights(model), model.n_queries_
    client.fails_from = 0
    with pytest.raises(QueryError, match="failed on clean samples: OSError: cut"):
        model.fit(X)
    client.fails_from = None
    assert same(weights(model), before)
    assert model.n_queries_ == n_queries
    assert model.predict(X).shape == (N,)


@pytest.mark.parametrize("error", ["cut", None])
def test_penalized_failures_end_no_fit(error):
    client = Client(fails_from=3, fails_until=6, error=error)
    model = defense(client, on_error="penalize", query_batch_size=100).fit(X)
    assert model.termination_condition_ == "max_epochs"
    assert all(np.isfinite(value).all() for value in weights(model))


def test_samples_without_a_target_are_left_out():
    def some(X):
        found = scores(X)
        found[np.abs(X[:, 0]) > 0.9] = np.nan
        return found

    failed = int((np.abs(X[:, 0]) > 0.9).sum())
    with pytest.warns(UserWarning, match=f"{failed} of 40 samples are left out") as caught:
        model = defense(some, on_error="penalize", max_epochs=1).fit(X)
    assert caught[0].filename == __file__
    assert model.n_queries_ == 40 + (40 - failed) * (N_LAST + 1)


def test_a_box_that_hangs_is_penalized_too():
    asked = []

    def hangs(X):
        asked.append(1)
        if len(asked) == 4:
            time.sleep(1.5)
        return scores(X)

    settings = {"query_timeout": 0.5, "on_error": "penalize", "query_batch_size": 100}
    model = defense(hangs, max_epochs=1, **settings).fit(X)
    assert model.termination_condition_ == "max_epochs"


def test_a_box_that_hangs_loses_votes_alone():
    hangs = []

    def slow(X):
        if hangs:
            time.sleep(hangs.pop())
        return scores(X)

    settings = {"query_timeout": 0.3, "on_error": "penalize", "query_batch_size": 100}
    model = defense(slow, max_epochs=0, **settings).fit(X)
    hangs += [1.0, 0.0]
    assert model.certify(X[:2], 10, 50).counts.sum() == 0  # of the second call, all


def test_a_flaky_box_is_asked_again_and_gives_the_same():
    class Flaky(Client):
        def __call__(self, X):
            found = super().__call__(X)
            if self.n_calls in (2, 4, 6, 10):  # bases and queries
                raise OSError("cut")
            return found

    flaky = defense(Flaky(), max_retries=2, max_epochs=1).fit(X)
    sound = defense(scores, max_epochs=1).fit(X)
    assert same(weights(flaky), weights(sound))
    assert flaky.n_queries_ == sound.n_queries_


def test_ctrl_c_keeps_what_was_learned():
    client = Client(fails_from=60, fails_until=61, error=KeyboardInterrupt())
    with pytest.warns(UserWarning, match="The fit was interrupted in epoch") as caught:
        model = defense(client, query_batch_size=100, max_epochs=4).fit(X)
    assert caught[0].filename == __file__
    assert model.termination_condition_ == "callback"
    assert not same(weights(model), weights(defense(scores, max_epochs=0).fit(X)))
    assert model.predict(X).shape == (N,)


def test_votes_that_fail_count_against_the_class():
    client = Client()
    model = defense(client, on_error="penalize", query_batch_size=10).fit(X)
    clean = model.certify(X[:2], 20, 40, random_state=0)
    client.fails_from, client.fails_until = client.n_calls + 5, client.n_calls + 6
    failed = model.certify(X[:2], 20, 40, random_state=0)
    assert failed.counts.sum() == clean.counts.sum() - 10
    assert (failed.p_lower <= clean.p_lower).all()
    assert failed.p_lower.sum() < clean.p_lower.sum()
    client.fails_from, client.fails_until = 0, None
    nothing = model.certify(X[:2], 20, 40)
    assert nothing.abstained.all()
    assert not nothing.counts.any()
    with pytest.raises(QueryError, match="failed on all 15 noisy copies of sample 0"):
        model.predict(X)
    with pytest.raises(OSError, match="cut"):
        defense(Client(fails_from=3), max_epochs=0, query_batch_size=20).fit(X).predict(X)
