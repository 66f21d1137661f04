"""Shares hold every task once; equal ones are equal, guided ones become smaller."""

from hypothesis import given, settings
from hypothesis import strategies as st

from zoestim.backends import equal_shares, guided_shares

quick = settings(max_examples=50, deadline=None)

# --- Equal shares


@given(st.lists(st.floats(0, 1e6), max_size=30), st.integers(1, 8))
@quick
def test_shares_hold_every_task_once_and_none_is_overloaded(work: list[float], n_shares: int):
    shares = equal_shares(work, n_shares)
    assert len(shares) == n_shares
    assert sorted(task for share in shares for task in share) == list(range(len(work)))
    assert all(share == sorted(share) for share in shares)
    bound = sum(work) / n_shares + max(work, default=0.0)
    assert max(sum(work[task] for task in share) for share in shares) <= bound * (1 + 1e-12)


def test_shares_of_equal_tasks_differ_by_one_task_at_most():
    assert sorted(map(len, equal_shares([3.0] * 11, 4))) == [2, 3, 3, 3]


def test_the_largest_task_goes_first():
    assert equal_shares([1, 1, 1, 1, 4], 2) == [[4], [0, 1, 2, 3]]


# --- Guided shares


@given(
    st.lists(st.floats(0, 1e6), max_size=30),
    st.integers(1, 8),
    st.floats(0, 1e6),
)
@quick
def test_guided_shares_hold_every_task_once_in_order(
    work: list[float], n_workers: int, least: float
):
    shares = guided_shares(work, n_workers, least)
    assert [task for share in shares for task in share] == list(range(len(work)))
    assert all(shares)


def test_guided_shares_become_smaller():
    sizes = [len(share) for share in guided_shares([1.0] * 200, 2)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 50
    assert sizes[-1] == 1


def test_a_guided_share_is_worth_sending_but_for_the_last():
    sizes = [len(share) for share in guided_shares([1.0] * 200, 2, least=8)]
    assert min(sizes[:-1]) == 8
