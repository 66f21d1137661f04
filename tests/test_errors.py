"""Bad input gets one clear sentence; a fit that fails keeps what was learned."""

import contextlib

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from torch import Tensor, nn

from zoestim import BlackBox, QueryError, ZOClassifier, ZORegressor
from zoestim.gradients import RandomizedEstimator
from zoestim.models import MLP
from zoestim.sparsity import Pruning

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

X = np.random.default_rng(0).normal(size=(12, 2))
Y = np.arange(12) % 2
START = {"w": np.zeros((2, 2)), "b": np.zeros(2)}
STEP = 1 + 6  # queries of a step of the box below


def box(params: dict, inputs: np.ndarray) -> np.ndarray:
    return inputs @ params["w"] + params["b"]


def boxed(function=box, **params) -> ZOClassifier:
    defaults = {"initial_params": START, "sparsity": 0, "max_epochs": 5, "random_state": 0}
    defaults["max_retries"] = 0  # a box that fails once has failed
    return ZOClassifier(function, **{**defaults, **params})


def made(make) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return make()


def refuses(model, match: str | None, error=ValueError, data=(X, Y)) -> None:
    with pytest.raises(error, match=match):
        model.fit(*data)


def tall(outputs: Tensor, y: Tensor) -> Tensor:
    return outputs[:, 0].mean()


class Trained(nn.CrossEntropyLoss):
    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(()))


# --- Parameters


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"sparsity": 1.0}, r"'sparsity' parameter .* must be a float in the range \[0.0, 1.0\)"),
        ({"sparsity": -0.1}, "'sparsity' parameter .* Got -0.1 instead"),
        ({"gradient": "spsa"}, "'gradient' parameter .*'rge'"),
        ({"smoothing": 0}, r"'smoothing' parameter .* range \(0.0, inf\)"),
        ({"pruning": "zograsp"}, "'pruning' parameter .*'zo-grasp'"),
        ({"mask_interval": "epoch"}, "'mask_interval' parameter .*'batch'"),
        ({"lr_schedule": "step"}, "'lr_schedule' parameter .*'cosine'"),
        ({"max_epochs": 0}, r"'max_epochs' parameter .* range \[1, inf\)"),
        (
            {"module__hiden": 3},
            r"MLP has no parameter module__hiden\. Did you mean module__hidden\?",
        ),
        ({"module__zzz": 3}, r"no parameter module__zzz\. Expected one of \['n_features_in'"),
        (
            {"optimizer__momentun": 0.5},
            r"SGD has no parameter optimizer__momentun\. Did you mean optimizer__momentum\?",
        ),
        (
            {"criterion": nn.CrossEntropyLoss, "criterion__weigth": 1},
            r"Loss has no parameter criterion__weigth\. Did you mean criterion__weight\?",
        ),
        ({"criterion__weight": 1}, r"\['criterion__weight'\] cannot be used: criterion is None"),
        (
            {"criterion": nn.CrossEntropyLoss(), "criterion__weight": 1},
            r"\['criterion__weight'\] cannot be used: criterion is no class; pass its class",
        ),
        ({"max_epoch": 3}, r"ZOClassifier has no parameter max_epoch\. Did you mean max_epochs\?"),
        ({"modul__hidden": 3}, r"has no parameter modul__hidden\. Did you mean module\?"),
        ({"optimizer__lr": 0.1}, "takes the learning rate as lr; got optimizer__lr"),
        ({"optimizer": torch.optim.LBFGS}, "optimizer=LBFGS asks for the same batch several times"),
        ({"criterion": Trained}, "criterion=Trained has trainable parameters.*Make them part of"),
        ({"criterion": Trained()}, "criterion=Trained has trainable parameters"),
        ({"iterator_train__shufle": False}, "iterator_train__shufle.*iterator_train__shuffle"),
        ({"pruning": {"layers.1.wieght": 0.5}}, r"layers\.1\.wieght.*layers\.1\.weight"),
        ({"pruning": {"layers.1.weight": 1.5}}, r"layers\.1\.weight.* 1\.5"),
        ({"pruning": Pruning("zo_grasp")}, "scores must be one of .*'zo-grasp'.*got 'zo_grasp'"),
        ({"pruning": Pruning(selection="new")}, "selection must be one of .*; got 'new'"),
        ({"pruning": Pruning(ranking="abs")}, "ranking must be one of .*; got 'abs'"),
        ({"gradient": RandomizedEstimator(0)}, "n_directions must be .*at least 1; got 0"),
    ],
)
def test_parameters_that_cannot_be_used_are_refused(params: dict, match: str):
    refuses(ZOClassifier(**{"max_epochs": 1, **params}), match)


