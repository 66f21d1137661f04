"""Whoever answers, the losses are the same to the last bit."""

import warnings

import joblib
import numpy as np
import pytest
import torch
from torch import nn

from cases import CASES, Case
from zoestim import BlackBox, FeatureReuseWarning, ZOClassifier, estimate_gradient
from zoestim.backends import DevicesBackend, JoblibBackend, SerialBackend
from zoestim.evaluation import Asking, Batch, Evaluation, Objective, RandomState, evaluate
from zoestim.gradients import CoordinateEstimator, RandomizedEstimator

CPU = torch.device("cpu")
# torch itself refuses to pickle a parametrised module.
UNSENDABLE = {"weight_norm"}
X, Y = torch.linspace(-1, 1, 24, dtype=torch.float64).view(8, 3), torch.tensor([0, 1] * 4)


def case_of(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def losses(case: Case, backend, estimator=None, times: int = 2) -> list[Evaluation]:
    """Return what some batches give, the first of which is where folds are proven."""
    objective = Objective(case.module(), case.criterion)
    d = torch.arange(objective.parameters.size)
    estimator = estimator or CoordinateEstimator()
    queries = estimator.queries(
        d, objective.parameters.segments(d), torch.Generator().manual_seed(0)
    )
    random, asking = RandomState.seeded(0, CPU), Asking(backend)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FeatureReuseWarning)
        batch = Batch(case.X, case.y)
        return [evaluate(objective, batch, queries, random, asking) for _ in range(times)]


def same(found: list[Evaluation], expected: list[Evaluation]) -> bool:
    pairs = list(zip(found, expected, strict=True))
    return all(a.base_loss == b.base_loss for a, b in pairs) and all(
        torch.equal(a.losses, b.losses) for a, b in pairs
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_threads_give_the_bits_of_one_process(case: Case):
    assert same(losses(case, JoblibBackend(2, "threading")), losses(case, SerialBackend()))


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name not in UNSENDABLE], ids=lambda case: case.name
)
def test_processes_give_the_bits_of_one_process(case: Case):
    assert same(losses(case, JoblibBackend(2, "loky")), losses(case, SerialBackend()))


@pytest.mark.parametrize("n_jobs", [2, 3, 5])
@pytest.mark.parametrize("name", ["cnn_train", "resnet_train", "dropout_train", "gru"])
def test_the_number_of_workers_changes_no_bit(name: str, n_jobs: int):
    case = case_of(name)
    assert same(losses(case, JoblibBackend(n_jobs, "threading")), losses(case, SerialBackend()))


@pytest.mark.parametrize("backend", ["threading", "loky"])
@pytest.mark.parametrize("name", ["mlp", "resnet_train", "dropout_train"])
def test_directions_are_shared_out_too(name: str, backend: str):
    estimator, case = RandomizedEstimator(7, scheme="central"), case_of(name)
    found = losses(case, JoblibBackend(2, backend), estimator)
    assert same(found, losses(case, SerialBackend(), estimator))


@pytest.mark.parametrize("name", ["cnn_train", "resnet_train", "dropout_train", "twice"])
def test_several_devices_give_the_bits_of_one(name: str):
    # One of them has another name than where the module is: it gets copies, as a GPU would.
    devices = DevicesBackend(["cpu", "cpu:0"])
    assert same(losses(case_of(name), devices), losses(case_of(name), SerialBackend()))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_torch_threads_changes_no_bit(threads: int):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = losses(case_of("resnet_train"), SerialBackend())
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert same(found, losses(case_of("resnet_train"), SerialBackend()))


def test_the_module_is_as_it_was_whoever_asked():
    case = case_of("cnn_train")
    module = case.module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for backend in ("threading", "loky"):
        estimate_gradient(module, case.criterion, case.X, case.y, n_jobs=2, backend=backend)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_each_query_of_a_box_is_asked_once_and_the_base_once():
    asked: list[bytes] = []

    def counted(params: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        asked.append(params.tobytes())
        return inputs @ params

    box = BlackBox(counted, np.zeros((3, 2)))
    for n_jobs in (None, 2):
        asked.clear()
        found = estimate_gradient(
            box, nn.CrossEntropyLoss(), X, Y, n_jobs=n_jobs, backend="threading"
        )
        assert len(asked) == len(set(asked)) == found.n_queries == 7


class Counted:
    """A box between two layers, which writes a line for each call, in whatever process."""

    def __init__(self, path: str):
        self.path = path

    def __call__(self, params: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        with open(self.path, "a") as file:
            file.write("asked\n")
        return np.tanh(inputs) * params


@pytest.mark.parametrize("kind", ["threading", "loky"])
def test_no_worker_asks_for_the_base_of_a_box_again(kind: str, tmp_path):
    path = tmp_path / "calls"
    with torch.random.fork_rng(devices=[]):
        net = nn.Sequential(
            nn.Linear(3, 3), BlackBox(Counted(str(path)), np.ones(3)), nn.Dropout(), nn.Linear(3, 2)
        ).double()
    found = estimate_gradient(net, nn.CrossEntropyLoss(), X, Y, n_jobs=2, backend=kind)
    # Those of the last layer leave the box alone.
    assert len(path.read_text().splitlines()) == 1 + 12 + 3
    path.unlink()
    alone = estimate_gradient(net, nn.CrossEntropyLoss(), X, Y)
    assert torch.equal(found.gradient.values, alone.gradient.values)


def test_a_vectorized_box_gets_no_more_sets_than_it_says():
    sizes: list[int] = []

    def many(params: np.ndarray, inputs: np.ndarray) -> np.ndarray:
        sizes.append(len(params))
        return inputs @ params

    box = BlackBox(many, np.zeros((3, 2)), vectorized=4)
    estimate_gradient(box, nn.CrossEntropyLoss(), X, Y, n_jobs=2, backend="threading")
    assert sorted(sizes) == [1, 2, 4]  # the first is the base


@pytest.mark.parametrize("kind", ["threading", "loky"])
def test_a_fit_is_the_same_to_the_last_bit(kind: str):
    settings = {"max_epochs": 3, "batch_size": 4, "early_stopping": True, "random_state": 0}
    settings["validation_fraction"] = 0.25
    alone = ZOClassifier(**settings).fit(X.numpy(), Y.numpy())
    shared = ZOClassifier(**settings, n_jobs=2, backend=kind).fit(X.numpy(), Y.numpy())
    pairs = zip(alone.module_.parameters(), shared.module_.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert alone.n_queries_ == shared.n_queries_
    assert alone.loss_curve_ == shared.loss_curve_


def test_a_fit_follows_the_context_around_it(monkeypatch):
    maps, kinds = JoblibBackend.map, []

    def seen(self: JoblibBackend, *given):
        kinds.append(self.n_workers())
        return maps(self, *given)

    monkeypatch.setattr(JoblibBackend, "map", seen)
    with joblib.parallel_config(backend="threading", n_jobs=2):
        ZOClassifier(max_epochs=2, random_state=0).fit(X.numpy(), Y.numpy())
    assert set(kinds) == {2}


def test_modules_that_draw_take_turns_in_threads():
    """Threads share the global generators: queries that draw must not disturb each other."""
    case = case_of("dropout_train")
    expected = losses(case, SerialBackend(), times=1)
    for _ in range(5):
        assert same(losses(case, JoblibBackend(4, "threading"), times=1), expected)
