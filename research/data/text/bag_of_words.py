"""Text -> a sparse bag of word n-grams with tf-idf weights. An n-gram's id is its hash, so there is no vocabulary."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np

from research.base.errors import UserError
from research.base.ranges import TOKENS, Range
from research.data.cache import ArtifactCache
from research.data.columns import as_text, column, labels_entry
from research.data.encoder import ColumnsOf, Encoder, Place, Signature
from research.data.examples import BagExamples, Columns, Ragged

# Part of the cache keys: raise it when the results of this module change.
_VERSION = f"2, scikit-learn {version('scikit-learn')}"

# Words of one letter count too: "a" and "i" are words, and so is the "t" in "don't".
_WORD = r"(?u)\b\w+\b"


@dataclasses.dataclass(frozen=True, kw_only=True)
class BagOfWords:
    """Hashed tf-idf, as scikit-learn's HashingVectorizer and TfidfTransformer(sublinear_tf=True) compute it.

    N-grams in the same bucket are counted as one. With V n-grams, one shares its bucket with a probability of about
    1 − exp(−V / buckets): 0.39 for 20 Newsgroups' 130,000 words in 2**18 buckets. For the cost in accuracy see
    README.md, "Bags of words". The idf is computed on `train` and kept with the run. An example without any word is one
    term of value 0.

    Attributes:
      inputs: text columns, joined by a space.
      ngrams: the lengths of the shortest and the longest n-gram, in words.
      buckets: the number of ids; the model's num_features.
      max_length: the most terms of an example. A longer one keeps its heaviest terms, with unchanged values.
      pad_to: the allowed numbers of terms per row with one example per row; max_length must not exceed the largest. It
        and row_length follow an override of max_length, as in WordPiece.
      row_length: length of packed rows (train.batch_rows), in terms.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "ngrams": Range(1, 100, integer=True),
        "buckets": Range(1, 2**26, integer=True),
        "max_length": TOKENS,
        "pad_to": TOKENS,
        "row_length": TOKENS,
    }

    inputs: tuple[str, ...]
    label: str
    ngrams: tuple[int, int]
    buckets: int
    max_length: int
    pad_to: tuple[int, ...]
    row_length: int

    def __post_init__(self) -> None:
        if not self.inputs:
            raise UserError("data.transform.inputs is (); it must name a text column")
        if not 1 <= self.max_length <= max(self.pad_to):
            raise UserError(
                f"data.transform.max_length is {self.max_length}; it must be at least 1 and at most the largest of "
                f"pad_to={tuple(self.pad_to)}"
            )
        if not (len(self.ngrams) == 2 and 1 <= self.ngrams[0] <= self.ngrams[1]):
            raise UserError(
                f"data.transform.ngrams is {tuple(self.ngrams)}; it must be two numbers of words, the smaller first"
            )
        if self.buckets < 1:
            raise UserError(f"data.transform.buckets is {self.buckets}; it must be at least 1")

    def fit(self, splits: Mapping[str, Columns], cache: ArtifactCache) -> "BagEncoder":
        counted: dict[str, Any] = {}

        def learn() -> np.ndarray:
            from sklearn.feature_extraction.text import TfidfTransformer

            counted["train"] = self.counts(ColumnsOf(splits, "train"), "train")
            return TfidfTransformer(sublinear_tf=True).fit(counted["train"]).idf_.astype(np.float32)

        idf = cache.array("idf", learn, key=(_VERSION, self.inputs, self.ngrams, self.buckets))
        return BagEncoder(self, idf, counted)

    # scikit-learn is imported only to count n-grams: usually the cache has everything.
    def counts(self, columns: Columns, split: str) -> Any:
        """The number of occurrences of each n-gram in each example: a sparse matrix [N, buckets]."""
        from sklearn.feature_extraction.text import HashingVectorizer

        vectorizer = HashingVectorizer(
            n_features=self.buckets,
            ngram_range=tuple(self.ngrams),
            token_pattern=_WORD,
            alternate_sign=False,  # sublinear tf takes the counts' logarithm
            norm=None,
            dtype=np.float32,
        )
        parts = [column(columns, name, split) for name in self.inputs]
        return vectorizer.transform(" ".join(map(as_text, line)) for line in zip(*parts, strict=True))


