import pickle

import numpy as np
import pytest

from research.base.errors import UserError
from research.data.cache import ArtifactCache
from research.data.examples import Ragged
from research.data.images import store as image_store
from research.data.images.store import Decoded, Encoded
from research.data.sources import tfds_source
from research.data.sources.tfds_source import Records, Shards, Values
from tests.data.tiny_images import TinyImages, encoded, pixels
from tests.encoded import read

OPTIONS = {"name": "image", "label": "label", "channels": 3}


def _columns(images, labels=None):
    shards = Shards(("a.array_record-00000", "a.array_record-00001"), (2, len(images) - 2))
    return {"image": Values(images, shards), "label": np.arange(len(images)) if labels is None else labels}


def _splits(tmp_path):
    assert TinyImages.name == "tiny_images"  # importing it registers the dataset with TFDS
    return tfds_source.load("tiny_images", str(tmp_path))


def test_tfds_returns_images_as_file_bytes(tmp_path):
    train = _splits(tmp_path)["train"]
    assert train["image"] == [encoded(pixels(index)) for index in range(7)]
    assert train["image"].shards.path(6).startswith(str(tmp_path))


def test_images_of_one_size_are_decoded_and_others_stay_encoded(tmp_path):
    for _ in range(2):  # computed, then read from the cache
        found = read(_splits(tmp_path), ArtifactCache(source="tiny images"), **OPTIONS)
        (train, labels), (test, test_labels) = found["train"], found["test"]
        assert isinstance(train, Decoded)
        assert train.images.dtype == np.uint8
        np.testing.assert_array_equal(train.images, [pixels(index) for index in range(7)])
        np.testing.assert_array_equal(train.take(np.array([3, 1])), [pixels(3), pixels(1)])
        assert isinstance(test, Encoded)
        assert isinstance(test.files, Ragged)
        for index, image in zip((2, 0), test.take(np.array([2, 0])), strict=True):
            np.testing.assert_array_equal(image, pixels(7 + index, 6 + index))
        assert labels.tolist() == [0, 1, 2, 3, 4, 5, 6]
        assert test_labels.tolist() == [7, 8, 9]
        assert labels.dtype == np.int32


def test_second_time_nothing_is_read(tmp_path):
    class Unread(dict):
        def __getitem__(self, *_):
            raise AssertionError("the columns were read")

        __iter__ = __getitem__

    kept = ArtifactCache(source="these images")
    first = dict(read(_splits(tmp_path), kept, **OPTIONS))
    for split, (_, labels) in first.items():
        assert read(Unread(), kept, **OPTIONS)[split][1].tolist() == labels.tolist()
    for other in ({"name": "other"}, {"label": "other"}, {"channels": 1}):
        with pytest.raises(AssertionError, match="were read"):
            read(Unread(), kept, **{**OPTIONS, **other})["train"]


def test_images_exceeding_the_memory_limit_stay_encoded(tmp_path, monkeypatch):
    """One byte over the limit, and a dataset that is not read into memory at all."""
    splits = _splits(tmp_path)
    found = read(splits, ArtifactCache(), **OPTIONS)
    assert isinstance(found["train"][0], Decoded)
    monkeypatch.setattr(image_store, "DECODED_BYTES", 7 * 6 * 5 * 3 - 1)
    encoded, _ = read(splits, ArtifactCache(), **OPTIONS)["train"]
    assert isinstance(encoded, Encoded)
    np.testing.assert_array_equal(encoded.take(np.arange(7)), found["train"][0].images)

    monkeypatch.setattr(tfds_source, "IN_MEMORY_BYTES", 0)
    for room, kind in ((0, Encoded), (10_000, Decoded)):
        monkeypatch.setattr(image_store, "DECODED_BYTES", room)
        again = read(_splits(tmp_path), ArtifactCache(), **OPTIONS)
        assert isinstance(again["train"][0], kind)
        np.testing.assert_array_equal(again["train"][0].take(np.arange(7)), found["train"][0].images)
        assert again["train"][1].tolist() == [0, 1, 2, 3, 4, 5, 6]
        assert isinstance(again["test"][0].files, Records)
        np.testing.assert_array_equal(again["test"][0].take(np.array([1]))[0], pixels(8, 7))


