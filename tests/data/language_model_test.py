# mypy: disable-error-code="attr-defined, misc"
import functools
import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.base.errors import UserError
from research.configs import gpt_shakespeare
from research.configs.defaults import WIKITEXT_HEADING, WIKITEXT_REPLACE
from research.data import load as data
from research.data import stateless_rng
from research.data.cache import ArtifactCache
from research.data.encoder import NoSplits
from research.data.pipeline import Rows, Stream, evaluation_batches, make_batch
from research.data.sources import tfds_source
from research.data.text.language_model import LanguageModelRows, TokenRows
from research.data.text.wordpiece import train_wordpiece
from tests.data.batches import Unread, as_rows, training
from tests.encoded import language_model

END = 0  # the token between documents; the others are numbered through, so that each occurs once
OPTIONS = {
    "inputs": ("text",),
    "heading": "",
    "replace": (),
    "tokenizer": "byte",
    "vocab_size": 257,
    "end_of_text": "<|endoftext|>",
    "row_length": 8,
    "stride": None,
    "blocks": "consecutive",
}
TEXTS = ["The plot is dull.", "", "A superb film", "é"]
LENGTHS = st.lists(st.integers(1, 20), min_size=1, max_size=12)


def _documents(lengths):
    """Documents of these lengths, of the tokens 1, 2, …"""
    stops = np.cumsum(lengths)
    return [list(range(stop - length + 1, stop + 1)) for length, stop in zip(lengths, stops, strict=True)]


def _rows(lengths, *, ended=True, row_length=8, stride=None, random=False):
    """The rows of these documents, made as the encoder does."""
    documents = _documents(lengths)
    if ended:
        tokens = [END, *(token for document in documents for token in (*document, END))]
        starts = np.cumsum([0, *(length + 1 for length in lengths)])[:-1]
    else:
        tokens = [token for document in documents for token in document]
        starts = np.cumsum([0, *lengths])[:-1]
    sizes = np.arange(sum(lengths) + 1, dtype=np.int32) % 5
    return TokenRows(np.array(tokens, np.int32), starts, ended, row_length, stride or row_length, random, sizes)


def _all(examples):
    return examples.batch(np.arange(len(examples))[:, None])


def _expected(lengths, ended):
    """(document, input, target) of each prediction, one document at a time."""
    found = []
    for number, document in enumerate(_documents(lengths)):
        whole = [END, *document, END] if ended else document
        found += [(number, *pair) for pair in itertools.pairwise(whole)]
    return found


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, row_length=st.integers(1, 30), ended=st.booleans())
def test_every_token_is_a_target_once_and_of_its_own_document(lengths, row_length, ended):
    """With a token between documents the first token of each is a target too; and so is each end."""
    examples = _rows(lengths, ended=ended, row_length=row_length)
    batch = _all(examples)
    assert {array.shape for array in batch.values()} == {(len(examples), row_length)}
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}
    has_target = batch["targets"] >= 0
    expected = _expected(lengths, ended)
    assert list(zip(batch["tokens"][has_target], batch["targets"][has_target], strict=True)) == [
        (token, target) for _, token, target in expected
    ]
    targets = batch["targets"][has_target]
    assert batch["target_bytes"][has_target].tolist() == examples.token_bytes[targets].tolist()
    assert not batch["target_bytes"][~has_target].any()


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, row_length=st.integers(1, 30), ended=st.booleans())
def test_rows_are_full_and_segments_are_documents(lengths, row_length, ended):
    examples = _rows(lengths, ended=ended, row_length=row_length)
    batch = _all(examples)
    real = batch["segments"] > 0
    assert real[:-1].all()
    assert real.sum() == examples.inputs
    document = np.repeat(np.arange(len(lengths)), [length + ended for length in lengths])[: examples.inputs]
    for row, inside in enumerate(real):
        here = document[row * row_length : (row + 1) * row_length]
        _, numbers, counts = np.unique(here, return_inverse=True, return_counts=True)
        assert batch["segments"][row][inside].tolist() == (numbers + 1).tolist()
        assert batch["positions"][row][inside].tolist() == [i for count in counts for i in range(count)]
        assert not any(batch[name][row][~inside].any() for name in ("tokens", "positions", "target_bytes"))
        assert (batch["targets"][row][~inside] == -1).all()


