"""Batch shapes: every set of inputs finds one, and no other is used."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.serve import shapes
from research.serve.shapes import Shape

LONGEST = 72
SHAPES = shapes.packed(LONGEST, 576)


TIMES = {shape: 0.001 + 1e-6 * shape.rows * shape.length**1.2 for shape in SHAPES}


def test_shapes_for_sequences():
    lengths = sorted({shape.length for shape in SHAPES})
    assert lengths == [16, 24, 32, 48, 64, 72]
    assert max(shape.rows * shape.length for shape in SHAPES) == 576
    assert {shape.rows for shape in SHAPES if shape.length == 72} == {1, 2, 3, 4, 6, 8}
    # Short rows are for few inputs.
    assert {shape.rows for shape in SHAPES if shape.length < 72} == {1}


def test_a_short_limit_has_one_length():
    assert shapes.packed(12, 100) == tuple(Shape(rows, 12, 1) for rows in (1, 2, 3, 4, 6, 8))
    assert Shape(1, 500, 62) in shapes.packed(500, 100)  # a single row always fits


def test_coarse_shapes():
    found = shapes.packed(300, 3000, fine=False)
    assert [(shape.rows, shape.length) for shape in found] == [(1, 16), (1, 64), (1, 256), (1, 300), (4, 300)]


def test_shapes_of_fixed_size():
    assert [shape.rows for shape in shapes.fixed(5)] == [1, 2, 4]


@settings(deadline=None)
@given(st.lists(st.integers(1, LONGEST), min_size=1, max_size=120))
def test_every_input_is_in_one_row_that_holds_it(lengths):
    shape, members = shapes.choose(lengths, TIMES)
    assert members.shape == (shape.rows, shape.slots)
    inside = members[members >= 0]
    assert len(set(inside.tolist())) == len(inside)
    assert 0 in inside  # the first input never waits
    assert all(np.count_nonzero(row >= 0) <= shape.slots for row in members)
    for row in members:
        assert sum(lengths[i] for i in row if i >= 0) <= shape.length
    # No shape that has a row for each input has more items for its time.
    speed = sum(lengths[i] for i in inside) / TIMES[shape]
    for each in SHAPES:
        if each.length == LONGEST and each.rows >= len(lengths):
            assert speed >= sum(lengths) / TIMES[each] * (1 - 1e-9)


def test_the_shape_with_the_most_items_for_its_time_is_chosen():
    slow, fast = Shape(4, 32, 4), Shape(1, 72, 9)
    assert shapes.choose([20, 20], {slow: 0.002, fast: 0.001})[0] == fast
    assert shapes.choose([20, 20], {slow: 0.001, fast: 0.002})[0] == slow
    both = Shape(2, 72, 9)
    assert shapes.choose([40, 40], {fast: 0.002, both: 0.003})[0] == both
    shape, members = shapes.choose([40, 40], {fast: 0.001, both: 0.003})
    assert (shape, members[0, 0], np.count_nonzero(members >= 0)) == (fast, 0, 1)


def test_an_input_longer_than_any_row_is_refused():
    with pytest.raises(ValueError, match="73"):
        shapes.choose([73], TIMES)


def test_inputs_of_fixed_size_that_do_not_fit_wait():
    shape, members = shapes.choose([1] * 6, {Shape(1): 0.1, Shape(4): 0.2})
    assert shape == Shape(4)
    np.testing.assert_array_equal(members[:, 0], [0, 1, 2, 3])


def test_capacity_is_the_smallest_batch_of_almost_the_best_speed():
    seconds = {Shape(rows, 100, 12): time for rows, time in ((1, 0.010), (2, 0.011), (4, 0.020), (8, 0.039))}
    assert shapes.capacity(seconds, 1000) == 400  # 20,000 items/s, as 800 in 39 ms are
    assert shapes.capacity(seconds, 15) == 200
    assert shapes.capacity(seconds, 1) == 100  # one row always
