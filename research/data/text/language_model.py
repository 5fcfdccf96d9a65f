"""Language modelling: each token is predicted from those before it, in rows cut from a split's documents."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from research.base.errors import UserError
from research.base.ranges import TOKENS, Range
from research.data import stateless_rng
from research.data.cache import ArtifactCache, digest
from research.data.encoder import ColumnsOf, Encoder, Signature
from research.data.examples import Columns, first
from research.data.text.documents import Records, joined
from research.data.text.reversible import TOKENIZERS, end_token, loaded, token_bytes
from research.data.text.wordpiece import VERSION, encode, read_tokenizer

if TYPE_CHECKING:
    import tokenizers


@dataclasses.dataclass(frozen=True)
class TokenRows:
    """Rows of L tokens cut from a sequence of documents, and for each token the next one, its target.

    A row may hold several documents, or parts of them; segments number them from 1. Tokens of one document neither see
    those of another nor have targets there. A document that does not end in its row continues at the beginning of the
    next: no target is lost, but the tokens there see only what stands in their own row. Every row is full except the
    last, in which segment 0 is padding.

    A batch has tokens, segments, positions (within the document's part in the row), targets (−1: none) and, if the
    tokenizer's sizes are known, target_bytes (0 where there is no target), each int32 [B, L].

    Attributes:
      sequence: int32 [T]; all but its last token are inputs.
      starts: int64 [D], where the inputs of each document begin.
      ended: whether a token stands before and after each document. It is the input at which the document begins, and
        the target of its last token, so that each token is a target. Otherwise the first token of a document is none.
      row_length: L.
      stride: the distance between the beginnings of rows. If it is less than L they overlap, and a token that is in
        several rows has a target only in the first: it sees at least L − stride tokens, where its document has them.
      random: whether training takes L tokens from a random place instead of a row.
      token_bytes: int32 [V], the bytes that each token stands for; None if unknown.
    """

    row_axes: ClassVar[int] = 2

    sequence: np.ndarray
    starts: np.ndarray
    ended: bool
    row_length: int
    stride: int
    random: bool
    token_bytes: np.ndarray | None

    @property
    def inputs(self) -> int:
        """The number of tokens from which another may be predicted."""
        return max(len(self.sequence) - 1, 0)

    def __len__(self) -> int:
        return 1 + -(-max(self.inputs - self.row_length, 0) // self.stride) if self.inputs else 0

    @property
    def labels(self) -> np.ndarray:
        """All possible targets: every token of the split, int32 [T]."""
        return self.sequence

    def batch(self, members: np.ndarray, rows: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
        indices = first(members, rows)
        seen = np.where(indices > 0, self.row_length - self.stride, 0)  # the tokens that are targets of an earlier row
        return self._cut(indices * self.stride, seen)

    def train_batch(self, members: np.ndarray, rows: np.ndarray | slice, keys: np.ndarray) -> dict[str, np.ndarray]:
        """The batch for training; keys: uint64 [B, 1], which decide where random rows begin."""
        if not self.random:
            return self.batch(members, rows)
        places = max(self.inputs - self.row_length, 0) + 1  # as many as there are rows without padding
        begins = stateless_rng.below(stateless_rng.numbers(keys[rows, 0], 1)[:, 0], places)
        return self._cut(begins, np.zeros_like(begins))

    def _cut(self, begins: np.ndarray, seen: np.ndarray) -> dict[str, np.ndarray]:
        """Rows of the inputs from `begins` int [B], with targets after the first `seen` int [B] of them."""
        offset = np.arange(self.row_length)[None, :]
        place = begins[:, None] + offset  # [B, L]
        real = place < self.inputs
        place = np.where(real, place, 0)
        document = np.searchsorted(self.starts, place, side="right") - 1
        following = self.sequence[place + 1]
        has_target = real & (offset >= seen[:, None])
        if not self.ended:
            has_target &= np.searchsorted(self.starts, place + 1, side="right") - 1 == document
        batch = {
            "tokens": np.where(real, self.sequence[place], 0),
            "segments": np.where(real, document - document[:, :1] + 1, 0),
            "positions": np.where(real, place - np.maximum(self.starts[document], begins[:, None]), 0),
            "targets": np.where(has_target, following, -1),
        }
        if self.token_bytes is not None:
            batch["target_bytes"] = np.where(has_target, self.token_bytes[following], 0)
        return {name: array.astype(np.int32) for name, array in batch.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LanguageModelRows(Records):
    """Documents cut into full rows of tokens, of which each is to be predicted from those before it.

    Attributes: those of `Records`, and
      tokenizer: bpe, byte, character, learned from `train`; or a tokenizer.json.
      vocab_size: the maximum size of a learned vocabulary.
      end_of_text: the token between documents, which also begins the first and ends the last; "": none.
      row_length: tokens per row.
      stride: the distance between rows outside `train`, which overlap if it is less than row_length: more context for
        each token, and more to compute. None: row_length.
      blocks: what a row of training is: `consecutive`, each of the rows once per epoch, in random order; `random`, as
        many tokens from anywhere in the split, others in each epoch.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "vocab_size": Range(2, 2**24, integer=True),
        "row_length": TOKENS,
        "stride": TOKENS,
    }

    tokenizer: str
    vocab_size: int
    end_of_text: str
    row_length: int
    stride: int | None
    blocks: str

    def __post_init__(self) -> None:
        self.check()
        if self.stride is not None and self.stride > self.row_length:
            raise UserError(
                f"data.transform.stride is {self.stride}; it must be at most row_length, {self.row_length}, or tokens "
                "would be left out"
            )
        if self.blocks not in ("consecutive", "random"):
            raise UserError(f"data.transform.blocks is {self.blocks!r}; known: consecutive, random")

    def fit(self, splits: Mapping[str, Columns], cache: ArtifactCache) -> "LanguageModelEncoder":
        options = dataclasses.replace(
            self, inputs=tuple(self.inputs), replace=tuple((old, new) for old, new in self.replace)
        )
        return LanguageModelEncoder(options, options.learn_tokenizer(splits, cache))

    def learn_tokenizer(self, splits: Mapping[str, Columns], cache: ArtifactCache) -> str:
        """The given tokenizer.json, or one made from `train`."""
        special = (self.end_of_text,) if self.end_of_text else ()

        def learn() -> str:
            if self.tokenizer not in TOKENIZERS:
                return read_tokenizer(self.tokenizer, lowercase=False).to_str()
            texts = self.texts(ColumnsOf(splits, "train"), "train")
            return TOKENIZERS[self.tokenizer](texts, vocab_size=self.vocab_size, special=special).to_str()

        settings = (self.tokenizer, self.inputs, self.replace, self.vocab_size, special)
        key = (VERSION, *settings, "language model") if self.tokenizer in TOKENIZERS else None
        return cache.text("tokenizer.json", learn, key=key)


