"""Encoded inputs one by one, and laid out in batches again: what a service queues and combines."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from research.data.examples import BagExamples, Examples, Ragged, TextExamples
from research.data.pipeline import Batch, make_batch


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """One encoded input.

    Attributes:
      kind: the examples that it is from, without their values.
      arrays: its sequences [T] by field for texts and bags of words; else its entries of a batch.
      length: T, or 1.
      full_length: T before truncation.
    """

    kind: Examples
    arrays: dict[str, np.ndarray]
    length: int
    full_length: int

    @property
    def truncated(self) -> bool:
        """Whether the model reads only the beginning of the input."""
        return self.full_length > self.length

    @functools.cached_property
    def digest(self) -> bytes:
        """A hash of the encoded input: inputs with equal ones have equal predictions."""
        found = hashlib.blake2b(digest_size=16)
        for name, array in self.arrays.items():
            found.update(f"{name} {array.dtype} {array.shape} ".encode())
            found.update(np.ascontiguousarray(array).data)
        return found.digest()


def split(examples: Examples) -> list[Part]:
    """The examples one by one, without labels."""
    count = len(examples)
    if not isinstance(examples, TextExamples | BagExamples):
        batch = examples.batch(np.arange(count)[:, None])
        batch.pop("labels", None)
        return [Part(examples, {name: x[i] for name, x in batch.items()}, 1, 1) for i in range(count)]
    sequences = {name: getattr(examples, name) for name in _sequences(examples)}
    empty: dict[str, Any] = {
        name: Ragged(ragged.values[:0], np.zeros(1, np.int64)) for name, ragged in sequences.items()
    }
    kind = dataclasses.replace(examples, labels=None, full_lengths=None, **empty)
    lengths = examples.lengths
    full = lengths if examples.full_lengths is None else examples.full_lengths
    each = {name: ragged.take(np.arange(count)) for name, ragged in sequences.items()}
    return [
        Part(kind, {name: found[i] for name, found in each.items()}, int(lengths[i]), int(full[i]))
        for i in range(count)
    ]


def lay_out(parts: Sequence[Part], members: np.ndarray, length: int | None) -> Batch:
    """The batch whose rows hold the parts `members`: int [B, E], −1 for none.

    `length`: of the rows, if the parts are sequences.

    Raises ValueError if the parts have different shapes.
    """
    kind = parts[0].kind
    if isinstance(kind, TextExamples | BagExamples):
        assert length is not None
        joined: dict[str, Any] = {name: _joined([part.arrays[name] for part in parts]) for name in _sequences(kind)}
        return make_batch(dataclasses.replace(kind, pad_to=(length,), **joined), members)
    indices = np.maximum(members[:, 0], 0)
    batch = {name: np.stack([part.arrays[name] for part in parts])[indices] for name in parts[0].arrays}
    batch["weight"] = (members[:, 0] >= 0).astype(np.float32)
    return batch


def _sequences(examples: TextExamples | BagExamples) -> list[str]:
    """The fields that are sequences of one length."""
    return [field.name for field in dataclasses.fields(examples) if isinstance(getattr(examples, field.name), Ragged)]


def _joined(sequences: list[np.ndarray]) -> Ragged:
    return Ragged(np.concatenate(sequences), np.cumsum([0, *map(len, sequences)], dtype=np.int64))