@settings(max_examples=200, deadline=None)
@given(lengths=LENGTHS, row_length=st.integers(1, 30), ended=st.booleans(), data=st.data())
def test_overlapping_rows_have_every_target_once_with_context(lengths, row_length, ended, data):
    stride = data.draw(st.integers(1, row_length))
    batch = _all(_rows(lengths, ended=ended, row_length=row_length, stride=stride))
    has_target = batch["targets"] >= 0
    expected = _expected(lengths, ended)
    found = list(zip(batch["tokens"][has_target], batch["targets"][has_target], strict=True))
    assert found == [(token, target) for _, token, target in expected]
    # The tokens of its own document before each: all of them, or at least as many as rows overlap.
    before = [sum(number == other for other, _, _ in expected[:i]) for i, (number, _, _) in enumerate(expected)]
    at_least = np.minimum(before, row_length - stride)
    assert (batch["positions"][has_target] >= at_least).all()
    assert (batch["positions"][has_target] <= before).all()


_training = functools.partial(training, batch_rows=4, steps=20)


@pytest.mark.parametrize("random", [False, True])
def test_training_rows_do_not_depend_on_batching_or_resuming(random):
    """80 rows over several epochs of 14: in batches of 5, started in the middle, and from two processes."""
    examples = pickle.loads(pickle.dumps(_rows([30, 1, 50, 25], random=random)))
    assert len(examples) == 14
    whole = as_rows(_training(examples))
    assert as_rows(_training(examples, batch_rows=5, steps=16)) == whole
    assert as_rows(_training(examples, start=7)) == whole[7 * 4 :]
    shares = [list(_training(examples, rows=Rows(of=lambda n, i=i: np.arange(n)[i::2]))) for i in range(2)]
    for part in range(2):
        assert as_rows(shares[part]) == [row for i, row in enumerate(whole) if i % 4 % 2 == part]
    assert as_rows(_training(examples, seed=1)) != whole
    if not random:
        assert sorted(whole[:14]) == sorted(whole[14:28])  # each row once per epoch


@settings(max_examples=50, deadline=None)
@given(lengths=LENGTHS, row_length=st.integers(1, 30), ended=st.booleans(), seed=st.integers(0, 99))
def test_random_rows_have_the_targets_of_their_tokens(lengths, row_length, ended, seed):
    examples = _rows(lengths, ended=ended, row_length=row_length, random=True)
    if not len(examples):
        return
    (batch,) = _training(examples, batch_rows=16, steps=1, seed=seed)
    has_target = batch["targets"] >= 0
    pairs = set(zip(batch["tokens"][has_target].tolist(), batch["targets"][has_target].tolist(), strict=True))
    assert pairs <= {(token, target) for _, token, target in _expected(lengths, ended)}
    padding = max(row_length - examples.inputs, 0)
    assert (np.count_nonzero(batch["segments"] == 0, axis=1) == padding).all()


def test_random_rows_begin_anywhere_equally_often():
    """Of a single document of 100 tokens in rows of 8: 92 places, the last of which ends with the last target."""
    examples = _rows([100], ended=False, random=True)
    batches = list(_training(examples, batch_rows=64, steps=150))
    begins = np.concatenate([batch["tokens"][:, 0] for batch in batches])
    counts = np.bincount(begins)
    assert (counts[0], len(counts)) == (0, 93)
    expected = len(begins) / 92
    assert (np.abs(counts[1:] - expected) < 5 * expected**0.5).all()
    assert all((batch["segments"] == 1).all() for batch in batches)


