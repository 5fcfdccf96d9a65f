"""Where the items of an encoded text stand in it."""

import numpy as np
import pytest

from research.data.cache import NO_CACHE
from research.data.text.bag_of_words import BagOfWords
from research.data.text.wordpiece import SPECIAL_TOKENS, TextEncoder, WordPiece, bert_tokenizer

PIECES = ("a", "film", "gr", "##ip", "##ping", ",", "the", "dull")


def _texts(*inputs, max_length=16):
    options = WordPiece(
        inputs=inputs, label="label", tokenizer=None, vocab_size=100, lowercase=True, max_length=max_length,
        pad_to=(max_length,), row_length=max_length,
    )  # fmt: skip
    tokenizer = bert_tokenizer({piece: i for i, piece in enumerate((*SPECIAL_TOKENS, *PIECES))}, lowercase=True)
    return TextEncoder(options, tokenizer.to_str())


def _found(encoder, columns):
    """The text of every place of every item, with its column and the number of its word."""
    return [
        [(place.column, columns[place.column][0][place.start : place.stop], place.word) for place in places]
        for places in encoder.places(columns)
    ]


def test_pieces_of_a_word_have_their_own_characters():
    columns = {"text": ["🎬 A Gripping, dull film"]}
    encoder = _texts("text")
    (tokens,) = encoder.encode(columns, labels=False).tokens.take(np.arange(1))
    words = [("🎬", 0), ("A", 1), ("Gr", 2), ("ip", 2), ("ping", 2), (",", 3), ("dull", 4), ("film", 5)]
    assert _found(encoder, columns) == [[], *([("text", *word)] for word in words), []]
    assert len(tokens) == len(words) + 2


def test_places_of_a_pair_are_in_its_two_texts():
    columns = {"one": ["the film"], "two": ["a film"]}
    assert _found(_texts("one", "two"), columns) == [
        [], [("one", "the", 0)], [("one", "film", 1)], [], [("two", "a", 2)], [("two", "film", 3)], [],
    ]  # fmt: skip


def test_what_is_truncated_has_no_place():
    columns = {"text": ["the film the film the film"]}
    assert _found(_texts("text", max_length=4), columns) == [[], [("text", "the", 0)], [("text", "film", 1)], []]


def test_places_of_a_long_pair_are_those_of_its_beginning():
    found = _found(_texts("one", "two", max_length=5), {"one": ["the film, " * 9000], "two": ["a dull film, " * 7000]})
    assert found == [[], [("one", "the", 0)], [], [("two", "a", 1)], []]


@pytest.fixture(scope="module")
def bag():
    options = BagOfWords(
        inputs=("one", "two"), label="label", ngrams=(1, 2), buckets=2**20, max_length=50, pad_to=(50,), row_length=50
    )
    columns = {"one": ["a dull film", "the film"], "two": ["so dull", "İi"]}
    return options.fit({"train": columns}, NO_CACHE)


def test_terms_of_a_bag_stand_wherever_their_words_do(bag):
    columns = {"one": ["Dull film"], "two": ["dull"]}
    found = sorted(_found(bag, columns))
    once, twice = [("one", "film", 1)], [("one", "Dull", 0), ("two", "dull", 2)]
    assert found == sorted([once, twice, [("one", "Dull", 0), *once], [*once, ("two", "dull", 2)]])


def test_a_letter_that_becomes_two_in_lower_case_is_one_character(bag):
    columns = {"one": ["İi dull"], "two": ["x"]}
    assert {("one", "dull"), ("two", "x")} <= {place[:2] for places in _found(bag, columns) for place in places}


def test_a_bag_without_words_has_no_places(bag):
    assert _found(bag, {"one": ["!"], "two": [""]}) == [[]]
