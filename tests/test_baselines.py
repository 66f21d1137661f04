"""The systems that the paper compares with: each is judged by what defines it, in float64."""

import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from benchmarks.baselines import pattern_search
from benchmarks.baselines.align_ada import AlignAda
from benchmarks.baselines.backprop import Backprop, SparseGradients, SparseWeights
from benchmarks.baselines.blocks import resnet_blocks
from benchmarks.baselines.eight_layer_cnn import eight_layer_cnn
from benchmarks.baselines.feedback_alignment import DirectFeedbackAlignment, FeedbackAlignment
from benchmarks.baselines.forward_gradient import (
    LocalGreedy,
    WeightPerturbed,
    activity_gradient,
    forward_gradient,
    slope,
)
from benchmarks.baselines.training import accuracy, train
from zoestim.models import MLP, resnet20
from zoestim.sparsity import top_coordinates

cross_entropy = nn.functional.cross_entropy
# Torch itself calls it, at its first derivative in forward mode.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")


@pytest.fixture(autouse=True)
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def seeded(make, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def batch(shape, n_classes, n=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, *shape, generator=generator),
        torch.randint(n_classes, (n,), generator=generator),
    )


def mlp():
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 3))


def cnn():
    """Return blocks of a strided, a grouped and a normalised convolution, and a linear layer."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, stride=2),
        nn.Sequential(nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6)),
        nn.Sequential(nn.ReLU(), nn.Conv2d(6, 4, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
        nn.Linear(4, 3),
    )


CASES = {"mlp": (mlp, (5,)), "cnn": (cnn, (2, 6, 6))}
each_case = pytest.mark.parametrize("case", CASES)


def problem(case):
    make, shape = CASES[case]
    return seeded(make), *batch(shape, 3)


def exact(module, X, y):
    """Return the loss and the gradient by autograd, on a copy."""
    copied = copy.deepcopy(module)
    loss = cross_entropy(copied(X), y)
    return loss.item(), dict(
        zip(
            [name for name, _ in copied.named_parameters()],
            torch.autograd.grad(loss, list(copied.parameters())),
            strict=True,
        )
    )


def written(module):
    return {name: weight.grad.clone() for name, weight in module.named_parameters()}


def flat(gradient):
    return torch.cat([part.flatten() for part in gradient.values()])


def assert_same(got, expected, **tolerance):
    assert got.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], **tolerance, msg=name)


def weighted(module):
    kinds = nn.Linear | nn.Conv2d
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, kinds)}


# --- Backprop, dense and sparse


@each_case
def test_backprop_is_autograd(case):
    module, X, y = problem(case)
    loss, gradient = exact(module, X, y)
    for _ in range(2):  # nothing adds up
        assert Backprop()(module, X, y) == pytest.approx(loss, rel=1e-12)
        assert_same(written(module), gradient)


@pytest.mark.parametrize("ratios", [None, {"0.weight": 0.8, "2.weight": 0.0}])
def test_sparse_gradients_are_backprop_at_as_many_coordinates_as_promised(ratios):
    module, X, y = problem("mlp")
    _, gradient = exact(module, X, y)
    rule, kept = SparseGradients(0.5, ratios, seed=3), []
    for _ in range(2):
        rule(module, X, y)
        got = written(module)
        for name, part in got.items():
            assert ((part == gradient[name]) | (part == 0)).all(), name
        kept.append({name: part != 0 for name, part in got.items()})
    expected = {"0.weight": 7, "2.weight": 42, "4.weight": 9} if ratios else {}
    expected = {"0.weight": 18, "2.weight": 21, "4.weight": 9} | expected
    for name, mask in kept[0].items():
        assert mask.sum() == expected.get(name, mask.numel()), name
    assert not torch.equal(kept[0]["0.weight"], kept[1]["0.weight"])  # drawn for each batch


def test_sparse_weights_stay_zero():
    module, X, y = problem("mlp")
    rule = SparseWeights(0.75, seed=3)
    train(
        module, X, y, rule, epochs=3, batch_size=4, lr=0.3, momentum=0.9, weight_decay=0.1, seed=0
    )
    for name, weight in module.named_parameters():
        kept = {"0.weight": 9, "2.weight": 10, "4.weight": 4}.get(name, weight.numel())
        assert (weight != 0).sum() == kept, name
        if name in rule.masks:
            assert (weight[rule.masks[name] == 0] == 0).all(), name


def test_sparse_weights_take_a_mask():
    module, X, _ = problem("mlp")
    magnitudes = {n: w.detach().abs() for n, w in module.named_parameters() if w.ndim > 1}
    kept = top_coordinates(magnitudes, 0.9)
    expected = {name: magnitudes[name].flatten()[kept[name]] for name in kept}
    SparseWeights(0.9, coordinates=kept).start(module, X)
    for name, weight in module.named_parameters():
        if name in kept:
            torch.testing.assert_close(weight.abs().flatten()[kept[name]], expected[name])
            assert (weight != 0).sum() == len(kept[name])


# --- Feedback alignment


@each_case
def test_feedback_alignment_with_the_weights_themselves_is_backprop(case):
    module, X, y = problem(case)
    _, gradient = exact(module, X, y)
    feedback = {name: layer.weight.detach() for name, layer in weighted(module).items()}
    FeedbackAlignment(feedback=feedback)(module, X, y)
    assert_same(written(module), gradient)


def test_feedback_alignment_with_the_weights_themselves_is_backprop_of_a_residual_network():
    module = seeded(resnet20)
    X, y = batch((3, 8, 8), 10, n=4)
    _, gradient = exact(module, X, y)
    feedback = {name: layer.weight.detach() for name, layer in weighted(module).items()}
    FeedbackAlignment(feedback=feedback)(module, X, y)
    assert_same(written(module), gradient)


@each_case
@pytest.mark.parametrize("kind", [FeedbackAlignment, DirectFeedbackAlignment])
def test_random_feedback_is_exact_in_the_last_layer_alone(kind, case):
    module, X, y = problem(case)
    loss, gradient = exact(module, X, y)
    rule = kind(seed=0)
    assert rule(module, X, y) == pytest.approx(loss, rel=1e-12)
    got = written(module)
    *before, last = weighted(module)
    torch.testing.assert_close(got[f"{last}.weight"], gradient[f"{last}.weight"])
    for name in before:
        part, true = got[f"{name}.weight"].flatten(), gradient[f"{name}.weight"].flatten()
        assert torch.cosine_similarity(part, true, dim=0) < 0.9, name
    rule(module, X, y)
    assert_same(written(module), got)  # the matrices stay, and no hook does
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())


@pytest.mark.parametrize("kind", [FeedbackAlignment, DirectFeedbackAlignment])
def test_feedback_is_what_its_definition_says(kind):
    module, X, y = problem("mlp")
    rule = kind(seed=0)
    rule(module, X, y)
    first, second = torch.tanh(module[0](X)), torch.tanh(module[2](torch.tanh(module[0](X))))
    error = (torch.softmax(module[4](second), 1) - nn.functional.one_hot(y, 3)) / len(y)
    back = error @ rule.feedback["4"] * (1 - second**2)
    torch.testing.assert_close(module[2].weight.grad, back.T @ first)
    # Direct feedback projects the error at the output, not that of the layer behind.
    back = (back if kind is FeedbackAlignment else error) @ rule.feedback["2"] * (1 - first**2)
    torch.testing.assert_close(module[0].weight.grad, back.T @ X)


def test_direct_feedback_through_the_output_weights_is_exact_behind_one_hidden_layer():
    module = seeded(lambda: nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)))
    X, y = batch((5,), 3)
    _, gradient = exact(module, X, y)
    DirectFeedbackAlignment(feedback={"1": module[1].weight.detach()})(module, X, y)
    assert_same(written(module), gradient)


# --- Align-ada


@each_case
def test_align_ada_starts_as_backprop(case):
    module, X, y = problem(case)
    loss, gradient = exact(module, X, y)
    assert AlignAda()(module, X, y) == pytest.approx(loss, rel=1e-12)
    assert_same(written(module), gradient)


def test_align_ada_correlates_inputs_of_today_with_the_error_through_the_first_network():
    module, X, y = problem("mlp")
    rule, old = AlignAda(), copy.deepcopy(module)
    rule.start(module, X)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.5)
    _, gradient = exact(module, X, y)
    rule(module, X, y)
    first, second = torch.tanh(module[0](X)), torch.tanh(module[2](torch.tanh(module[0](X))))
    old_first = torch.tanh(old[0](X))
    old_second = torch.tanh(old[2](old_first))
    error = (torch.softmax(module[4](second), 1) - nn.functional.one_hot(y, 3)) / len(y)
    torch.testing.assert_close(module[4].weight.grad, error.T @ second)
    back = error @ old[4].weight * (1 - old_second**2)
    torch.testing.assert_close(module[2].weight.grad, back.T @ first)
    back = back @ old[2].weight * (1 - old_first**2)
    torch.testing.assert_close(module[0].weight.grad, back.T @ X)
    assert not torch.allclose(module[0].weight.grad, gradient["0.weight"], rtol=0.1)


def test_align_ada_nears_backprop_as_the_network_widens():
    """After the same training, wider networks have left their first weights less."""
    distances = []
    for width in (8, 256):
        module = seeded(lambda width=width: MLP(5, 3, hidden=(width, width)).layers)
        X, y = batch((5,), 3, n=20)
        rule = AlignAda()
        train(module, X, y, rule, epochs=20, batch_size=20, lr=0.5, momentum=0.0, seed=0)
        _, gradient = exact(module, X, y)
        rule(module, X, y)
        true = flat(gradient)
        distances.append(((flat(written(module)) - true).norm() / true.norm()).item())
    assert distances[1] < distances[0] / 2


def test_align_ada_refuses_what_has_no_blocks():
    with pytest.raises(TypeError, match="Sequential"):
        AlignAda().start(MLP(5, 3), torch.zeros(1, 5))


def test_eight_layer_cnn_has_the_layers_of_its_paper():
    network = seeded(lambda: eight_layer_cnn(16))
    convolutions = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.stride[0] for layer in convolutions] == [1, 1, 1, 2, 1, 2, 1]
    assert sum(weight.numel() for weight in network.parameters()) == (
        9 * 3 * 16 + 6 * 9 * 16 * 16 + 16 * 10 + 10
    )
    sizes, x = [], torch.zeros(2, 3, 32, 32)
    for block in network[:6]:
        x = block(x)
        sizes.append(x.shape[-1])
    assert sizes == [32, 32, 32, 16, 16, 8]
    assert network[6:](x).shape == (2, 10)
    weight = convolutions[3].weight
    assert weight.std().item() == pytest.approx((9 * 16) ** -0.5, rel=0.05)


# --- Forward gradients


@each_case
def test_slope_is_the_gradient_times_the_direction(case):
    module, X, y = problem(case)
    expected_loss, gradient = exact(module, X, y)
    direction = split(seeded(lambda: torch.randn(len(flat(gradient)))), module)
    loss, along, _ = slope(module, X, y, direction)
    assert loss.item() == pytest.approx(expected_loss, rel=1e-12)
    torch.testing.assert_close(along, flat(gradient) @ flat(direction))


def split(vector, module):
    weights = dict(module.named_parameters())
    parts = vector.split([weight.numel() for weight in weights.values()])
    return {n: p.view_as(w) for (n, w), p in zip(weights.items(), parts, strict=True)}


@each_case
def test_forward_gradient_of_orthogonal_directions_is_exact(case):
    module, X, y = problem(case)
    _, gradient = exact(module, X, y)
    size = len(flat(gradient))
    basis, _ = torch.linalg.qr(seeded(lambda: torch.randn(size, size)))
    directions = (split(row * size**0.5, module) for row in basis)
    _, got = forward_gradient(module, X, y, directions)
    assert_same(got, gradient)


def test_forward_gradient_moves_running_statistics_once():
    module, X, y = problem("cnn")
    once = copy.deepcopy(module)
    once(X)
    WeightPerturbed(n_directions=3)(module, X, y)
    for name, buffer in once.named_buffers():
        torch.testing.assert_close(module.get_buffer(name), buffer)


def relative_error(got, true):
    return ((got - true).norm() / true.norm()).item()


def test_weight_perturbed_is_unbiased():
    """With N(0, I) the squared error of n directions is (d + 1) |g|^2 / n."""
    module = seeded(lambda: nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)))
    X, y = batch((3,), 2)
    true = flat(exact(module, X, y)[1])
    for n in (16, 1024):
        error = []
        for seed in range(2):
            WeightPerturbed(n, seed)(module, X, y)
            error.append(relative_error(flat(written(module)), true) ** 2)
        expected = (len(true) + 1) / n
        assert expected / 3 < np.mean(error) < 3 * expected


# --- LG-FG-A


def local_gradient(rule, module, X, y):
    """Return what autograd makes of the local losses, block by block."""
    copied, gradient, x = copy.deepcopy(module), {}, X
    for name, block in copied.named_children():
        x = block(x.detach())
        if name in rule.heads:
            cross_entropy(rule.heads[name](x), y).backward()
    cross_entropy(x, y).backward()
    for name, weight in copied.named_parameters():
        gradient[name] = weight.grad
    return gradient


@each_case
def test_local_greedy_is_unbiased(case):
    module, X, y = problem(case)
    rule = LocalGreedy(10_000, torch.relu if case == "cnn" else None)
    rule.start(module, X)
    gradient = local_gradient(rule, module, X, y)
    heads = {n: w.clone() for n, w in rule.heads["0"].named_parameters()}
    errors = {}
    for n in (100, 10_000):
        rule.n_directions = n
        rule(module, X, y)
        errors[n] = relative_error(flat(written(module)), flat(gradient))
    assert errors[10_000] < 0.1
    assert errors[100] / errors[10_000] == pytest.approx(10, rel=0.5)
    assert_same(dict(rule.heads["0"].named_parameters()), heads)  # a rule takes no steps


def test_activity_gradient_of_orthogonal_directions_is_exact():
    head = seeded(lambda: nn.Sequential(nn.Tanh(), nn.Linear(6, 3)))
    z, y = batch((6,), 3)
    z.requires_grad_()
    (expected,) = torch.autograd.grad(cross_entropy(head(z), y), z)
    bases = torch.linalg.qr(seeded(lambda: torch.randn(len(z), 6, 6)))[0].transpose(0, 1)
    with torch.no_grad():
        got = activity_gradient(head, z.detach(), y, bases * 6**0.5)
    torch.testing.assert_close(got, expected)


def test_local_greedy_heads_and_last_block_are_exact():
    module, X, y = problem("cnn")
    rule = LocalGreedy(activation=torch.relu)
    parameters = rule.start(module, X)
    assert list(rule.heads) == ["0", "1", "2"]
    loss = rule(module, X, y)
    assert loss == pytest.approx(cross_entropy(module(X), y).item(), rel=1e-12)
    expected = local_gradient(rule, module, X, y)  # adds to the heads' gradients a second time
    torch.testing.assert_close(module[3].weight.grad, expected["3.weight"])
    before = [weight.grad.clone() for weight in parameters]
    rule(module, X, y)
    for weight, twice in zip(parameters, before, strict=True):
        torch.testing.assert_close(2 * weight.grad, twice)


def test_resnet_is_cut_into_blocks():
    network = seeded(resnet20)
    X, y = batch((3, 8, 8), 10, n=4)
    blocks = resnet_blocks(network)
    assert len(blocks) == 1 + 9 + 1
    loss, gradient = exact(network, X, y)
    rule = LocalGreedy()
    assert rule(blocks, X, y) == pytest.approx(loss, rel=1e-12)
    assert len(rule.heads) == 10
    torch.testing.assert_close(network.linear.weight.grad, gradient["linear.weight"])


@pytest.mark.parametrize("changed", [1, 2, 3])
def test_local_greedy_gradients_do_not_depend_on_later_blocks(changed):
    gradients = []
    for change in (0.0, 1.0):
        module, X, y = problem("cnn")
        rule = LocalGreedy(activation=torch.relu, seed=5)
        rule.start(module, X)
        with torch.no_grad():
            for weight in module[changed:].parameters():
                weight.add_(change)
        rule(module, X, y)
        gradients.append(written(module))
    for name in gradients[0]:
        same = torch.equal(gradients[0][name], gradients[1][name])
        assert same == (int(name[0]) < changed), name


def test_local_greedy_perturbs_no_unit_at_which_the_activation_is_flat():
    module, X, y = problem("cnn")
    seen = []
    rule = LocalGreedy(activation=torch.relu)
    rule.start(module, X)
    module[0].register_forward_hook(lambda layer, x, z: z.register_hook(seen.append) and None)
    z = module[0](X)
    rule(module, X, y)
    assert ((seen[-1] != 0) == (z > 0)).all()


# --- Pattern search


class Counting(nn.Module):
    """A module that keeps the loss of each of its calls."""

    def __init__(self, module, y):
        super().__init__()
        self.module, self.y, self.losses = module, y, []

    def forward(self, X):
        output = self.module(X)
        if len(X) == len(self.y):
            self.losses.append(cross_entropy(output, self.y).item())
        else:
            self.losses.append(None)
        return output


@pytest.mark.parametrize("max_queries", [1, 2, 57, 300])
def test_pattern_search_goes_down_within_its_budget(max_queries):
    module, X, y = problem("mlp")
    counting, before = Counting(module, y), [w.clone() for w in module.parameters()]
    result = pattern_search.fit(counting, X, y, max_queries=max_queries, delta=0.3, seed=1)
    assert result["n_queries"] == len(counting.losses) == max_queries
    assert result["losses"][0] == counting.losses[0]
    assert (np.diff(result["losses"]) < 0).all()
    assert result["losses"][-1] == min(counting.losses)  # nothing better was let go
    assert cross_entropy(module(X), y).item() == result["losses"][-1]
    moved = sum((new != old).sum() for new, old in zip(module.parameters(), before, strict=True))
    assert moved <= len(result["losses"]) - 1  # rejected moves left no trace


def test_pattern_search_in_batches_counts_what_it_asks():
    module, X, y = problem("mlp")
    counting = Counting(module, y)
    result = pattern_search.fit(counting, X, y, max_queries=83, batch_size=3, seed=1)
    assert result["n_queries"] == len(counting.losses) == 83


def test_pattern_search_halves_its_radius_when_every_move_has_failed():
    """From the minimum of a quadratic all 2 d moves fail, at every radius; one that is flat too."""

    class Bowl(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.tried = nn.Parameter(torch.zeros(3)), []

        def forward(self, X):
            self.tried.append(self.w.tolist())
            gap = (self.w[:2] ** 2).sum()
            return torch.stack([torch.zeros(()), gap]).expand(len(X), 2)

    module = Bowl()
    X, y = torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64)
    result = pattern_search.fit(module, X, y, max_queries=1 + 3 * 6, delta=0.8)
    assert result["radius"] == 0.1
    assert result["losses"] == [pytest.approx(np.log(2))]
    for sweep, radius in enumerate([0.8, 0.4, 0.2]):
        tried = module.tried[1 + 6 * sweep : 7 + 6 * sweep]
        every = [[s * radius * (i == j) for i in range(3)] for j in range(3) for s in (1, -1)]
        assert sorted(tried) == sorted(every)
    assert module.w.tolist() == [0, 0, 0]


# --- All of them train


def small_cnn():
    return nn.Sequential(
        nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1)),
        nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, stride=2), nn.BatchNorm2d(8)),
        nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)),
    )


def digits(n=400):
    X, y = load_digits(return_X_y=True)
    return X[:n] / 16, y[:n]


RULES = {
    "backprop": (Backprop, 0.05),
    "sparse gradients": (lambda: SparseGradients(0.9), 0.2),
    "sparse weights": (lambda: SparseWeights(0.5), 0.05),
    "FA": (FeedbackAlignment, 0.05),
    "DFA": (DirectFeedbackAlignment, 0.02),
    "Align-ada": (AlignAda, 0.02),
    "FG-W": (lambda: WeightPerturbed(10), 3e-3),
    "LG-FG-A": (lambda: LocalGreedy(4, torch.relu), 0.03),
}


@pytest.mark.parametrize("name", RULES)
def test_rule_trains_digits(name):
    make, lr = RULES[name]
    X, y = digits()
    module = seeded(small_cnn)
    state = torch.get_rng_state()
    losses = train(module, X, y, make(), epochs=4, batch_size=40, lr=lr, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(losses) == 4
    assert losses[-1] < 0.85 * losses[0]
    assert accuracy(module, X, y) > (0.3 if name == "FG-W" else 0.7)
    again = train(seeded(small_cnn), X, y, make(), epochs=4, batch_size=40, lr=lr, seed=0)
    assert again == losses


@pytest.mark.parametrize("name", RULES)
def test_rule_runs_the_eight_layer_cnn_in_float32(name):
    module = seeded(lambda: eight_layer_cnn(4)).float()
    X, y = batch((3, 8, 8), 10, n=8)
    make, lr = RULES[name]
    losses = train(module, X.float(), y, make(), epochs=2, batch_size=4, lr=lr, seed=0)
    assert np.isfinite(losses).all()


def test_pattern_search_trains_digits():
    X, y = digits(100)
    module = seeded(lambda: MLP(64, 10, hidden=4))
    result = pattern_search.fit(module, X, y, max_queries=2000, delta=0.5)
    assert result["losses"][-1] < 0.7 * result["losses"][0]


@pytest.mark.parametrize(
    ("schedule", "rates"), [("cosine", [1.0, 0.75, 0.25]), ("constant", [1.0, 1.0, 1.0])]
)
def test_learning_rate_follows_its_schedule(schedule, rates):
    module, weights = seeded(lambda: nn.Linear(1, 1)), []

    def ones(module, X, y):
        weights.append(module.weight.item())
        for weight in module.parameters():
            weight.grad = torch.ones_like(weight)
        return 0.0

    settings = {"epochs": 3, "batch_size": 1, "lr": 0.1, "momentum": 0.0, "seed": 0}
    train(module, torch.zeros(1, 1), torch.zeros(1), ones, **settings, schedule=schedule)
    steps = -np.diff([*weights, module.weight.item()])
    np.testing.assert_allclose(steps, 0.1 * np.array(rates))


def test_parameters_of_a_rule_are_trained_with_the_module():
    module, X, y = problem("mlp")
    rule = LocalGreedy()
    train(module, X, y, rule, epochs=1, batch_size=6, lr=0.0, seed=0)
    before = rule.heads["0"].linear.bias.clone()
    train(module, X, y, rule := LocalGreedy(), epochs=1, batch_size=6, lr=0.1, seed=0)
    assert before.abs().sum() == 0
    assert (rule.heads["0"].linear.bias != 0).all()


def test_training_stops_at_max_steps_and_names_its_schedules():
    X, y = digits(100)
    calls = []

    def rule(module, X, y):
        calls.append(len(X))
        return Backprop()(module, X, y)

    module = seeded(small_cnn)
    settings = {"epochs": 3, "batch_size": 40, "lr": 0.1, "seed": 0}
    assert len(train(module, X, y, rule, **settings, max_steps=4)) == 2
    assert calls == [40, 40, 20, 40]
    with pytest.raises(ValueError, match="'cosine', 'constant'"):
        train(module, X, y, rule, **settings, schedule="linear")
