"""Text -> a bag of word n-grams with tf-idf weights, sparse. An n-gram's id is its hash: no vocabulary is learnt."""

import functools
import hashlib
from collections.abc import Mapping
from importlib.metadata import version as library
from typing import Any

import numpy as np

from research.base.errors import UserError
from research.data.cache import Kept
from research.data.columns import as_labels, as_text, column
from research.data.examples import BagExamples, Columns, Examples, Ragged
from research.data.splits import BySplit


def bag_of_words(
    splits: Mapping[str, Columns],
    kept: Kept,
    *,
    inputs: tuple[str, ...],
    label: str,
    ngrams: tuple[int, int],
    buckets: int,
    max_length: int,
    pad_to: tuple[int, ...],
    row_length: int,
) -> Mapping[str, Examples]:
    """Hashed tf-idf, as scikit-learn's HashingVectorizer and TfidfTransformer(sublinear_tf=True) compute it.

    N-grams of one bucket are counted as one. Of V n-grams one shares its bucket with probability 1 − exp(−V / buckets)
    about: of 20 Newsgroups' 130,000 words in 2**18 buckets 0.39. What it costs in accuracy: README.md, "Bags of words".
    The idf is taken from `train` and kept with the run. An example without any word is one term of value 0.

    Args:
      inputs: text columns, joined by a space.
      ngrams: the shortest and the longest n-gram, in words.
      buckets: ids an n-gram may have; the model's num_features.
      max_length: terms of an example at the most. Of a longer one the heaviest are kept, with the values they had.
      pad_to: the numbers of terms a batch of one example a row may have; max_length must not exceed their largest.
      row_length: of packed rows (train.batch_rows), in terms.
    """
    if not inputs:
        raise UserError("data.transform.inputs is (); it must name a text column")
    if not 1 <= max_length <= max(pad_to):
        raise UserError(
            f"data.transform.max_length is {max_length}; it must be at least 1 and at most the largest of "
            f"pad_to={tuple(pad_to)}"
        )
    if not (len(ngrams) == 2 and 1 <= ngrams[0] <= ngrams[1]):
        raise UserError(f"data.transform.ngrams is {tuple(ngrams)}; it must be two numbers of words, the smaller first")
    if buckets < 1:
        raise UserError(f"data.transform.buckets is {buckets}; it must be at least 1")

    # scikit-learn is imported where something is to be counted: most often the cache has everything.
    @functools.cache  # those of `train` may be needed twice
    def counts(split: str) -> Any:
        from sklearn.feature_extraction.text import HashingVectorizer

        vectorizer = HashingVectorizer(
            n_features=buckets,
            ngram_range=tuple(ngrams),
            # Words of one letter count too: "a" and "i" are words, and so is the "t" of "don't".
            token_pattern=r"(?u)\b\w+\b",
            alternate_sign=False,  # sublinear tf takes the counts' logarithm
            norm=None,
            dtype=np.float32,
        )
        parts = [column(splits[split], name, split) for name in inputs]
        return vectorizer.transform(" ".join(map(as_text, line)) for line in zip(*parts, strict=True))

    def fit() -> np.ndarray:
        from sklearn.feature_extraction.text import TfidfTransformer

        return TfidfTransformer(sublinear_tf=True).fit(counts("train")).idf_.astype(np.float32)

    # The number is to be raised when this comes to give something else.
    version = f"2, scikit-learn {library('scikit-learn')}"
    idf = kept.array("idf", fit, key=(version, inputs, ngrams, buckets))

    def encoded(split: str) -> dict[str, np.ndarray]:
        from sklearn.feature_extraction.text import TfidfTransformer

        transformer = TfidfTransformer(sublinear_tf=True)
        transformer.idf_ = idf
        ids, values, full_lengths = _ragged(transformer.transform(counts(split)).tocsr(), max_length)
        return {
            "offsets": ids.offsets,
            "ids": ids.values,
            "values": values.values,
            "full_lengths": full_lengths,
            "labels": as_labels(column(splits[split], label, split)),
        }

    def examples(split: str) -> BagExamples:
        key = (version, hashlib.sha256(idf.tobytes()).hexdigest(), inputs, label, ngrams, buckets, max_length, split)
        arrays = kept.arrays("bags", lambda: encoded(split), key=key)
        return BagExamples(
            ids=Ragged(arrays["ids"], arrays["offsets"]),
            values=Ragged(arrays["values"], arrays["offsets"]),
            labels=arrays["labels"],
            pad_to=tuple(pad_to),
            row_length=row_length,
            full_lengths=arrays["full_lengths"],
        )

    return BySplit(splits, examples)


def _ragged(matrix: Any, most: int) -> tuple[Ragged, Ragged, np.ndarray]:
    """A CSR matrix without explicit zeros as (ids, values, full lengths): of each row the `most` heaviest.

    The full lengths, int32 [N], are those before; a row without entries becomes one of value 0.
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
