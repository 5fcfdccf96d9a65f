"""From a position to a batch. The position, one integer, is all the state there is: seeking costs nothing.

Training reads the examples of epoch 0 in their shuffled order, then those of epoch 1, …; a batch may reach over the
end of an epoch, so none is dropped. Position p is example p mod N of epoch p // N.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import grain
import numpy as np

from research.data.examples import Examples

Batch = dict[str, np.ndarray]


@functools.lru_cache(maxsize=4)
def epoch_order(size: int, seed: int, epoch: int) -> np.ndarray:
    """The order of `size` examples in `epoch`: int64 [size], a function of its arguments alone."""
    # RandomState, because numpy promises that its stream never changes; Generator's may.
    return np.random.RandomState([seed, epoch]).permutation(size)


def training_indices(start: int, stop: int, *, size: int, seed: int) -> np.ndarray:
    """The indices of the examples at the positions [start, stop) of the training stream."""
    positions = np.arange(start, stop)
    indices = np.empty(len(positions), np.int64)
    for epoch in np.unique(positions // size):
        here = positions // size == epoch
        indices[here] = epoch_order(size, seed, int(epoch))[positions[here] % size]
    return indices


def padded(indices: np.ndarray, multiple: int) -> np.ndarray:
    """`indices` with −1 behind them up to a multiple of `multiple`."""
    return np.pad(indices, (0, -len(indices) % multiple), constant_values=-1)


def make_batch(examples: Examples, indices: np.ndarray, rows: np.ndarray | slice = slice(None)) -> Batch:
    """`rows` of the batch of `indices` [B], with `weight`: 1 for an example, 0 where the index is −1."""
    batch = examples.batch(np.maximum(indices, 0), rows)
    labels = batch["labels"]
    real = (indices[rows] >= 0).astype(np.float32)
    batch["weight"] = np.broadcast_to(real.reshape(-1, *[1] * (labels.ndim - 1)), labels.shape).copy()
    return batch


@dataclasses.dataclass(frozen=True)
class Rows:
    """Which rows of a global batch this process makes (a function of their number), and of what that is a multiple."""

    of: Callable[[int], np.ndarray] = np.arange
    multiple: int = 1


def training_batches(
    examples: Examples,
    *,
    batch_size: int,
    start_step: int,
    steps: int,
    total_examples: int | None,
    seed: int,
    rows: Rows,
) -> Iterator[Batch]:
    """The batches of the steps [start_step, steps), made ahead by a thread, in order.

    Each has `batch_size` examples and the padding rows that `rows.multiple` asks for. Positions from `total_examples`
    on are padding: the last step of a run that is given in epochs may have fewer examples.
    """

    def at(step: int) -> Batch:
        start = step * batch_size
        stop = start + batch_size if total_examples is None else min(start + batch_size, total_examples)
        indices = training_indices(start, stop, size=len(examples), seed=seed)
        indices = np.pad(indices, (0, batch_size - len(indices)), constant_values=-1)
        indices = padded(indices, rows.multiple)
        return make_batch(examples, indices, rows.of(len(indices)))

    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)
    return iter(grain.MapDataset.range(start_step, steps).map(at).to_iter_dataset(options))


def evaluation_batches(examples: Examples, *, batch_size: int, rows: Rows) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every example once, in order -> (the global batch's indices, −1 for padding; this process's rows of it)."""
    size = len(padded(np.arange(batch_size), rows.multiple))
    for start in range(0, len(examples), size):
        indices = padded(np.arange(start, min(start + size, len(examples))), size)
        yield indices, make_batch(examples, indices, rows.of(size))
