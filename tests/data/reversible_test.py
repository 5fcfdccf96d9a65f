import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from research.base.errors import UserError
from research.data.text.reversible import TOKENIZERS, UNKNOWN, byte_characters, loaded, token_bytes
from research.data.text.wordpiece import train_wordpiece

END = "<|endoftext|>"
TEXTS = ["the plot is dull.\n", "A superb, superb film\n\twith a plot", "dull 42 42 naïve 日本"]
SIZES = {"byte": 257, "character": 60, "bpe": 300}
# Of these code points, the character tokenizer knows those of TEXTS.
ANY = st.text(st.characters(exclude_categories=["Cs"]))
MADE = {name: make(TEXTS, vocab_size=SIZES[name], special=(END,)).to_str() for name, make in TOKENIZERS.items()}


def _ids(name, text):
    return loaded(MADE[name]).encode(text, add_special_tokens=False).ids


@settings(max_examples=150, deadline=None)
@given(text=ANY | st.lists(st.sampled_from([*TEXTS, END, " ", "\r\n", "e\u0301"])).map("".join))
@pytest.mark.parametrize("name", ["byte", "bpe"])
def test_any_text_comes_back(name, text):
    """Also one that holds a special token: there it is text like any other."""
    ids = _ids(name, text)
    assert loaded(MADE[name]).decode(ids, skip_special_tokens=False) == text
    assert loaded(MADE[name]).token_to_id(END) not in ids
    sizes = token_bytes(MADE[name])
    assert sizes is not None
    assert sizes[ids].sum() == len(text.encode())
    if name == "byte":
        assert ids == list(text.encode())


@settings(max_examples=100, deadline=None)
@given(text=st.text(sorted(set("".join(TEXTS)))))
def test_known_characters_come_back(text):
    ids = _ids("character", text)
    assert len(ids) == len(text)
    assert loaded(MADE["character"]).decode(ids, skip_special_tokens=False) == text
    sizes = token_bytes(MADE["character"])
    assert sizes is not None
    assert sizes[ids].tolist() == [len(character.encode()) for character in text]


def test_bytes_of_the_vocabulary_are_those_of_the_library():
    assert set(byte_characters()) == set(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert len(set(byte_characters())) == 256


def test_unknown_characters_are_tokens_of_no_bytes():
    tokenizer = loaded(MADE["character"])
    assert tokenizer.encode("aüüb").tokens == ["a", UNKNOWN, UNKNOWN, "b"]
    sizes = token_bytes(MADE["character"])
    assert sizes is not None
    assert sizes[[tokenizer.token_to_id(token) for token in (UNKNOWN, END, "a", "ï", "日")]].tolist() == [0, 0, 1, 2, 3]


def test_frequent_characters_are_kept():
    tokenizer = TOKENIZERS["character"](["ccbbbaadd"], vocab_size=5, special=(END,))
    assert tokenizer.get_vocab() == {UNKNOWN: 0, "a": 1, "b": 2, "c": 3, END: 4}


def test_frequent_pairs_are_merged_within_words():
    tokenizer = TOKENIZERS["bpe"](["abab abab ab"] * 5, vocab_size=261, special=(END,))
    assert tokenizer.get_vocab_size() == 261
    assert tokenizer.token_to_id(END) == 0
    assert tokenizer.encode("abab ab abab", add_special_tokens=False).tokens == ["abab", "Ġab", "Ġabab"]


@pytest.mark.parametrize(("name", "least"), [("byte", 257), ("character", 3), ("bpe", 257)])
def test_vocabularies_have_a_smallest_size(name, least):
    assert TOKENIZERS[name](["ab"], vocab_size=least, special=(END,)).get_vocab_size() <= least
    with pytest.raises(UserError, match=rf"vocab_size is {least - 1}; tokenizer '{name}' needs at least {least}"):
        TOKENIZERS[name](["ab"], vocab_size=least - 1, special=(END,))


def test_sizes_of_other_tokenizers_are_unknown():
    assert token_bytes(train_wordpiece(TEXTS, vocab_size=80, lowercase=True).to_str()) is None


def test_bpe_is_the_same_in_every_process():
    """The library's hash tables are seeded at random in each process; many pairs here are equally frequent."""
    code = (
        "from research.data.text.reversible import train_byte_pairs\n"
        "texts = [' '.join(f'{a}{b}{c}' for a in 'abcdefgh' for b in 'stuvwxyz' for c in 'klmnop')]\n"
        "print(train_byte_pairs(texts, vocab_size=320, special=()).to_str())"
    )
    runs = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in "123"
    }
    assert len(runs) == 1
    assert len(np.unique(list(loaded(runs.pop()).get_vocab().values()))) == 320
