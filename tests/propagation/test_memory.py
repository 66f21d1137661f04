"""How the changes of several pieces of a fold are joined, whatever form each has."""

import itertools

import pytest
import torch
from torch import Tensor

from propagation.lanes import dense, entry, slab
from propagation.strategies import normal
from zoestim.propagation import Dense, Entry, Lanes, RankOne, Slab, Value, joined

BASE = normal(4, 3)


def rank_one(n_lanes: int, seed: int) -> Value:
    features = torch.arange(n_lanes) % 5
    return Value(BASE, RankOne(normal(n_lanes, 4, seed=seed), features, TABLE))


TABLE = normal(5, 3, seed=9)
FORMS = {
    "none": (lambda: Value(BASE), 2),
    "slab": (lambda: slab(BASE, 1, [0, 2]), 2),
    "wide slab": (lambda: slab(BASE, 1, [1], 2), 1),
    "other axis": (lambda: slab(BASE, 0, [3, 0, 1]), 3),
    "entry": (lambda: entry(BASE, [5, 11]), 2),
    "rank one": (lambda: rank_one(2, 1), 2),
    "dense": (lambda: dense(BASE, 2), 2),
}


def lanes(value: Value, size: int) -> Tensor:
    return torch.zeros(size, *BASE.shape).double() if value.change is None else value.dense()


@pytest.mark.parametrize(("first", "second"), list(itertools.product(FORMS, repeat=2)))
def test_pieces_of_any_two_forms(first: str, second: str):
    (make, n), (make_other, m) = FORMS[first], FORMS[second]
    pieces = [make(), make_other(), make()]
    found = joined(pieces, [n, m, n])
    assert found.base is BASE
    if first == second == "none":
        assert found.change is None
        return
    expected = torch.cat(list(map(lanes, pieces, [n, m, n])))
    torch.testing.assert_close(found.dense(), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        *[("slab", Slab), ("wide slab", Slab), ("entry", Entry)],
        *[("rank one", RankOne), ("dense", Dense)],
    ],
)
def test_pieces_of_one_form_keep_it(form: str, kind: type):
    make, n = FORMS[form]
    assert type(joined([make(), make()], [n, n]).change) is kind


def test_lanes_of_integers_are_joined_with_what_did_not_change():
    base = torch.arange(4)
    moved = Value(base, Lanes(base + torch.tensor([[1], [2]])))
    found = joined([Value(base), moved], [1, 2])
    assert torch.equal(found.change.values, base + torch.tensor([[0], [1], [2]]))
