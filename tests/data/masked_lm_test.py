# mypy: disable-error-code="misc"
import functools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.base.errors import UserError
from research.data import stateless_rng
from research.data.cache import ArtifactCache
from research.data.examples import ArrayExamples, Ragged
from research.data.pipeline import Rows, Stream, evaluation_batches, make_batch
from research.data.text.masked_lm import MaskedExamples, Masking
from tests.data.batches import as_rows, training
from tests.encoded import masked_lm

# Ids 0 to 4 are special ([MASK] is 4), 5 to 29 begin a word, 30 to 49 continue one.
SPECIAL, CONTINUES = np.arange(50) < 5, np.arange(50) >= 30
PAD, CLS, SEP, MASK = 0, 2, 3, 4


def _masking(rate=0.15, whole_words=False):
    return Masking(rate, whole_words, SPECIAL, CONTINUES, MASK)


def _examples(size=2000, row_length=32, **options):
    tokens = np.random.default_rng(0).integers(5, 50, size).astype(np.int32)
    tokens[::57] = SEP
    documents = Ragged(tokens, np.array([0, size]))
    return MaskedExamples(documents, row_length, _masking(**options), CLS, SEP, PAD)


def _keys(count, seed=0):
    return stateless_rng.keys(seed, np.zeros(count), np.arange(count)[:, None])[:, 0]


ROWS = st.integers(1, 6).flatmap(
    lambda rows: st.integers(1, 24).flatmap(
        lambda length: st.lists(
            st.lists(st.integers(0, 49), min_size=length, max_size=length), min_size=rows, max_size=rows
        )
    )
)


def _words(row):
    """The words of the row as lists of positions, computed one token at a time."""
    words = []
    for place, token in enumerate(row):
        if SPECIAL[token]:
            continue
        if CONTINUES[token] and words and words[-1][-1] == place - 1:
            words[-1].append(place)
        else:
            words.append([place])
    return words


@settings(max_examples=200, deadline=None)
@given(rows=ROWS, rate=st.floats(0.05, 0.6), seed=st.integers(0, 99), whole_words=st.booleans())
def test_tokens_that_are_masked(rows, rate, seed, whole_words):
    """No special tokens; as many as the rate requires, or at most as many for whole words; the others are unchanged."""
    masking = _masking(rate, whole_words)
    tokens = np.array(rows, np.int32)
    keys = _keys(len(tokens), seed)
    chosen = masking.chosen(tokens, keys)
    assert not chosen[SPECIAL[tokens]].any()
    for row, here in zip(rows, chosen, strict=True):
        words = _words(row)
        usable = sum(map(len, words))
        wanted = min(usable, max(1, round(usable * rate)))
        if whole_words:
            assert all(len({bool(here[place]) for place in word}) == 1 for word in words)
            # The remaining words would exceed the limit: each is longer than the number of tokens left to mask.
            missing = wanted - here.sum()
            assert missing >= 0
            assert all(len(word) > missing for word in words if not here[word[0]])
        else:
            assert here.sum() == wanted
    batch = masking(tokens, keys)
    np.testing.assert_array_equal(batch["tokens"][~chosen], tokens[~chosen])
    slots = batch["labels"] >= 0
    assert batch["labels"].shape == batch["masked_positions"].shape
    assert batch["labels"].shape[1] <= masking.slots(tokens.shape[1])
    for row in range(len(tokens)):
        positions = batch["masked_positions"][row][slots[row]]
        assert positions.tolist() == np.flatnonzero(chosen[row]).tolist()
        np.testing.assert_array_equal(batch["labels"][row][slots[row]], tokens[row, positions])
    assert not batch["masked_positions"][~slots].any()


def _within(count, total, p):
    """Whether a binomial count lies within 5 standard deviations of its mean."""
    return abs(count - total * p) < 5 * (total * p * (1 - p)) ** 0.5


