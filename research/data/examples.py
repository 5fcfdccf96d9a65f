"""Examples in memory, and how some of them become a batch."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

# The columns of a split as a source gives them: arrays, or lists of bytes for text.
Columns = Mapping[str, Any]


class Examples(Protocol):
    """One split, ready to be cut into batches."""

    @property
    def labels(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def batch(self, members: np.ndarray, rows: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
        """`rows` of the batch whose rows hold the examples `members`: int [B, E], −1 for none; E = 1 but for texts.

        The shapes beyond the leading axis may depend on all of `members`, so that every process gives its rows the
        same shape. Each entry has one leading batch axis; `labels` is among them, `weight` is not. What stands where
        there is no example is of no account.
        """
        ...


@runtime_checkable
class RandomExamples(Protocol):
    """Examples that are trained on in another form each time; `batch` gives the form that evaluation sees."""

    def drawn_batch(self, members: np.ndarray, rows: np.ndarray | slice, keys: np.ndarray) -> dict[str, np.ndarray]:
        """As `Examples.batch`, of the same shapes; keys: uint64 [B, E], a function of (seed, epoch, example index).

        All randomness of an example must come from its key (`research.data.draws`).
        """
        ...


@runtime_checkable
class MixedExamples(Protocol):
    """Examples each of which is trained on together with another one: that of the next row of its epoch.

    Behind an epoch's last row comes its first. So what an example is mixed with is a function of (seed, epoch, example
    index) too.
    """

    def mixed_batch(
        self,
        members: np.ndarray,
        rows: np.ndarray | slice,
        keys: np.ndarray,
        others: np.ndarray,
        other_keys: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """As `RandomExamples.drawn_batch`; others: int [B, E], of the next rows, and their keys, uint64 [B, E].

        It may have more entries than `Examples.batch`, always the same ones.
        """
        ...


def first(members: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
    """The indices of the only example of each row; 0 where there is none."""
    return np.maximum(members[rows, 0], 0)


def sent(array: np.ndarray) -> np.ndarray | Path:
    """What travels to another process for an array: the name of its file where it is mapped from disk."""
    return Path(array.filename) if isinstance(array, np.memmap) and array.filename else array


def arrived(make: Callable[..., Any], *arrays: Any) -> Any:
    """`make` of arrays that were `sent`."""
    return make(*(np.load(array, mmap_mode="r") if isinstance(array, Path) else array for array in arrays))


@dataclasses.dataclass(frozen=True)
class ArrayExamples:
    """Examples whose columns are arrays [N, …], `labels` among them."""

    columns: dict[str, np.ndarray]

    @property
    def labels(self) -> np.ndarray:
        return self.columns["labels"]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, members: np.ndarray, rows: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
        indices = first(members, rows)
        return {name: column[indices] for name, column in self.columns.items()}


@dataclasses.dataclass(frozen=True)
class Ragged:
    """N sequences of differing length, one after another in one array: in memory, or a whole file mapped from disk."""

    values: np.ndarray
    offsets: np.ndarray  # int64 [N + 1]

    @classmethod
    def of(cls, sequences: list[Any], dtype: Any) -> "Ragged":
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        values = np.fromiter(itertools.chain.from_iterable(sequences), dtype, int(lengths.sum()))
        return cls(values, np.concatenate([[0], np.cumsum(lengths)]))

    @classmethod
    def joined(cls, parts: list["Ragged"], dtype: Any) -> "Ragged":
        """The sequences of all parts."""
        lengths = np.concatenate([np.zeros(0, np.int64), *(part.lengths for part in parts)])
        values = np.concatenate([np.zeros(0, dtype), *(part.values for part in parts)])
        return cls(values, np.concatenate([[0], np.cumsum(lengths)]))

    def __reduce__(self) -> tuple[Any, ...]:
        return arrived, (type(self), *map(sent, (self.values, self.offsets)))

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N]."""
        return np.diff(self.offsets)

    def length(self, indices: np.ndarray) -> np.ndarray:
        """The lengths of some: int64, of the shape of `indices`."""
        return self.offsets[indices + 1] - self.offsets[indices]

    def take(self, indices: np.ndarray) -> list[np.ndarray]:
        """The sequences `indices` [B], one by one."""
        return [self.values[self.offsets[index] : self.offsets[index + 1]] for index in indices]

    def padded(self, indices: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The sequences `indices` [B] side by side, zeros behind them -> values [B, length], real: bool [B, length]."""
        column = np.arange(length)[None, :]
        real = column < self.length(indices)[:, None]
        where = np.where(real, self.offsets[indices][:, None] + column, 0)
        if not len(self.values):
            return np.zeros(where.shape, self.values.dtype), real
        return np.where(real, self.values[where], np.zeros((), self.values.dtype)), real


def padded_length(lengths: np.ndarray, allowed: tuple[int, ...]) -> int:
    """The smallest `allowed` length that holds all `lengths`. Few lengths mean few compilations."""
    longest = int(lengths.max(initial=0))
    return next((length for length in sorted(allowed) if length >= longest), max(allowed))


@dataclasses.dataclass(frozen=True)
class TextExamples:
    """Tokenized texts, each row of a batch holding one or several, one behind the other.

    A batch has tokens, segments (1, 2, … for the row's first, second, … example, 0 padding), positions (within the
    example) and type_ids, each int32 [B, L], and starts (where each example begins) and labels, each [B, E].
    L is the smallest of `pad_to` that holds the batch's fullest row; `row_length` is what packed rows may hold.
    """

    tokens: Ragged
    type_ids: Ragged
    labels: np.ndarray
    pad_to: tuple[int, ...]
    row_length: int

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, members: np.ndarray, rows: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
        lengths = np.where(members >= 0, self.tokens.length(np.maximum(members, 0)), 0)  # [B, E]
        width = padded_length(lengths.sum(axis=1), self.pad_to)
        members, lengths = members[rows], lengths[rows]
        starts = np.cumsum(lengths, axis=1) - lengths

        # From here on a token each, of all examples one after another: where it comes from and where it goes.
        example = np.repeat(np.arange(members.size), lengths.ravel())
        position = np.arange(len(example)) - (np.cumsum(lengths.ravel()) - lengths.ravel())[example]
        row, slot = np.divmod(example, members.shape[1])
        source = self.tokens.offsets[members.ravel()[example]] + position
        target = (row, starts.ravel()[example] + position)

        def placed(values: np.ndarray) -> np.ndarray:
            array = np.zeros((len(members), width), np.int32)
            array[target] = values
            return array

        return {
            "tokens": placed(self.tokens.values[source]),
            "segments": placed(slot + 1),
            "positions": placed(position),
            "type_ids": placed(self.type_ids.values[source]),
            "starts": np.where(members >= 0, starts, 0).astype(np.int32),
            "labels": self.labels[np.maximum(members, 0)],
        }


@dataclasses.dataclass(frozen=True)
class BagExamples:
    """Sparse features: int32 ids [B, K] with float32 values [B, K] (0 in the padding); K as L in TextExamples."""

    ids: Ragged
    values: Ragged
    labels: np.ndarray
    pad_to: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, members: np.ndarray, rows: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
        length = padded_length(self.ids.length(np.maximum(members[:, 0], 0)), self.pad_to)
        indices = first(members, rows)
        return {
            "ids": self.ids.padded(indices, length)[0],
            "values": self.values.padded(indices, length)[0],
            "labels": self.labels[indices],
        }
