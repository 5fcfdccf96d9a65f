"""A dataset made with TFDS's own builder, written and read without TensorFlow."""

import sys

import numpy as np
import pytest

from research.data import tfds_source
from research.errors import UserError
from tests.data.tiny_reviews import TinyReviews


def test_it_downloads_prepares_and_reads_without_tensorflow(tmp_path):
    assert TinyReviews.name == "tiny_reviews"  # imported, so TFDS knows it
    assert not tfds_source.prepared("tiny_reviews", str(tmp_path))
    assert tfds_source.missing("tiny_reviews", str(tmp_path)) is None  # it has nothing to download
    first = tfds_source.load("tiny_reviews", str(tmp_path))
    again = tfds_source.load("tiny_reviews", str(tmp_path))  # now from the prepared files
    assert tfds_source.prepared("tiny_reviews", str(tmp_path))
    assert first == again
    assert sorted(first["train"]["sentence"]) == sorted(f"review número {i}".encode() for i in range(7))
    assert np.sum(first["train"]["label"]) == 3
    assert len(first["validation"]["label"]) == 3
    assert "tensorflow" not in sys.modules


def test_damaged_files_are_one_line(tmp_path):
    tfds_source.load("tiny_reviews", str(tmp_path))
    for path in tmp_path.rglob("*train*array_record*"):
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(UserError, match="can't be read"):
        tfds_source.load("tiny_reviews", str(tmp_path))
