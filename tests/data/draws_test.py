import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from research.data import stateless_rng

_MASK = 2**64 - 1


def _splitmix64(state, count):
    """Steele et al. 2014, figure 17, in Python's integers."""
    found = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        found.append(z ^ (z >> 31))
    return found


@settings(max_examples=50, deadline=None)
@given(key=st.integers(0, _MASK), count=st.integers(1, 20))
def test_numbers_match_splitmix64(key, count):
    expected = _splitmix64(key, 3 * count)
    for stream in range(3):
        drawn = stateless_rng.numbers(np.array([key], np.uint64), count, stream)
        assert drawn.tolist() == [expected[stream * count : (stream + 1) * count]]


def test_first_numbers_match_published_test_vectors():
    """For seed 1234567, from the test vectors of several implementations."""
    drawn = stateless_rng.numbers(np.array([1234567], np.uint64), 3)
    assert drawn.tolist() == [[6457827717110365317, 3203168211198807973, 9817491932198370423]]


def test_seed_epoch_and_example_each_change_the_key():
    members = np.arange(1000)[:, None]
    found = [
        stateless_rng.keys(seed, np.full(1000, epoch), members).ravel()
        for seed in (0, 1, 2**32 - 1)
        for epoch in range(4)
    ]
    assert len(np.unique(np.concatenate(found))) == 12_000


@settings(max_examples=50, deadline=None)
@given(order=st.permutations(range(12)), cut=st.integers(1, 11))
def test_a_key_does_not_depend_on_the_batch(order, cut):
    members, epochs = np.array(order)[:, None], np.array(order) % 3
    whole = stateless_rng.keys(7, np.arange(12) % 3, np.arange(12)[:, None])
    np.testing.assert_array_equal(stateless_rng.keys(7, epochs, members), whole[order])
    np.testing.assert_array_equal(stateless_rng.keys(7, epochs[cut:], members[cut:]), whole[order][cut:])


def test_uniform_and_below_cover_their_range_evenly():
    keys = stateless_rng.keys(0, np.zeros(1000), np.arange(1000)[:, None])[:, 0]
    numbers = stateless_rng.numbers(keys, 50)
    uniform = stateless_rng.uniform(numbers)
    assert 0 <= uniform.min() < 1e-3 < 1 - 1e-3 < uniform.max() < 1
    counts = np.bincount(stateless_rng.below(numbers, 10).ravel(), minlength=10)
    assert len(counts) == 10
    assert np.abs(counts - 5000).max() < 5 * (50_000 * 0.1 * 0.9) ** 0.5  # 5 standard deviations
    # Neighbouring numbers are uncorrelated, as are equal positions of neighbouring keys.
    for a, b in ((uniform[:, :-1], uniform[:, 1:]), (uniform[:-1], uniform[1:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / a.size**0.5


def test_numbers_never_change():
    """A golden value: if it changed, runs of earlier versions would not be reproducible."""
    keys = stateless_rng.keys(3, np.array([5]), np.array([[11]]))
    assert keys.tolist() == [[1863053595389605708]]
