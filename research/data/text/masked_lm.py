"""Masked language modelling (Devlin et al. 2018, section 3.1): some tokens are masked and have to be predicted."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from research.base.errors import UserError
from research.base.ranges import TOKENS, Range
from research.data import stateless_rng
from research.data.cache import ArtifactCache, digest
from research.data.columns import only
from research.data.encoder import Encoder, Signature
from research.data.examples import Columns, Examples, Ragged
from research.data.text.documents import Documents, cut_rows, row_count, special_ids
from research.data.text.wordpiece import SPECIAL_TOKENS, VERSION, TextEncoder, WordPiece, tokenizer_of

if TYPE_CHECKING:
    import tokenizers

# The key of the masks in evaluation: always the same, whatever the run's seed.
_EVALUATION_SEED = 0x6D61736B


@dataclasses.dataclass(frozen=True)
class Masking:
    """Selects the tokens of a row to mask, and their replacements.

    Attributes:
      rate: the fraction of a row's tokens to mask, not counting special tokens.
      whole_words: whether the pieces of a word are masked together or not at all.
      special: bool [V], the tokens that are never masked and never replace another.
      continues: bool [V], the pieces that continue a word ("##…").
      mask: the id of [MASK].
    """

    rate: float
    whole_words: bool
    special: np.ndarray
    continues: np.ndarray
    mask: int

    def slots(self, row_length: int) -> int:
        """M, the most tokens of a row that are masked."""
        return math.ceil(self.rate * row_length)

    def chosen(self, tokens: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """The tokens to mask: bool [B, L] for tokens int [B, L] and keys uint64 [B].

        Selects n · rate, rounded and at least one, of a row's n tokens that are not special, uniformly at random. Whole
        words are taken in random order, skipping those that would exceed that number, as in Google's
        create_pretraining_data.py; so there may be fewer, and none in a row whose words are all longer.
        """
        usable = ~self.special[tokens]
        wanted = np.maximum(np.rint(usable.sum(axis=1) * self.rate), 1)
        # Ordered by random numbers, with tokens that can't be masked last. A word has the number of its first piece.
        begins = usable
        if self.whole_words:
            before = np.pad(usable, ((0, 0), (1, 0)))[:, :-1]
            begins = usable & ~(self.continues[tokens] & before)
        numbers = np.where(begins, stateless_rng.numbers(keys, tokens.shape[1]) >> np.uint64(1), np.uint64(2**64 - 1))
        order = np.argsort(numbers, axis=1, kind="stable")
        rank = np.argsort(order, axis=1, kind="stable")
        if not self.whole_words:
            return usable & (rank < wanted[:, None])

        word = np.cumsum(begins, axis=1) - 1  # of each token; meaningless where it is not usable
        row = np.arange(len(tokens))[:, None]
        lengths = np.zeros(tokens.shape, np.int64)  # of the word that begins there
        first = np.argsort(~begins, axis=1, kind="stable")  # where word 0, 1, … begins
        where = np.take_along_axis(first, np.maximum(word, 0), axis=1)
        np.add.at(lengths, (np.broadcast_to(row, tokens.shape)[usable], where[usable]), 1)
        in_order = np.take_along_axis(lengths, order, axis=1)
        taken, total = np.zeros(tokens.shape, bool), np.zeros(len(tokens), np.int64)
        for place in range(begins.sum(axis=1).max(initial=0)):
            taken[:, place] = total + in_order[:, place] <= wanted
            total += np.where(taken[:, place], in_order[:, place], 0)
            if (total == wanted).all():
                break
        taken = np.take_along_axis(taken, rank, axis=1) & begins
        return usable & np.take_along_axis(taken, where, axis=1)

    def __call__(self, tokens: np.ndarray, keys: np.ndarray) -> dict[str, np.ndarray]:
        """tokens int32 [B, L], keys uint64 [B] -> tokens [B, L] with some masked, masked_positions and labels.

        80 % of the chosen tokens become [MASK], 10 % a random token that is not special, and 10 % are unchanged.
        masked_positions: int32 [B, M], ascending, 0 in unused slots; labels: int32 [B, M], −1 there.
        """
        chosen = self.chosen(tokens, keys)
        length = tokens.shape[1]
        fate = stateless_rng.uniform(stateless_rng.numbers(keys, length, stream=1))
        ordinary = np.flatnonzero(~self.special)
        other = ordinary[stateless_rng.below(stateless_rng.numbers(keys, length, stream=2), len(ordinary))]
        hidden = np.where(fate < 0.8, self.mask, np.where(fate < 0.9, other, tokens))

        positions = np.argsort(~chosen, axis=1, kind="stable")[:, : self.slots(length)]
        used = np.take_along_axis(chosen, positions, axis=1)
        labels = np.take_along_axis(tokens, positions, axis=1)
        return {
            "tokens": np.where(chosen, hidden, tokens).astype(np.int32),
            "masked_positions": np.where(used, positions, 0).astype(np.int32),
            "labels": np.where(used, labels, -1).astype(np.int32),
        }


@dataclasses.dataclass(frozen=True)
class MaskedExamples:
    """Rows cut from a split's documents; different tokens of a row are masked every time it is trained on.

    A batch has tokens, segments (1; 0 in padding), positions and type_ids (0), each int32 [B, L], and masked_positions
    and labels, each int32 [B, M]; see `Masking`. Only the split's last row has padding.
    """

    row_axes: ClassVar[int] = 2

    documents: Ragged  # int32; concatenated they are a single sequence
    row_length: int
    masking: Masking
    cls: int
    sep: int
    pad: int

    def __len__(self) -> int:
        return row_count(len(self.documents.values), self.row_length)

    @property
    def labels(self) -> np.ndarray:
        """All possible labels: every token of the split, int32 [T]; `rows` maps them to rows."""
        return self.documents.values

    def rows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows `indices` [B] before masking: int32 [B, L], and where they are not padding: bool [B, L]."""
        return cut_rows(self.documents.values, indices, self.row_length, cls=self.cls, sep=self.sep, pad=self.pad)

    def batch(self, members: np.ndarray, rows: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
        """The batch for evaluation: the masked tokens are a function of an example's index alone."""
        return self.train_batch(members, rows, stateless_rng.keys(_EVALUATION_SEED, np.zeros(len(members)), members))

    def train_batch(self, members: np.ndarray, rows: np.ndarray | slice, keys: np.ndarray) -> dict[str, np.ndarray]:
        """The batch for training: the masked tokens are a function of the example's key; keys: uint64 [B, 1]."""
        tokens, real = self.rows(np.maximum(members[rows, 0], 0))
        return {
            **self.masking(tokens, keys[rows, 0]),
            "segments": real.astype(np.int32),
            "positions": np.where(real, np.arange(self.row_length)[None, :], 0).astype(np.int32),
            "type_ids": np.zeros(tokens.shape, np.int32),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskedLanguageModel(Documents):
    """Documents cut into rows, some of whose tokens will be masked.

    Attributes: those of `Documents`, and
      row_length: tokens per row, including [CLS] and [SEP].
      mask_rate: the fraction of tokens to mask; 0.15 in the paper.
      whole_words: whether the pieces of a word are masked together.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "vocab_size": Range(len(SPECIAL_TOKENS), 2**24, integer=True),
        "row_length": TOKENS,
        "mask_rate": Range(0, 1, open="low high"),
    }

    row_length: int
    mask_rate: float
    whole_words: bool

    def __post_init__(self) -> None:
        self.check()
        if self.row_length < 3:
            raise UserError(
                f"data.transform.row_length is {self.row_length}; it must be at least 3: [CLS], a token and [SEP]"
            )
        if not 0 < self.mask_rate < 1:
            raise UserError(f"data.transform.mask_rate is {self.mask_rate}; it must lie between 0 and 1")

    def fit(self, splits: Mapping[str, Columns], cache: ArtifactCache) -> "MaskedEncoder":
        options = dataclasses.replace(
            self, inputs=tuple(self.inputs), replace=tuple((old, new) for old, new in self.replace)
        )
        return MaskedEncoder(options, options.learn_tokenizer(splits, cache))


@dataclasses.dataclass(frozen=True)
class MaskedEncoder(Encoder):
    """Texts as rows of tokens to be masked; the labels are the tokens themselves. `definition`: tokenizer.json."""

    options: MaskedLanguageModel
    definition: str

    def __post_init__(self) -> None:
        special_ids(self.tokenizer)
        if self.options.whole_words and not any(piece.startswith("##") for piece in self.tokenizer.get_vocab()):
            raise UserError(
                "data.transform.whole_words: no piece of the tokenizer begins with ##, which marks the pieces of a word"
            )

    @property
    def signature(self) -> Signature:
        limits = {"row_length": self.options.row_length, "unit": "tokens"}
        return Signature("documents", self.options.inputs, None, limits)

    @functools.cached_property
    def tokenizer(self) -> "tokenizers.Tokenizer":
        return tokenizer_of(self.definition)

    @property
    def of_texts(self) -> "TextsToFill":
        """The encoder of single texts, in which masks are given instead of drawn."""
        options, length = self.options, self.options.row_length
        texts = WordPiece(
            inputs=options.inputs,
            label="",
            tokenizer=None,
            vocab_size=options.vocab_size,
            lowercase=options.lowercase,
            max_length=length,
            pad_to=(length,),
            row_length=length,
        )
        return TextsToFill(options, TextEncoder(texts, self.definition))

    @functools.cached_property
    def masking(self) -> Masking:
        ids, vocabulary = special_ids(self.tokenizer), self.tokenizer.get_vocab()
        size = max(vocabulary.values()) + 1
        special, continues = np.zeros(size, bool), np.zeros(size, bool)
        special[list(ids.values())] = True
        continues[[index for piece, index in vocabulary.items() if piece.startswith("##")]] = True
        return Masking(self.options.mask_rate, self.options.whole_words, special, continues, ids["[MASK]"])

    def _encode(self, columns: Columns, split: str, labels: bool, cache: ArtifactCache) -> MaskedExamples:
        def tokenized() -> dict[str, np.ndarray]:
            documents = self.options.tokenize(self.tokenizer, columns, split)
            return {"tokens": documents.values, "offsets": documents.offsets}

        options, ids = self.options, special_ids(self.tokenizer)
        key = (VERSION, digest(self.definition), options.inputs, options.heading, options.replace, split)
        arrays = cache.arrays("documents", tokenized, key=key)
        documents = Ragged(arrays["tokens"], arrays["offsets"])
        return MaskedExamples(documents, options.row_length, self.masking, ids["[CLS]"], ids["[SEP]"], ids["[PAD]"])


@dataclasses.dataclass(frozen=True)
class TextsToFill(Encoder):
    """Texts as [CLS], tokens and [SEP] each, with the replacements of the documents; [MASK] in a text is a mask."""

    documents: MaskedLanguageModel
    texts: TextEncoder

    @property
    def definition(self) -> str:
        """The tokenizer.json."""
        return self.texts.definition

    @property
    def signature(self) -> Signature:
        return dataclasses.replace(self.texts.signature, label=None)

    def _encode(self, columns: Columns, split: str, labels: bool, cache: ArtifactCache) -> Examples:
        replaced = {only(self.documents.inputs): self.documents.texts(columns, split)}
        return self.texts.encode(replaced, split=split, labels=labels, cache=cache)
