import functools
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors, trainers

from research.base.errors import UserError
from research.data.cache import ArtifactCache
from research.data.columns import as_labels, as_text, only
from research.data.text.wordpiece import FEW, SPECIAL_TOKENS, _cut, encode, train_wordpiece
from tests.data.batches import Unread
from tests.encoded import wordpiece

TEXTS = ["the plot is dull", "the cast is superb", "a superb , superb film", "dull dull dull"]
OPTIONS = {
    "inputs": ("sentence",),
    "label": "label",
    "vocab_size": 120,
    "lowercase": True,
    "tokenizer": None,
    "max_length": 8,
    "pad_to": (8,),
    "row_length": 16,
}


def _splits(**columns):
    return {"train": {"sentence": TEXTS, "label": [0, 1, 1, 0], **columns}}


def test_vocabulary_is_deterministic():
    """Also in other processes, with other hash seeds."""
    code = (
        "import hashlib; from research.data.text.wordpiece import train_wordpiece\n"
        "texts = [f'word{i % 50} and w{i % 7}rd number {i}' for i in range(500)]\n"
        "text = train_wordpiece(texts, vocab_size=300, lowercase=True).to_str()\n"
        "print(hashlib.sha256(text.encode()).hexdigest())\n"
    )
    digests = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(3)
    }
    assert len(digests) == 1


def test_frequent_words_are_whole_and_unknown_ones_are_split():
    texts = ["the film is superb"] * 50 + ["superbly filmed"] * 5
    tokenizer = train_wordpiece(texts, vocab_size=80, lowercase=True)
    assert tokenizer.encode("The film is SUPERB").tokens == ["[CLS]", "the", "film", "is", "superb", "[SEP]"]
    pieces = tokenizer.encode("film superbfilm").tokens[2:-1]
    assert pieces[0] == "superb"
    assert all(piece.startswith("##") for piece in pieces[1:])
    assert tokenizer.encode("film ж").tokens == ["[CLS]", "film", "[UNK]", "[SEP]"]


@pytest.mark.parametrize("vocab_size", [40, 60])
def test_vocabulary_is_at_most_the_requested_size(vocab_size):
    tokenizer = train_wordpiece(TEXTS, vocab_size=vocab_size, lowercase=True)
    assert tokenizer.get_vocab_size() <= vocab_size
    assert sorted(tokenizer.get_vocab().values()) == list(range(tokenizer.get_vocab_size()))


def test_special_tokens_come_first():
    tokenizer = train_wordpiece(TEXTS, vocab_size=120, lowercase=True)
    assert [tokenizer.id_to_token(i) for i in range(5)] == list(SPECIAL_TOKENS)
    assert tokenizer.encode("the plot").tokens == ["[CLS]", "the", "plot", "[SEP]"]


def test_tokens_decode_to_the_text(tmp_path):
    examples = wordpiece(_splits(), ArtifactCache(tmp_path), **OPTIONS)["train"]
    tokenizer = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    batch = examples.batch(np.array([[1], [3]]))
    assert [tokenizer.decode(row.tolist()) for row in batch["tokens"]] == [TEXTS[1], TEXTS[3]]
    assert batch["labels"].tolist() == [[1], [0]]


def test_saved_tokenizer_is_reused(tmp_path):
    wordpiece(_splits(), ArtifactCache(tmp_path), **OPTIONS)
    kept = (tmp_path / "tokenizer.json").read_text()
    wordpiece({"train": {"sentence": ["quite other words"], "label": [0]}}, ArtifactCache(tmp_path), **OPTIONS)
    assert (tmp_path / "tokenizer.json").read_text() == kept


def test_pairs_have_type_ids_and_truncate_the_longest_part_first():
    splits = {"train": {"a": ["dull dull dull dull dull dull"], "b": ["superb"], "label": [0]}}
    examples = wordpiece(splits, ArtifactCache(), **{**OPTIONS, "inputs": ("a", "b")})["train"]
    batch = examples.batch(np.array([[0]]))
    assert batch["type_ids"].tolist() == [[0, 0, 0, 0, 0, 0, 1, 1]]  # [CLS] dull ×4 [SEP] superb [SEP]
    assert (batch["segments"] == 1).all()