@dataclasses.dataclass(frozen=True)
class LanguageModelEncoder(Encoder):
    """Texts as rows of tokens; the labels are the tokens themselves. `definition`: tokenizer.json."""

    options: LanguageModelRows
    definition: str

    def __post_init__(self) -> None:
        _ = self.end  # refuses a token that the tokenizer lacks

    @property
    def signature(self) -> Signature:
        limits = {"row_length": self.options.row_length, "unit": "tokens"}
        return Signature("documents", self.options.inputs, None, limits)

    @functools.cached_property
    def tokenizer(self) -> "tokenizers.Tokenizer":
        return loaded(self.definition)

    @functools.cached_property
    def end(self) -> int | None:
        """The token between documents; None if there is none."""
        return end_token(self.tokenizer, self.options.end_of_text)

    @functools.cached_property
    def token_bytes(self) -> np.ndarray | None:
        """The bytes of text that each token stands for: int32 [V]; None if unknown."""
        return token_bytes(self.definition)

    def _encode(self, columns: Columns, split: str, labels: bool, cache: ArtifactCache) -> TokenRows:
        options, end = self.options, self.end

        def tokenized() -> dict[str, np.ndarray]:
            tokens, _, _ = encode(self.tokenizer, [options.texts(columns, split)], split, special=False)
            documents = joined(tokens, options.begins(columns, split), end)
            sequence = documents.values
            if end is not None and len(sequence):
                # The token before a document is its first input, so documents begin where they do without the first.
                sequence = np.concatenate([[end], sequence, [end]]).astype(np.int32)
            return {"sequence": sequence, "starts": documents.offsets[:-1]}

        settings = (options.inputs, options.heading, options.replace, options.end_of_text)
        key = (VERSION, digest(self.definition), *settings, split)
        arrays = cache.arrays("token_sequence", tokenized, key=key)
        trains = split == "train"  # whose rows never overlap: each token would be trained on several times an epoch
        return TokenRows(
            sequence=arrays["sequence"],
            starts=arrays["starts"],
            ended=end is not None,
            row_length=options.row_length,
            stride=options.row_length if trains or options.stride is None else options.stride,
            random=options.blocks == "random",
            token_bytes=self.token_bytes,
        )