def test_the_constructor_and_set_params_refuse_nothing():
    model = ZOClassifier(sparsity=7, module__x=1, nonsense=2)
    assert model.set_params(module__y=2).get_params()["nonsense"] == 2


@pytest.mark.parametrize(
    ("params", "needed"),
    [
        ({}, 1 + 6),
        ({"scheme": "central"}, 1 + 12),
        ({"sparsity": 0.5, "n_pruning_queries": 4}, 10 + 1 + 3),
        ({"gradient": "rge", "n_directions": 9}, 1 + 9),
    ],
)
def test_a_budget_smaller_than_one_step_is_refused(params: dict, needed: int):
    match = f"max_queries={needed - 1} does not allow one training step: it needs {needed} queries"
    refuses(boxed(max_queries=needed - 1, **params), match)
    assert boxed(max_queries=needed, **params).fit(X, Y).n_queries_ == needed


# --- Modules


def frozen() -> nn.Module:
    return made(lambda: nn.Linear(2, 2)).requires_grad_(False)


def returns_a_class(n_outputs: int) -> type:
    return nn.Linear


@pytest.mark.parametrize(
    ("params", "error", "match"),
    [
        ({"module": box}, TypeError, r"module=box needs .*\['params', 'X'\]|pass initial_params="),
        ({"module": nn.ReLU()}, ValueError, "ReLU has no trainable parameter; expected at least"),
        ({"module": frozen}, ValueError, "Linear has no trainable parameter"),
        (
            {"module": made(lambda: nn.Linear(2, 2)), "module__bias": 0},
            ValueError,
            "is an instance",
        ),
        ({"module": returns_a_class}, TypeError, "returned type; expected a torch.nn.Module"),
        ({"module": nn.Linear}, TypeError, r"needs the argument.*in_features.*module__in_features"),
        ({"module": MLP, "initial_params": START}, TypeError, "initial_params is for a black-box"),
        ({"initial_params": START}, TypeError, "initial_params is for a black-box callable"),
        ({"module": box, "initial_params": {}}, ValueError, "initial_params is empty"),
        ({"module": box, "initial_params": {"a.b": np.ones(1)}}, ValueError, "named 'a.b'"),
        ({"module": box, "initial_params": {"forward": np.ones(1)}}, ValueError, "named 'forward'"),
        ({"module": box, "initial_params": np.ones(1, complex)}, TypeError, "expected real"),
        (
            {"module": box, "initial_params": START, "module__k": 1},
            ValueError,
            r"\['module__k'\] cannot be used: module is a black box; use functools.partial",
        ),
    ],
)
def test_modules_that_cannot_be_used_are_refused(params: dict, error: type, match: str):
    refuses(ZOClassifier(**{"max_epochs": 1, **params}), match, error)


def test_a_string_is_no_module():
    refuses(ZOClassifier("resnet20"), "'module' parameter of ZOClassifier must be")


# --- Outputs


@pytest.mark.parametrize(
    ("outputs", "match"),
    [
        (
            lambda n: np.zeros((n, 1)),
            r"shape \(12, 1\) for 2 classes; expected \(12, 2\), one logit",
        ),
        (lambda n: np.zeros(n), r"shape \(12,\) for 2 classes; expected \(12, 2\)"),
        (lambda n: np.zeros((n, 2, 2)), r"shape \(12, 2, 2\) for 2 classes"),
        (lambda n: np.zeros((n + 1, 2)), r"shape \(13, 2\) for 12 samples; expected a tensor"),
        (lambda n: np.zeros(()), r"shape \(\) for 12 samples; .*one row a sample"),
    ],
)
def test_outputs_of_a_wrong_shape_are_refused(outputs, match: str):
    refuses(boxed(lambda params, inputs: outputs(len(inputs))), match)


def test_outputs_that_are_no_tensor_are_refused():
    class Two(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), x

    refuses(ZOClassifier(made(lambda: Two(2, 2))), "returned outputs of <class 'tuple'> for 12")


def test_a_regressor_expects_one_output_a_target():
    model = ZORegressor(made(lambda: nn.Linear(2, 3)))
    match = r"shape \(12, 3\) for targets of shape \(12,\); expected one output a target"
    refuses(model, match, data=(X, X[:, 0]))