@functools.cache
def _tokenizer(kind):
    """One like BERT's, or like RoBERTa's, whose words begin with their space."""
    if kind == "wordpiece":
        return train_wordpiece(TEXTS, vocab_size=80, lowercase=True)
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*TEXTS, "xy xyxy  xx   xxxx yyyy"] * 9, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    return tokenizer


_REPEATED = st.builds(lambda part, count: part * count, st.text("xys .ü中\u0301\n", min_size=1), st.integers(1, 200))
_WORDS = st.sampled_from(["the plot ", "superb", " ", "[MASK]", "</s>", ", ", "x" * 120, "🎬", "dull.\n", "\ufdfa"])
_LONG_TEXTS = st.lists(_REPEATED | _WORDS | st.text(max_size=9), max_size=20).map(lambda parts: "".join(parts)[:500])


@pytest.mark.extended
@pytest.mark.parametrize("kind", ["wordpiece", "byte level"])
@given(texts=st.tuples(_LONG_TEXTS, _LONG_TEXTS), most=st.integers(10, 20))
@settings(max_examples=60, deadline=None)
@example(texts=(" " * 3000 + "superb", "the plot " * 50), most=12)
@example(texts=("x" * 200 + " " + "dull" * 20 + " superb" * 3, "xy" * 300), most=12)
def test_truncated_pairs_have_the_tokens_of_whole_texts(kind, texts, most):
    """Also where truncated texts are so long that they are cut before."""
    tokenizer = _tokenizer(kind)
    tokenizer.enable_truncation(most, strategy="longest_first")
    tokens, type_ids, lengths = encode(tokenizer, [[text] for text in texts], "test")
    expected = tokenizer.encode(*texts)
    assert tokens.values.tolist() == expected.ids
    assert type_ids.values.tolist() == expected.type_ids
    tokenizer.no_truncation()
    assert lengths.tolist() == [len(tokenizer.encode(*texts))]


def test_long_pairs_take_little_memory():
    """The library's own truncation makes more than 100,000 pieces of these."""
    tokenizer = _tokenizer("byte level")
    tokenizer.enable_truncation(16, strategy="longest_first")
    for text in ("x, " * 1500, "xy" * 2000):
        cut = _cut(tokenizer, (text, text))
        assert len(tokenizer.encode(*cut).overflowing) < 5000
        assert all(text.startswith(each) for each in cut)


def test_invalid_utf8_becomes_replacement_characters():
    assert as_text(b"caf\xe9") == "caf\ufffd"
    assert as_text("café".encode()) == "café"


def test_unknown_column_lists_the_columns():
    with pytest.raises(UserError, match="has no column 'sentence'; it has text, label"):
        wordpiece({"train": {"text": TEXTS, "label": [0] * 4}}, ArtifactCache(), **OPTIONS)


def test_max_length_must_fit_a_row():
    with pytest.raises(UserError, match="max_length is 9"):
        wordpiece(_splits(), ArtifactCache(), **{**OPTIONS, "max_length": 9})


def test_second_time_tokens_come_from_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path))
    kept = ArtifactCache(source="these texts")
    first = wordpiece(_splits(), kept, **OPTIONS)["train"]
    again = wordpiece(Unread(), kept, **OPTIONS)["train"]
    for name, array in first.batch(np.array([[0], [3]])).items():
        np.testing.assert_array_equal(again.batch(np.array([[0], [3]]))[name], array)
    for other in ({"max_length": 7}, {"inputs": ("other",)}, {"label": "other"}, {"lowercase": False}):
        with pytest.raises(AssertionError, match="were read"):
            wordpiece(Unread(), kept, **{**OPTIONS, **other})["train"]


def _tokens(examples, index):
    batch = examples.batch(np.array([[index]]))
    return batch["tokens"][batch["segments"] > 0].tolist()


