import json
import re

import pytest

from research.data.sources import instruction_words as words
from research.data.sources import instructions

SPLITS = instructions.instructions()


def _values(messages):
    """The words and numbers of a chat that are values: those of the lists, and numbers, in digits or in words."""
    text = " ".join(message["content"] for message in json.loads(messages) if message["role"] != "system")
    listed = {*words.NOUNS, *words.NAMES, *words.CITIES}
    return {word for word in re.findall(r"\w+", text) if word in listed or word.isdigit()}


def test_the_same_every_time():
    assert instructions.generate(50, validation=True, seed=1) == instructions.generate(50, validation=True, seed=1)
    assert instructions.generate(50, validation=True, seed=1) != instructions.generate(50, validation=True, seed=2)


def test_no_value_is_in_both_splits():
    train, validation = (set().union(*map(_values, SPLITS[split]["messages"])) for split in ("train", "validation"))
    assert not train & validation
    assert not any(map(instructions.held_out, train))
    assert all(map(instructions.held_out, validation))
    assert min(len(train), len(validation)) > 100


def test_chats_are_different_and_of_every_kind():
    for split, size in (("train", 1600), ("validation", 200)):
        columns = SPLITS[split]
        assert len(columns["messages"]) == len(set(columns["messages"])) == size
        assert set(columns["template"]) == set(instructions.QUESTIONS)
    roles = {tuple(message["role"] for message in json.loads(messages)) for messages in SPLITS["train"]["messages"]}
    turn = ("user", "assistant")
    assert roles == {turn, ("system", *turn), turn * 2, ("system", *turn * 2)}


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "zero"), (13, "thirteen"), (40, "forty"), (47, "forty-seven"), (300, "three hundred"),
     (305, "three hundred and five"), (999, "nine hundred and ninety-nine")],
)  # fmt: skip
def test_numbers_in_words(number, text):
    assert instructions.in_words(number) == text


def test_numbers_in_words_are_different():
    assert len(set(map(instructions.in_words, instructions.NUMBERS))) == len(instructions.NUMBERS)


def test_words_of_a_list_are_different_and_one_word():
    for listed in (words.NOUNS, words.NAMES, words.CITIES):
        assert len(set(listed)) == len(listed)
        assert all(word.isalpha() for word in listed)
        assert 0.1 < sum(map(instructions.held_out, listed)) / len(listed) < 0.3