def test_losses_of_a_wrong_shape_are_refused():
    model = boxed(criterion=lambda outputs, y: outputs[:5, 0])
    refuses(model, r"losses of shape \(5,\) for 12 samples; expected one number, or one loss")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_outputs_that_are_not_finite_name_the_batch(value: float):
    def second_batch(params: dict, inputs: np.ndarray) -> np.ndarray:
        calls.append(1)
        return box(params, inputs) + (value if len(calls) > STEP else 0)

    calls: list[int] = []
    match = "loss at the current parameters is nan on batch 2 of epoch 1, and so are some of its"
    refuses(boxed(second_batch, batch_size=6), match, QueryError)


def test_a_query_that_is_not_finite_names_its_coordinate_and_batch():
    def picky(params: dict, inputs: np.ndarray) -> np.ndarray:
        return box(params, inputs) + (np.nan if params["w"][1, 0] > 0 else 0)

    match = r"query at coordinate w\[1, 0\] \(step 0.005\) gave .*: nan on batch 1 of epoch 1"
    refuses(boxed(picky), match, QueryError)


def test_a_direction_that_is_not_finite_is_named_by_its_number():
    def picky(params: dict, inputs: np.ndarray) -> np.ndarray:
        return box(params, inputs) + (np.inf if params["b"].any() else 0)

    refuses(
        boxed(picky, gradient="rge", n_directions=3), "query at direction 0 .* gave", QueryError
    )


# --- Weights


@pytest.mark.parametrize("model", [boxed(), ZOClassifier(max_epochs=1), ZORegressor(max_epochs=1)])
def test_weights_that_are_all_zero_are_refused(model):
    refuses(model, "[Ww]eights .*zero", data=(X, Y, np.zeros(12)))


def test_class_weights_that_leave_no_sample_are_refused():
    refuses(boxed(class_weight={0: 0.0, 1: 0.0}), "[Ww]eights .*zero")


@pytest.mark.parametrize(
    ("params", "weight"), [({}, np.ones(12)), ({"class_weight": {0: 2}}, None)]
)
def test_weights_need_one_loss_a_sample(params: dict, weight):
    match = "tall returns one number a batch, which sample_weight or class_weight cannot weigh"
    refuses(boxed(criterion=tall, **params), match, data=(X, Y, weight))


# --- Workers and devices


@pytest.mark.parametrize("device", [[], "gpu", ["cpu", "gpu"]])
def test_what_is_no_device_is_refused(device):
    refuses(boxed(device=device), "names no device of torch .* expected such as 'cpu'")


@pytest.mark.parametrize("vectorized", [0, -1, "yes", 1.5])
def test_a_box_takes_a_number_of_sets(vectorized):
    with pytest.raises(ValueError, match="vectorized must be True, False or the most sets"):
        BlackBox(box, START, vectorized=vectorized)


# --- Fits that fail


class Breaks:
    """A black box that goes wrong from some call on."""

    def __init__(self, after: int, how):
        self.after, self.how, self.calls = after, how, 0

    def __call__(self, params: dict, inputs: np.ndarray) -> np.ndarray:
        self.calls += 1
        return self.how() if self.calls == self.after else box(params, inputs)

    def __deepcopy__(self, memo: dict) -> "Breaks":
        return self


def raises(error: type):
    def how():
        raise error("the wire is cut")

    return how


def same(model: ZOClassifier, other: ZOClassifier) -> bool:
    pairs = zip(model.module_.parameters(), other.module_.parameters(), strict=True)
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)


@pytest.mark.parametrize("scheme", ["forward", "central"])
@pytest.mark.parametrize(
    ("how", "error"),
    [
        (lambda: np.full((12, 2), np.nan), QueryError),
        (raises(OSError), QueryError),
        (raises(SystemExit), SystemExit),
    ],
    ids=["nan", "error", "exit"],
)
def test_a_fit_that_fails_keeps_the_last_finished_step(how, error: type, scheme: str):
    step = 1 + (12 if scheme == "central" else 6)
    model = boxed(Breaks(3 * step + 4, how), scheme=scheme, lr_schedule="constant")
    refuses(model, None, error)
    expected = boxed(max_epochs=3, scheme=scheme, lr_schedule="constant").fit(X, Y)
    assert same(model, expected)
    assert model.loss_curve_ == expected.loss_curve_
    assert (model.n_iter_, model.termination_condition_) == (3, "error")
    assert model.n_queries_ == 4 * step  # those of the step that failed are asked too
    np.testing.assert_array_equal(model.predict(X), expected.predict(X))


def test_a_fit_that_fails_within_an_epoch_keeps_its_finished_batches():
    model = boxed(Breaks(STEP + 3, raises(OSError)), batch_size=6)
    refuses(model, "OSError: the wire is cut", QueryError)
    assert (model.n_iter_, model.loss_curve_, model.n_queries_) == (0, [], 2 * STEP)
    assert model.module_.w.abs().sum() > 0
    assert model.predict(X).shape == (12,)


