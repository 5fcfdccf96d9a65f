"""Rows of tokens from corpora of any size: documents are read, tokenized and packed when their row is needed.

The problem: which documents a row holds must follow from its position in constant time, while how many tokens a
document has is only known once it has been read. So rows come in groups of R, and group g holds K documents, those at
the positions g · K to (g + 1) · K − 1 of a shuffled order (research/data/shards/order.py). They are joined and cut into
rows exactly as documents in memory are (`TokenRows`, `MaskedExamples`); of the group's tokens, those after its R rows
are cut off, and if there are too few its last rows are padding. K is chosen such that a group has R rows' worth of
tokens on average. The sum of K lengths varies by 1/√K of what one varies, so groups of more rows cut and pad less.
What is cut off is not lost to the run: another epoch has other groups.

Alternatives: a window of each document at a random offset drops most of a long document and pads a short one; carrying
the rest of one group over to the next makes a row depend on all rows before it; exact lengths need a pass over the
whole corpus first. A corpus that fits the latter is better prepared for data.name=files, which cuts nothing.

The rows of a document longer than one are neighbours in a batch: rows of one batch are less independent than those of
documents in memory, which are shuffled one by one. R should divide the rows that each process makes per step: a
group whose rows are in several processes, or in several steps that different data.workers make, is tokenized by each.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from research.data import stateless_rng
from research.data.columns import only
from research.data.encoder import Encoder
from research.data.pipeline import Stream
from research.data.shards.files import Shards
from research.data.shards.order import Order

_EVALUATION_SEED = 0x73686172  # of the rows' random numbers outside training
_DRAWN = 1000  # groups from which the tokens that are cut off are estimated
_KEPT_GROUPS = 16  # groups that a process keeps, as consecutive batches may share one

# The values of entries in rows of padding; 0 for all others.
_NONE = {"labels": -1, "targets": -1}


@dataclasses.dataclass(frozen=True)
class Plan:
    """How documents are grouped.

    Attributes:
      documents, rows: K and R of each group.
      fullness: the fraction of tokens in rows that are not padding, estimated from a sample.
      cut: the fraction of the documents' tokens that are cut off in an epoch, estimated in the same way.
    """

    documents: int
    rows: int
    fullness: float
    cut: float

    @classmethod
    def of(cls, lengths: np.ndarray, row: float, rows: int, documents: int | None) -> "Plan":
        """A plan for documents of which a sample has these lengths [N], in rows of `row` tokens.

        `documents`: of a group; None: as many as fill it on average.
        """
        room = rows * row
        documents = documents or max(1, round(room / lengths.mean()))
        drawn = np.random.RandomState(0).randint(len(lengths), size=(_DRAWN, documents))
        sums = np.array([lengths[group].sum() for group in drawn])  # of groups with replacement
        kept = np.minimum(sums, room).sum()
        return cls(documents, rows, round(float(kept / room / _DRAWN), 4), round(float(1 - kept / sums.sum()), 4))


@dataclasses.dataclass(frozen=True)
class ShardRows:
    """The rows of a corpus, by position in an infinite sequence; a batch has the entries of the encoder's examples.

    The number of rows is that of an epoch: as many documents as all sources have together.

    Attributes:
      encoder: of documents: its `encode` cuts texts into rows.
      sources: the corpora that the order draws from.
    """

    row_axes: ClassVar[int] = 2

    encoder: Encoder
    sources: tuple[Shards, ...]
    order: Order
    plan: Plan

    @property
    def labels(self) -> np.ndarray:
        """All possible labels: the vocabulary, int32 [V]; which of them occur is unknown."""
        vocabulary: dict[str, int] = self.encoder.tokenizer.get_vocab()  # type: ignore[attr-defined]
        return np.arange(max(vocabulary.values()) + 1, dtype=np.int32)

    @property
    def row_length(self) -> int:
        """Tokens per row."""
        length: int = self.encoder.signature.limits["row_length"]
        return length

    def __len__(self) -> int:
        return -(-sum(map(len, self.sources)) // self.plan.documents) * self.plan.rows

    def __reduce__(self) -> tuple[Any, ...]:  # without what is cached: open files, the tokenizer, groups
        fresh = dataclasses.replace(self.encoder)  # type: ignore[type-var]
        return type(self), (fresh, self.sources, self.order, self.plan)

    def batch(self, members: np.ndarray, rows: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
        """The rows `members` [B, 1] of the documents in the order of the files, for evaluation."""
        keys = stateless_rng.keys(_EVALUATION_SEED, np.zeros(len(members), np.int64), members)
        return self._rows(members[rows, 0], keys[rows], None)

    def train_batch(self, members: np.ndarray, rows: np.ndarray | slice, keys: np.ndarray) -> dict[str, np.ndarray]:
        """The rows at the positions `members` [B, 1]; keys: uint64 [B, 2], as from `ShardStream.keys`."""
        return self._rows(members[rows, 0], keys[rows, :1], keys[rows, 1].astype(np.int64))

    def _rows(self, positions: np.ndarray, keys: np.ndarray, seeds: np.ndarray | None) -> dict[str, np.ndarray]:
        """The rows at positions [B], −1 for padding, with keys [B, 1], in the order of the seeds [B] or the files'."""
        real = np.flatnonzero(positions >= 0)
        if not len(real):  # the shapes are those of any row
            found = self._rows(np.zeros(1, np.int64), keys[:1], None)
            return {name: np.repeat(_padding(name, array), len(positions), axis=0) for name, array in found.items()}
        group, number = np.divmod(positions, self.plan.rows)
        of_seed = np.zeros(len(positions), np.int64) if seeds is None else seeds
        batch: dict[str, np.ndarray] = {}
        for which, seed in dict.fromkeys(zip(group[real].tolist(), of_seed[real].tolist(), strict=True)):
            places = real[(group[real] == which) & (of_seed[real] == seed)]
            examples = self._group(which, None if seeds is None else seed)
            there = number[places] < len(examples)
            rows = np.where(there, number[places], 0)[:, None]
            for name, array in examples.train_batch(rows, slice(None), keys[places]).items():
                if name not in batch:
                    batch[name] = np.repeat(_padding(name, array[:1]), len(positions), axis=0)
                batch[name][places[there]] = array[there]
        return batch

    @functools.cached_property
    def _group(self) -> Callable[[int, int | None], Any]:
        """(the number of a group, a seed or None for the order of the files) -> its documents in rows, cached."""
        return functools.lru_cache(maxsize=_KEPT_GROUPS)(self._read_group)

    def _read_group(self, number: int, seed: int | None) -> Any:
        texts = self.documents(np.arange(number * self.plan.documents, (number + 1) * self.plan.documents), seed)
        return self.encoder.encode({only(self.encoder.signature.inputs): texts}, split="train")

    def documents(self, positions: np.ndarray, seed: int | None) -> list[str | bytes]:
        """The texts at positions [N] in the order of a seed; with None in that of the files, up to the last one."""
        if seed is None:
            ends = np.cumsum([len(shards) for shards in self.sources])
            positions = positions[positions < ends[-1]]
            sources = np.searchsorted(ends, positions, side="right")
            indices = positions - np.concatenate([[0], ends])[sources]
        else:
            sources, indices = self.order(positions, seed)
        texts: list[str | bytes] = [""] * len(positions)
        for source, shards in enumerate(self.sources):
            places = np.flatnonzero(sources == source)
            for place, text in zip(places.tolist(), shards.texts(indices[places]), strict=True):
                texts[place] = text
        return texts


