"""Text -> a bag of word n-grams with tf-idf weights, sparse."""

import itertools
import json
from collections.abc import Mapping

import numpy as np

from research.data.examples import BagExamples, Columns, Examples, Ragged
from research.data.kept import Kept
from research.data.text import as_labels, as_text, column


def bag_of_words(
    splits: Mapping[str, Columns],
    kept: Kept,
    *,
    inputs: tuple[str, ...],
    label: str,
    ngrams: tuple[int, int],
    max_features: int,
    pad_to: tuple[int, ...],
) -> dict[str, Examples]:
    """tf-idf as scikit-learn's TfidfVectorizer(sublinear_tf=True) computes it, its vocabulary taken from `train`.

    Args:
      inputs: text columns, joined by a space.
      ngrams: the shortest and the longest n-gram, in words.
      max_features: the most frequent n-grams kept.
      pad_to: the numbers of n-grams a row may have. An example with more keeps its heaviest ones.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    def vectorizer(**options: object) -> TfidfVectorizer:
        # Words of one letter count too: "a" and "i" are words, and so is the "t" of "don't".
        return TfidfVectorizer(
            sublinear_tf=True,
            ngram_range=tuple(ngrams),
            token_pattern=r"(?u)\b\w+\b",
            dtype=np.float32,
            **options,
        )

    def texts(split: str) -> list[str]:
        parts = [column(splits[split], name, split) for name in inputs]
        return [" ".join(map(as_text, line)) for line in zip(*parts, strict=True)]

    def fit() -> str:
        fresh = vectorizer(max_features=max_features).fit(texts("train"))
        terms = sorted(fresh.vocabulary_, key=fresh.vocabulary_.__getitem__)
        return json.dumps({"terms": terms, "idf": [float(x) for x in fresh.idf_]})

    learnt = json.loads(kept.text("bag_of_words.json", fit))
    ready = vectorizer(vocabulary=learnt["terms"])
    ready.idf_ = np.asarray(learnt["idf"])

    def encode(split: str) -> BagExamples:
        matrix = ready.transform(texts(split)).tocsr()
        matrix.sort_indices()
        rows = [_heaviest(*row, max(pad_to)) for row in _rows(matrix)]
        return BagExamples(
            ids=Ragged.of([ids for ids, _ in rows], np.int32),
            values=Ragged.of([values for _, values in rows], np.float32),
            labels=as_labels(column(splits[split], label, split)),
            pad_to=tuple(pad_to),
        )

    return {split: encode(split) for split in splits}


def _rows(matrix: object) -> list[tuple[np.ndarray, np.ndarray]]:
    """A CSR matrix's rows as (ids, values)."""
    indptr, indices, data = matrix.indptr, matrix.indices, matrix.data  # type: ignore[attr-defined]
    return [(indices[a:b], data[a:b]) for a, b in itertools.pairwise(indptr)]


def _heaviest(ids: np.ndarray, values: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    if len(ids) <= most:
        return ids, values
    kept = np.sort(np.argsort(-values, kind="stable")[:most])
    return ids[kept], values[kept]