def test_unusual_texts_have_a_defined_result():
    """Empty: [CLS] [SEP]. 10,000 words: truncated to max_length, [SEP] last. Invalid UTF-8 or NUL: U+FFFD, unknown."""
    texts = ["", " \n", "dull " * 10_000, b"dull caf\xe9", "dull"]
    splits = {"train": {"sentence": TEXTS + texts, "label": [0] * 9}, "test": {"sentence": [], "label": []}}
    examples = wordpiece(splits, ArtifactCache(), **OPTIONS)
    assert len(examples["test"]) == 0
    cls, sep = SPECIAL_TOKENS.index("[CLS]"), SPECIAL_TOKENS.index("[SEP]")
    empty, blank, long, broken, dull = (_tokens(examples["train"], 4 + i) for i in range(5))
    assert empty == blank == [cls, sep]
    assert long == [cls] + [dull[1]] * 6 + [sep]
    assert broken[:2] == dull[:2]
    assert SPECIAL_TOKENS.index("[UNK]") not in broken[:2]


def test_custom_tokenizer(tmp_path):
    own = train_wordpiece(["dull superb"] * 9, vocab_size=60, lowercase=True)
    own.enable_padding(length=30)  # settings of the file that have no effect here
    own.enable_truncation(3)
    own.save(str(tmp_path / "tokenizer.json"))
    options = {**OPTIONS, "tokenizer": str(tmp_path / "tokenizer.json")}
    examples = wordpiece(_splits(), ArtifactCache(tmp_path / "run"), **options)["train"]
    assert _tokens(examples, 3) == [own.token_to_id(t) for t in ("[CLS]", "dull", "dull", "dull", "[SEP]")]
    own.post_processor = tokenizers.processors.TemplateProcessing(single="$A", pair="$A $B:1")
    own.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"data.transform.tokenizer puts no token such as \[CLS\]"):
        wordpiece(_splits(), ArtifactCache(), **options)["train"]
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"data.transform.tokenizer .*tokenizer.json can't be read"):
        wordpiece(_splits(), ArtifactCache(), **options)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_custom_vocabulary(newline, tmp_path):
    """One token per line, as BERT's are published; Unicode line separators are tokens."""
    words = ["dull", "Dull", "\x85", "\u2028", "é", "e"]
    (tmp_path / "vocab.txt").write_bytes("".join(f"{word}{newline}" for word in (*SPECIAL_TOKENS, *words)).encode())
    for lowercase, expected in ((True, [2, 5, 5, 10, 3]), (False, [2, 6, 5, 9, 3])):
        options = {**OPTIONS, "tokenizer": str(tmp_path / "vocab.txt"), "lowercase": lowercase}
        columns = {"train": {"sentence": ["Dull dull é"], "label": [0]}}
        assert _tokens(wordpiece(columns, ArtifactCache(), **options)["train"], 0) == expected
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    with pytest.raises(UserError, match=r"vocab.txt lacks \[CLS\], \[SEP\], \[MASK\]"):
        wordpiece(_splits(), ArtifactCache(), **options)


def test_large_datasets_are_tokenized_in_chunks():
    texts = [TEXTS[i % 4] for i in range(20_000)]  # more than one chunk
    examples = wordpiece({"train": {"sentence": texts, "label": [0] * 20_000}}, ArtifactCache(), **OPTIONS)["train"]
    few = wordpiece(_splits(), ArtifactCache(), **OPTIONS)["train"]
    assert len(examples) == 20_000
    for i in (0, 8191, 8192, 19_999):
        assert len(_tokens(examples, i)) == len(_tokens(few, i % 4))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([-(2**31), 2**31 - 1], np.int32),
        ([0, 2**31], np.float64),
        (np.array([2**32 - 1], np.uint32), np.float64),
        ([-(2**31) - 1], np.float64),
        ([], np.float32),
        (np.array([], np.int64), np.int32),
        ([0.5], np.float32),
    ],
)
def test_labels_keep_their_values(values, dtype):
    labels = as_labels(values)
    assert labels.dtype == dtype
    assert labels.tolist() == list(values)


LONG = ["dull " * 40, "", "the plot is superb " * 9, "a film", "not " * 7]


