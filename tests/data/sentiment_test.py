import collections

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from research.data.sources import sentiment, sentiment_words


def test_corpus_is_deterministic():
    a, b = (sentiment.generate(300, validation=False, seed=1) for _ in range(2))
    assert a == b
    assert a != sentiment.generate(300, validation=False, seed=2)


def test_validation_templates_do_not_occur_in_training():
    train = sentiment.generate(5000, validation=False, seed=0)
    validation = sentiment.generate(1000, validation=True, seed=0)
    assert not set(train["template"]) & set(validation["template"])
    assert not set(train["sentence"]) & set(validation["sentence"])


def test_training_has_every_part_of_the_held_out_templates():
    parts = {part for template in sentiment.templates() if not sentiment.held_out(template) for part in template}
    held = {part for template in sentiment.templates() if sentiment.held_out(template) for part in template}
    assert held <= parts
    share = np.mean([sentiment.held_out(template) for template in sentiment.templates()])
    assert 0.15 < share < 0.25


def test_word_lists_do_not_contradict_each_other():
    positive = set(sentiment_words.POSITIVE) | set(sentiment_words.POSITIVE_VERBS)
    negative = set(sentiment_words.NEGATIVE) | set(sentiment_words.NEGATIVE_VERBS)
    assert not positive & negative
    assert not set(sentiment_words.STRONG) & set(sentiment_words.WEAK)


def test_labels_are_balanced_and_every_kind_occurs():
    columns = sentiment.generate(4000, validation=True, seed=0)
    assert 0.47 < np.mean(columns["label"]) < 0.53
    kinds = collections.Counter(sentiment.kind_of(tuple(name.split(" | "))) for name in columns["template"])
    assert min(kinds.values()) > 200


@pytest.mark.extended
def test_words_and_word_pairs_do_not_determine_the_label():
    """scikit-learn's logistic regression on tf-idf of words and pairs, at its best C of three, stays below 0.85."""
    train = sentiment.generate(10_000, validation=False, seed=0)
    validation = sentiment.generate(1000, validation=True, seed=0)
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    features = vectorizer.fit_transform(train["sentence"])
    held = vectorizer.transform(validation["sentence"])
    best = max(
        LogisticRegression(C=c, max_iter=300).fit(features, train["label"]).score(held, validation["label"])
        for c in (0.1, 1.0, 10.0)
    )
    assert best < 0.85
