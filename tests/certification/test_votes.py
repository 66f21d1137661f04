"""Votes are the same to the last one, whoever counts and in whatever batches."""

import math
import tracemalloc

import numpy as np
import pytest

from certification.classifying import Placed, Recorder, by_thirds, failing_above
from zoestim import certify_counts
from zoestim.backends import DevicesBackend, JoblibBackend, SerialBackend
from zoestim.certification import count_votes
from zoestim.certification._votes import BLOCK, _Sampling

pytestmark = pytest.mark.usefixtures("global_rng_untouched")

X = np.random.default_rng(0).normal(scale=0.5, size=(5, 2, 3))
SERIAL = SerialBackend()


def votes(classify=by_thirds, samples=X, n_draws=60, noise_std=0.8, n_classes=3, **settings):
    settings = {"rng_seed": 3, "batch_size": 32, "backend": SERIAL, **settings}
    return count_votes(classify, samples, n_draws, noise_std, n_classes, **settings)


def draws(samples=X, **settings) -> np.ndarray:
    """Return what a classifier saw, as (n_samples, n_draws, ...)."""
    seen = Recorder()
    votes(seen, samples, **settings)
    return np.concatenate(seen.calls).reshape(len(samples), -1, *samples.shape[1:])


# --- The same votes


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("n_draws", [1, 60, 2 * BLOCK + 7])
def test_votes_and_noise_do_not_depend_on_the_batch_size(n_draws, shared):
    settings = {"n_draws": n_draws, "shared": shared}
    expected, rows = votes(batch_size=1000, **settings), draws(batch_size=1000, **settings)
    assert expected.dtype == np.int64
    assert expected.sum(axis=1).tolist() == [n_draws] * len(X)
    for batch_size in (1, 7):
        np.testing.assert_array_equal(votes(batch_size=batch_size, **settings), expected)
        np.testing.assert_array_equal(draws(batch_size=batch_size, **settings), rows)


@pytest.mark.parametrize("kind", ["threading", "loky"])
@pytest.mark.parametrize("shared", [False, True])
def test_votes_do_not_depend_on_who_counts(kind, shared):
    backend = JoblibBackend(2, kind)
    for n_draws, samples in ((60, X), (2 * BLOCK + 7, X[:1])):
        settings = {"n_draws": n_draws, "shared": shared, "samples": samples}
        expected = votes(**settings)
        for batch_size in (7, 1000):
            found = votes(backend=backend, batch_size=batch_size, **settings)
            np.testing.assert_array_equal(found, expected)


def test_devices_get_the_classifier_that_is_theirs():
    devices = DevicesBackend(["cpu", "cpu:0"])
    np.testing.assert_array_equal(votes(backend=devices), votes())
    np.testing.assert_array_equal(votes(Placed(), backend=devices), votes())


def test_the_draws_of_one_sample_are_work_for_several():
    shares = []

    class Watched(SerialBackend):
        def map(self, function, shared, work):
            shares.append(list(work))
            for task in reversed(range(len(work))):
                yield [task], function(shared, [task])

    found = votes(samples=X[:1], n_draws=2 * BLOCK + 7, backend=Watched())
    np.testing.assert_array_equal(found, votes(samples=X[:1], n_draws=2 * BLOCK + 7))
    assert shares == [[BLOCK, BLOCK, 7]]


def test_the_seed_decides():
    np.testing.assert_array_equal(draws(), draws())
    assert not np.isin(draws(), draws(rng_seed=4)).any()


def test_more_draws_begin_with_the_same_ones():
    np.testing.assert_array_equal(draws(n_draws=BLOCK + 9)[:, :60], draws())


def test_the_votes_are_those_of_a_loop_over_draws():
    expected = np.zeros((len(X), 3), dtype=np.int64)
    for index, x in enumerate(X):
        seed = np.random.SeedSequence(3, spawn_key=(index, 0))
        generator = np.random.default_rng(seed)
        for _ in range(60):
            noisy = x + 0.8 * generator.standard_normal(x.shape)
            expected[index, by_thirds(noisy[None])[0]] += 1
    np.testing.assert_array_equal(votes(), expected)


# --- Independent noise, or the same bank for all


def test_samples_and_draws_get_noise_of_their_own():
    noise = draws(np.zeros((4, 3)), n_draws=BLOCK + 20)
    assert len(np.unique(noise)) == noise.size


def test_shared_noise_is_the_same_for_each_sample():
    noise = draws(np.zeros((4, 3)), n_draws=BLOCK + 20, shared=True)
    assert (noise == noise[0]).all()
    assert len(np.unique(noise[0])) == noise[0].size


def test_with_shared_noise_votes_depend_on_neither_order_nor_number_of_samples():
    expected, order = votes(shared=True), [3, 0, 4]
    np.testing.assert_array_equal(votes(samples=X[order], shared=True), expected[order])
    assert not np.array_equal(votes(samples=X[order]), votes()[order])