@pytest.mark.parametrize("inputs", [("a",), ("a", "b")])
def test_lengths_before_truncation_are_kept(inputs):
    splits = {"train": {"a": LONG, "b": LONG[::-1], "label": [0] * 5}}
    whole = wordpiece(splits, ArtifactCache(), **{**OPTIONS, "inputs": inputs, "max_length": 512, "pad_to": (512,)})[
        "train"
    ]
    np.testing.assert_array_equal(whole.full_lengths, whole.lengths)
    short = wordpiece(splits, ArtifactCache(), **{**OPTIONS, "inputs": inputs})["train"]
    np.testing.assert_array_equal(short.full_lengths, whole.lengths)
    np.testing.assert_array_equal(short.lengths, np.minimum(whole.lengths, 8))


@pytest.mark.parametrize("pairs", [False, True])
def test_few_texts_are_encoded_as_many(pairs):
    tokenizer = train_wordpiece(LONG, vocab_size=60, lowercase=True)
    tokenizer.enable_truncation(8, strategy="longest_first")
    columns = [LONG, LONG[::-1]] if pairs else [LONG]
    many = encode(tokenizer, columns, "many")
    assert len(LONG) > FEW
    for i in range(len(LONG)):
        few = encode(tokenizer, [column[i : i + 1] for column in columns], "few")
        for one, all_of_them in zip(few[:2], many[:2], strict=True):
            np.testing.assert_array_equal(one.values, all_of_them.values[slice(*all_of_them.offsets[i : i + 2])])
        assert few[2][0] == many[2][i]


@pytest.mark.parametrize("lowercase", [True, False])
def test_single_characters_in_the_vocabulary_occur(lowercase):
    """The vocabulary has `c` if the character begins a word, and `##c` if it follows another one."""
    texts = ["Zebra über-all, 你好 x9?", "naïve co-op", "a\u0301b 中文 ok"]
    tokenizer = train_wordpiece(texts, vocab_size=300, lowercase=lowercase)
    words = [
        word
        for text in texts
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
    ]
    pieces = tokenizer.get_vocab().keys() - set(SPECIAL_TOKENS)
    assert {piece for piece in pieces if len(piece) == 1} == {word[0] for word in words}
    assert {piece[2:] for piece in pieces if len(piece) == 3 and piece.startswith("##")} == {
        letter for word in words for letter in word[1:]
    }
    assert {"你", "文", "-", ","} <= pieces
    assert not {"##你", "##文", "##-", "##,"} & pieces
    assert 1 not in tokenizer.encode(" ".join(texts)).ids  # no unknown tokens


def test_rare_characters_leave_room_for_words():
    texts = ["the superb film"] * 5 + [chr(0x4E00 + i) for i in range(200)]
    tokenizer = train_wordpiece(texts, vocab_size=260, lowercase=True)
    assert tokenizer.encode(texts[0]).tokens == ["[CLS]", "the", "superb", "film", "[SEP]"]


def test_booleans_are_classes():
    for values in ([True, False], np.array([True, False])):
        labels = as_labels(values)
        assert (labels.dtype, labels.tolist()) == (np.int32, [1, 0])


@pytest.mark.parametrize("inputs", [(), ("sentence", "a", "b")])
def test_wrong_number_of_columns_is_a_one_line_error(inputs):
    with pytest.raises(UserError, match=r"data\.transform\.inputs"):
        wordpiece(_splits(), ArtifactCache(), **{**OPTIONS, "inputs": inputs})


def test_only_column():
    assert only(("a",)) == "a"
    for inputs in ((), ("a", "b")):
        with pytest.raises(UserError, match=r"data\.transform\.inputs"):
            only(inputs)


def test_vocabulary_is_filled():
    """If most characters only begin words, the space of their ##c forms goes to longer pieces."""
    words = [f"{a}{b}a{c}" for a in "bcdfg" for b in "hklmn" for c in "prstv"]
    texts = 5 * [" ".join(words)] + 10 * [chr(0x4E00 + i) for i in range(200)]
    assert train_wordpiece(texts, vocab_size=300, lowercase=True).get_vocab_size() == 300