def test_evaluation_of_random_rows_covers_every_token():
    examples = _rows([30, 20], random=True)
    batches = [batch for _, batch in evaluation_batches(Stream.unpacked(examples), batch_rows=3, rows=Rows())]
    targets = np.concatenate([batch["targets"][batch["weight"][:, 0] > 0] for batch in batches])
    assert targets[targets >= 0].tolist() == examples.sequence[1:].tolist()


def test_batches_have_a_weight_per_row():
    batch = make_batch(_rows([30]), np.array([[2], [0], [-1]]))
    assert batch["weight"].tolist() == [[1.0], [1.0], [0.0]]
    assert "labels" not in batch


def _encoded(splits, cache=None, **options):
    return language_model(splits, cache or ArtifactCache(), **{**OPTIONS, **options})


def test_records_are_documents_between_ends():
    examples = _encoded({"train": {"text": TEXTS}, "validation": {"text": []}})["train"]
    assert examples.sequence.dtype == np.int32
    expected = [256]
    for text in TEXTS:
        expected += [*text.encode(), 256] if text else []  # documents without tokens are dropped
    assert examples.sequence.tolist() == expected
    assert examples.sequence[examples.starts].tolist() == [256, 256, 256]
    assert _all(examples)["target_bytes"].sum() == len("".join(TEXTS).encode())


def test_documents_without_ends():
    splits = {"train": {"text": TEXTS}, "validation": {"text": []}, "test": {"text": ["a"]}}
    examples = _encoded(splits, end_of_text="", vocab_size=256)
    assert examples["train"].sequence.tolist() == list("".join(TEXTS).encode())
    assert examples["train"].starts.tolist() == [0, 17, 30]
    assert (_all(examples["train"])["targets"] >= 0).sum() == 32 - 3
    assert len(examples["validation"]) == len(examples["test"]) == 0  # nothing to predict


def test_articles_of_wikitext_begin_at_their_headings():
    lines = [b"", b" = A lobster = \n", b"", b" It is 1 @,@ 000 \n", b" = = Size = = \n", b"", b" = B = \n", b""]
    options = {"heading": WIKITEXT_HEADING, "replace": WIKITEXT_REPLACE}
    examples = _encoded({"train": {"text": lines}}, **options)["train"]
    text = bytes(token for token in examples.sequence if token < 256).decode()
    assert text == " = A lobster = \n It is 1,000 \n = = Size = = \n = B = \n"
    assert len(examples.starts) == 2


def test_rows_overlap_outside_of_training():
    splits = {name: {"text": ["superb film " * 5]} for name in ("train", "validation")}
    examples = _encoded(splits, stride=2)
    assert (examples["train"].stride, examples["validation"].stride) == (8, 2)
    assert (_encoded(splits)["validation"].stride, len(examples["validation"])) == (8, 28)


@pytest.mark.parametrize("tokenizer", ["byte", "bpe", "character"])
def test_encoder_is_loaded_from_assets_alone(tokenizer, tmp_path):
    options = LanguageModelRows(**{**OPTIONS, "tokenizer": tokenizer, "vocab_size": 270})
    encoder = options.fit({"train": {"text": TEXTS}}, ArtifactCache(tmp_path))
    again = options.fit(NoSplits(tmp_path), ArtifactCache(tmp_path))
    assert again == encoder
    assert again.signature.kind == "documents"
    assert again.signature.limits == {"row_length": 8, "unit": "tokens"}
    one, other = (x.encode({"text": ["A dull film"]}, labels=False) for x in (encoder, again))
    np.testing.assert_array_equal(one.sequence, other.sequence)
    assert other.batch(np.array([[0]]))["targets"][0, 0] == again.tokenizer.token_to_id("A")


