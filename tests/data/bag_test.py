import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.pipeline import make_pipeline
from sklearn.utils import murmurhash3_32

from research.base.errors import UserError
from research.data.cache import ArtifactCache
from research.data.pipeline import Stream, make_batch
from tests.encoded import bag_of_words

TRAIN = ["the plot is dull", "the cast is superb", "a superb , superb film", "not dull at all"]
TEST = ["a dull , dull cast", "unseen words only"]
SPLITS = {"train": {"s": TRAIN, "y": [0, 1, 1, 1]}, "test": {"s": TEST, "y": [0, 1]}}


def _bag(folder=None, splits=SPLITS, **options):
    options = {"ngrams": (1, 2), "buckets": 512, "max_length": 16, "pad_to": (8, 16), "row_length": 32, **options}
    return bag_of_words(splits, ArtifactCache(folder), inputs=("s",), label="y", **options)


def _dense(examples, buckets, arrange=Stream.unpacked):
    """The features of all examples in one batch: [N, buckets]."""
    stream = arrange(examples)
    batch = make_batch(stream.examples, stream.rows)
    dense = np.zeros((len(examples), buckets), np.float32)
    for row, members in enumerate(stream.rows):
        for slot, example in enumerate(members):
            here = batch["segments"][row] == slot + 1
            if example >= 0:
                np.add.at(dense[example], batch["ids"][row, here], batch["values"][row, here])
    assert not batch["values"][batch["segments"] == 0].any()
    return dense


@pytest.mark.parametrize("arrange", [Stream.packed, Stream.unpacked])
def test_features_match_scikit_learn(arrange):
    oracle = make_pipeline(
        HashingVectorizer(
            n_features=512, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b", alternate_sign=False, norm=None
        ),
        TfidfTransformer(sublinear_tf=True),
    ).fit(TRAIN)
    for split, texts in (("train", TRAIN), ("test", TEST)):
        # Both divide in float32: at most one or two ulps of 1.2e-7 apart.
        np.testing.assert_allclose(
            _dense(_bag()[split], 512, arrange), oracle.transform(texts).toarray(), rtol=1e-6, atol=0
        )


def _terms(text, longest, buckets):
    words = text.split()
    grams = [" ".join(words[start : start + n]) for n in range(1, longest + 1) for start in range(len(words) - n + 1)]
    return Counter(abs(murmurhash3_32(gram.encode(), seed=0)) % buckets for gram in grams)


TEXTS = st.lists(st.lists(st.sampled_from("a dull film is not so bad".split()), max_size=12).map(" ".join), min_size=1)


@settings(max_examples=60, deadline=None)
@given(train=TEXTS, test=TEXTS, longest=st.integers(1, 3), buckets=st.sampled_from([1, 8, 2**18]))
def test_tf_idf_of_buckets_by_hand(train, test, longest, buckets):
    """(1 + ln tf)(1 + ln (1 + n) / (1 + df)), normalized, counted per bucket; an empty text has no features."""
    splits = {name: {"s": texts, "y": [0] * len(texts)} for name, texts in (("train", train), ("test", test))}
    examples = _bag(splits=splits, ngrams=(1, longest), buckets=buckets, max_length=64, pad_to=(64,), row_length=64)
    documents = Counter(itertools.chain.from_iterable(_terms(text, longest, buckets) for text in train))
    for split, texts in (("train", train), ("test", test)):
        stream = Stream.packed(examples[split])
        batch = make_batch(stream.examples, stream.rows)
        for place in zip(*np.nonzero(batch["weight"]), strict=True):
            counts = _terms(texts[stream.rows[place]], longest, buckets)
            weights = {
                term: (1 + math.log(count)) * (1 + math.log((1 + len(train)) / (1 + documents[term])))
                for term, count in counts.items()
            }
            norm = math.hypot(*weights.values())
            expected = {term: weight / norm for term, weight in weights.items()} or {0: 0.0}
            here = batch["segments"][place[0]] == place[1] + 1
            ids, values = batch["ids"][place[0], here], batch["values"][place[0], here]
            assert ids.tolist() == sorted(expected)
            # float32 logarithms and products: the largest error seen was 2e-7, relative to values up to 1.
            np.testing.assert_allclose(values, [expected[term] for term in sorted(expected)], rtol=1e-6, atol=0)


