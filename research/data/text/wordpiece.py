"""Text -> tokens: WordPiece with a vocabulary trained on the training split, or any given tokenizer."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from tqdm import tqdm

from research.base.errors import UserError
from research.base.paths import expanded
from research.base.ranges import TOKENS, Range
from research.data.cache import ArtifactCache, digest
from research.data.columns import as_text, column, labels_entry
from research.data.encoder import Encoder, Place, Signature
from research.data.examples import Columns, Ragged, TextExamples

if TYPE_CHECKING:  # `tokenizers` is imported only where it is used, as every dataset imports this module
    import tokenizers

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


# Part of the cache keys: raise it when the results of train_wordpiece or encode change.
VERSION = f"2, tokenizers {version('tokenizers')}"

_WORD_START = "\u2581"  # "▁", as SentencePiece marks it


def train_wordpiece(texts: Iterable[str], *, vocab_size: int, lowercase: bool) -> "tokenizers.Tokenizer":
    """Trains a BERT tokenizer with at most `vocab_size` pieces on `texts`, deterministically.

    The pieces come from byte-pair merges (Sennrich et al. 2016); text is split by BERT's greedy longest match. The
    library's WordPiece trainer merges in the same way, but breaks ties by a random hash, so its vocabularies vary.
    Single characters are pieces where they occur: unchanged at the beginning of a word, as ##c elsewhere. Chinese
    characters and punctuation marks are separate words.
    """
    import tokenizers
    from tokenizers import models, normalizers, pre_tokenizers, trainers

    texts = list(texts)
    normalizer, cut = normalizers.BertNormalizer(lowercase=lowercase), pre_tokenizers.BertPreTokenizer()
    words = _words(texts, normalizer, cut)
    first, later = sorted({word[0] for word in words}), sorted({letter for word in words for letter in word[1:]})
    merges = tokenizers.Tokenizer(models.BPE())
    merges.normalizer = normalizer
    marked = pre_tokenizers.Metaspace(_WORD_START, prepend_scheme="always", split=False)
    merges.pre_tokenizer = pre_tokenizers.Sequence([cut, marked])
    # The mark, and its merges with a single character, do not count towards the vocabulary.
    most = vocab_size + len(first) + 1
    merges.train_from_iterator(texts, trainer=trainers.BpeTrainer(vocab_size=most, show_progress=False))
    learnt = merges.get_vocab()
    merged = [
        piece.removeprefix(_WORD_START) if piece.startswith(_WORD_START) else f"##{piece}"
        for piece in sorted(learnt, key=learnt.__getitem__)  # the alphabet, then the merges, most frequent first
        if len(piece) > 1
    ]
    ordered = dict.fromkeys([*SPECIAL_TOKENS, *first, *(f"##{letter}" for letter in later), *merged])
    return bert_tokenizer({piece: i for i, piece in enumerate(list(ordered)[:vocab_size])}, lowercase=lowercase)


def _words(texts: list[str], normalizer: Any, cut: Any) -> set[str]:
    """All words of the texts, computed on all cores."""
    import tokenizers
    from tokenizers import models, trainers

    counter = tokenizers.Tokenizer(models.WordLevel())
    counter.normalizer, counter.pre_tokenizer = normalizer, cut
    trainer = trainers.WordLevelTrainer(vocab_size=2**31, min_frequency=1, show_progress=False)
    counter.train_from_iterator(texts, trainer=trainer)
    return set(counter.get_vocab())


def bert_tokenizer(vocabulary: dict[str, int], *, lowercase: bool) -> "tokenizers.Tokenizer":
    """BERT's tokenizer (Devlin et al. 2018) with this vocabulary, which includes SPECIAL_TOKENS."""
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class WordPiece:
    """Tokenizes texts; other runs on the same data find a split's tokens in the cache.

    Attributes:
      inputs: one text column, or two for sentence pairs.
      tokenizer: a tokenizer.json, or a vocab.txt of BERT; None to train one on `train`.
      vocab_size: the maximum size of a trained vocabulary.
      lowercase: whether to drop case and accents; a tokenizer.json has this setting itself.
      max_length: the most tokens of an example, including [CLS] and [SEP]. A longer text is truncated at its end, a
        pair one token at a time from the longer part, as in transformers' `longest_first`.
      pad_to: the allowed row lengths with one example per row; max_length must not exceed the largest. An override of
        max_length alone also sets pad_to and, if it is smaller, row_length: research/data/text/lengths.py.
      row_length: length of packed rows (train.batch_rows), in tokens.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "vocab_size": Range(len(SPECIAL_TOKENS), 2**24, integer=True),
        "max_length": TOKENS,
        "pad_to": TOKENS,
        "row_length": TOKENS,
    }

    inputs: tuple[str, ...]
    label: str
    tokenizer: str | None
    vocab_size: int
    lowercase: bool
    max_length: int
    pad_to: tuple[int, ...]
    row_length: int

    def __post_init__(self) -> None:
        count = len(self.inputs)
        if count not in (1, 2):
            raise UserError(
                f"data.transform.inputs is {tuple(self.inputs)}; it must name one text column, or two of pairs"
            )
        if not 2 + count <= self.max_length <= max(self.pad_to):
            raise UserError(
                f"data.transform.max_length is {self.max_length}; it must be at least {2 + count} and at most the "
                f"largest of pad_to={tuple(self.pad_to)}"
            )

    def fit(self, splits: Mapping[str, Columns], cache: ArtifactCache) -> "TextEncoder":
        def learn() -> str:
            if self.tokenizer is not None:
                return read_tokenizer(self.tokenizer, lowercase=self.lowercase).to_str()
            parts = [column(splits["train"], name, "train") for name in self.inputs]
            lines = (as_text(line) for part in parts for line in part)
            return train_wordpiece(lines, vocab_size=self.vocab_size, lowercase=self.lowercase).to_str()

        trained = None if self.tokenizer else (VERSION, self.inputs, self.vocab_size, self.lowercase)
        return TextEncoder(self, cache.text("tokenizer.json", learn, key=trained))


@dataclasses.dataclass(frozen=True)
class TextEncoder(Encoder):
    """Texts, or pairs of them, as tokens. `definition`: the tokenizer.json."""

    options: WordPiece
    definition: str

    @property
    def signature(self) -> Signature:
        kind = "text" if len(self.options.inputs) == 1 else "text_pair"
        limits = {"max_length": self.options.max_length, "unit": "tokens"}
        return Signature(kind, tuple(self.options.inputs), self.options.label, limits)

    @functools.cached_property
    def tokenizer(self) -> "tokenizers.Tokenizer":
        """The tokenizer, which truncates to max_length. Raises UserError if it has no token such as [CLS]."""
        import tokenizers

        tokenizer = tokenizers.Tokenizer.from_str(self.definition)
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.options.max_length, strategy="longest_first")
        if not tokenizer.encode("").ids:
            raise UserError(
                "data.transform.tokenizer puts no token such as [CLS] before a text; classification needs one"
            )
        return tokenizer

    def places(self, columns: Columns) -> list[tuple[Place, ...]]:
        names = self.options.inputs
        texts = [as_text(columns[name][0]) for name in names]
        encoding = self.tokenizer.encode(*(_cut(self.tokenizer, texts) if len(texts) == 2 else texts))
        words: dict[tuple[int, int | None], int] = {}
        found: list[tuple[Place, ...]] = []
        for part, word, (start, stop) in zip(encoding.sequence_ids, encoding.word_ids, encoding.offsets, strict=True):
            if part is None:
                found.append(())
                continue
            number = words.setdefault((part, word), len(words))
            found.append((Place(names[part], start, stop, number),))
        return found

    @functools.cached_property
    def _digest(self) -> str:
        return digest(self.definition)

    def _encode(self, columns: Columns, split: str, labels: bool, cache: ArtifactCache) -> TextExamples:
        options = self.options

        def tokenized() -> dict[str, np.ndarray]:
            texts = [column(columns, name, split) for name in options.inputs]
            tokens, type_ids, full_lengths = encode(self.tokenizer, texts, split)
            arrays = {"offsets": tokens.offsets, "tokens": tokens.values, "type_ids": type_ids.values}
            arrays["full_lengths"] = full_lengths
            return arrays | labels_entry(columns, options.label, split, labels)

        key = (VERSION, self._digest, options.max_length, options.inputs, options.label, split)
        arrays = cache.arrays("tokens", tokenized, key=key)
        return TextExamples(
            tokens=Ragged(arrays["tokens"], arrays["offsets"]),
            type_ids=Ragged(arrays["type_ids"], arrays["offsets"]),
            labels=arrays.get("labels"),
            pad_to=tuple(options.pad_to),
            row_length=options.row_length,
            full_lengths=arrays["full_lengths"],
        )


def read_tokenizer(path: str, *, lowercase: bool) -> "tokenizers.Tokenizer":
    """Reads a tokenizer.json, or BERT's with a *.txt vocabulary, one token per line. Raises UserError if invalid."""
    import tokenizers

    try:
        file = expanded(path)
        if file.suffix != ".txt":
            return tokenizers.Tokenizer.from_file(str(file))
        tokens = file.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"data.transform.tokenizer {path} can't be read: {error}") from error
    lacking = [token for token in SPECIAL_TOKENS if token not in tokens]
    if lacking:
        raise UserError(f"data.transform.tokenizer {path} lacks {', '.join(lacking)}")
    return bert_tokenizer({token: i for i, token in enumerate(tokens)}, lowercase=lowercase)


