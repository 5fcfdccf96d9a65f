import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from research.data.bag import bag_of_words
from research.data.kept import Kept

TRAIN = ["the plot is dull", "the cast is superb", "a superb , superb film", "not dull at all"]
TEST = ["a dull , dull cast", "unseen words only"]
SPLITS = {"train": {"s": TRAIN, "y": [0, 1, 1, 1]}, "test": {"s": TEST, "y": [0, 1]}}


def _bag(folder=None, **options):
    options = {"ngrams": (1, 2), "max_features": 1000, "pad_to": (8, 16), **options}
    return bag_of_words(SPLITS, Kept(folder), inputs=("s",), label="y", **options)


def _dense(examples, size):
    batch = examples.batch(np.arange(len(examples))[:, None])
    dense = np.zeros((len(examples), size), np.float32)
    for row, (ids, values) in enumerate(zip(batch["ids"], batch["values"], strict=True)):
        np.add.at(dense[row], ids, values)
    return dense


def test_the_features_are_scikit_learns():
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
    vectorizer.fit(TRAIN)
    for split, texts in (("train", TRAIN), ("test", TEST)):
        expected = vectorizer.transform(texts).toarray()
        np.testing.assert_allclose(_dense(_bag()[split], expected.shape[1]), expected, rtol=1e-6)


def test_what_was_learnt_is_kept_and_read_back(tmp_path):
    first = _bag(tmp_path)["test"].batch(np.arange(2)[:, None])
    again = _bag(tmp_path)["test"].batch(np.arange(2)[:, None])
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])


def test_a_long_text_keeps_its_heaviest_words():
    examples = _bag(pad_to=(3,))["train"]
    whole = _bag()["train"].batch(np.array([[1]]))["values"][0]
    kept = examples.batch(np.array([[1]]))["values"][0]
    np.testing.assert_array_equal(np.sort(kept), np.sort(whole)[-3:])