def test_a_fit_that_fails_at_its_first_query_is_still_a_fit():
    model = boxed(Breaks(2, raises(OSError)))
    refuses(model, "OSError: the wire is cut", QueryError)
    np.testing.assert_array_equal(model.predict_proba(X), np.full((12, 2), 0.5))


def test_the_user_may_interrupt_a_fit_and_keep_what_was_learned():
    model = boxed(Breaks(3 * STEP + 4, raises(KeyboardInterrupt)), lr_schedule="constant")
    with pytest.warns(
        UserWarning, match="interrupted in epoch 4, after 3 training steps"
    ) as warned:
        model.fit(X, Y)
    assert warned[0].filename == __file__
    assert same(model, boxed(max_epochs=3, lr_schedule="constant").fit(X, Y))
    assert (model.n_iter_, model.termination_condition_) == (3, "callback")


def test_an_interrupt_of_the_first_step_is_not_taken_for_a_step_too_short():
    with pytest.warns(UserWarning, match="was interrupted in epoch 1, after 0") as warned:
        boxed(Breaks(2, raises(KeyboardInterrupt))).fit(X, Y)
    assert len(warned) == 1


@pytest.mark.filterwarnings("ignore:The fit was interrupted")
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_training_goes_on_after_a_fit_that_failed(error: type):
    model = boxed(Breaks(2 * STEP + 4, raises(error)), warm_start=True, max_epochs=3)
    with contextlib.suppress(QueryError):
        model.fit(X, Y)
    model.fit(X, Y)
    assert (model.n_iter_, model.termination_condition_) == (5, "max_epochs")
    assert model.n_queries_ == (3 + 3) * STEP
    assert len(model.partial_fit(X, Y).loss_curve_) == 6
    assert model.termination_condition_ == "max_epochs"


def test_scores_that_fail_leave_the_parameters_as_they_were():
    model = boxed(Breaks(7, raises(OSError)), sparsity=0.5, n_pruning_queries=4)
    refuses(
        model, "OSError: the wire is cut", QueryError
    )  # in the second estimate, at moved parameters
    assert model.module_.w.abs().sum() == model.module_.b.abs().sum() == 0


# --- Fits that are refused


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    ("params", "data"),
    [
        ({"sparsity": 2}, (X, Y)),
        ({"module__k": 2, "warm_start": False}, (X, Y)),
        ({"max_queries": 3}, (X, Y)),
        ({"gradient": RandomizedEstimator(distribution="cauchy")}, (X, Y)),
        ({"pruning": Pruning("zo_grasp"), "sparsity": 0.5}, (X, Y)),
        ({"optimizer": torch.optim.LBFGS, "warm_start": False}, (X, Y)),
        ({}, (np.full((12, 2), np.nan), Y)),
        ({}, (X[:, :1], Y[:5])),
        ({}, (X, np.full(12, np.nan))),
        ({}, (X, Y, np.zeros(12))),
        ({"early_stopping": True, "validation_fraction": 0.01}, (X, 1 + np.arange(12))),
    ],
)
def test_a_refused_fit_leaves_the_earlier_one_as_it_was(params: dict, data: tuple, warm: bool):
    model = boxed(warm_start=warm).fit(X, 10 * Y)
    once, queries = model.predict_proba(X), model.n_queries_
    refuses(model.set_params(**params), None, data=data)
    np.testing.assert_array_equal(model.predict_proba(X), once)
    assert model.classes_.tolist() == [0, 10]
    assert (model.n_features_in_, model.n_queries_, model.n_iter_) == (2, queries, 5)


def test_a_fit_that_fails_before_it_learned_anything_leaves_the_earlier_one():
    model = boxed().fit(X, Y)
    once, queries = model.predict_proba(X), model.n_queries_
    model.set_params(criterion=lambda outputs, y: outputs.mean() * float("nan"))
    refuses(model, "The loss at the current parameters is nan", QueryError)
    np.testing.assert_array_equal(model.predict_proba(X), once)
    assert (model.n_queries_, model.termination_condition_) == (queries, "max_epochs")


def test_a_refused_first_fit_leaves_nothing():
    model = boxed(sparsity=2)
    refuses(model, "sparsity")
    with pytest.raises(NotFittedError):
        model.predict(X)
    assert not [name for name in vars(model) if name.endswith("_")]


def test_a_black_box_object_is_refused_with_initial_params_beside_it():
    refuses(boxed(BlackBox(box, START)), "initial_params is for a black-box callable", TypeError)
