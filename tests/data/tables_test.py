"""Tables in files: what is written is what is read, and a malformed file is one line with its name and line."""

import csv
import io
import itertools
import json
import re
import sys

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from research.base.errors import UserError
from research.data.files import tables

# Universal newlines are csv's own concern: it reads "\r" within quotes, and so do we.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(TEXTS, TEXTS), max_size=5), delimiter=st.sampled_from([".csv", ".tsv"]), bom=st.booleans()
)
def test_a_written_table_is_read(rows, delimiter, bom, tmp_path_factory):
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter={".csv": ",", ".tsv": "\t"}[delimiter], quoting=csv.QUOTE_ALL)
    writer.writerows([("a", "b, c"), *rows])
    path = tmp_path_factory.mktemp("table") / f"x{delimiter}"
    path.write_bytes(b"\xef\xbb\xbf" * bom + out.getvalue().encode())
    assert list(tables.read_rows(path)) == [{"a": a, "b, c": b} for a, b in rows]


def test_the_other_formats(tmp_path, monkeypatch):
    rows = [{"text": "one", "n": 1}, {"text": "zwei", "n": 2}]
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    (tmp_path / "x.txt").write_text("one\nzwei")
    assert list(tables.read_rows(tmp_path / "x.jsonl")) == rows
    assert list(tables.read_rows(tmp_path / "x.parquet")) == rows
    assert list(tables.read_rows(tmp_path / "x.txt")) == [{"text": "one"}, {"text": "zwei"}]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'"one"\n{"text": "zwei"}\n')))
    assert list(tables.read_rows(None)) == [{"text": "one"}, {"text": "zwei"}]
    assert tables.count(tmp_path / "x.jsonl") == 3
    monkeypatch.setattr(tables, "PIECE_ROWS", 1)
    assert list(tables.pieces(iter(rows))) == [[row] for row in rows]


@pytest.mark.parametrize(
    ("name", "content", "line", "key"),
    [
        ("ragged.csv", b"a,b\n1,2\n3\n", 3, "1 values"),
        ("ragged.tsv", b"a\tb\n1\t2\t3\n", 2, "3 values"),
        ("twice.csv", b"a,b,a\n", None, "'a'"),
        ("empty.csv", b"", None, "empty"),
        ("latin.csv", "a\nfine\nüber\n".encode("latin-1"), 3, "UTF-8"),
        ("wide.csv", "a\nb\n".encode("utf-16"), None, "UTF-16"),
        ("quote.csv", b'a,b\n1,"2\n', 2, "not valid"),
        ("broken.jsonl", b'{"a": 1}\n{"a": \n', 2, "not valid JSON"),
        ("list.jsonl", b"[1, 2]\n", 1, "list"),
        ("no.parquet", b"PAR1", None, "Parquet"),
        ("table.xlsx", b"", None, "'.xlsx'"),
    ],
)
def test_a_malformed_file_is_one_line(name, content, line, key, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        list(tables.read_rows(path))
    message = str(error.value)
    assert name in message
    assert key in message
    assert "\n" not in message
    assert line is None or re.search(rf"line {line}\b", message)


def test_reading_takes_a_row_at_a_time(tmp_path):
    """The rows before an error are read, so a long file is never held as a whole."""
    path = tmp_path / "x.csv"
    path.write_bytes(b"a,b\n1,2\n3,4\n5\n")
    assert list(itertools.islice(tables.read_rows(path), 2)) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
