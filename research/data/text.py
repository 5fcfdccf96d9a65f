"""Text -> tokens: WordPiece with a vocabulary trained on the training split, or whatever tokenizer is given."""

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from research.data.examples import Columns, Examples, Ragged, TextExamples
from research.data.kept import Kept, digest
from research.errors import UserError

if TYPE_CHECKING:  # `tokenizers` is imported where it is used: this module's other functions serve every dataset
    import tokenizers

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def as_text(value: str | bytes) -> str:
    """Bytes as UTF-8; what is not UTF-8 becomes U+FFFD."""
    return value if isinstance(value, str) else value.decode("utf-8", errors="replace")


def column(columns: Columns, name: str, split: str) -> Any:
    """A column by name; raises UserError naming those there are."""
    if name not in columns:
        raise UserError(f"split {split!r} has no column {name!r}; it has {', '.join(columns)}")
    return columns[name]


# In the keys of what is cached: to be raised when train_wordpiece or _encode come to give something else.
_VERSION = f"1, tokenizers {version('tokenizers')}"

_WORD_START = "\u2581"  # "▁", as SentencePiece marks it


def train_wordpiece(texts: Iterable[str], *, vocab_size: int, lowercase: bool) -> "tokenizers.Tokenizer":
    """A BERT tokenizer whose vocabulary of at most `vocab_size` pieces is learnt from `texts`; always the same one.

    The pieces are those of byte-pair merges (Sennrich et al. 2016); text is cut by BERT's greedy longest match. The
    library's own WordPiece trainer merges likewise, but breaks ties by a random hash: another vocabulary each time.
    """
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, trainers

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
    return bert_tokenizer({piece: i for i, piece in enumerate(list(ordered)[:vocab_size])}, lowercase=lowercase)


def bert_tokenizer(vocabulary: dict[str, int], *, lowercase: bool) -> "tokenizers.Tokenizer":
    """BERT's tokenizer (Devlin et al. 2018) with this vocabulary, SPECIAL_TOKENS among it."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

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
    splits: Mapping[str, Columns],
    kept: Kept,
    *,
    inputs: tuple[str, ...],
    label: str,
    tokenizer: str | None,
    vocab_size: int,
    lowercase: bool,
    max_length: int,
    pad_to: tuple[int, ...],
    row_length: int,
) -> dict[str, Examples]:
    """Tokenizes every split, once: other runs on the same data find the tokens in the cache.

    Args:
      inputs: one text column, or two for sentence pairs.
      tokenizer: a tokenizer.json, or a vocab.txt of BERT; None to train one on `train`.
      vocab_size: of the trained vocabulary, at the most.
      lowercase: whether to drop case and accents; a tokenizer.json says so itself.
      max_length: tokens of an example at the most, [CLS] and [SEP] included. Of a longer one the end is cut, of a pair
        a token at a time from the longer part, as transformers' `longest_first` does.
      pad_to: the row lengths a batch of one example a row may have; max_length must not exceed their largest.
      row_length: of packed rows (train.batch_rows), in tokens.
    """
    if not 2 + len(inputs) <= max_length <= max(pad_to):
        raise UserError(
            f"data.transform.max_length is {max_length}; it must be at least {2 + len(inputs)} and at most the largest "
            f"of pad_to={tuple(pad_to)}"
        )

    def texts(split: str) -> list[Sequence[str | bytes]]:
        return [column(splits[split], name, split) for name in inputs]

    def fit() -> str:
        if tokenizer is not None:
            return read_tokenizer(tokenizer, lowercase=lowercase).to_str()
        lines = (as_text(line) for part in texts("train") for line in part)
        return train_wordpiece(lines, vocab_size=vocab_size, lowercase=lowercase).to_str()

    trained = None if tokenizer else (_VERSION, inputs, vocab_size, lowercase)
    definition = kept.text("tokenizer.json", fit, key=trained)

    def encode_all() -> dict[str, np.ndarray]:
        import tokenizers

        encoder = tokenizers.Tokenizer.from_str(definition)
        encoder.no_padding()
        encoder.enable_truncation(max_length, strategy="longest_first")
        if not encoder.encode("").ids:
            raise UserError(
                "data.transform.tokenizer puts no token such as [CLS] before a text; it needs one to classify by"
            )
        arrays = {}
        for split in splits:
            tokens, type_ids = encode(encoder, texts(split), split)
            arrays[f"{split}.offsets"] = tokens.offsets
            arrays[f"{split}.tokens"] = tokens.values
            arrays[f"{split}.type_ids"] = type_ids.values
            arrays[f"{split}.labels"] = as_labels(column(splits[split], label, split))
        return arrays

    arrays = kept.arrays("tokens", encode_all, key=(_VERSION, digest(definition), max_length, inputs, label))
    return {
        name.removesuffix(".labels"): TextExamples(
            tokens=Ragged(arrays[name.replace(".labels", ".tokens")], arrays[name.replace(".labels", ".offsets")]),
            type_ids=Ragged(arrays[name.replace(".labels", ".type_ids")], arrays[name.replace(".labels", ".offsets")]),
            labels=arrays[name],
            pad_to=tuple(pad_to),
            row_length=row_length,
        )
        for name in arrays
        if name.endswith(".labels")
    }


def read_tokenizer(path: str, *, lowercase: bool) -> "tokenizers.Tokenizer":
    """A tokenizer.json, or BERT's with the vocabulary of a *.txt, one token a line. Raises UserError for a bad one."""
    import tokenizers

    try:
        if not path.endswith(".txt"):
            return tokenizers.Tokenizer.from_file(path)
        tokens = Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"data.transform.tokenizer {path} can't be read: {error}") from error
    lacking = [token for token in SPECIAL_TOKENS if token not in tokens]
    if lacking:
        raise UserError(f"data.transform.tokenizer {path} lacks {', '.join(lacking)}")
    return bert_tokenizer({token: i for i, token in enumerate(tokens)}, lowercase=lowercase)


def encode(
    tokenizer: "tokenizers.Tokenizer", parts: Sequence[Sequence[str | bytes]], split: str, *, special: bool = True
) -> tuple[Ragged, Ragged]:
    """The tokens and type ids of one split's texts, or of its pairs of texts; on all cores, a piece at a time.

    `special`: whether the tokenizer adds its [CLS] and [SEP] to each.
    """
    size, piece = len(parts[0]), 8192
    tokens, type_ids = [], []
    with tqdm(total=size, desc=f"tokenizing {split}", unit="text", delay=1, leave=False, disable=None) as bar:
        for start in range(0, size, piece):
            columns = [list(map(as_text, part[start : start + piece])) for part in parts]
            lines = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
            encodings = tokenizer.encode_batch_fast(lines, add_special_tokens=special)
            tokens.append(Ragged.of([encoding.ids for encoding in encodings], np.int32))
            type_ids.append(Ragged.of([encoding.type_ids for encoding in encodings], np.int32))
            bar.update(len(encodings))
    return Ragged.joined(tokens, np.int32), Ragged.joined(type_ids, np.int32)


def as_labels(values: Any) -> np.ndarray:
    """Integers as int32, everything else as float32."""
    array = np.asarray(values)
    return array.astype(np.int32 if np.issubdtype(array.dtype, np.integer) else np.float32)
