"""Keyed permutations: their statistics are those of random ones, and memory does not depend on the size."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.base.errors import UserError
from research.data.bijection import Bijection, order_key

KEYS = st.integers(0, 2**64 - 1)


@settings(deadline=None, max_examples=150)
@given(size=st.integers(1, 3000), key=KEYS)
def test_is_a_bijection(size, key):
    order = Bijection(size, key)(np.arange(size))
    np.testing.assert_array_equal(np.sort(order), np.arange(size))


def test_a_million_items_are_each_there_once():
    order = Bijection(10**6, order_key(0, 0))(np.arange(10**6))
    np.testing.assert_array_equal(np.bincount(order), np.ones(10**6))


@settings(deadline=None, max_examples=50)
@given(size=st.integers(10**9, 10**18), key=KEYS, data=st.data())
def test_items_of_a_large_one_are_distinct_and_seeking_is_iterating(size, key, data):
    start = data.draw(st.integers(0, size - 200))
    bijection, places = Bijection(size, key), np.arange(start, start + 200)
    items = bijection(places)
    assert len(np.unique(items)) == 200
    assert 0 <= items.min() <= items.max() < size
    np.testing.assert_array_equal([int(bijection(places[i : i + 1])[0]) for i in (0, 57, 199)], items[[0, 57, 199]])


def chi_square(observed, expected):
    """(χ² − degrees of freedom) / √(2 · degrees of freedom): about normal for many bins."""
    freedom = observed.size - 1
    return (np.sum((observed - expected) ** 2 / expected) - freedom) / np.sqrt(2 * freedom)


# In standard deviations; of 36 normal numbers one would exceed it once in 50,000 runs, and keys here are fixed.
THRESHOLD = 5.0


@pytest.mark.parametrize("size", [1000, 65_536, 100_003, 10**9])
def test_neighbours_have_independent_images(size):
    """Pairs of images at the distances 1, 2 and 64 in a grid of bins, over several keys."""
    bins, count = 20, min(size, 40_000)
    for distance in (1, 2, 64):
        table = np.zeros((bins, bins))
        for epoch in range(max(1, 200_000 // count)):
            order = Bijection(size, order_key(7, epoch))(np.arange(count))
            place = order * bins // size
            np.add.at(table, (place[:-distance], place[distance:]), 1)
        assert abs(chi_square(table, table.sum() / table.size)) < THRESHOLD, (distance, table)


def test_epochs_seeds_and_streams_have_independent_orders():
    bins, size = 20, 100_003
    first = Bijection(size, order_key(3, 0))(np.arange(size)) * bins // size
    for seed, epoch, stream in ((3, 1, 0), (3, 2, 0), (4, 0, 0), (3, 0, 1)):
        other = Bijection(size, order_key(seed, epoch, stream))(np.arange(size)) * bins // size
        table = np.zeros((bins, bins))
        np.add.at(table, (first, other), 1)
        assert abs(chi_square(table, table.sum() / table.size)) < THRESHOLD


def test_every_item_of_a_small_one_is_anywhere():
    """12 items, 1,500 keys: each is equally often at each place, and stays where it is as often as by chance."""
    orders = np.stack([Bijection(12, order_key(1, epoch))(np.arange(12)) for epoch in range(1500)])
    table = np.stack([np.bincount(column, minlength=12) for column in orders.T])
    freedom = 11 * 11  # rows and columns have fixed sums
    value = np.sum((table - 1500 / 12) ** 2 / (1500 / 12)) * 11 / 12
    assert abs(value - freedom) / np.sqrt(2 * freedom) < THRESHOLD
    assert np.mean(orders == np.arange(12)) * 12 == pytest.approx(1, abs=5 / np.sqrt(1500))


def test_memory_does_not_depend_on_the_size():
    def peak(size):
        tracemalloc.start()
        Bijection(size, 5)(np.arange(size - 1000, size))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(2**40) < 200_000
    assert peak(2**40) < 2 * peak(2**10)


@pytest.mark.parametrize("size", [0, 2**62 + 1])
def test_refuses_what_it_cannot_order(size):
    with pytest.raises(UserError, match=r"can't be ordered; there must be 1 to"):
        Bijection(size, 0)
