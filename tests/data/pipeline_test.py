import gc
import itertools
import pickle
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.base.errors import UserError
from research.data.cache import ArtifactCache
from research.data.examples import ArrayExamples, Ragged, TextExamples, padded_length
from research.data.pipeline import Rows, Stream, evaluation_batches, make_batch, padded, sample_subset, training_batches


def _arrays(size):
    return ArrayExamples({"features": np.arange(size, dtype=np.float32)[:, None], "labels": np.arange(size)})


def _texts(lengths, row_length=12):
    """Text i is 100·i + 1, 100·i + 2, …; its label is i."""
    tokens = Ragged.of([[100 * i + j + 1 for j in range(length)] for i, length in enumerate(lengths)], np.int32)
    types = Ragged.of([[1] * length for length in lengths], np.int32)
    return TextExamples(tokens, types, np.arange(len(lengths), dtype=np.int32), (6, 12), row_length)


def _stream(lengths, packed):
    return (Stream.packed if packed else Stream.unpacked)(_texts(lengths))


LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=40)


def _members(rows):
    return rows[rows >= 0].tolist()


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, packed=st.booleans(), start=st.integers(0, 100), length=st.integers(1, 60))
def test_any_range_of_the_stream_is_the_same_however_it_is_reached(lengths, packed, start, length):
    stream = _stream(lengths, packed)
    whole = stream.between(0, start + length, seed=3)
    np.testing.assert_array_equal(stream.between(start, start + length, seed=3), whole[start:])
    np.testing.assert_array_equal(_stream(lengths, packed).between(start, start + length, seed=3), whole[start:])


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, packed=st.booleans(), epoch=st.integers(0, 5))
def test_epoch_has_every_example_once_in_rows_that_fit(lengths, packed, epoch):
    stream = _stream(lengths, packed)
    rows = stream.epoch(0, epoch)
    assert rows.shape == stream.rows.shape
    assert sorted(_members(rows)) == list(range(len(lengths)))
    assert np.where(rows >= 0, np.array(lengths)[rows], 0).sum(axis=1).max() <= 12


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, packed=st.booleans(), position=st.integers(0, 100))
def test_examples_before_a_position_are_counted(lengths, packed, position):
    stream = _stream(lengths, packed)
    assert stream.examples_before(position, seed=1) == len(_members(stream.between(0, position, seed=1)))


