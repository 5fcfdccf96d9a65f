"""Examples in memory, and how some of them become a batch."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

# The columns of a split as a source gives them: arrays, or lists of bytes for text.
Columns = Mapping[str, Any]


class Examples(Protocol):
    """One split, ready to be cut into batches."""

    row_axes: ClassVar[
        int
    ]  # of a batch's `weight` where there are no labels: 1, or 2 where a row may hold several examples

    @property
    def labels(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def batch(self, members: np.ndarray, rows: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
        """`rows` of the batch whose rows hold the examples `members`: int [B, E], −1 for none; E = 1 but for texts.

        The shapes beyond the leading axis may depend on all of `members`, so that every process gives its rows the
        same shape. Each entry has one leading batch axis; `labels` is among them where there are any, `weight` is not.
        Places without an example may hold any value.
        """
        ...


@runtime_checkable
class AugmentedExamples(Protocol):
    """Examples that are trained on in another form each time; `batch` gives the form that evaluation sees."""

    def train_batch(self, members: np.ndarray, rows: np.ndarray | slice, keys: np.ndarray) -> dict[str, np.ndarray]:
        """As `Examples.batch`, of the same shapes; keys: uint64 [B, E], a function of (seed, epoch, example index).

        All randomness of an example must come from its key (`research.data.stateless_rng`).
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
        """As `AugmentedExamples.train_batch`; others: int [B, E], of the next rows, and their keys, uint64 [B, E].

        It may have more entries than `Examples.batch`, always the same ones.
        """
        ...


def first(members: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
    """The indices of the only example of each row; 0 where there is none."""
    return np.maximum(members[rows, 0], 0)


def labels_of(labels: np.ndarray | None, indices: np.ndarray) -> dict[str, np.ndarray]:
    """The entry `labels` of a batch of the examples `indices`; none where they have none."""
    return {} if labels is None else {"labels": labels[indices]}


def pack_array(array: np.ndarray) -> np.ndarray | Path:
    """What travels to another process for an array: the name of its file where it is mapped from disk."""
    return Path(array.filename) if isinstance(array, np.memmap) and array.filename else array


def unpack_array(make: Callable[..., Any], *arrays: Any) -> Any:
    """`make` of arrays that were `sent`."""
    return make(*(np.load(array, mmap_mode="r") if isinstance(array, Path) else array for array in arrays))


@dataclasses.dataclass(frozen=True)
class ArrayExamples:
    """Examples whose columns are arrays [N, …], `labels` among them where there are any."""

    row_axes: ClassVar[int] = 1

    columns: dict[str, np.ndarray]

    @property
    def labels(self) -> np.ndarray | None:
        return self.columns.get("labels")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

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
        return unpack_array, (type(self), *map(pack_array, (self.values, self.offsets)))

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
class _Layout:
    """Where the items of sequences that lie one behind the other in rows come from and go to: int64 [T] an item each.

    Attributes:
      starts: int64 [B, E], where in its row each sequence begins.
      source: where among all sequences' items the item is.
      slot: which of its row's sequences it is of.
      position: its place in that.
      target: its row and its place there.
      shape: [B, L], of the rows.
    """

    starts: np.ndarray
    source: np.ndarray
    slot: np.ndarray
    position: np.ndarray
    target: tuple[np.ndarray, np.ndarray]
    shape: tuple[int, int]

    @classmethod
    def of(cls, sequences: Ragged, members: np.ndarray, rows: np.ndarray | slice, pad_to: tuple[int, ...]) -> "_Layout":
        """`rows` of the batch whose rows hold the sequences `members` [B, E], −1 for none."""
        lengths = np.where(members >= 0, sequences.length(np.maximum(members, 0)), 0)  # [B, E]
        width = padded_length(lengths.sum(axis=1), pad_to)
        members, lengths = members[rows], lengths[rows]
        starts = np.cumsum(lengths, axis=1) - lengths
        sequence = np.repeat(np.arange(members.size), lengths.ravel())
        position = np.arange(len(sequence)) - (np.cumsum(lengths.ravel()) - lengths.ravel())[sequence]
        row, slot = np.divmod(sequence, members.shape[1])
        return cls(
            starts=np.where(members >= 0, starts, 0),
            source=sequences.offsets[members.ravel()[sequence]] + position,
            slot=slot,
            position=position,
            target=(row, starts.ravel()[sequence] + position),
            shape=(len(members), width),
        )

    def placed(self, values: np.ndarray, dtype: type = np.int32) -> np.ndarray:
        """Values [T] in their places, zeros elsewhere: [B, L]."""
        array: np.ndarray = np.zeros(self.shape, dtype)
        array[self.target] = values
        return array

    @property
    def segments(self) -> np.ndarray:
        """int32 [B, L]: 1, 2, … for the row's first, second, … sequence, 0 for padding."""
        return self.placed(self.slot + 1)


@dataclasses.dataclass(frozen=True)
class TextExamples:
    """Tokenized texts, each row of a batch holding one or several, one behind the other.

    A batch has tokens, segments (1, 2, … for the row's first, second, … example, 0 padding), positions (within the
    example) and type_ids, each int32 [B, L], and starts (where each example begins) and labels, each [B, E].
    L is the smallest of `pad_to` that holds the batch's fullest row; `row_length` is what packed rows may hold.
    """

    row_axes: ClassVar[int] = 2
    unit: ClassVar[str] = "tokens"  # what `lengths` counts

    tokens: Ragged
    type_ids: Ragged
    labels: np.ndarray | None
    pad_to: tuple[int, ...]
    row_length: int
    full_lengths: np.ndarray | None = None  # int [N], the lengths before max_length cut; None: as they are

    def __len__(self) -> int:
        return len(self.tokens.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        return self.tokens.lengths

    def batch(self, members: np.ndarray, rows: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
        layout = _Layout.of(self.tokens, members, rows, self.pad_to)
        return {
            "tokens": layout.placed(self.tokens.values[layout.source]),
            "segments": layout.segments,
            "positions": layout.placed(layout.position),
            "type_ids": layout.placed(self.type_ids.values[layout.source]),
            "starts": layout.starts.astype(np.int32),
            **labels_of(self.labels, np.maximum(members[rows], 0)),
        }


@dataclasses.dataclass(frozen=True)
class BagExamples:
    """Sparse features: each row of a batch holds one example or several, one behind the other, as texts do.

    A batch has ids, int32, values, float32 (0 in the padding), and segments, int32, each [B, L], and labels [B, E].
    """

    row_axes: ClassVar[int] = 2
    unit: ClassVar[str] = "terms"

    ids: Ragged
    values: Ragged  # of the same lengths
    labels: np.ndarray | None
    pad_to: tuple[int, ...]
    row_length: int
    full_lengths: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        return self.ids.lengths

    def batch(self, members: np.ndarray, rows: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
        layout = _Layout.of(self.ids, members, rows, self.pad_to)
        return {
            "ids": layout.placed(self.ids.values[layout.source]),
            "values": layout.placed(self.values.values[layout.source], np.float32),
            "segments": layout.segments,
            **labels_of(self.labels, np.maximum(members[rows], 0)),
        }