def tokenizer_of(definition: str) -> "tokenizers.Tokenizer":
    """The tokenizer that a tokenizer.json, its text, defines, without the limits in it."""
    import tokenizers

    return without_limits(tokenizers.Tokenizer.from_str(definition))


def without_limits(tokenizer: "tokenizers.Tokenizer") -> "tokenizers.Tokenizer":
    """The tokenizer itself, which from now on neither pads nor truncates, whatever its file says."""
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


FEW = 4  # texts that are encoded in the thread that asks


def encode(
    tokenizer: "tokenizers.Tokenizer", parts: Sequence[Sequence[str | bytes]], split: str, *, special: bool = True
) -> tuple[Ragged, Ragged, np.ndarray]:
    """Encodes a split's texts or pairs on all cores, a piece at a time -> tokens, type ids, full lengths.

    The full lengths, int32 [N], are those before any truncation by the tokenizer.
    `special`: whether the tokenizer adds [CLS] and [SEP] to each text.
    """
    size, piece = len(parts[0]), 8192
    if size <= piece:  # a service encodes single texts: even a bar that is not drawn would take as long as that
        return _encode_piece(tokenizer, parts, special=special)
    found = []
    with tqdm(total=size, desc=f"tokenizing {split}", unit="text", delay=1, leave=False, disable=None) as bar:
        for start in range(0, size, piece):
            found.append(_encode_piece(tokenizer, [part[start : start + piece] for part in parts], special=special))
            bar.update(len(found[-1][-1]))
    tokens, type_ids, full_lengths = zip(*found, strict=True)
    return Ragged.joined(tokens, np.int32), Ragged.joined(type_ids, np.int32), np.concatenate(full_lengths)