def test_store_is_pickled_as_file_names(tmp_path, monkeypatch):
    """Images are not sent to worker processes; stores read by TFDS can be pickled too."""
    large = _columns([encoded(pixels(i, 60, 50)) for i in range(9)])
    uneven = _columns([encoded(pixels(i, 60 + i, 50)) for i in range(9)])
    found = read({"large": large, "uneven": uneven}, ArtifactCache(source="travel"), **OPTIONS)
    for store, _ in found.values():
        message = pickle.dumps(store)
        assert len(message) < 2_000
        for image, same in zip(pickle.loads(message).take(np.arange(9)), store.take(np.arange(9)), strict=True):
            np.testing.assert_array_equal(image, same)
    monkeypatch.setattr(tfds_source, "IN_MEMORY_BYTES", 0)
    store, _ = read(_splits(tmp_path), ArtifactCache(), **OPTIONS)["test"]
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).take(np.array([2]))[0], pixels(9, 8))


@pytest.mark.parametrize("height", [6, 7])
def test_undecodable_image_is_named(height, tmp_path, monkeypatch):
    """Before training, whether the sizes differ or not; if nothing is in memory, on access."""
    images = [encoded(pixels(0, height)), *(encoded(pixels(i)) for i in range(1, 600))]
    images[399] = images[399][:60]
    named = r"example 399 of split 'test' \(a\.array_record-00001\): the image can't be decoded: .*truncated"
    with pytest.raises(UserError, match=named):
        read({"test": _columns(images)}, ArtifactCache(), **OPTIONS)["test"]


def test_undecodable_image_is_named_when_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tfds_source, "IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(image_store, "DECODED_BYTES", 0)
    splits = _splits(tmp_path)
    store, _ = read(splits, ArtifactCache(), **OPTIONS)["train"]
    monkeypatch.setattr(Records, "take", lambda self, indices: [b"no image"] * len(indices))
    with pytest.raises(
        UserError, match=r"example 4 of split 'train' \(/.*array_record-00000-of-00001\): the image can't be decoded"
    ):
        store.take(np.array([4]))


def test_arrays_are_used_unchanged():
    bytes_, floats = pixels(0)[None], np.linspace(0, 16, 90).reshape(1, 6, 5, 3)
    splits = {"a": {"image": bytes_, "label": [1]}, "b": {"image": floats, "label": [0.5]}}
    found = read(splits, ArtifactCache(), **OPTIONS)
    np.testing.assert_array_equal(found["a"][0].images, bytes_)
    assert found["b"][0].images.dtype == np.float32
    np.testing.assert_allclose(found["b"][0].images, floats, rtol=1e-6)
    empty = read({"none": {"image": [], "label": []}}, ArtifactCache(), **OPTIONS)["none"]
    assert len(empty[0].images) == len(empty[1]) == 0


@pytest.mark.parametrize(
    ("images", "channels", "message"),
    [
        (
            np.zeros((2, 5, 5, 1)),
            3,
            r"images of split 's' have the shape \[2, 5, 5, 1\]; .* data.transform.channels, 3",
        ),
        (np.zeros((2, 5, 5)), 1, r"have the shape \[2, 5, 5\]"),
        (np.full((1, 1, 2, 1), np.nan), 1, r"images of split 's' holds nan at \[0, 0, 0, 0\]"),
    ],
)
def test_invalid_arrays_are_one_line_errors(images, channels, message):
    with pytest.raises(UserError, match=message):
        read({"s": {"image": images, "label": [0]}}, ArtifactCache(), **{**OPTIONS, "channels": channels})["s"]


def test_file_of_a_record():
    shards = Shards(("a", "b", "c", "d"), (2, 0, 3, 1))
    assert [shards.path(index) for index in range(6)] == ["a", "a", "c", "c", "c", "d"]