@pytest.mark.parametrize("whole_words", [False, True])
def test_fifteen_percent_are_masked_80_10_10(whole_words):
    masking = _masking(whole_words=whole_words)
    tokens = np.random.default_rng(1).integers(5, 50, (2000, 64)).astype(np.int32)
    if whole_words:
        tokens %= 30  # so that words are short enough to reach the rate in every row
        tokens[tokens < 5] = 30
    keys = _keys(2000)
    chosen, after = masking.chosen(tokens, keys), masking(tokens, keys)["tokens"]
    assert chosen.sum() == 2000 * round(0.15 * 64)
    assert abs(chosen.mean() - 0.15) < 0.007  # 10 of 64 is 0.156
    assert all(_within(count, 2000, chosen.mean()) for count in chosen.sum(axis=0))  # whatever the position
    masked, changed = after[chosen] == MASK, after[chosen] != tokens[chosen]
    assert _within(masked.sum(), chosen.sum(), 0.8)
    assert _within((changed & ~masked).sum(), chosen.sum(), 0.1 * 44 / 45)  # 1 in 45 is the original token
    other = after[chosen][changed & ~masked]
    assert not SPECIAL[other].any()
    counts = np.bincount(other, minlength=50)[5:]
    assert (counts > 0).all()
    assert all(_within(count, len(other), 1 / 45) for count in counts if not whole_words)


def test_rows_and_epochs_have_different_masks():
    """With 10 of 64 masked, two draws share 10 · 10 / 64 = 1.6 on average."""
    masking, tokens = _masking(), np.full((500, 64), 7, np.int32)
    members = np.arange(500)[:, None]
    first, second = (masking.chosen(tokens, stateless_rng.keys(0, np.full(500, e), members)[:, 0]) for e in (0, 1))
    for a, b in ((first, second), (first[1:], first[:-1])):
        assert (a & b).sum() / len(a) == pytest.approx(100 / 64, abs=0.3)


_training = functools.partial(training, batch_rows=8, steps=40)


@pytest.mark.parametrize("whole_words", [False, True])
def test_masks_do_not_depend_on_batching_or_resuming(whole_words):
    """320 rows over five epochs of 67: in batches of 8, of 5, started in the middle, and from two processes."""
    examples = _examples(whole_words=whole_words)
    whole = as_rows(_training(examples))
    assert len(set(whole)) >= 0.98 * len(whole)  # masks are rarely repeated: a row of long words allows few
    assert as_rows(_training(examples, batch_rows=5, steps=64)) == whole
    assert as_rows(_training(examples, start=13)) == whole[13 * 8 :]
    shares = [list(_training(examples, rows=Rows(of=lambda n, i=i: np.arange(n)[i::2]))) for i in range(2)]
    for part in range(2):
        assert as_rows(shares[part]) == [row for i, row in enumerate(whole) if i % 8 % 2 == part]
    assert as_rows(_training(examples, seed=1)) != whole


def test_evaluation_masks_are_the_same_in_any_batch():
    stream = Stream.unpacked(_examples())
    runs = [
        as_rows(batch for _, batch in evaluation_batches(stream, batch_rows=size, rows=Rows())) for size in (67, 67, 1)
    ]
    assert runs[0] == runs[1] == runs[2]
    assert len(runs[0]) == len(stream.examples)
    whole = stream.examples.batch(stream.rows)["masked_positions"]
    assert len(np.unique(whole, axis=0)) > 0.9 * len(whole)  # each row has its own mask


def test_batches_match_the_model():
    examples = _examples(size=100, row_length=32)  # 30 per row: the last one has 10, and 20 of padding
    batch = make_batch(examples, np.array([[3], [0], [-1]]))
    shapes = {name: array.shape for name, array in batch.items()}
    assert shapes == {
        **dict.fromkeys(("tokens", "segments", "positions", "type_ids"), (3, 32)),
        **dict.fromkeys(("masked_positions", "labels"), (3, 5)),
        "weight": (3, 1),
    }
    assert batch["segments"].tolist()[:2] == [[1] * 12 + [0] * 20, [1] * 32]
    assert batch["positions"].tolist()[:2] == [[*range(12), *[0] * 20], [*range(32)]]
    assert batch["tokens"][0].tolist()[12:] == [PAD] * 20
    assert batch["weight"].tolist() == [[1], [1], [0]]
    assert (batch["labels"] >= 0).sum(axis=1).tolist()[:2] == [2, 4]  # of 10 and of 29: one of the 30 is a [SEP]
    np.testing.assert_array_equal(examples.rows(np.arange(1))[0][0, 1:31], examples.documents.values[:30])


