"""Examples in memory, and how some of them become a batch."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

# The columns of a split as a source gives them: arrays, or lists of bytes for text.
Columns = Mapping[str, Any]


class Examples(Protocol):
    """One split, ready to be cut into batches."""

    @property
    def labels(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def batch(self, indices: np.ndarray, rows: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
        """The batch of the examples `indices` [B]; of it only `rows`.

        The shapes beyond the leading axis may depend on all of `indices`, so that every process gives its rows the
        same shape. Each entry has one leading batch axis; `labels` is among them, `weight` is not.
        """
        ...


@dataclasses.dataclass(frozen=True)
class ArrayExamples:
    """Examples whose columns are arrays [N, …], `labels` among them."""

    columns: dict[str, np.ndarray]

    @property
    def labels(self) -> np.ndarray:
        return self.columns["labels"]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: np.ndarray, rows: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
        return {name: column[indices[rows]] for name, column in self.columns.items()}


@dataclasses.dataclass(frozen=True)
class Ragged:
    """N sequences of differing length, one after another in one array."""

    values: np.ndarray
    offsets: np.ndarray  # int64 [N + 1]

    @classmethod
    def of(cls, sequences: list[Any], dtype: Any) -> "Ragged":
        lengths = np.fromiter(map(len, sequences), np.int64, len(sequences))
        parts = [np.asarray(sequence, dtype) for sequence in sequences]
        return cls(np.concatenate([np.zeros(0, dtype), *parts]), np.concatenate([[0], np.cumsum(lengths)]))

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N]."""
        return np.diff(self.offsets)

    def padded(self, indices: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The sequences `indices` [B] side by side, zeros behind them -> values [B, length], real: bool [B, length]."""
        column = np.arange(length)[None, :]
        real = column < self.lengths[indices][:, None]
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
    """Tokenized text, one example to a row: the text batch of the design with E = 1.

    A batch has tokens, segments (1 where real, 0 padding), positions and type_ids, each int32 [B, L], and starts and
    labels [B, 1]. L is the smallest of `pad_to` that holds the batch's longest example.
    """

    tokens: Ragged
    type_ids: Ragged
    labels: np.ndarray
    pad_to: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: np.ndarray, rows: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
        length = padded_length(self.tokens.lengths[indices], self.pad_to)
        indices = indices[rows]
        tokens, real = self.tokens.padded(indices, length)
        type_ids, _ = self.type_ids.padded(indices, length)
        return {
            "tokens": tokens,
            "segments": real.astype(np.int32),
            "positions": np.where(real, np.arange(length, dtype=np.int32), 0).astype(np.int32),
            "type_ids": type_ids,
            "starts": np.zeros((len(indices), 1), np.int32),
            "labels": self.labels[indices, None],
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

    def batch(self, indices: np.ndarray, rows: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
        length = padded_length(self.ids.lengths[indices], self.pad_to)
        indices = indices[rows]
        return {
            "ids": self.ids.padded(indices, length)[0],
            "values": self.values.padded(indices, length)[0],
            "labels": self.labels[indices],
        }
