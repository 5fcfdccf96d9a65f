# mypy: disable-error-code="misc"
import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.base.errors import UserError
from research.configs import defaults
from research.data import stateless_rng
from research.data.cache import ArtifactCache
from research.data.examples import AugmentedExamples, MixedExamples
from research.data.images.transform import AugmentedImages
from research.data.pipeline import Rows, Stream, evaluation_batches, make_batch, training_batches
from research.data.sources import tfds_source
from tests.data import tiny_images
from tests.data.batches import as_rows, training
from tests.encoded import image, pixels


def _transform(columns, *, channels=3, **options):
    section = dict(defaults.image(channels=channels))
    augment = {**section["augment"], **options.pop("augment", {})}
    section = {key: value for key, value in section.items() if key != "name"}
    return image({"train": columns}, ArtifactCache(), **{**section, **options, "augment": augment})["train"]


def _columns(count=23, height=8, width=8):
    images = np.stack([tiny_images.pixels(index, height, width) for index in range(count)])
    return {"image": images, "label": np.arange(count) % 10}


CHANGES = {
    "flip": {"flip": True},
    "all": {"crop_padding": 2, "flip": True, "randaugment_ops": 2, "erasing": 0.5},
    "mixup": {"mixup": 0.4},
    "cutmix": {"crop_padding": 2, "cutmix": 1.0},
    "both": {"random_resized_crop": (0.3, 1.0), "flip": True, "mixup": 0.2, "cutmix": 1.0},
}


_training = functools.partial(training, batch_rows=8, steps=15)


@pytest.mark.parametrize("change", CHANGES)
def test_training_images_do_not_depend_on_batching_or_resuming(change):
    """120 rows over five epochs of 23: in batches of 8, of 5, started in the middle, and from eight processes."""
    examples = _transform(_columns(), augment=CHANGES[change])
    whole = as_rows(_training(examples))
    assert as_rows(_training(examples, batch_rows=5, steps=24)) == whole
    assert as_rows(_training(examples, start=6)) == whole[6 * 8 :]
    for part in range(8):
        share = _training(examples, rows=Rows(of=lambda n, part=part: np.arange(n)[part::8]))
        assert as_rows(share) == whole[part::8]
    assert as_rows(_training(examples, seed=1)) != whole
    assert len(set(whole)) > (40 if change == "flip" else 100)


@pytest.mark.slow
def test_worker_processes_make_the_same_batches():
    examples = _transform(_columns(), augment=CHANGES["both"])
    assert as_rows(_training(examples, workers=2)) == as_rows(_training(examples))


def test_deterministic_transforms_draw_no_keys():
    assert not isinstance(_transform(_columns()), AugmentedExamples | MixedExamples)
    for change in CHANGES.values():
        assert isinstance(_transform(_columns(), augment=change), AugmentedExamples | MixedExamples)


def test_training_and_evaluation_agree_by_default():
    examples = _transform(_columns())
    for batch in _training(examples, steps=3):
        assert set(batch) == {"images", "labels", "weight"}
        assert batch["images"].dtype == np.uint8
        for row in batch["images"]:
            assert any(np.array_equal(row, tiny_images.pixels(index, 8, 8)) for index in range(23))


def test_evaluation_images_are_unchanged():
    examples = _transform(_columns(), augment=CHANGES["both"])
    for members, batch in evaluation_batches(Stream.unpacked(examples), batch_rows=6, rows=Rows()):
        assert set(batch) == {"images", "labels", "weight"}
        for row, member in zip(batch["images"], members[:, 0], strict=True):
            if member >= 0:
                np.testing.assert_array_equal(row, tiny_images.pixels(member, 8, 8))


@settings(max_examples=20, deadline=None)
@given(
    count=st.integers(1, 9),
    batch_rows=st.integers(1, 12),
    seed=st.integers(0, 9),
    change=st.sampled_from([{"mixup": 0.7}, {"cutmix": 1.0}, {"crop_padding": 1, "flip": True, "mixup": 1.0}]),
)
def test_image_is_mixed_with_the_next_of_its_epoch(count, batch_rows, seed, change):
    """Each image is the unmixed one; the last image of the epoch is mixed with the first."""
    examples = _transform(_columns(count), augment=change)
    # The same images without mixing.
    plain = Stream.unpacked(AugmentedImages(examples.store, examples.labels, examples.view, examples.augment))
    position = 0
    for batch in _training(examples, batch_rows=batch_rows, steps=4, seed=seed):
        for row in range(batch_rows):
            epoch, place = divmod(position, count)
            order = plain.epoch(seed, epoch)
            pair = np.stack([order[place], order[(place + 1) % count]])
            keys = stateless_rng.keys(seed, np.full(2, epoch), pair)
            one, other = make_batch(plain.examples, pair, slice(None), keys)["images"].astype(float)
            share = batch["mixed_weight"][row]
            assert (batch["labels"][row], batch["mixed_labels"][row]) == tuple(pair[:, 0] % 10)
            found = batch["images"][row]
            if "cutmix" in change:
                assert ((found == one) | (found == other)).all()
            else:
                np.testing.assert_allclose(found, (1 - share) * one + share * other, atol=0.501)
            position += 1


def test_mixed_batches_always_have_the_same_entries():
    """Padding included: the last step of a run given in epochs, padded to a multiple of rows."""
    examples = _transform(_columns(5), augment={"mixup": 0.2})
    stream = Stream.unpacked(examples)
    batches = training_batches(stream, batch_rows=4, start_step=0, steps=2, total_rows=5, seed=0, rows=Rows(multiple=3))
    first, last = batches
    assert {name: (array.shape, array.dtype) for name, array in first.items()} == {
        "images": ((6, 8, 8, 3), np.uint8),
        "labels": ((6,), np.int32),
        "mixed_labels": ((6,), np.int32),
        "mixed_weight": ((6,), np.float32),
        "weight": ((6,), np.float32),
    }
    assert {name: (array.shape, array.dtype) for name, array in last.items()} == {
        name: (array.shape, array.dtype) for name, array in first.items()
    }
    assert first["weight"].tolist() == [1, 1, 1, 1, 0, 0]
    assert last["weight"].tolist() == [1, 0, 0, 0, 0, 0]


