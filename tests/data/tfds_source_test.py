"""A dataset made with TFDS's own builder, written and read without TensorFlow."""

import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from research.data import tfds_source
from research.errors import UserError


class TinyReviews(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {"sentence": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
        )
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(7), "validation": self._generate_examples(3)}

    def _generate_examples(self, size):
        for i in range(size):
            yield i, {"sentence": f"review número {i}", "label": i % 2}


def test_it_downloads_prepares_and_reads_without_tensorflow(tmp_path):
    assert "not prepared" in (tfds_source.missing("tiny_reviews", str(tmp_path)) or "not prepared")
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
