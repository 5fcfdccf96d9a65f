"""Documents -> one long sequence of tokens per split, cut into rows of equal length without padding."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from research.base.errors import UserError
from research.base.registry import regex
from research.data.cache import ArtifactCache
from research.data.columns import as_text, column, only
from research.data.encoder import ColumnsOf
from research.data.examples import Columns, Ragged
from research.data.text.wordpiece import SPECIAL_TOKENS, VERSION, encode, read_tokenizer, train_wordpiece

if TYPE_CHECKING:
    import tokenizers

Replacements = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Records:
    """A column of texts as the records of documents.

    Attributes:
      inputs: the only text column.
      heading: a regular expression; a record whose text it matches begins a document if it is between blank ones.
        Empty: each record is a document.
      replace: pairs (text, replacement), applied in order before anything else.
    """

    inputs: tuple[str, ...]
    heading: str
    replace: Replacements

    def check(self) -> None:
        """Raises UserError for a value that is not valid."""
        only(self.inputs)
        regex("data.transform.heading", self.heading)
        for pair in self.replace:
            if (
                isinstance(pair, str)
                or len(pair) != 2
                or not all(isinstance(text, str) for text in pair)
                or not pair[0]
            ):
                raise UserError(
                    f"data.transform.replace has {pair!r}; it must be pairs of a text that is not empty and another"
                )

    def texts(self, columns: Columns, split: str) -> list[str]:
        """The text of each record, with replacements."""
        return [_replaced(as_text(text), self.replace) for text in column(columns, only(self.inputs), split)]

    def begins(self, columns: Columns, split: str) -> np.ndarray:
        """Whether a document begins with the record: bool [N]."""
        # Headings are searched in the original text.
        raw = [as_text(text) for text in column(columns, only(self.inputs), split)]
        heading = regex("data.transform.heading", self.heading)
        blank = np.array([True, *(not text.strip() for text in raw), True])
        found = np.array([bool(heading.search(text)) for text in raw], bool)
        return found & blank[:-2] & blank[2:] if self.heading else found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Documents(Records):
    """Texts as one long sequence of tokens per split: documents separated by [SEP].

    A split's tokens are computed once: other runs on the same data find them in the cache, whatever their row length.

    Attributes: those of `Records`, and
      tokenizer, vocab_size, lowercase: as in `research.data.text.wordpiece.WordPiece`.
    """

    tokenizer: str | None
    vocab_size: int
    lowercase: bool

    def learn_tokenizer(self, splits: Mapping[str, Columns], cache: ArtifactCache) -> str:
        """The given tokenizer.json, or one trained on `train`."""

        def learn() -> str:
            if self.tokenizer is not None:
                return read_tokenizer(self.tokenizer, lowercase=self.lowercase).to_str()
            # A special token that occurs in the text is not a word to learn.
            blank = tuple((token, " ") for token in SPECIAL_TOKENS)
            lines = (_replaced(text, blank) for text in self.texts(ColumnsOf(splits, "train"), "train"))
            return train_wordpiece(lines, vocab_size=self.vocab_size, lowercase=self.lowercase).to_str()

        settings = (self.inputs, self.replace, self.vocab_size, self.lowercase)
        trained = None if self.tokenizer else (VERSION, *settings, "documents")
        return cache.text("tokenizer.json", learn, key=trained)

    def tokenize(self, tokenizer: "tokenizers.Tokenizer", columns: Columns, split: str) -> Ragged:
        """The documents of a split, each followed by [SEP] except the last: int32."""
        tokens, _, _ = encode(tokenizer, [self.texts(columns, split)], split, special=False)
        return joined(tokens, self.begins(columns, split), special_ids(tokenizer)["[SEP]"])


def _replaced(text: str, replace: Replacements) -> str:
    for old, new in replace:
        text = text.replace(old, new)
    return text


def special_ids(tokenizer: "tokenizers.Tokenizer") -> dict[str, int]:
    """The ids of BERT's special tokens. Raises UserError if the tokenizer lacks one."""
    ids = {token: index for token in SPECIAL_TOKENS if (index := tokenizer.token_to_id(token)) is not None}
    lacking = [token for token in SPECIAL_TOKENS if token not in ids]
    if lacking:
        raise UserError(f"the tokenizer lacks {', '.join(lacking)}, which masked language modelling needs")
    return ids


def joined(records: Ragged, begins: np.ndarray, separator: int | None) -> Ragged:
    """Joins records to documents, each followed by `separator` except the last.

    Args:
      records: N token sequences.
      begins: bool [N], whether a document begins with the record. Documents without tokens are dropped.
      separator: None puts nothing between documents.
    """
    # Only records with tokens count; a document that begins with an empty one begins with the next.
    filled = np.flatnonzero(records.lengths)
    document = np.cumsum(begins)[filled]
    new = np.diff(document, prepend=document[:1]) > 0
    starts = records.offsets[:-1][filled[new]]
    if separator is None:
        return Ragged(records.values, np.concatenate([[0], starts, [len(records.values)]]))
    values = np.insert(records.values, starts, np.int32(separator))
    return Ragged(values, np.concatenate([[0], starts + 1 + np.arange(len(starts)), [len(values)]]))


def row_count(tokens: int, row_length: int) -> int:
    """The number of rows of [CLS], `row_length` − 2 tokens and [SEP] for a sequence of `tokens` tokens."""
    return -(-tokens // (row_length - 2))


def cut_rows(
    tokens: np.ndarray, indices: np.ndarray, row_length: int, *, cls: int, sep: int, pad: int
) -> tuple[np.ndarray, np.ndarray]:
    """The rows `indices` [B] of the sequence `tokens` [T] -> int32 [B, L], real: bool [B, L].

    Row i holds the tokens from i · (L − 2). Every row is full except the sequence's last one, which has `pad` after its
    `sep`: every token is in exactly one row.
    """
    width = row_length - 2
    lengths = np.minimum(len(tokens) - indices * width, width)[:, None]
    place = np.arange(row_length)[None, :] - 1  # index among the row's tokens
    inside = (place >= 0) & (place < lengths)
    source = np.where(inside, indices[:, None] * width + place, 0)
    rows = np.where(inside, tokens[source], np.where(place < 0, cls, np.where(place == lengths, sep, pad)))
    return rows.astype(np.int32), place <= lengths
