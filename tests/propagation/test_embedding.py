"""Tables that tokens look rows up in, and dropout, against themselves."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from propagation.lanes import check, dense, entry
from propagation.strategies import changes, denses, entries, normal, quick, shapes
from zoestim.propagation import RULES, Dense, Entry, Site, Slab, Value


def tokens(*shape: int, n_rows: int, seed: int = 3) -> Value:
    generator = torch.Generator().manual_seed(seed)
    return Value(torch.randint(n_rows, shape, generator=generator))


@given(st.data(), shapes(0, 3), st.integers(1, 6), st.integers(1, 3))
@quick
def test_embedding(data: st.DataObject, shape: tuple[int, ...], n_rows: int, n_features: int):
    x, table = tokens(*shape, n_rows=n_rows), normal(n_rows, n_features)
    found = check(F.embedding, x, data.draw(entries(table)))
    assert isinstance(found, Slab)
    assert found.width == 1
    check(F.embedding, x, data.draw(denses(table)))
    check(F.embedding, x, data.draw(changes(table)))


def test_the_padding_row_moves_as_any_other():
    table = normal(4, 2)
    check(F.embedding, tokens(5, n_rows=4), entry(table, [0, 1]), padding_idx=0)
    check(F.embedding, tokens(5, n_rows=4), weight=entry(table, [0, 1]), sparse=False)


@pytest.mark.parametrize("padding", [None, 1, -1])
@pytest.mark.parametrize("mode", ["mean", "sum"])
@given(st.data(), st.integers(1, 4), st.integers(1, 5))
@quick
def test_bags(mode: str, padding: int | None, data: st.DataObject, n: int, length: int):
    x, table = tokens(n, length, n_rows=3), normal(3, 2)
    for weight in (data.draw(entries(table)), data.draw(denses(table))):
        check(F.embedding_bag, x, weight, mode=mode, padding_idx=padding)


@pytest.mark.parametrize(
    "arguments",
    [
        {"mode": "max"},
        {"max_norm": 1.0},
        {"offsets": Value(torch.tensor([0, 2]))},
        {"per_sample_weights": Value(torch.ones(2, 3)), "mode": "sum"},
    ],
    ids=["max", "max norm", "offsets", "weights"],
)
def test_other_bags_are_left_to_the_operation(arguments: dict):
    weight = entry(normal(3, 2), [1])
    site = Site(Value(torch.zeros(2, 2)), lambda function: function())
    shape = (5,) if "offsets" in arguments else (2, 3)
    found = RULES[F.embedding_bag](site, tokens(*shape, n_rows=3), weight, **arguments)
    assert found is NotImplemented


def test_a_table_that_renormalises_itself_is_left_to_the_operation():
    site = Site(Value(torch.zeros(5, 2)), lambda function: function())
    arguments = tokens(5, n_rows=3), entry(normal(3, 2), [1])
    assert RULES[F.embedding](site, *arguments, max_norm=1.0) is NotImplemented


# --- Dropout

DROPOUTS = {F.dropout: (4, 3), F.dropout1d: (4, 3, 2), F.dropout2d: (4, 3, 2, 2)}
DROPOUTS[F.dropout3d] = (4, 3, 2, 1, 2)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("function", DROPOUTS)
@given(st.data())
@quick
def test_dropout_of_changes_draws_what_the_pass_drew(function, p: float, data: st.DataObject):
    x = data.draw(changes(normal(*DROPOUTS[function])))
    state, drawn = torch.Generator().manual_seed(7).get_state(), []

    def replay(draw: Callable[[], Tensor]) -> Tensor:
        drawn.append(1)
        torch.set_rng_state(state)
        return draw()

    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(state)
        out = Value(function(x.base, p, True))
        found = [RULES[function](Site(out, replay), x, p, training=True) for _ in range(2)]
        lanes = []
        for lane in x.dense():
            torch.set_rng_state(state)
            lanes.append(function(x.base + lane, p, True) - out.base)
    assert len(drawn) == 1
    assert isinstance(found[0], Slab) == isinstance(x.change, Slab)
    for change in found:
        torch.testing.assert_close(change.dense(x.base.shape), torch.stack(lanes))


@pytest.mark.parametrize("function", [*DROPOUTS, F.alpha_dropout, F.feature_alpha_dropout])
def test_dropout_in_eval_mode_is_nothing(function):
    x = dense(normal(*DROPOUTS.get(function, (4, 3))), 2)
    assert check(function, x, training=False) is x.change


def test_alpha_dropout_in_train_mode_is_left_to_the_operation():
    x = Value(normal(3), Entry(torch.tensor([1]), torch.ones(1).double()))
    site = Site(Value(torch.zeros(3)), lambda function: function())
    assert RULES[F.alpha_dropout](site, x, training=True) is NotImplemented
    assert isinstance(RULES[F.dropout](site, x, 0.5, True), Dense)