def test_noise_has_the_moments_that_it_should():
    noise = draws(np.full((4, 10), 5.0), n_draws=2000, noise_std=0.3).reshape(-1, 10)
    n = len(noise)
    assert np.abs(noise.mean(axis=0) - 5).max() < 4 * 0.3 / math.sqrt(n)
    covariance = np.cov(noise.T) / 0.09
    assert np.abs(covariance - np.eye(10)).max() < 5 * math.sqrt(2 / n)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_have_the_type_of_x_and_are_rounded_once(dtype):
    samples = np.linspace(-1, 1, 12).reshape(4, 3).astype(dtype)
    rows = draws(samples)
    assert rows.dtype == dtype
    noise = draws(np.zeros((4, 3)))
    np.testing.assert_array_equal(rows, (samples[:, None].astype(float) + noise).astype(dtype))


def test_samples_stay_as_they_are():
    samples = X.copy()
    samples.setflags(write=False)
    votes(samples=samples)
    np.testing.assert_array_equal(samples, X)


# --- Batches


@pytest.mark.parametrize(("n_draws", "batch_size"), [(10, 32), (60, 7), (32, 32), (5, 1000)])
def test_draws_of_several_samples_fill_batches(n_draws, batch_size):
    seen = Recorder()
    votes(seen, n_draws=n_draws, batch_size=batch_size)
    sizes, rows = [len(call) for call in seen.calls], n_draws * len(X)
    assert sizes[:-1] == [batch_size] * (rows // batch_size - (rows % batch_size == 0))
    assert sum(sizes) == rows


def test_memory_holds_a_batch_and_no_more():
    def light(rows):
        return np.zeros(len(rows), dtype=np.int64)

    samples, n_draws, batch_size = np.zeros((2, 2000)), 3000, 50
    tracemalloc.start()
    try:
        votes(light, samples, n_draws=n_draws, batch_size=batch_size)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    batch = batch_size * samples.itemsize * samples.shape[1]
    assert peak < 5 * batch < n_draws * samples.itemsize * samples.shape[1] / 10


def test_no_sample_gives_no_vote():
    assert votes(samples=X[:0]).shape == (0, 3)


# --- Rows that failed


def test_rows_that_failed_vote_for_nobody_and_count_against_the_class():
    samples, n = np.full((2, 1), -1.0), 1000
    counts0 = votes(failing_above, samples, n_draws=100, n_classes=2, rng_seed=0)
    counts = votes(failing_above, samples, n_draws=n, n_classes=2, rng_seed=1)
    assert (counts.sum(axis=1) < n).all()
    assert (counts[:, 1] == 0).all()
    dropped = certify_counts(counts0, counts, 0.8)
    counted = certify_counts(counts0, counts, 0.8, n=n)
    assert (counted.radius < dropped.radius).all()
    # What is certified stays below the distance to where it fails.
    assert (counted.radius < 1.0).all()
    assert (dropped.radius > 1.0).all()


def test_where_every_row_fails_it_abstains():
    counts = votes(failing_above, np.full((1, 1), 50.0))
    assert counts.sum() == 0
    assert certify_counts(counts, counts, 0.8, n=60).abstained.all()


# --- What is refused


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ({"samples": np.ones((2, 2), np.uint8)}, TypeError, "array of floats, .* got uint8"),
        ({"samples": np.float64(1)}, TypeError, r"of shape \(\)"),
        ({"n_draws": 0}, ValueError, "n_draws must be an integer of at least 1; got 0"),
        ({"n_draws": 10.0}, ValueError, "n_draws must be an integer"),
        ({"noise_std": 0}, ValueError, "noise_std must be .* above 0"),
        ({"n_classes": 0}, ValueError, "n_classes must be"),
        ({"batch_size": 0}, ValueError, "batch_size must be"),
        ({"rng_seed": None}, ValueError, "rng_seed must be an integer of at least 0; got None"),
        ({"n_classes": 2}, ValueError, "indices of 2 classes, or -1; got labels from 0 to 2"),
        ({"classify": lambda rows: np.full(len(rows), -2)}, ValueError, "got labels from -2"),
        (
            {"classify": lambda rows: rows},
            TypeError,
            r"one integer for each of 32 rows.*\(32, 2, 3",
        ),
        ({"classify": lambda rows: np.zeros(len(rows))}, TypeError, "got float64 of shape"),
        ({"classify": lambda rows: [0]}, TypeError, r"got int64 of shape \(1,\)"),
    ],
)
def test_what_cannot_be_counted_is_refused(given, error, match):
    with pytest.raises(error, match=match):
        votes(**given)


def test_ranks_that_ask_different_things_can_tell():
    def digest(samples=X, seed=3, batch_size=32, classify=by_thirds):
        return _Sampling(classify, samples, 60, 0.8, 3, seed, batch_size, False).digest()

    assert digest() == digest(X.copy(), batch_size=7, classify=failing_above)
    assert len({digest(), digest(X + 1), digest(X.reshape(5, 6)), digest(seed=4)}) == 4