def test_saved_idf_is_used_for_other_data(tmp_path):
    own = _bag(tmp_path)
    assert np.load(tmp_path / "idf.npy").shape == (512,)
    other = {"test": {"s": [*TEST, "", "dull dull dull"], "y": [1, 1, 0, 0]}}
    there = _dense(_bag(tmp_path, other)["test"], 512)
    np.testing.assert_array_equal(there[:2], _dense(own["test"], 512))
    assert not there[2].any()
    # Its own `train` would give a different idf.
    changed = {**SPLITS, "train": {"s": ["a dull film"], "y": [0]}}
    assert (_dense(_bag(None, changed)["test"], 512) != there[:2]).any()
    np.testing.assert_array_equal(_dense(_bag(tmp_path, changed)["test"], 512), there[:2])


def test_other_runs_read_the_bags_from_the_cache(tmp_path, monkeypatch):
    options = {"ngrams": (1, 2), "buckets": 512, "max_length": 16, "pad_to": (16,), "row_length": 32}
    first = dict(bag_of_words(SPLITS, ArtifactCache(tmp_path / "1", "s"), inputs=("s",), label="y", **options))
    monkeypatch.setattr(HashingVectorizer, "transform", None)
    again = bag_of_words(SPLITS, ArtifactCache(tmp_path / "2", "s"), inputs=("s",), label="y", **options)
    for split, examples in first.items():
        np.testing.assert_array_equal(_dense(again[split], 512), _dense(examples, 512))
    with pytest.raises(TypeError):
        bag_of_words(SPLITS, ArtifactCache(None, "s"), inputs=("s",), label="y", **{**options, "buckets": 256})


@pytest.mark.parametrize("arrange", [Stream.packed, Stream.unpacked])
def test_long_text_keeps_its_largest_weights(arrange):
    whole = _dense(_bag()["train"], 512)
    cut = _dense(_bag(max_length=3, pad_to=(3, 8), row_length=3)["train"], 512, arrange)
    assert ((cut == 0) | (cut == whole)).all()
    np.testing.assert_array_equal(np.sort(cut)[:, -3:], np.sort(whole)[:, -3:])
    assert ((cut > 0).sum(axis=1) == 3).all()


def test_row_too_short_for_the_longest_example_is_an_error():
    with pytest.raises(UserError, match=r"7 terms, but data.transform.row_length is 6"):
        Stream.packed(_bag(row_length=6)["train"])
    with pytest.raises(UserError, match=r"max_length is 17; it must be at least 1 and at most .* pad_to=\(8, 16\)"):
        _bag(max_length=17)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ngrams": (2, 1)}, r"data.transform.ngrams is \(2, 1\); it must be two numbers of words, the smaller first"),
        ({"ngrams": (0, 1)}, r"data.transform.ngrams is \(0, 1\)"),
        ({"buckets": 0}, "data.transform.buckets is 0; it must be at least 1"),
    ],
)
def test_invalid_settings_are_one_line_errors(options, message):
    with pytest.raises(UserError, match=message):
        _bag(**options)


def test_lengths_before_truncation_are_kept():
    whole = _bag(splits={**SPLITS, "test": {"s": [*TEST, ""], "y": [0, 1, 0]}})
    cut = _bag(splits={**SPLITS, "test": {"s": [*TEST, ""], "y": [0, 1, 0]}}, max_length=3)
    for split in ("train", "test"):
        assert cut[split].full_lengths.tolist() == whole[split].lengths.tolist() == whole[split].full_lengths.tolist()
        assert cut[split].lengths.max() == 3 < whole[split].lengths.max()
    assert whole["test"].full_lengths[2] == 1  # an empty text
