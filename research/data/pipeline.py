"""The input pipeline, from a position to a batch. The position, one integer, is its only state, so seeking is free.

A stream is an infinite sequence of rows: the rows of epoch 0 in shuffled order, then the rows of epoch 1, … Position p
is row p mod R of epoch p // R; a batch may cross the end of an epoch, so nothing is dropped.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import grain
import numpy as np
from absl import flags

from research.base.errors import UserError
from research.data import stateless_rng
from research.data.examples import AugmentedExamples, BagExamples, Examples, MixedExamples, TextExamples
from research.data.packing import best_fit

Batch = dict[str, np.ndarray]

# The plan of rows must never change, or runs of an earlier version would not be reproducible. RandomState, because
# numpy guarantees its stream; Generator's may change.
_PLAN_SEED = 0

# `sample_subset` draws with this number and the run's seed. Epochs draw with their own number, which stays below it.
_CHOICE = 2**32 - 1


def sample_subset(size: int, fraction: float, seed: int) -> np.ndarray:
    """The `fraction` of `size` examples that a run with this seed trains on: int64 [M], ascending.

    For one seed, a smaller fraction is a subset of a larger one. Raises UserError if none is left.
    """
    count = round(fraction * size)
    if count < 1:
        raise UserError(f"data.train_fraction={fraction} of {size} examples leaves none; {1 / size:.2g} leaves one")
    return np.sort(np.random.RandomState([seed, _CHOICE]).permutation(size)[:count])


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """Examples of a split in rows: int64 [R, E] of example indices, −1 where a row holds fewer than E.

    With one example per row, E = 1. Packed rows are planned once, by best fit over one shuffled order; every epoch then
    refills that plan: the rows come in a different order, and examples of equal length swap places at random (so
    examples of a rare length share a row with the same others more often). Each epoch has the same number of rows,
    whatever its seed, and any epoch is computed without the ones before it.
    """

    examples: Examples
    rows: np.ndarray
    lengths: np.ndarray | None = None  # int [N], the tokens (for bags: terms) of each example, if rows are packed

    @classmethod
    def unpacked(cls, examples: Examples, members: np.ndarray | None = None) -> "Stream":
        """One example per row; all of them, or the `members`."""
        return cls(examples, (np.arange(len(examples)) if members is None else members)[:, None])

    @classmethod
    def packed(cls, examples: Examples, members: np.ndarray | None = None) -> "Stream":
        """As many texts or bags per row as fit; all of them, or the `members`.

        Raises UserError for other examples, or if one is too long.
        """
        if not isinstance(examples, TextExamples | BagExamples):
            raise UserError("train.batch_rows packs texts, which these examples are not; give train.batch_size")
        lengths = examples.lengths
        order = np.random.RandomState(_PLAN_SEED).permutation(len(examples))
        if members is not None:
            order = order[np.isin(order, members)]
        rows = best_fit(lengths, examples.row_length, order, examples.unit)
        return cls(dataclasses.replace(examples, pad_to=(examples.row_length,)), rows, lengths)

    @functools.cached_property
    def members(self) -> np.ndarray:
        """The examples that the rows hold: int64 [M], ascending."""
        return np.sort(self.rows[self.rows >= 0])

    @property
    def labels(self) -> np.ndarray:
        """The labels of the rows' examples: [M, …]; they must have some."""
        assert self.examples.labels is not None
        return self.examples.labels[self.rows[self.rows >= 0]]

    @property
    def fullness(self) -> float:
        """The fraction of tokens in packed rows that are not padding."""
        assert isinstance(self.examples, TextExamples | BagExamples)
        return int(self.examples.lengths[self.members].sum()) / (len(self.rows) * self.examples.row_length)

    def cut(self) -> tuple[float, int]:
        """The fraction of the rows' examples that max_length truncates, and the longest full length; 0, 0: none."""
        if not isinstance(self.examples, TextExamples | BagExamples) or self.examples.full_lengths is None:
            return 0.0, 0
        full, lengths = self.examples.full_lengths[self.members], self.examples.lengths[self.members]
        return float(np.mean(full > lengths)), int(full.max())

    def epoch(self, seed: int, epoch: int) -> np.ndarray:
        """The rows of an epoch in order: int64 [R, E], a function of the arguments alone."""
        if seed not in self._epochs:
            # Caches two epochs of each seed: a batch may cross the end of an epoch.
            self._epochs[seed] = functools.lru_cache(maxsize=2)(functools.partial(self._shuffled, seed))
        return self._epochs[seed](epoch)

    @functools.cached_property
    def _epochs(self) -> dict[int, Callable[[int], np.ndarray]]:
        """`_shuffled` by seed, cached."""
        return {}

    def __reduce__(self) -> tuple[Any, ...]:  # without what is cached
        return Stream, (self.examples, self.rows, self.lengths)

    def _shuffled(self, seed: int, epoch: int) -> np.ndarray:
        random = np.random.RandomState([seed, epoch])
        shuffled = self.members[random.permutation(len(self.members))]
        if self.lengths is None:
            return shuffled[:, None]
        # Both orders below list the same lengths, ascending: each example is substituted by one of equal length.
        places = self.members[np.argsort(self.lengths[self.members], kind="stable")]
        substitute = np.empty(len(self.lengths) + 1, np.int64)
        substitute[places] = shuffled[np.argsort(self.lengths[shuffled], kind="stable")]
        substitute[-1] = -1  # −1 in a row remains −1
        return substitute[self.rows[random.permutation(len(self.rows))]]

    def between(self, start: int, stop: int, seed: int, ahead: int = 0) -> np.ndarray:
        """The rows at the positions [start, stop): int64 [stop − start, E].

        With `ahead` = n, the rows n places later in the same epoch, whose first row follows its last.
        """
        size, found = len(self.rows), [self.rows[:0]]
        for epoch in range(start // size, -(-stop // size)):
            first, last = max(start - epoch * size, 0), min(stop - epoch * size, size)
            rows = self.epoch(seed, epoch)
            found.append(rows[np.arange(first + ahead, last + ahead) % size] if ahead else rows[first:last])
        return np.concatenate(found)

    def keys(self, start: int, members: np.ndarray, seed: int) -> np.ndarray:
        """Random keys of the examples in the rows `members` [B, E] that begin at position `start`: uint64 [B, E]."""
        epochs = (start + np.arange(len(members))) // len(self.rows)
        return stateless_rng.keys(seed, epochs, members)

    def examples_before(self, position: int, seed: int) -> int:
        """The number of examples in the rows before `position`."""
        epochs, within = divmod(position, len(self.rows))
        begun = int(np.count_nonzero(self.epoch(seed, epochs)[:within] >= 0)) if within else 0
        return epochs * len(self.members) + begun


def padded(rows: np.ndarray, multiple: int) -> np.ndarray:
    """Rows of example indices [B, E], padded with rows of −1 to a multiple of `multiple`."""
    # Not np.pad, which takes ten times as long for a few rows or none.
    return np.concatenate([rows, np.full((-len(rows) % multiple, rows.shape[1]), -1, rows.dtype)])


def make_batch(
    examples: Examples,
    members: np.ndarray,
    rows: np.ndarray | slice = slice(None),
    keys: np.ndarray | None = None,
    others: tuple[np.ndarray, np.ndarray] | None = None,
) -> Batch:
    """Makes `rows` of the batch with the examples `members` [B, E], and `weight`: 1 for an example, 0 for none.

    `keys`: from `Stream.keys` in training; None in evaluation. Only `AugmentedExamples` and `MixedExamples` use
    them, and only the latter use `others`, the next rows' members and keys, which they need in training.
    An example may have several labels: labels [B, E, …] or [B, …], but weight is [B, E], or [B] if labels are [B].
    """
    if keys is not None and others is not None and isinstance(examples, MixedExamples):
        batch = examples.mixed_batch(members, rows, keys, *others)
    elif keys is not None and isinstance(examples, AugmentedExamples):
        batch = examples.train_batch(members, rows, keys)
    else:
        batch = examples.batch(members, rows)
    weight = (members[rows] >= 0).astype(np.float32)
    axes = batch["labels"].ndim if "labels" in batch else examples.row_axes
    batch["weight"] = weight.reshape(weight.shape[:axes])
    return batch


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of a global batch that this process makes, as a function of their number, which `multiple` divides."""

    of: Callable[[int], np.ndarray] = np.arange
    multiple: int = 1


@dataclasses.dataclass(frozen=True)
class _Step:
    """Makes the batch of a step; a class of arrays and numbers, as it is pickled for worker processes."""

    stream: Stream
    batch_rows: int
    total_rows: int | None
    seed: int
    multiple: int
    own: np.ndarray  # this process's rows of each batch
    replicas: int | None = None  # stacks the batches of as many seeds, from `seed` on

    def __call__(self, step: int) -> Batch:
        start = step * self.batch_rows
        stop = start + self.batch_rows if self.total_rows is None else min(start + self.batch_rows, self.total_rows)

        def rows(seed: int, ahead: int) -> tuple[np.ndarray, np.ndarray]:
            members = self.stream.between(start, stop, seed, ahead)
            members = padded(padded(members, self.batch_rows), self.multiple)
            # Keys are only computed if used: for thirty seeds they take a millisecond.
            return members, self.stream.keys(start, members, seed) if drawn else np.zeros_like(members, np.uint64)

        def all_rows(ahead: int) -> tuple[np.ndarray, np.ndarray]:
            """The rows of all replicas, concatenated."""
            members, keys = zip(*(rows(self.seed + i, ahead) for i in range(self.replicas or 1)), strict=True)
            return np.concatenate(members), np.concatenate(keys)

        drawn = isinstance(self.stream.examples, AugmentedExamples | MixedExamples)
        members, keys = all_rows(0)
        others = all_rows(1) if isinstance(self.stream.examples, MixedExamples) else None
        if self.replicas is None:
            return make_batch(self.stream.examples, members, self.own, keys, others)
        # Made as one batch, so that all replicas have the same padding.
        own = (np.arange(self.replicas)[:, None] * (len(members) // self.replicas) + self.own).ravel()
        batch = make_batch(self.stream.examples, members, own, keys, others)
        return {name: array.reshape(self.replicas, -1, *array.shape[1:]) for name, array in batch.items()}


def training_batches(
    stream: Stream,
    *,
    batch_rows: int,
    start_step: int,
    steps: int,
    total_rows: int | None,
    seed: int,
    rows: Rows,
    workers: int = 0,
    replicas: int | None = None,
) -> Iterator[Batch]:
    """The batches of the steps [start_step, steps), prefetched in order by a thread, or by `workers` processes.

    Each has `batch_rows` rows, padded to a multiple of `rows.multiple`. Positions from `total_rows` on are padding: the
    last step of a run whose length is given in epochs may have fewer rows. With `replicas` every array has an axis
    before its rows, for seed, seed + 1, …, all with the same padding.
    """
    own = rows.of(len(padded(np.empty((batch_rows, 1)), rows.multiple)))
    step = _Step(stream, batch_rows, total_rows, seed, rows.multiple, own, replicas)
    return _made_ahead(step, start_step, steps, workers)


def _made_ahead(make: Callable[[int], Any], start: int, stop: int, workers: int) -> Iterator[Any]:
    """Yields `make` of the numbers from `start` to `stop`, in order, prefetched."""
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    made = grain.MapDataset.range(start, stop).map(make).to_iter_dataset(options)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # grain reads its own flags, which have their defaults
        made = made.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
    return iter(made)


@dataclasses.dataclass(frozen=True)
class _Part:
    """Makes a batch of an evaluation from its number; a class so that it can be pickled, like `_Step`."""

    stream: Stream
    size: int
    own: np.ndarray

    def __call__(self, number: int) -> tuple[np.ndarray, Batch]:
        start = number * self.size
        members = padded(self.stream.rows[start : start + self.size], self.size)
        return members, make_batch(self.stream.examples, members, self.own)


def evaluation_batches(
    stream: Stream, *, batch_rows: int, rows: Rows, workers: int = 0
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Batches with every example once: (members of the global batch [B, E], −1 for none; this process's rows of it)."""
    size = len(padded(np.empty((batch_rows, 1)), rows.multiple))
    return _made_ahead(_Part(stream, size, rows.of(size)), 0, -(-len(stream.rows) // size), workers)