def test_second_time_they_come_from_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path))
    kept = ArtifactCache(source="these documents")
    first = _encoded({"train": {"text": TEXTS}}, kept)["train"]
    again = _encoded(Unread(), kept, row_length=5)["train"]  # whatever the length of the rows
    np.testing.assert_array_equal(again.sequence, first.sequence)
    np.testing.assert_array_equal(again.starts, first.starts)
    changes: tuple[dict[str, object], ...] = (
        {"heading": "a"},
        {"replace": (("a", "b"),)},
        {"inputs": ("other",)},
        {"end_of_text": ""},
    )
    for change in changes:
        with pytest.raises(AssertionError, match="were read"):
            _encoded(Unread(), kept, **change)["train"]


def test_a_given_tokenizer(tmp_path):
    own = train_wordpiece(["dull superb"] * 9, vocab_size=60, lowercase=True)
    own.enable_padding(length=30)  # settings of the file that have no effect here
    own.enable_truncation(3)
    own.save(str(tmp_path / "own.json"))
    options = {"tokenizer": str(tmp_path / "own.json"), "end_of_text": "[SEP]"}
    examples = _encoded({"train": {"text": ["dull superb dull dull"]}}, **options)["train"]
    sep, dull, superb = (own.token_to_id(token) for token in ("[SEP]", "dull", "superb"))
    assert examples.sequence.tolist() == [sep, dull, superb, dull, dull, sep]
    assert "target_bytes" not in _all(examples)
    with pytest.raises(UserError, match=r"has no token '<\|endoftext\|>'; name the one .*end_of_text, or"):
        _encoded({"train": {"text": TEXTS}}, tokenizer=str(tmp_path / "own.json"))
    with pytest.raises(UserError, match=r"own\.jsn can't be read"):
        _encoded({"train": {"text": TEXTS}}, tokenizer=str(tmp_path / "own.jsn"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stride": 9}, r"stride is 9; it must be at most row_length, 8"),
        ({"blocks": "any"}, "blocks is 'any'; known: consecutive, random"),
        ({"inputs": ("a", "b")}, "must name one column"),
        ({"replace": (("", "b"),)}, "replace has"),
        ({"heading": "("}, "heading"),
    ],
)
def test_invalid_options_are_one_line_errors(change, message):
    with pytest.raises(UserError, match=message):
        LanguageModelRows(**{**OPTIONS, **change})


@pytest.mark.realdata
def test_rows_of_shakespeare_hold_all_of_it():
    """The splits are the first 90, the next 5 and the last 5 % of the text; 65 characters occur in it."""
    columns = tfds_source.load("tiny_shakespeare", None)
    texts = {split: column["text"][0].decode() for split, column in columns.items()}
    assert {split: len(text) for split, text in texts.items()} == {
        "train": 1_003_854,
        "validation": 55_770,
        "test": 55_770,
    }
    whole = texts["train"] + texts["validation"] + texts["test"]
    assert len(texts["train"]) == int(0.9 * len(whole))
    assert set(texts["train"]) == set(whole)
    assert len(set(whole)) == 65
    dataset = data.load(gpt_shakespeare.get_config("char_cpu").data)
    tokenizer = dataset.encoder.tokenizer
    assert tokenizer.get_vocab_size() == 66
    for split, text in texts.items():
        examples = dataset.split(split)
        batch = _all(examples)
        has_target = batch["targets"] >= 0
        for name, expected in (("tokens", text[:-1]), ("targets", text[1:])):
            assert tokenizer.decode(batch[name][has_target].tolist(), skip_special_tokens=False) == expected
        assert batch["target_bytes"].sum() == len(text) - 1
        assert (batch["segments"] > 0).mean() > 0.99
    members = np.arange(4)[:, None]
    random = dataset.split("train").train_batch(members, slice(None), stateless_rng.keys(0, np.zeros(4), members))
    for row in range(4):
        text = tokenizer.decode(random["tokens"][row].tolist() + random["targets"][row, -1:].tolist())
        assert len(text) == 65
        assert text in texts["train"]