def test_few_images_are_computed_twice(monkeypatch):
    """A batch and its mixing partners share all images except one."""
    examples = _transform(_columns(), augment={"mixup": 0.2, "flip": True})
    made = []
    take = type(examples.store).take
    monkeypatch.setattr(
        type(examples.store),
        "take",
        lambda self, indices: made.append(len(indices)) or take(self, indices),
    )
    list(_training(examples, steps=2))
    assert made == [9, 9]


def test_images_of_different_sizes_are_resized_to_one(tmp_path):
    splits = tfds_source.load("tiny_images", str(tmp_path))
    section = dict(defaults.image(channels=3))
    del section["name"]
    with pytest.raises(
        UserError, match=r"images of split 'test' differ in size, .*; transform image with data.transform"
    ):
        image(splits, ArtifactCache(), **section)["test"]
    changes = {**section["augment"], "random_resized_crop": (0.5, 1.0)}
    section |= {"resize": 6, "size": 4, "augment": changes}
    found = image(splits, ArtifactCache(), **section)
    for examples in found.values():
        for batch in (*_training(examples, steps=2), examples.batch(np.array([[0], [2]]))):
            assert batch["images"].shape[1:] == (4, 4, 3)


def test_features_are_standardized_pixels():
    columns, grey = _columns(4), np.linspace(0, 16, 4 * 64).reshape(4, 8, 8, 1)
    options = {"inputs": ("image",), "label": "label"}
    found = pixels({"s": columns}, ArtifactCache(), **options, channels=3, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0))[
        "s"
    ]
    batch = found.batch(np.array([[3], [1], [-1]]))
    assert batch["features"].dtype == np.float32
    expected = (columns["image"][[3, 1]].astype(float) - [1, 2, 3]) / [4, 5, 6]
    np.testing.assert_allclose(batch["features"][:2], expected.reshape(2, -1), rtol=1e-6)
    assert batch["labels"].tolist()[:2] == [3, 1]
    found = pixels(
        {"s": {"image": grey, "label": [0] * 4}}, ArtifactCache(), **options, channels=1, mean=(4.9,), std=(6.0,)
    )["s"]
    np.testing.assert_allclose(found.batch(np.array([[2]]))["features"][0], (grey[2].ravel() - 4.9) / 6, rtol=1e-5)
    for change, message in (
        ({"mean": (0.0,)}, r"data.transform.mean is \(0.0,\); it must be 3 numbers"),
        ({"std": (1.0, 0.0, 1.0)}, r"data.transform.std is \(1.0, 0.0, 1.0\); it must be 3 positive numbers"),
    ):
        section = {"channels": 3, "mean": (0.0,) * 3, "std": (1.0,) * 3, **change}
        with pytest.raises(UserError, match=message):
            pixels({"s": columns}, ArtifactCache(), **options, **section)


FLOATS = {"image": np.zeros((3, 8, 8, 3)), "label": [0, 1, 2]}


def test_float_images_are_cropped_flipped_and_mixed():
    images = np.random.default_rng(0).random((5, 8, 8, 3)) * 16
    columns = {"image": images, "label": np.arange(5)}
    changes = {"crop_padding": 1, "crop_border": "reflect", "flip": True, "mixup": 1.0}
    (batch,) = _training(_transform(columns, augment=changes), steps=1)
    assert batch["images"].dtype == np.float32
    assert len(np.unique(batch["images"])) > 500  # nothing is rounded


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": 6}, "data.transform.resize takes images of bytes; those of split 'train' are floating-point"),
        ({"augment": {"erasing": 0.5}}, "data.transform.augment.erasing takes images of bytes"),
        ({"augment": {"randaugment_ops": 1}}, "data.transform.augment.randaugment_ops takes images of bytes"),
        ({"augment": {"flpi": True}}, r"data.transform.augment.flpi is not a key of 'augment'; did you mean 'flip'\?"),
        ({"augment": {"crop_padding": -1}}, "data.transform.augment.crop_padding is -1"),
    ],
)
def test_invalid_settings_are_one_line_errors(options, message):
    with pytest.raises(UserError, match=message):
        _transform(FLOATS, **options)


def test_missing_key_and_labels_that_are_not_classes_are_named():
    augment = dict(defaults.image(channels=3).augment)
    del augment["flip"]
    section = {**defaults.image(channels=3), "augment": augment}
    del section["name"]
    with pytest.raises(UserError, match=r"data.transform.augment.flip is missing"):
        image({"train": FLOATS}, ArtifactCache(), **section)
    with pytest.raises(UserError, match=r"mixes classes \(mixup, cutmix\); labels of split 'train' are not"):
        _transform({**FLOATS, "label": [0.5, 1.0, 2.0]}, augment={"mixup": 0.2})


def test_too_wide_a_border_is_rejected_before_training():
    changes = {"crop_padding": 8, "crop_border": "reflect"}
    with pytest.raises(UserError, match=r"crop_padding is 8; images of 8×8 can be mirrored by at most 7"):
        _transform(_columns(), augment=changes)
    _transform(_columns(), augment={**changes, "crop_border": "zero"})


def test_images_have_one_or_three_channels():
    with pytest.raises(UserError, match=r"data\.transform\.channels is 2"):
        _transform(FLOATS, channels=2)
