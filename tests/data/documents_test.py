# mypy: disable-error-code="attr-defined"
import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from research.base.errors import UserError
from research.configs import bert_mlm
from research.configs.bert_mlm import REPLACE, WIKITEXT_HEADING
from research.data import load as data
from research.data.cache import ArtifactCache
from research.data.examples import Ragged
from research.data.sources import tfds_source
from research.data.text.documents import cut_rows, joined, row_count
from research.data.text.wordpiece import train_wordpiece
from tests.data.batches import Unread
from tests.encoded import tokenized

CLS, SEP, PAD = 101, 102, 100
OPTIONS = {
    "inputs": ("text",),
    "heading": "",
    "replace": (),
    "tokenizer": None,
    "vocab_size": 120,
    "lowercase": True,
}
TEXTS = ["The plot is dull.", "", "A superb, superb film\nwith a plot.", "dull"]
# As in TFDS's WikiText: one record per line, headings between "=".
LINES = [
    b"",
    b" = A lobster = \n",
    b"",
    b" The <unk> is well @-@ known , 1 @,@ 000 kg \n",
    b" = = Description = = \n",
    b" x = 3 = y \n",
    b" \n",
    b" = Another = \n",
    b"",
    b" = of a table = \n",
    b" It is red . \n",
    b"",
    b" = A third one , = of them = \n",
]


def _decoded(encoder, documents):
    pieces = np.split(documents.values, documents.offsets[1:-1])
    return [encoder.decode(piece.tolist(), skip_special_tokens=False) for piece in pieces]


@settings(max_examples=200, deadline=None)
@given(records=st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=20))
def test_records_join_to_documents_with_one_separator_between_two(records):
    """Against a simple implementation: a list of lists, one record at a time."""
    tokens = iter(range(1000))
    texts = [[next(tokens) for _ in range(length)] for length, _ in records]
    begins = [begin for _, begin in records]
    expected = []
    for text, begin in zip(texts, begins, strict=True):
        if begin or not expected:
            expected.append([])
        expected[-1].extend(text)
    expected = [document for document in expected if document]
    documents = joined(Ragged.of(texts, np.int32), np.array(begins, bool), -7)
    assert documents.values.dtype == np.int32
    found = [documents.values[a:b].tolist() for a, b in zip(documents.offsets[:-1], documents.offsets[1:], strict=True)]
    assert (found if expected else []) == [[*d, -7] for d in expected[:-1]] + expected[-1:]


@settings(max_examples=200, deadline=None)
@given(count=st.integers(1, 60), row_length=st.integers(3, 12), data=st.data())
def test_rows_hold_every_token_exactly_once(count, row_length, data):
    tokens = np.arange(count, dtype=np.int32)
    total = row_count(count, row_length)
    order = np.array(data.draw(st.permutations(range(total))))
    rows, real = (x[np.argsort(order)] for x in cut_rows(tokens, order, row_length, cls=CLS, sep=SEP, pad=PAD))
    assert rows.shape == real.shape == (total, row_length)
    assert (rows[:, 0] == CLS).all()
    lengths = real.sum(axis=1)
    assert (rows[np.arange(total), lengths - 1] == SEP).all()
    np.testing.assert_array_equal(real, np.arange(row_length) < lengths[:, None])
    assert (lengths[:-1] == row_length).all()  # only the last row has padding
    assert (rows[~real] == PAD).all()
    inner = real.copy()
    inner[:, 0] = inner[np.arange(total), lengths - 1] = False
    np.testing.assert_array_equal(rows[inner], tokens)


def test_each_record_is_a_document(tmp_path):
    encoder, found = tokenized({"train": {"text": TEXTS}, "test": {"text": []}}, ArtifactCache(tmp_path), **OPTIONS)
    assert _decoded(encoder, found["train"]) == [
        "the plot is dull. [SEP]",
        "a superb, superb film with a plot. [SEP]",
        "dull",
    ]
    assert len(found["test"].values) == 0
    assert (tmp_path / "tokenizer.json").is_file()


