"""A dataset made with TFDS's own builder, written and read without TensorFlow."""

import sys

import numpy as np
import pytest

from research.base.errors import UserError
from research.data.sources import tfds_source
from tests.data.tiny_reviews import TinyReviews


def test_it_downloads_prepares_and_reads_without_tensorflow(tmp_path):
    assert TinyReviews.name == "tiny_reviews"  # importing it registers the dataset with TFDS
    assert tfds_source.folder("tiny_reviews", str(tmp_path)) is None
    assert tfds_source.missing("tiny_reviews", str(tmp_path)) is None  # nothing to download
    first = tfds_source.load("tiny_reviews", str(tmp_path))
    again = tfds_source.load("tiny_reviews", str(tmp_path))  # from the prepared files
    assert tfds_source.folder("tiny_reviews", str(tmp_path)) == tmp_path / "tiny_reviews/1.0.0"
    assert first == again
    assert sorted(first["train"]["sentence"]) == sorted(f"review número {i}".encode() for i in range(7))
    assert np.sum(first["train"]["label"]) == 3
    assert len(first["validation"]["label"]) == 3
    assert "tensorflow" not in sys.modules


def test_damaged_files_are_a_one_line_error(tmp_path):
    tfds_source.load("tiny_reviews", str(tmp_path))
    for path in tmp_path.rglob("*train*array_record*"):
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match="can't be read"):
        tfds_source.load("tiny_reviews", str(tmp_path))["train"]


def test_dataset_larger_than_memory_is_read_in_chunks(tmp_path, monkeypatch):
    whole = dict(tfds_source.load("tiny_reviews", str(tmp_path)))
    monkeypatch.setattr(tfds_source, "IN_MEMORY_BYTES", 0)
    pieces = tfds_source.load("tiny_reviews", str(tmp_path))
    for split, columns in whole.items():
        for key, values in columns.items():
            records = pieces[split][key]
            assert isinstance(records, tfds_source.Records)
            assert len(records) == len(values)
            assert list(records) == values
            assert records[1:3] == values[1:3]
            assert records[2] == values[2]
            assert records[5:5] == []


def test_state_changes_with_a_file(tmp_path):
    assert tfds_source.state("tiny_reviews", str(tmp_path)) is None
    tfds_source.load("tiny_reviews", str(tmp_path))
    before = tfds_source.state("tiny_reviews", str(tmp_path))
    assert tfds_source.state("tiny_reviews", str(tmp_path)) == before
    (path, *_) = tmp_path.rglob("*train*array_record*")
    path.write_bytes(path.read_bytes() + b"x")
    assert tfds_source.state("tiny_reviews", str(tmp_path)) not in (None, before)