def _encode_piece(
    tokenizer: "tokenizers.Tokenizer", parts: Sequence[Sequence[str | bytes]], *, special: bool
) -> tuple[Ragged, Ragged, np.ndarray]:
    columns = [list(map(as_text, part)) for part in parts]
    rows = list(zip(*columns, strict=True))
    if len(columns) > 1:
        rows = [_cut(tokenizer, row) for row in rows]
    if len(rows) > FEW:
        lines = columns[0] if len(columns) == 1 else rows
        encodings = tokenizer.encode_batch_fast(lines, add_special_tokens=special)
    else:  # a batch of one, too, is handed to another thread, and waits for a core that is free
        pairs = ((row[0], row[1] if len(row) > 1 else None) for row in rows)
        encodings = [tokenizer.encode(text, pair, add_special_tokens=special) for text, pair in pairs]
    return (
        Ragged.of([encoding.ids for encoding in encodings], np.int32),
        Ragged.of([encoding.type_ids for encoding in encodings], np.int32),
        _full_lengths(tokenizer, columns, encodings, special=special),
    )


_LONG = 4  # characters for each token of an example: pairs with a text that has more are cut
_SPARE = 2  # words that are left after the tokens that may be read: a cut may change the word before it
_FAR = 128  # tokens that are left at most, where words are that long


def _cut(tokenizer: "tokenizers.Tokenizer", pair: Sequence[str]) -> tuple[str, ...]:
    """A pair without most of what truncation removes: the tokens of the truncated pair are the same.

    The library combines every piece that it truncates of one text with every piece of the other: of two texts of 80,000
    characters these took more than 14 GB.
    """
    if tokenizer.truncation is None or max(map(len, pair)) <= _LONG * tokenizer.truncation["max_length"]:
        return tuple(pair)
    found, most = list(pair), tokenizer.truncation["max_length"]
    alone = [tokenizer.encode(text, add_special_tokens=False) for text in pair]
    pieces = [(each, *each.overflowing) for each in alone]
    # The longer text stays the longer one, which has a token more where their number is odd.
    for i in sorted(range(len(pair)), key=lambda i: sum(map(len, pieces[i]))):
        words = [word for piece in pieces[i] for word in piece.word_ids]
        starts = [start for piece in pieces[i] for start, _ in piece.offsets]
        end = _end(words, most)
        if end < len(starts):
            found[i] = pair[i][: starts[end]]
        most = max(most, end + _FAR)
    return tuple(found)


def _end(words: Sequence[int | None], most: int) -> int:
    """The token to end before, a few words or _FAR tokens after the first `most`; `words`: that of each token."""
    seen = 0
    for i in range(most, min(len(words), most + _FAR)):
        seen += words[i] != words[i - 1]
        if seen > _SPARE:
            return i
    return min(len(words), most + _FAR)


def _full_lengths(
    tokenizer: "tokenizers.Tokenizer",
    columns: list[list[str]],
    encodings: list["tokenizers.Encoding"],
    *,
    special: bool,
) -> np.ndarray:
    """The lengths before truncation of the texts or pairs with these encodings: int32 [N]."""
    lengths = np.array([len(encoding) for encoding in encodings], np.int32)
    cut = [index for index, encoding in enumerate(encodings) if encoding.overflowing]
    added = tokenizer.num_special_tokens_to_add(is_pair=len(columns) > 1) if special else 0
    if cut and len(columns) == 1:
        # The overflow comes in pieces, each with its own special tokens.
        lengths[cut] += [sum(len(piece) - added for piece in encodings[index].overflowing) for index in cut]
    elif cut:  # pieces of one part are combined with all of the other, so they don't show the lengths of the parts
        lengths[cut] = added
        for column in columns:
            texts = [column[index] for index in cut]
            alone = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            lengths[cut] += _full_lengths(tokenizer, [texts], alone, special=False)
    return lengths