@dataclasses.dataclass(frozen=True)
class BagEncoder(Encoder):
    """Texts as bags of n-grams. `counted`: the counts of `train`, if fitting computed them; encoding consumes them."""

    options: BagOfWords
    idf: np.ndarray
    counted: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def signature(self) -> Signature:
        limits = {"max_length": self.options.max_length, "unit": "terms"}
        return Signature("text", tuple(self.options.inputs), self.options.label, limits)

    def places(self, columns: Columns) -> list[tuple[Place, ...]]:
        from sklearn.feature_extraction import FeatureHasher

        words = [word for name in self.options.inputs for word in _words(as_text(columns[name][0]), name)]
        words = [(text, dataclasses.replace(place, word=number)) for number, (text, place) in enumerate(words)]
        shortest, longest = self.options.ngrams
        ngrams = [
            words[start : start + size]
            for size in range(shortest, longest + 1)
            for start in range(len(words) - size + 1)
        ]
        hasher = FeatureHasher(self.options.buckets, input_type="string", alternate_sign=False)
        ids = hasher.transform([[" ".join(text for text, _ in ngram)] for ngram in ngrams] or [[]]).indices
        found: dict[int, list[Place]] = {}
        for bucket, ngram in zip(ids, ngrams, strict=True):
            found.setdefault(int(bucket), []).extend(place for _, place in ngram)
        (read,) = self.encode(columns, labels=False).ids.take(np.arange(1))  # type: ignore[attr-defined]
        return [tuple(found.get(int(bucket), ())) for bucket in read]

    def _encode(self, columns: Columns, split: str, labels: bool, cache: ArtifactCache) -> BagExamples:
        options = self.options

        def bags() -> dict[str, np.ndarray]:
            from sklearn.feature_extraction.text import TfidfTransformer

            transformer = TfidfTransformer(sublinear_tf=True)
            transformer.idf_ = self.idf
            counts = self.counted.pop(split, None)
            counts = options.counts(columns, split) if counts is None else counts
            ids, values, full_lengths = _ragged(transformer.transform(counts).tocsr(), options.max_length)
            arrays = {"offsets": ids.offsets, "ids": ids.values, "values": values.values, "full_lengths": full_lengths}
            return arrays | labels_entry(columns, options.label, split, labels)

        learnt = hashlib.sha256(self.idf.tobytes()).hexdigest()
        shape = (options.ngrams, options.buckets, options.max_length)
        arrays = cache.arrays("bags", bags, key=(_VERSION, learnt, options.inputs, options.label, *shape, split))
        return BagExamples(
            ids=Ragged(arrays["ids"], arrays["offsets"]),
            values=Ragged(arrays["values"], arrays["offsets"]),
            labels=arrays.get("labels"),
            pad_to=tuple(options.pad_to),
            row_length=options.row_length,
            full_lengths=arrays["full_lengths"],
        )


def _words(text: str, column: str) -> list[tuple[str, Place]]:
    """The words of a text as they are counted, each with its place; numbered later."""
    lower = text.lower()
    # One character may become several, such as İ.
    origin = [i for i, character in enumerate(text) for _ in character.lower()]
    return [
        (match.group(), Place(column, origin[match.start()], origin[match.end() - 1] + 1, 0))
        for match in re.finditer(_WORD, lower)
    ]


def _ragged(matrix: Any, most: int) -> tuple[Ragged, Ragged, np.ndarray]:
    """A CSR matrix without explicit zeros as (ids, values, full lengths), keeping the `most` heaviest of each row.

    The full lengths, int32 [N], are those before truncation; a row without entries gets a single one of value 0.
    """
    full_lengths = np.maximum(np.diff(matrix.indptr), 1).astype(np.int32)
    for row in np.flatnonzero(full_lengths > most):
        values = matrix.data[matrix.indptr[row] : matrix.indptr[row + 1]]
        values[np.argsort(-values, kind="stable")[most:]] = 0
    matrix.eliminate_zeros()
    matrix.sort_indices()
    lengths = np.diff(matrix.indptr)
    empty = matrix.indptr[:-1][lengths == 0]
    offsets = np.concatenate([[0], np.cumsum(np.maximum(lengths, 1), dtype=np.int64)])
    ids = np.insert(matrix.indices, empty, 0).astype(np.int32)
    return Ragged(ids, offsets), Ragged(np.insert(matrix.data, empty, 0).astype(np.float32), offsets), full_lengths
