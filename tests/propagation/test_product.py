"""Products that are taken when asked: lane by lane, or only where a pooling looks for them."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from propagation.chains import applied, differences, seeded, site, some_of, unchecked
from propagation.lanes import check, entry, slab
from propagation.strategies import normal, quick
from zoestim.evaluation import Batch, Objective, Propagation
from zoestim.propagation import RULES, Slab, Value, joined, nbytes, settled
from zoestim.propagation._made import Made
from zoestim.propagation._normalized import Normalized, NormalizedSlabs
from zoestim.propagation._product import Product

LARGE = "zoestim.propagation._made._LARGE"
HUGE = 2**60

each_way = pytest.mark.parametrize("large", [1, HUGE], ids=["lazy", "at once"])
GAINS = {
    "positive": [0.5, 1.0, 2.0, 0.1],
    "negative": [-0.5, -1.0, -2.0, -0.1],
    "mixed": [1.5, -0.7, 0.0, 0.3],
    "none": None,
}
each_gain = pytest.mark.parametrize("gain", GAINS.values(), ids=GAINS)


# --- Whole graphs

BEHIND = {
    "pooled": lambda: [nn.MaxPool2d(2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)],
    "uneven": lambda: [nn.ReLU(), nn.MaxPool2d((1, 3)), nn.AvgPool2d((2, 1))],
    "rounded up": lambda: [nn.MaxPool2d(2, ceil_mode=True), nn.Hardtanh(-0.4, 0.6)],
    "overlapping": lambda: [nn.MaxPool2d(3, 2, 1), nn.ReLU()],
    "all at once": lambda: [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 2)],
    "pooled twice": lambda: [nn.MaxPool2d(2), nn.ReLU(), nn.MaxPool2d(2)],
    "convolved": lambda: [nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)],
    "normalised": lambda: [nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.ReLU()],
    "not pooled": lambda: [nn.ReLU(), nn.Conv2d(4, 2, 2), nn.BatchNorm2d(2), nn.ReLU()],
    "nothing": list,
}


def network(gain: list[float] | None, *behind: nn.Module) -> nn.Module:
    """Return a convolution, another one that is normalised, and what is behind."""
    first = [nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()]
    module = seeded(
        nn.Sequential(*first, nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), *behind)
    )
    if gain is None:
        module[4] = nn.BatchNorm2d(4, affine=False).double()
    else:
        module[4].weight.data = torch.tensor(gain, dtype=torch.float64)
    return module


@each_way
@each_gain
@pytest.mark.parametrize("name", ["0.weight", "1.bias", "3.weight", "3.bias"])
@pytest.mark.parametrize("behind", BEHIND)
def test_what_follows_a_product(behind: str, name: str, gain: Any, large: int, monkeypatch):
    monkeypatch.setattr(LARGE, large)
    module = network(gain, *BEHIND[behind]())
    found, expected = differences(module, normal(3, 2, 8, 9, seed=7), name, some_of(module, name))
    torch.testing.assert_close(found.expand_as(expected), expected, rtol=1e-9, atol=1e-12)


class Tail(nn.Module):
    """The end of a residual block in front of a pooling, normalised on both ways or on one."""

    def __init__(self, kind: str):
        super().__init__()
        self.first, self.one = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.second, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        if self.kind == "shortcut":
            x = F.relu(self.norm(self.second(x)) + self.one(x))
        elif self.kind == "constant":
            x = self.norm(self.second(x)) + torch.linspace(-9, 9, 72).double().view(8, 9)
        else:  # two convolutions of one input, normalised together
            x = self.norm(self.second(x) + self.one(x))
        return F.max_pool2d(x, 2)


@each_way
@pytest.mark.parametrize("kind", ["shortcut", "constant", "together"])
@pytest.mark.parametrize("name", ["first.weight", "second.weight", "norm.weight"])
def test_what_is_added_between_normalisation_and_pooling(
    name: str, kind: str, large: int, monkeypatch
):
    monkeypatch.setattr(LARGE, large)
    module, X = seeded(Tail(kind)), normal(3, 2, 8, 9, seed=7)
    found, expected = differences(module, X, name, some_of(module, name))
    torch.testing.assert_close(found.expand_as(expected), expected, rtol=1e-9, atol=1e-12)


@torch.no_grad()
def test_convolutions_of_one_input_keep_their_moments_apart(monkeypatch):
    monkeypatch.setattr(LARGE, 1)
    module, X = seeded(Tail("together")), normal(3, 2, 8, 9, seed=7)
    objective = Objective(module, nn.MSELoss())
    propagation = Propagation(*objective.base(Batch(X, X)), objective.ways)
    for name in ("second.weight", "one.weight", "second.weight"):
        moved = entry(module.get_parameter(name).detach(), [0, 5], step=0.05)
        found = propagation.run({name: moved.change}).dense()
        _, expected = differences(module, X, name, [0, 5])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@each_way
@pytest.mark.parametrize("groups", [2, 4])
def test_grouped_convolutions(groups: int, large: int, monkeypatch):
    monkeypatch.setattr(LARGE, large)
    layers = nn.Conv2d(4, 8, 3, groups=groups), nn.BatchNorm2d(8), nn.MaxPool2d(2), nn.ReLU()
    module, X = seeded(nn.Sequential(*layers)), normal(3, 4, 8, 9, seed=7)
    indices = list(range(0, module[0].weight.numel(), 7))
    found, expected = differences(module, X, "0.weight", indices)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@each_way
@pytest.mark.parametrize("n_axes", [1, 3])
def test_lines_and_volumes(n_axes: int, large: int, monkeypatch):
    monkeypatch.setattr(LARGE, large)
    make, norm, pool = {
        1: (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d),
        3: (nn.Conv3d, nn.BatchNorm3d, nn.MaxPool3d),
    }[n_axes]
    layers = make(2, 3, 2), nn.Tanh(), make(3, 4, 2), norm(4), nn.ReLU(), pool(2)
    module = seeded(nn.Sequential(*layers))
    X = normal(3, 2, *[6] * n_axes, seed=7)
    for name in ("0.weight", "2.weight"):
        found, expected = differences(module, X, name, some_of(module, name))
        torch.testing.assert_close(found.expand_as(expected), expected, rtol=1e-9, atol=1e-12)


def test_a_product_before_a_pooling_is_never_taken_as_a_whole(monkeypatch):
    monkeypatch.setattr(LARGE, 1)
    monkeypatch.setattr(Product, "values", property(lambda _: pytest.fail("taken")))
    module = network(GAINS["mixed"], nn.ReLU(), nn.MaxPool2d(2))
    found, expected = differences(module, normal(3, 2, 8, 8, seed=7), "0.weight", [0, 20])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_product_behind_which_nothing_is_pooled_is_taken_once(monkeypatch):
    monkeypatch.setattr(LARGE, 1)
    monkeypatch.setattr(Product, "_make", lambda *_: pytest.fail("made lane by lane"))
    module = network(GAINS["positive"], nn.ReLU(), nn.Conv2d(4, 2, 1))
    found, expected = differences(module, normal(3, 2, 8, 8, seed=7), "0.weight", [0, 20])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


# --- The product itself


def product(*starts: int) -> tuple[Value, Tensor]:
    """Return the lazy product of slabs that start at some channels, and the whole of it."""
    X, weight = normal(3, 5, 6, 7, seed=1), Value(normal(4, 5, 3, 3, seed=2))
    x = slab(X, 1, list(starts))
    out = F.conv2d(X, weight.base, padding=1)
    lazy = RULES[F.conv2d](site(out), x, weight, None, 1, 1)
    assert type(lazy) is Product
    whole = [F.conv2d(lane, weight.base, padding=1) for lane in x.dense()]
    return Value(out, lazy), torch.stack(whole)


each_start = pytest.mark.parametrize("starts", [(2,), (1, 1, 1), (4, 0, 4)], ids=str)


@pytest.fixture
def _lazy(monkeypatch) -> None:
    monkeypatch.setattr(LARGE, 1)


@pytest.mark.usefixtures("_lazy")
@each_start
def test_values_and_lanes_are_those_of_the_convolution(starts: tuple[int, ...]):
    x, whole = product(*starts)
    assert nbytes(x) == whole.nbytes * 9 / 4  # nine shifts make four channels
    lanes = x.change.made
    assert not x.change.taken
    torch.testing.assert_close(lanes.dense(x.base.shape), whole, rtol=1e-12, atol=1e-12)
    onto = normal(4, *lanes.rest, seed=5).movedim(1, -1).contiguous().movedim(-1, 1)
    out = lanes.blank(1)
    lanes.write(0, out, onto[None])
    torch.testing.assert_close(out[0] - onto, whole[0].transpose(0, 1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(x.change.values, whole, rtol=1e-12, atol=1e-12)
    assert x.change.taken


@pytest.mark.usefixtures("_lazy")
@each_start
def test_moments_are_those_of_the_values(starts: tuple[int, ...]):
    x, whole = product(*starts)
    z = normal(3, 4, 6, 7, seed=8)
    pixels = z.movedim((0, 1), (-2, -1)).reshape(-1, 4)
    axes = (1, 3, 4)
    expected = [m.mean(axes) for m in (whole, whole * z, whole * whole)]
    torch.testing.assert_close(x.change.moments(pixels), torch.stack(expected))


@pytest.mark.usefixtures("_lazy")
@each_start
def test_lanes_are_joined_and_settled_as_what_they_are(starts: tuple[int, ...]):
    x = product(*starts)[0]
    assert torch.equal(settled(x).dense(), product(*starts)[0].dense())
    pooled = unchecked(unchecked(product(*starts)[0], "normalise"), "largest")
    assert type(pooled.change) is Made
    assert type(settled(pooled).change) is Slab
    together = joined([pooled, pooled], [len(starts)] * 2).dense()
    assert torch.equal(together, pooled.dense().repeat(2, 1, 1, 1, 1))


@pytest.mark.usefixtures("_lazy")
@each_start
@pytest.mark.parametrize("second", ["largest", "overlapping", "average", "relu", "tanh"])
@pytest.mark.parametrize("first", ["normalise", "largest", "relu", "average"])
def test_two_operations_one_after_the_other(first: str, second: str, starts: tuple[int, ...]):
    applied(unchecked(product(*starts)[0], first), second)


@pytest.mark.usefixtures("_lazy")
def test_what_is_lazy_is_known_by_its_type():
    x, _ = product(1, 2)
    normalised = unchecked(x, "normalise")
    assert type(normalised.change) is Normalized
    assert nbytes(normalised) == nbytes(x)
    X, weight = Value(normal(3, 2, 6, 6)), normal(4, 2, 3, 3, seed=1)
    out = F.conv2d(X.base, weight, padding=1)
    moved = RULES[F.conv2d](site(out), X, entry(weight, [0, 40, 71]), None, 1, 1)
    assert type(unchecked(Value(out, moved), "normalise").change) is NormalizedSlabs


@given(st.data())
@quick
def test_products_of_any_window_are_pooled_by_any_gain(data: st.DataObject):
    kernel = [data.draw(st.integers(1, 3)) for _ in range(2)]
    settings = {"stride": data.draw(st.integers(1, 2)), "padding": data.draw(st.integers(0, 1))}
    batch, n_in, n_out = (data.draw(st.integers(1, 3)) for _ in range(3))
    X = normal(batch, n_in, 7, 8)
    weight = Value(normal(n_out, n_in, *kernel, seed=1))
    starts = data.draw(st.lists(st.integers(0, n_in - 1), min_size=1, max_size=3))
    gains = st.sampled_from([-2.0, -0.5, 0.0, 0.3, 1.0])
    gain = torch.tensor(data.draw(st.lists(gains, min_size=n_out, max_size=n_out))).double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LARGE, 1)
        out = F.conv2d(X, weight.base, None, **settings)
        x = Value(out, check(F.conv2d, slab(X, 1, starts), weight, None, **settings))
        given_ = None, None, Value(gain), Value(normal(n_out, seed=3)), True
        norm = F.batch_norm(out, None, None, gain, given_[3].base, True)
        z = Value(norm, RULES[F.batch_norm](site(norm), x, *given_))
        check(F.max_pool2d, z, data.draw(st.sampled_from([2, (1, 2), (3, 1)])))