@pytest.mark.parametrize("packed", [False, True])
def test_epochs_and_seeds_have_different_orders(packed):
    stream = _stream([3, 4, 5, 2] * 5, packed)
    orders = [tuple(_members(stream.epoch(seed, epoch))) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4


def test_packed_examples_share_rows_with_others_in_every_epoch():
    """Row mates are redrawn: of 300 pairs in one row, few share a row again an epoch later."""
    stream = _stream([4] * 300, packed=True)
    first, second = (
        {pair for row in stream.epoch(0, epoch).tolist() for pair in itertools.combinations(sorted(row), 2)}
        for epoch in (0, 1)
    )
    assert len(first) == 300
    assert len(first & second) < 20


def test_every_example_is_equally_likely_to_come_first():
    """600 epochs of 12 examples: examples of equal length are in the first row about equally often."""
    stream = _stream([3, 6] * 6, packed=True)
    counts = np.zeros(12)
    for epoch in range(600):
        counts[_members(stream.epoch(0, epoch)[:1])] += 1
    for same_length in (counts[0::2], counts[1::2]):  # 5 standard deviations of a binomial
        assert np.abs(same_length - same_length.mean()).max() < 5 * same_length.mean() ** 0.5


def test_order_never_changes():
    """A golden value: if it changed, runs of earlier versions would not be reproducible."""
    order = [3, 7, 4, 0, 2, 6, 5, 1]
    stream = Stream.unpacked(_arrays(8))
    assert stream.epoch(0, 0)[:, 0].tolist() == order
    assert stream.between(2, 8, seed=0)[:, 0].tolist() == order[2:]
    assert _stream([4, 3, 5, 4, 3, 5, 6, 7], packed=True).epoch(0, 0).tolist() == [
        [5, -1, -1],
        [6, 2, -1],
        [0, 3, 1],
        [4, 7, -1],
    ]


@settings(max_examples=100, deadline=None)
@given(
    lengths=LENGTHS,
    packed=st.booleans(),
    seed=st.integers(0, 3),
    fractions=st.tuples(st.floats(0.2, 1), st.floats(0.2, 1)),
    position=st.integers(0, 100),
)
def test_fractions_are_nested_and_each_epoch_has_them_once(lengths, packed, seed, fractions, position):
    size = len(lengths)
    less, more = (sample_subset(size, max(fraction, 1 / size), seed) for fraction in sorted(fractions))
    assert set(less) <= set(more) <= set(range(size))
    assert len(less) == round(max(min(fractions), 1 / size) * size)
    stream = (Stream.packed if packed else Stream.unpacked)(_texts(lengths), less)
    for epoch in range(2):
        rows = stream.epoch(seed, epoch)
        assert sorted(_members(rows)) == less.tolist()
        assert np.where(rows >= 0, np.array(lengths)[rows], 0).sum(axis=1).max() <= 12
    assert stream.examples_before(position, seed) == len(_members(stream.between(0, position, seed)))


def test_fractions_differ_by_seed_and_one_is_the_whole_split():
    halves = {tuple(sample_subset(100, 0.5, seed)) for seed in range(3)}
    assert len(halves) == 3
    lengths = [3, 4, 5, 2] * 5
    for packed in (Stream.packed, Stream.unpacked):
        texts = _texts(lengths)
        np.testing.assert_array_equal(packed(texts, sample_subset(20, 1.0, 7)).epoch(7, 1), packed(texts).epoch(7, 1))
    with pytest.raises(UserError, match=r"train_fraction=0.01 of 20 examples leaves none; 0.05 leaves one"):
        sample_subset(20, 0.01, 0)


def test_only_texts_can_be_packed():
    with pytest.raises(UserError, match=r"train.batch_rows packs texts.*give train.batch_size"):
        Stream.packed(_arrays(3))


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS, packed=st.booleans(), batch_rows=st.integers(1, 40), multiple=st.integers(1, 8))
def test_evaluation_sees_every_example_once(lengths, packed, batch_rows, multiple):
    seen, shapes = [], set()
    for members, batch in evaluation_batches(
        _stream(lengths, packed), batch_rows=batch_rows, rows=Rows(multiple=multiple)
    ):
        real = batch["weight"] > 0
        np.testing.assert_array_equal(real, members >= 0)
        np.testing.assert_array_equal(batch["labels"][real], members[real])
        seen.extend(members[real])
        shapes.add(members.shape)
    assert sorted(seen) == list(range(len(lengths)))
    assert len(shapes) == 1
    assert shapes.pop()[0] % multiple == 0