def test_articles_of_wikitext_begin_at_their_headings():
    options = {**OPTIONS, "heading": WIKITEXT_HEADING, "replace": REPLACE, "vocab_size": 200}
    encoder, found = tokenized({"train": {"text": LINES}}, ArtifactCache(), **options)
    # Except for the decoder's spacing around punctuation:
    assert [text.replace(" ", "") for text in _decoded(encoder, found["train"])] == [
        "=alobster=the[UNK]iswell-known,1,000kg==description==x=3=y[SEP]",
        "=another==ofatable=itisred.[SEP]",
        "=athirdone,=ofthem=",
    ]
    assert not any("unk" in piece for piece in encoder.get_vocab())


def test_second_time_they_come_from_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path))
    kept = ArtifactCache(source="these documents")
    first = dict(tokenized({"train": {"text": TEXTS}}, kept, **OPTIONS)[1])
    _, again = tokenized(Unread(), kept, **OPTIONS)
    np.testing.assert_array_equal(again["train"].values, first["train"].values)
    np.testing.assert_array_equal(again["train"].offsets, first["train"].offsets)
    for other in ({"heading": "a"}, {"replace": (("a", "b"),)}, {"inputs": ("other",)}, {"lowercase": False}):
        with pytest.raises(AssertionError, match="were read"):
            tokenized(Unread(), kept, **{**OPTIONS, **other})[1]["train"]


def test_custom_tokenizer_must_have_the_special_tokens_of_bert(tmp_path):
    own = train_wordpiece(["dull superb"] * 9, vocab_size=60, lowercase=True)
    own.enable_padding(length=30)  # settings of the file that have no effect here
    own.enable_truncation(3)
    own.save(str(tmp_path / "own.json"))
    options = {**OPTIONS, "tokenizer": str(tmp_path / "own.json")}
    encoder, found = tokenized({"train": {"text": ["dull superb dull dull"]}}, ArtifactCache(), **options)
    assert _decoded(encoder, found["train"]) == ["dull superb dull dull"]
    tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")).save(
        str(tmp_path / "own.json")
    )
    with pytest.raises(UserError, match=r"the tokenizer lacks \[PAD\], \[CLS\], \[SEP\], \[MASK\]"):
        tokenized({"train": {"text": TEXTS}}, ArtifactCache(), **options)


@pytest.mark.realdata
def test_rows_of_wikitext_hold_all_of_it(tmp_path):
    """Merity et al. 2016, table 1: 600, 60 and 60 articles; 2,088,628, 217,646 and 245,569 words."""
    columns = tfds_source.load("wikitext/wikitext-2-v1", None)
    lines = {split: [text.decode() for text in column["text"]] for split, column in columns.items()}
    words = {split: sum(len(line.split()) + 1 for line in found) for split, found in lines.items()}
    assert words == {"train": 2_088_628, "validation": 217_646, "test": 245_569}  # the end of a line is a word there

    dataset = data.load(bert_mlm.get_config("wikitext").data, tmp_path)
    encoder = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for split, articles in {"train": 600, "validation": 60, "test": 60}.items():
        examples = dataset.split(split)
        assert len(examples.documents.lengths) == articles
        batch = examples.batch(np.arange(len(examples))[:, None])
        assert (batch["segments"][:-1] == 1).all()
        rows, _ = examples.rows(np.arange(len(examples)))
        assert (rows[:, 0] == encoder.token_to_id("[CLS]")).all()
        inner = rows[:, 1:-1].ravel()[: len(examples.documents.values)]
        # A simple implementation: the whole split as one text.
        text = "\n".join(lines[split])
        for old, new in bert_mlm.REPLACE:
            text = text.replace(old, new)
        expected = encoder.encode(text, add_special_tokens=False).ids
        separators = inner == encoder.token_to_id("[SEP]")
        assert separators.sum() == articles - 1
        assert inner[~separators].tolist() == expected
        assert np.count_nonzero(batch["segments"][-1]) == 2 + len(inner) - 62 * (len(examples) - 1)
        assert rows[-1][batch["segments"][-1] > 0][-1] == encoder.token_to_id("[SEP]")
