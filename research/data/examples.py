"""Examples in memory, and batches of them."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

# The columns of a split as a source provides them: arrays, or lists of bytes for text.
Columns = Mapping[str, Any]


class Examples(Protocol):
    """One split, ready to be batched."""

    row_axes: ClassVar[
        int
    ]  # axes of a batch's `weight` if there are no labels: 1, or 2 if a row may hold several examples

    @property
    def labels(self) -> np.ndarray | None: ...

    def __len__(self) -> int: ...

    def batch(self, members: np.ndarray, rows: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
        """Returns `rows` of the batch whose rows hold the examples `members`: int [B, E], −1 for none.

        E is 1 except for texts. The shapes beyond the leading axis may depend on all of `members`, so that the rows of
        every process have the same shape. Each entry has one leading batch axis; `labels` is included if there are
        any, `weight` is not. Places without an example may hold any value.
        """
        ...


@runtime_checkable
class AugmentedExamples(Protocol):
    """Examples with random augmentation in training; `batch` returns them as evaluation sees them."""

    def train_batch(self, members: np.ndarray, rows: np.ndarray | slice, keys: np.ndarray) -> dict[str, np.ndarray]:
        """Like `Examples.batch`, with the same shapes; keys: uint64 [B, E], a function of (seed, epoch, example index).

        All randomness of an example must come from its key (`research.data.stateless_rng`).
        """
        ...


@runtime_checkable
class MixedExamples(Protocol):
    """Examples that are each mixed in training with another one: that of the next row of the epoch.

    An epoch's first row follows its last. So the example that one is mixed with is also a function of (seed, epoch,
    example index).
    """

    def mixed_batch(
        self,
        members: np.ndarray,
        rows: np.ndarray | slice,
        keys: np.ndarray,
        others: np.ndarray,
        other_keys: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """Like `AugmentedExamples.train_batch`; others: the next rows' members, int [B, E], and keys, uint64 [B, E].

        The batch may have more entries than `Examples.batch`, always the same ones.
        """
        ...


def first(members: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
    """The index of the only example of each row; 0 where there is none."""
    return np.maximum(members[rows, 0], 0)


def labels_of(labels: np.ndarray | None, indices: np.ndarray) -> dict[str, np.ndarray]:
    """The entry `labels` of a batch of the examples `indices`; empty if they have no labels."""
    return {} if labels is None else {"labels": labels[indices]}


def pack_array(array: np.ndarray) -> np.ndarray | Path:
    """The picklable form of an array: the path of its file if it is memory-mapped, else the array."""
    return Path(array.filename) if isinstance(array, np.memmap) and array.filename else array


def unpack_array(make: Callable[..., Any], *arrays: Any) -> Any:
    """Calls `make` with arrays that `pack_array` packed."""
    return make(*(np.load(array, mmap_mode="r") if isinstance(array, Path) else array for array in arrays))


@dataclasses.dataclass(frozen=True)
class ArrayExamples:
    """Examples whose columns are arrays [N, …], including `labels` if there are any."""

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
    """N sequences of different lengths, concatenated in one array: in memory, or a whole memory-mapped file."""

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
        if len(parts) == 1:
            return parts[0]
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
        """The lengths of the sequences `indices`: int64, of the same shape."""
        return self.offsets[indices + 1] - self.offsets[indices]

    def take(self, indices: np.ndarray) -> list[np.ndarray]:
        """The sequences `indices` [B], as a list."""
        return [self.values[self.offsets[index] : self.offsets[index + 1]] for index in indices]

    def padded(self, indices: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The sequences `indices` [B], padded with zeros -> values [B, length], real: bool [B, length]."""
        column = np.arange(length)[None, :]
        real = column < self.length(indices)[:, None]
        where = np.where(real, self.offsets[indices][:, None] + column, 0)
        if not len(self.values):
            return np.zeros(where.shape, self.values.dtype), real
        return np.where(real, self.values[where], np.zeros((), self.values.dtype)), real


