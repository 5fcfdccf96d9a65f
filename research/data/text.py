"""Text -> WordPiece tokens, with a vocabulary trained on the training split."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from research.data.examples import Columns, Examples, Ragged, TextExamples
from research.data.fitted import fitted_text
from research.errors import UserError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def as_text(value: str | bytes) -> str:
    """Bytes as UTF-8; what is not UTF-8 becomes U+FFFD."""
    return value if isinstance(value, str) else value.decode("utf-8", errors="replace")


def column(columns: Columns, name: str, split: str) -> Any:
    """A column by name; raises UserError naming those there are."""
    if name not in columns:
        raise UserError(f"split {split!r} has no column {name!r}; it has {', '.join(columns)}")
    return columns[name]


_WORD_START = "\u2581"  # "▁", as SentencePiece marks it


def train_wordpiece(texts: Sequence[str], *, vocab_size: int, lowercase: bool) -> tokenizers.Tokenizer:
    """A BERT tokenizer whose vocabulary of at most `vocab_size` pieces is learnt from `texts`; always the same one.

    The pieces are those of byte-pair merges (Sennrich et al. 2016); text is cut by BERT's greedy longest match. The
    library's own WordPiece trainer merges likewise, but breaks ties by a random hash: another vocabulary each time.
    """
    merges = tokenizers.Tokenizer(models.BPE())
    merges.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    merges.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.BertPreTokenizer(),
            pre_tokenizers.Metaspace(_WORD_START, prepend_scheme="always", split=False),
        ]
    )
    merges.train_from_iterator(texts, trainer=trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False))
    learnt = merges.get_vocab()
    pieces = sorted(learnt, key=learnt.__getitem__)  # the alphabet, then the merges from the most frequent on
    alphabet = [piece for piece in pieces if len(piece) == 1 and piece != _WORD_START]
    merged = [
        piece.removeprefix(_WORD_START) if piece.startswith(_WORD_START) else f"##{piece}"
        for piece in pieces
        if len(piece) > 1
    ]
    ordered = dict.fromkeys([*SPECIAL_TOKENS, *alphabet, *(f"##{letter}" for letter in alphabet), *merged])
    vocabulary = {piece: i for i, piece in enumerate(list(ordered)[:vocab_size])}

    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def wordpiece(
    splits: dict[str, Columns],
    assets: Path | None,
    *,
    inputs: tuple[str, ...],
    label: str,
    vocab_size: int,
    lowercase: bool,
    max_length: int,
    pad_to: tuple[int, ...],
) -> dict[str, Examples]:
    """Tokenizes every split.

    Args:
      inputs: one text column, or two for sentence pairs.
      vocab_size: of the vocabulary trained on `train`.
      max_length: tokens of an example at the most, [CLS] and [SEP] included; the longest part is cut first.
      pad_to: the row lengths a batch may have; max_length must be among them or below their largest.
    """
    if not 2 + len(inputs) <= max_length <= max(pad_to):
        raise UserError(
            f"data.transform.max_length is {max_length}; it must be at least {2 + len(inputs)} and at most the largest "
            f"of pad_to={tuple(pad_to)}"
        )

    def texts(split: str) -> list[list[str]]:
        return [list(map(as_text, column(splits[split], name, split))) for name in inputs]

    def fit() -> str:
        lines = [line for part in texts("train") for line in part]
        return train_wordpiece(lines, vocab_size=vocab_size, lowercase=lowercase).to_str()

    tokenizer = tokenizers.Tokenizer.from_str(fitted_text(assets, "tokenizer.json", fit))
    tokenizer.enable_truncation(max_length, strategy="longest_first")

    def encode(split: str) -> TextExamples:
        parts = texts(split)
        encodings = tokenizer.encode_batch_fast(parts[0] if len(parts) == 1 else list(zip(*parts, strict=True)))
        return TextExamples(
            tokens=Ragged.of([encoding.ids for encoding in encodings], np.int32),
            type_ids=Ragged.of([encoding.type_ids for encoding in encodings], np.int32),
            labels=as_labels(column(splits[split], label, split)),
            pad_to=tuple(pad_to),
        )

    return {split: encode(split) for split in splits}


def as_labels(values: Any) -> np.ndarray:
    """Integers as int32, everything else as float32."""
    array = np.asarray(values)
    return array.astype(np.int32 if np.issubdtype(array.dtype, np.integer) else np.float32)