def test_unaugmented_examples_ignore_keys():
    """Keys have no effect on examples without randomness."""
    examples = ArrayExamples({"features": np.arange(5.0)[:, None], "labels": np.arange(5)})
    members = np.array([[4], [2], [-1]])
    plain, keyed = make_batch(examples, members), make_batch(examples, members, slice(None), _keys(3)[:, None])
    assert plain.keys() == keyed.keys()
    for name, array in plain.items():
        np.testing.assert_array_equal(keyed[name], array)
    assert plain["weight"].shape == (3,)


def test_masks_never_change():
    """A golden value: if it changed, runs of earlier versions would not be reproducible."""
    batch = next(iter(_training(_examples(), batch_rows=2)))
    assert batch["masked_positions"].tolist() == [[2, 12, 15, 17, 0], [15, 20, 21, 23, 0]]


def test_corpus_is_not_sent_to_worker_processes(tmp_path):
    for name, array in (("tokens", np.full(100_000, 7, np.int32)), ("offsets", np.array([0, 100_000]))):
        np.save(tmp_path / f"{name}.npy", array)
    mapped = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("tokens", "offsets")]
    examples = MaskedExamples(Ragged(*mapped), 32, _masking(), CLS, SEP, PAD)
    message = pickle.dumps(examples)
    assert len(message) < 3_000
    np.testing.assert_array_equal(pickle.loads(message).labels, examples.labels)


OPTIONS = {
    "inputs": ("text",),
    "heading": "",
    "replace": (),
    "tokenizer": None,
    "vocab_size": 40,
    "lowercase": True,
    "row_length": 8,
    "mask_rate": 0.5,
    "whole_words": True,
}
SPLITS = {"train": {"text": ["superb superbly dull dully"] * 5}, "test": {"text": ["dull"]}}


def test_transform_finds_special_tokens_and_word_pieces():
    examples = masked_lm(SPLITS, ArtifactCache(), **OPTIONS)
    assert {split: len(found) for split, found in examples.items()} == {
        "train": -(-len(examples["train"].documents.values) // 6),
        "test": 1,
    }
    masking = examples["train"].masking
    assert masking.special.tolist() == [True] * 5 + [False] * (len(masking.special) - 5)
    assert 0 < masking.continues.sum() < len(masking.continues) - 5
    rows, real = examples["test"].rows(np.arange(1))
    assert rows.tolist() == [[2, examples["test"].labels[0], 3, 0, 0, 0, 0, 0]]
    assert real.tolist() == [[True] * 3 + [False] * 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_length": 2}, "row_length is 2; it must be at least 3"),
        ({"mask_rate": 0.0}, "mask_rate is 0.0; it must lie between 0 and 1"),
        ({"mask_rate": 1.0}, "mask_rate is 1.0"),
        ({"vocab_size": 6}, "no piece of the tokenizer begins with ##"),
        ({"inputs": ("sentence",)}, "has no column 'sentence'; it has text"),
    ],
)
def test_invalid_settings_are_one_line_errors(change, message):
    with pytest.raises(UserError, match=message):
        masked_lm(SPLITS, ArtifactCache(), **{**OPTIONS, **change})


@pytest.mark.parametrize(
    "change",
    [
        *({"replace": replace} for replace in (("ab",), (("a",),), (("a", 1),), (("", "b"),), ((("a", "b"),),))),
        {"heading": "("},
        {"inputs": ()},
        {"inputs": ("text", "text")},
    ],
)
def test_settings_of_the_wrong_type_name_their_key(change):
    with pytest.raises(UserError, match=rf"data\.transform\.{next(iter(change))}"):
        masked_lm(SPLITS, ArtifactCache(), **{**OPTIONS, **change})