@settings(max_examples=50, deadline=None)
@given(
    lengths=LENGTHS,
    packed=st.booleans(),
    batch_rows=st.integers(1, 24),
    epochs=st.integers(1, 3),
    multiple=st.integers(1, 8),
)
def test_training_in_epochs_drops_and_repeats_nothing(lengths, packed, batch_rows, epochs, multiple):
    stream = _stream(lengths, packed)
    total = epochs * len(stream.rows)
    batches = list(
        training_batches(
            stream,
            batch_rows=batch_rows,
            start_step=0,
            steps=-(-total // batch_rows),
            total_rows=total,
            seed=1,
            rows=Rows(multiple=multiple),
        )
    )
    assert len({batch["weight"].shape for batch in batches}) == 1
    labels = np.concatenate([batch["labels"][batch["weight"] > 0] for batch in batches])
    np.testing.assert_array_equal(np.bincount(labels, minlength=len(lengths)), epochs)


def _training(stream, start=0, steps=10, **options):
    return list(
        training_batches(
            stream, batch_rows=8, start_step=start, steps=steps, total_rows=None, seed=0, rows=Rows(), **options
        )
    )


def _assert_equal(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


@pytest.mark.parametrize("packed", [False, True])
def test_starting_at_a_step_gives_the_batch_of_that_step(packed):
    stream = _stream([3, 9, 4, 1, 12] * 9, packed)
    _assert_equal(_training(stream, 6), _training(stream)[6:])


@pytest.mark.slow
def test_worker_processes_make_the_same_batches():
    stream = _stream([3, 9, 4, 1, 12] * 9, packed=True)
    _assert_equal(_training(stream, 3, workers=2), _training(stream, 3))
    here, there = (list(evaluation_batches(stream, batch_rows=4, rows=Rows(), workers=workers)) for workers in (0, 2))
    for (members, _), (other_members, _) in zip(here, there, strict=True):
        np.testing.assert_array_equal(members, other_members)
    _assert_equal([batch for _, batch in there], [batch for _, batch in here])


@pytest.mark.parametrize("mine", [[0, 1, 2, 3], [2, 3, 8, 9, 14, 15], [5]])
@pytest.mark.parametrize("packed", [False, True])
def test_rows_of_a_process_are_those_of_the_global_batch(mine, packed):
    stream = _stream([i % 9 + 1 for i in range(80)], packed)
    members = padded(stream.between(0, 14, seed=0), 16)
    whole = make_batch(stream.examples, members)
    part = make_batch(stream.examples, members, np.array(mine))
    for name in whole:
        np.testing.assert_array_equal(part[name], whole[name][mine])


def test_error_in_the_pipeline_reaches_the_loop():
    class Broken(ArrayExamples):
        def batch(self, members, rows=slice(None)):
            raise OSError("disk gone")

    with pytest.raises(OSError, match="disk gone"):
        _training(Stream.unpacked(Broken({"labels": np.zeros(3)})))


@settings(max_examples=100, deadline=None)
@given(lengths=LENGTHS, packed=st.booleans())
def test_text_batches_hold_exactly_the_texts(lengths, packed):
    stream = _stream(lengths, packed)
    batch = make_batch(stream.examples, padded(stream.rows, 7))
    filled = np.where(stream.rows >= 0, np.array(lengths)[stream.rows], 0).sum(axis=1)
    assert batch["tokens"].shape[1] == (12 if packed or filled.max() > 6 else 6)
    texts = 0
    for row, segments in enumerate(batch["segments"]):
        for slot in np.flatnonzero(batch["weight"][row]):
            index, start = batch["labels"][row, slot], batch["starts"][row, slot]
            here = slice(start, start + lengths[index])
            assert batch["tokens"][row, here].tolist() == [100 * index + j + 1 for j in range(lengths[index])]
            assert batch["positions"][row, here].tolist() == list(range(lengths[index]))
            assert (segments == slot + 1).sum() == (segments[here] == slot + 1).sum() == lengths[index]
            assert (batch["type_ids"][row, here] == 1).all()
            texts += 1
        for name in ("tokens", "positions", "type_ids"):
            assert not batch[name][row][segments == 0].any()
    assert texts == len(lengths)
    assert np.count_nonzero(batch["segments"]) == sum(lengths)
    assert batch["starts"].shape == batch["labels"].shape == batch["weight"].shape


def test_padded_length_is_the_smallest_that_fits():
    assert padded_length(np.array([3, 9]), (32, 16, 8)) == 16
    assert padded_length(np.array([40]), (8, 16)) == 16


def test_memory_mapped_sequences_are_pickled_as_file_names():
    """A corpus is not sent to worker processes."""
    values = np.arange(100_000, dtype=np.int32)
    kept = ArtifactCache(source="travel")
    for _ in range(2):  # computed, then read
        arrays = kept.arrays("tokens", lambda: {"values": values, "offsets": np.array([0, 60_000, 100_000])}, key=())
    ragged = Ragged(arrays["values"], arrays["offsets"])
    message = pickle.dumps(ragged)
    assert len(message) < 2_000
    there = pickle.loads(message)
    np.testing.assert_array_equal(there.values, values)
    assert there.lengths.tolist() == [60_000, 40_000]


def test_unused_stream_is_freed():
    """A program may train many runs; a stream's epochs are cached, and not pickled for worker processes."""
    stream = Stream.unpacked(_arrays(8))
    first = stream.epoch(0, 0)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(stream)).epoch(0, 0), first)
    gone = weakref.ref(stream)
    del stream
    gc.collect()
    assert gone() is None