def _padding(name: str, array: np.ndarray) -> np.ndarray:
    """The entry `name` of a row of padding: [1, …], shaped and typed like `array` [1, …]."""
    return np.full_like(array[:1], _NONE.get(name, 0))


@dataclasses.dataclass(frozen=True)
class RowNumbers:
    """The numbers 0, …, size − 1 as rows of one example each, [size, 1], made when they are needed."""

    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, some: slice) -> np.ndarray:
        return np.arange(*some.indices(self.size))[:, None]


@dataclasses.dataclass(frozen=True, eq=False)
class ShardStream(Stream):
    """The stream of `ShardRows`: the member of a row is its position, and its order is a matter of the examples."""

    examples: ShardRows

    @classmethod
    def of(cls, examples: ShardRows, members: np.ndarray | None = None) -> "ShardStream":
        """All rows, or, for evaluation only, the `members` [M]."""
        rows: Any = RowNumbers(len(examples)) if members is None else members[:, None]
        return cls(examples, rows)

    @property
    def members(self) -> Any:  # type: ignore[override]
        return self.rows

    @property
    def labels(self) -> np.ndarray:
        assert self.examples.labels is not None
        return self.examples.labels

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.examples, self.rows)

    def between(self, start: int, stop: int, seed: int, ahead: int = 0) -> np.ndarray:
        return np.arange(start + ahead, stop + ahead)[:, None]

    def keys(self, start: int, members: np.ndarray, seed: int) -> np.ndarray:
        """uint64 [B, 2]: the key of each row's random numbers, and the seed of the order that it is in."""
        epochs, numbers = np.divmod(members, len(self.rows))
        keys = stateless_rng.keys(seed, epochs[:, 0], numbers)
        return np.concatenate([keys, np.full_like(keys, seed)], axis=1)

    def examples_before(self, position: int, seed: int) -> int:
        return position
