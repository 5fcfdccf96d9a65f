import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.base.errors import UserError
from research.data.packing import best_fit

LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=60)


def _by_hand(lengths, capacity, order):
    """Best fit by definition: into the fullest row that still has room for the example."""
    rows = []
    for i in order:
        room = [(capacity - sum(lengths[j] for j in row), row) for row in rows]
        room = [(left, row) for left, row in room if left >= lengths[i]]
        if room:
            min(room, key=lambda pair: pair[0])[1].append(i)
        else:
            rows.append([i])
    return rows


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, capacity=st.integers(20, 50), seed=st.integers(0, 9))
def test_rows_match_best_fit(lengths, capacity, seed):
    """The choice among equally full rows is arbitrary: the row lengths must agree, not the members."""
    order = np.random.default_rng(seed).permutation(len(lengths))
    rows = best_fit(np.array(lengths), capacity, order)
    members = [[i for i in row if i >= 0] for row in rows.tolist()]
    assert sorted(i for row in members for i in row) == list(range(len(lengths)))
    filled = [sum(lengths[i] for i in row) for row in members]
    assert max(filled) <= capacity
    assert sorted(filled) == sorted(sum(lengths[i] for i in row) for row in _by_hand(lengths, capacity, order))
    for row in rows:  # empty places come last
        assert (row >= 0).tolist() == sorted((row >= 0).tolist(), reverse=True)


def test_example_longer_than_a_row_names_the_keys():
    with pytest.raises(UserError, match=r"has 21 tokens, but data.transform.row_length is 20; raise it, or lower"):
        best_fit(np.array([3, 21]), 20, np.arange(2))


def test_example_without_tokens_is_rejected():
    with pytest.raises(ValueError, match="without tokens"):
        best_fit(np.array([3, 0]), 20, np.arange(2))


def test_texts_like_sst2_leave_little_padding(rng):
    """Geometric lengths of mean 13; measured 0.995."""
    lengths = np.minimum(rng.geometric(1 / 11, 20_000) + 2, 66)
    rows = best_fit(lengths, 128, np.arange(len(lengths)))
    assert lengths.sum() / (len(rows) * 128) > 0.98
