"""Pending steps: taken together, tile by tile, they give what each alone gives."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from propagation.chains import applied, differences, seeded, some_of
from propagation.lanes import check, dense
from propagation.strategies import normal
from zoestim.propagation import Dense, Slab, Value, settled
from zoestim.propagation._pending import Pending
from zoestim.propagation._statistics import _sums

LARGE, TILE = "zoestim.propagation._made._LARGE", "zoestim.propagation._pending._TILE"
HUGE = 2**60

# --- Pending steps

N_ROWS, N_COLUMNS = 10, 4
TILES = [1, 12, 40, HUGE]  # rows of 1; of 3 and a last one of 1; all
each_tile = pytest.mark.parametrize("tile", TILES)
each_number = pytest.mark.parametrize("lanes", [1, 3], ids=["one", "several"])


def pending(lanes: int, owned: bool) -> Pending:
    return Pending(normal(lanes, N_ROWS, N_COLUMNS), N_COLUMNS, owned)


def scaled(d: Tensor, out: Tensor, by: Tensor) -> None:
    torch.mul(d, by, out=out)


def curved(d: Tensor, out: Tensor, *beside: Tensor) -> None:
    """Write the sum of d^2 and what lies beside it."""
    total = d * d
    for tensor in beside:
        total = total + tensor
    out.copy_(total)


def beside_of(lanes: int) -> list[Tensor]:
    """What belongs to all, to rows, to lanes, or to one element each."""
    n, rows, columns = lanes, N_ROWS, N_COLUMNS
    shapes = [(1, rows, columns), (n, rows, columns), (n, 1, columns), (1, 1, columns)]
    return [normal(*shape, seed=seed) for seed, shape in enumerate(shapes, 3)]


@each_tile
@each_number
@pytest.mark.parametrize("owned", [True, False], ids=["owned", "borrowed"])
@pytest.mark.parametrize("n_steps", [1, 2, 3, 5])
def test_pending_steps_are_taken_in_their_order(
    n_steps: int, owned: bool, lanes: int, tile: int, monkeypatch
):
    monkeypatch.setattr(TILE, tile)
    change, beside = pending(lanes, owned), beside_of(lanes)
    expected = change.source.clone()
    for step in range(n_steps):
        if step % 2:
            change, expected = change.then(scaled, beside[step % 4]), expected * beside[step % 4]
        else:
            change = change.then(curved, *beside)
            expected = expected**2 + beside[0] + beside[1] + beside[2] + beside[3]
    torch.testing.assert_close(change.values, expected, rtol=1e-13, atol=1e-13)


@each_tile
@each_number
@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_a_borrowed_source_is_untouched(n_steps: int, lanes: int, tile: int, monkeypatch):
    monkeypatch.setattr(TILE, tile)
    change, before = pending(lanes, owned=False), normal(lanes, N_ROWS, N_COLUMNS)
    source = change.source
    for _ in range(n_steps):
        change = change.then(curved, *beside_of(lanes))
    assert change.values.data_ptr() != source.data_ptr()
    assert torch.equal(source, before)


@each_tile
@each_number
def test_an_owned_source_holds_the_result(lanes: int, tile: int, monkeypatch):
    monkeypatch.setattr(TILE, tile)
    change = pending(lanes, owned=True).then(curved).then(curved)
    expected = change.source.clone() ** 4
    assert change.values.data_ptr() == change.source.data_ptr()
    torch.testing.assert_close(change.source, expected)


@each_tile
@each_number
@pytest.mark.parametrize("shared", [True, False], ids=["one for all", "one each"])
def test_a_tensor_is_added_tile_by_tile(shared: bool, lanes: int, tile: int, monkeypatch):
    monkeypatch.setattr(TILE, tile)
    other = normal(1 if shared else lanes, N_ROWS, N_COLUMNS, seed=8)
    change = pending(lanes, owned=False)
    found = change.then(scaled, other).plus(other).values
    torch.testing.assert_close(found, change.source * other + other)


@pytest.mark.parametrize(("tile", "sizes"), [(12, [3, 3, 3, 1] * 2), (1, [1] * 20), (80, [10])])
def test_tiles_are_small_and_the_last_one_is_smaller(tile: int, sizes: list[int], monkeypatch):
    monkeypatch.setattr(TILE, tile)
    seen: list[int] = []

    def step(d: Tensor, out: Tensor) -> None:
        seen.append(d.shape[1])
        torch.neg(d, out=out)

    change = pending(2, owned=False)
    assert torch.equal(change.then(step).values, -change.source)
    assert sorted(seen) == sorted(sizes)


def test_steps_are_taken_once_and_by_no_one_else():
    taken: list[int] = []

    def step(d: Tensor, out: Tensor) -> None:
        taken.append(1)
        torch.neg(d, out=out)

    change = pending(2, owned=False).then(step)
    assert taken == []
    fixed = settled(Value(normal(N_ROWS, N_COLUMNS), change))
    assert type(fixed.change) is Dense
    assert fixed.change.values is change.values
    assert taken == [1]


# --- Pending steps of rules

CHAINS = list(itertools.product(["relu", "hardtanh", "largest", "overlapping", "convolve"], [1, 3]))


@each_tile
@pytest.mark.parametrize(("behind", "lanes"), CHAINS, ids=[f"{a}-{n}" for a, n in CHAINS])
def test_operations_behind_the_normalisation_of_all_channels(
    behind: str, lanes: int, tile: int, monkeypatch
):
    monkeypatch.setattr(TILE, tile)
    x = dense(normal(3, 4, 6, 5), lanes)
    before = x.change.values.clone()
    normed = applied(x, "normalise")
    assert isinstance(normed.change, Pending)
    applied(normed, behind)
    assert torch.equal(x.change.values, before)


@each_tile
@pytest.mark.parametrize("shape", [(2, 1030, 2, 1), (1, 3, 7, 1), (7, 1, 1, 1), (3, 5, 4)], ids=str)
def test_any_number_of_channels_and_pixels(shape: tuple[int, ...], tile: int, monkeypatch):
    monkeypatch.setattr(TILE, tile)
    normed = applied(dense(normal(*shape), 2), "normalise")
    assert isinstance(normed.change, Pending)
    applied(applied(normed, "relu"), "hardtanh")


@each_tile
@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("kind", ["moved alike", "laid out otherwise", "one channel", "constant"])
def test_what_is_added_to_pending_steps(kind: str, lanes: int, tile: int, monkeypatch):
    monkeypatch.setattr(TILE, tile)
    base = normal(3, 4, 6, 5, seed=2)
    normed = applied(dense(normal(3, 4, 6, 5), lanes), "normalise")
    other = dense(base, lanes, seed=1)
    if kind == "moved alike":
        other = other.changed(Dense(other.change.values.movedim(2, -1).contiguous().movedim(-1, 2)))
    if kind == "one channel":
        values = normal(lanes, 1, 3, 6, 5, seed=4)
        other = other.changed(Slab(values, torch.arange(lanes), 1))
    given = base if kind == "constant" else other
    found = check(torch.add, normed, Value(base) if kind == "constant" else given)
    assert isinstance(found, Pending) == (kind in ("moved alike", "constant"))
    check(torch.add, Value(base) if kind == "constant" else given, normed)


# --- Shortcuts


class Shortcut(nn.Module):
    """A block whose normalised values, or those of its first layers, have two readers."""

    def __init__(self, twice: str):
        super().__init__()
        self.twice = twice
        self.first, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.second, self.bn2 = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        moved = self.bn(self.first(x))
        if self.twice == "normalised":
            moved = F.relu(moved) + moved
        behind = self.bn2(self.second(moved))
        if self.twice == "twice normalised":
            return F.relu(behind) + 2 * behind
        if self.twice == "itself":
            return F.relu(behind + behind)
        if self.twice == "itself scaled":
            return F.relu(torch.add(behind, behind, alpha=2))
        return F.relu(behind + moved if self.twice == "around" else behind + x)


READERS = ["normalised", "twice normalised", "around", "input"]


@pytest.mark.parametrize("tile", [1, 40, HUGE])
@pytest.mark.parametrize("name", ["first.weight", "bn.bias", "second.weight", "bn2.weight"])
@pytest.mark.parametrize("twice", READERS)
def test_shortcuts_around_pending_steps(twice: str, name: str, tile: int, monkeypatch):
    monkeypatch.setattr(TILE, tile)
    monkeypatch.setattr(LARGE, 1)
    module = seeded(Shortcut(twice))
    found, expected = differences(module, normal(2, 3, 5, 7, seed=7), name, some_of(module, name))
    torch.testing.assert_close(found.expand_as(expected), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["first.weight", "bn.bias"])
@pytest.mark.parametrize("twice", ["itself", "itself scaled"])
def test_pending_steps_that_one_node_reads_twice(twice: str, name: str):
    module = seeded(Shortcut(twice))
    found, expected = differences(module, normal(2, 3, 5, 7, seed=7), name, some_of(module, name))
    torch.testing.assert_close(found.expand_as(expected), expected, rtol=1e-9, atol=1e-12)


# --- The sums that batch normalisation needs


@pytest.mark.parametrize("tile", [0, HUGE], ids=["in one pass", "by three products"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("lanes", [1, 3])
def test_sums_of_rows(lanes: int, dtype: torch.dtype, tile: int, monkeypatch):
    monkeypatch.setattr("zoestim.propagation._statistics.TILE", tile)
    d, z = normal(lanes, 50, 7).to(dtype), normal(50, 7, seed=1).to(dtype)
    found, (d, z) = _sums(d, z), (d.double(), z.double())
    assert found.dtype == torch.float64
    expected = torch.stack([d.sum(1), (d * z).sum(1), (d * d).sum(1)])
    rtol = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol)