def padded_length(lengths: np.ndarray, allowed: tuple[int, ...]) -> int:
    """The smallest `allowed` length that holds all `lengths`. Fewer lengths mean fewer compilations."""
    longest = int(lengths.max(initial=0))
    return next((length for length in sorted(allowed) if length >= longest), max(allowed))


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where the items of sequences concatenated in rows come from and go to: int64 [T], an entry per item.

    Attributes:
      starts: int64 [B, E], where in its row each sequence begins.
      source: the index of the item among the items of all sequences.
      slot: the index of its sequence in the row.
      position: its index in that sequence.
      target: its row, and its index there.
      shape: [B, L], the shape of the rows.
    """

    starts: np.ndarray
    source: np.ndarray
    slot: np.ndarray
    position: np.ndarray
    target: tuple[np.ndarray, np.ndarray]
    shape: tuple[int, int]

    @classmethod
    def of(cls, sequences: Ragged, members: np.ndarray, rows: np.ndarray | slice, pad_to: tuple[int, ...]) -> "_Layout":
        """The layout of `rows` of the batch whose rows hold the sequences `members` [B, E], −1 for none."""
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
        """Values [T] at their targets, zeros elsewhere: [B, L]."""
        array: np.ndarray = np.zeros(self.shape, dtype)
        array[self.target] = values
        return array

    @property
    def segments(self) -> np.ndarray:
        """Segment ids, int32 [B, L]: 1, 2, … for the row's first, second, … sequence, 0 for padding."""
        return self.placed(self.slot + 1)


@dataclasses.dataclass(frozen=True)
class TextExamples:
    """Tokenized texts; each row of a batch holds one or several, concatenated.

    A batch has tokens, segments (1, 2, … for the row's first, second, … example, 0 padding), positions (within the
    example) and type_ids, each int32 [B, L], and starts (where each example begins) and labels, each [B, E]. With
    `targets`, the token to predict after each (−1: none), it has targets and, with `token_bytes`, target_bytes. With
    `soft`, arrays [N, …] that another model gives, by name, it has those, [B, E, …].
    L is the smallest of `pad_to` that holds the batch's fullest row; `row_length` is the capacity of packed rows.
    """

    row_axes: ClassVar[int] = 2
    unit: ClassVar[str] = "tokens"  # what `lengths` counts

    tokens: Ragged
    type_ids: Ragged
    labels: np.ndarray | None
    pad_to: tuple[int, ...]
    row_length: int
    full_lengths: np.ndarray | None = None  # int [N], the lengths before truncation to max_length; None: not truncated
    targets: Ragged | None = None  # of the same lengths as `tokens`
    token_bytes: np.ndarray | None = None  # int32 [V], the bytes that each token stands for
    soft: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        return self.tokens.lengths

    def batch(self, members: np.ndarray, rows: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
        layout = _Layout.of(self.tokens, members, rows, self.pad_to)
        targets = {}
        if self.targets is not None:
            targets["targets"] = layout.placed(self.targets.values[layout.source] + 1) - 1  # −1 in the padding too
            if self.token_bytes is not None:
                targets["target_bytes"] = np.append(self.token_bytes, np.int32(0))[targets["targets"]]
        return {
            **targets,
            "tokens": layout.placed(self.tokens.values[layout.source]),
            "segments": layout.segments,
            "positions": layout.placed(layout.position),
            "type_ids": layout.placed(self.type_ids.values[layout.source]),
            "starts": layout.starts.astype(np.int32),
            **labels_of(self.labels, np.maximum(members[rows], 0)),
            **{name: values[np.maximum(members[rows], 0)] for name, values in self.soft.items()},
        }


@dataclasses.dataclass(frozen=True)
class BagExamples:
    """Sparse features; each row of a batch holds one example or several, concatenated as for texts.

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
