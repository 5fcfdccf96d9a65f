import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from research.base.errors import UserError
from research.configs import defaults
from research.data import stateless_rng
from research.data.images.augment import Augment, erased, flipped, padded_crops, resized_crop_boxes, resized_crops
from research.data.images.decoding import EvalTransform

OFF = Augment(**defaults.image(channels=3).augment)
PLAIN = EvalTransform(None, None, "bilinear")


def _keys(count, seed=0):
    return stateless_rng.keys(seed, np.zeros(count), np.arange(count)[:, None])[:, 0]


def _images(count, height=8, width=6, channels=3):
    return np.random.default_rng(0).integers(1, 256, (count, height, width, channels), dtype=np.uint8)


def test_default_is_the_identity():
    images = _images(5)
    np.testing.assert_array_equal(OFF(images, _keys(5), PLAIN), images)
    assert not OFF.mixes
    assert not OFF.needs_bytes


@settings(max_examples=50, deadline=None)
@given(
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    channels=st.sampled_from([1, 3]),
    padding=st.integers(1, 4),
    border=st.sampled_from(["zero", "reflect"]),
)
def test_padded_crop_is_a_window_of_the_padded_image(height, width, channels, padding, border):
    images = _images(20, height, width, channels)
    if border == "reflect":
        padding = min(padding, height - 1, width - 1)
    crops = padded_crops(images, _keys(20), padding=padding, border=border)
    assert crops.shape == images.shape
    for image, crop in zip(images, crops, strict=True):
        wider = np.zeros((height + 2 * padding, width + 2 * padding, channels), np.uint8)
        wider[padding : padding + height, padding : padding + width] = image
        if border == "reflect":
            rows = np.abs(np.arange(-padding, height + padding))
            columns = np.abs(np.arange(-padding, width + padding))
            rows = np.minimum(rows, 2 * (height - 1) - rows)
            wider = image[rows][:, np.minimum(columns, 2 * (width - 1) - columns)]
        places = [(y, x) for y in range(2 * padding + 1) for x in range(2 * padding + 1)]
        assert any(np.array_equal(crop, wider[y : y + height, x : x + width]) for y, x in places)


def test_positions_are_uniform_and_half_are_flipped():
    images = np.zeros((9000, 5, 5, 1), np.uint8)
    images[:, 2, 2] = 1
    crops = padded_crops(images, _keys(9000), padding=1, border="zero")
    counts = crops.sum(axis=0, dtype=int)[1:4, 1:4].ravel()
    assert counts.sum() == 9000
    assert np.abs(counts - 1000).max() < 5 * (9000 * 8 / 81) ** 0.5  # 5 standard deviations
    pairs = np.tile(np.array([1, 2], np.uint8)[None, None, :, None], (9000, 1, 1, 1))
    mirrored = flipped(pairs, _keys(9000))[:, 0, 0, 0] == 2
    assert abs(mirrored.sum() - 4500) < 5 * 2250**0.5
    np.testing.assert_array_equal(flipped(pairs, _keys(9000)).sum(axis=2), 3)
    assert (pairs[:, 0, 0, 0] == 1).all()  # the input is unchanged


def test_reflection_padding_needs_enough_pixels():
    with pytest.raises(UserError, match=r"crop_padding is 6; images of 8×6 can be mirrored by at most 5"):
        padded_crops(_images(1), _keys(1), padding=6, border="reflect")


SIDES = st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=20)


@settings(max_examples=200, deadline=None)
@given(
    sides=SIDES,
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    ratio=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(sorted),
    seed=st.integers(0, 99),
)
def test_resized_crops_lie_inside_the_image(sides, scale, ratio, seed):
    heights, widths = np.array(sides).T
    top, left, tall, wide = resized_crop_boxes(heights, widths, _keys(len(sides), seed), scale=scale, ratio=ratio).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (tall > 0).all()
    assert (wide > 0).all()
    assert (top + tall <= heights).all()
    assert (left + wide <= widths).all()


def test_resized_crops_have_the_requested_areas_and_ratios():
    """For a large image the first attempt fits: uniform areas, log-uniform ratios. A tall strip uses its centre."""
    sides = np.full(4000, 1000)
    top, left, tall, wide = resized_crop_boxes(sides, sides, _keys(4000), scale=(0.08, 0.5), ratio=(0.75, 4 / 3)).T
    area, ratio = tall * wide / 1e6, np.log(wide / tall) / np.log(4 / 3)
    assert 0.0795 < area.min() < 0.085
    assert 0.495 < area.max() < 0.505
    assert abs(area.mean() - 0.29) < 5 * 0.42 / 12**0.5 / 4000**0.5
    assert abs(ratio.mean()) < 5 * 2 / 12**0.5 / 4000**0.5
    assert -1.01 < ratio.min() < -0.99
    for offset, side in ((top, tall), (left, wide)):
        place = offset / (1000 - side)
        assert abs(place.mean() - 0.5) < 5 * 12**-0.5 / 4000**0.5
    assert abs(np.corrcoef(area, ratio)[0, 1]) < 5 / 4000**0.5
    strips = resized_crop_boxes(
        np.array([1000, 10]), np.array([10, 1000]), _keys(2), scale=(0.9, 1), ratio=(0.75, 4 / 3)
    )
    assert strips.tolist() == [[493, 0, 13, 10], [0, 493, 10, 13]]
    whole = resized_crop_boxes(np.array([30]), np.array([35]), _keys(1), scale=(2, 2), ratio=(0.75, 4 / 3))
    assert whole.tolist() == [[0, 0, 30, 35]]


def test_resized_crops_have_the_size_used_in_evaluation():
    images = [np.full((height, 30, 3), height, np.uint8) for height in (20, 40)]
    options = {"scale": (0.3, 1.0), "ratio": (0.75, 4 / 3)}
    found = resized_crops(images, _keys(2), view=EvalTransform(16, 12, "bilinear"), **options)
    assert found.shape == (2, 12, 12, 3)
    assert [np.unique(crop).tolist() for crop in found] == [[20], [40]]
    ramp = np.tile(np.arange(200, dtype=np.uint8)[None, :, None], (200, 1, 1))
    (crop,) = resized_crops([ramp], _keys(1), view=EvalTransform(None, 50, "bilinear"), **options)
    (_, left, _, wide), *_ = resized_crop_boxes(np.array([200]), np.array([200]), _keys(1), **options)
    expected = left + (np.arange(50) + 0.5) * wide / 50 - 0.5
    assert np.abs(crop[:, 1:-1, 0] - expected[None, 1:-1]).max() <= 1  # measured 0.61: rounding, twice
    same = resized_crops(np.stack(images[:1]), _keys(1), view=PLAIN, **options)
    assert same.shape == (1, 20, 30, 3)


def test_rectangle_is_erased_from_some_images():
    images = np.zeros((4000, 16, 16, 3), np.uint8)
    found = erased(images, _keys(4000), 0.25)
    touched = (found > 0).any(axis=(1, 2, 3))
    assert abs(touched.sum() - 1000) < 5 * 750**0.5
    areas = []
    for image in found[touched]:
        ys, xs = np.nonzero((image > 0).any(axis=2))
        box = image[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
        assert (box > 0).mean() > 0.8  # a box of noise, in which one value in 256 is 0
        areas.append(box.shape[0] * box.shape[1] / 256)
    assert 0.01 < min(areas) < 0.03
    assert 0.3 < max(areas) < 0.36
    noise = found[found > 0]
    assert np.abs(np.bincount(noise, minlength=256)[1:] - len(noise) / 255).max() < 5 * (len(noise) / 255) ** 0.5
    assert not erased(images, _keys(4000), 0.0).any()
    assert not images.any()


ALL = dataclasses.replace(OFF, flip=True, randaugment_ops=2, erasing=0.5)
SETTINGS = {
    "padded": dataclasses.replace(ALL, crop_padding=2, crop_border="reflect"),
    "resized": dataclasses.replace(ALL, random_resized_crop=(0.2, 1.0)),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_augmentation_depends_on_the_key_alone(name):
    images, keys, change = _images(24), _keys(24), SETTINGS[name]
    whole = change(images, keys, PLAIN)
    assert whole.shape == images.shape
    assert whole.dtype == np.uint8
    order = np.random.default_rng(1).permutation(24)
    for part in (order[:7], order[7:], order[:1]):
        np.testing.assert_array_equal(change(images[part], keys[part], PLAIN), whole[part])
        np.testing.assert_array_equal(change(list(images[part]), keys[part], PLAIN), whole[part])
    assert (change(images, _keys(24, seed=1), PLAIN) != whole).any(axis=(1, 2, 3)).mean() > 0.9


def test_uses_of_a_key_are_independent():
    """Flips, crop positions and erased rectangles are independent."""
    images = np.zeros((4000, 7, 7, 1), np.uint8)
    images[:, 3, 3], images[:, 3, 5] = 100, 200
    change = dataclasses.replace(OFF, crop_padding=1, flip=True)
    found = change(images, _keys(4000), PLAIN)[..., 0]
    column = np.argmax((found == 100).any(axis=1), axis=1)
    mirrored = np.argmax((found == 200).any(axis=1), axis=1) < column
    moved = np.where(mirrored, 6 - column, column)
    assert set(moved) == {2, 3, 4}
    assert abs(np.corrcoef(moved, mirrored)[0, 1]) < 5 / 4000**0.5


def test_augmentations_never_change():
    """A golden value: if it changed, runs of earlier versions would not be reproducible."""
    images = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3, 1)
    change = dataclasses.replace(OFF, crop_padding=1, flip=True)
    assert change(images, _keys(6), PLAIN)[:, 2, :, 0].tolist() == [
        [7, 8, 0],
        [0, 15, 16],
        [33, 34, 35],
        [42, 43, 44],
        [56, 55, 54],
        [0, 71, 70],
    ]
    sides = np.array([300, 200])
    boxes = resized_crop_boxes(sides, sides, _keys(2), scale=(0.08, 1.0), ratio=(0.75, 4 / 3))
    assert boxes.tolist() == [[99, 126, 152, 118], [37, 41, 152, 136]]
    noise = erased(np.zeros((2, 8, 8, 1), np.uint8), _keys(2), 1.0)
    assert noise[noise > 0].tolist() == [72, 143, 197, 176, 68, 208]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_padding": -1}, "crop_padding is -1; it must be at least 0"),
        ({"crop_border": "grey"}, "crop_border is 'grey'; known: zero, reflect"),
        ({"erasing": 1.5}, "erasing is 1.5; it must be 0 to 1"),
        ({"randaugment_magnitude": 31}, "randaugment_magnitude is 31; it must be 0 to 30"),
        ({"mixup": -0.1}, "mixup is -0.1; it must be at least 0"),
        ({"cutmix": float("nan")}, "cutmix is nan"),
        (
            {"random_resized_crop": (0.5, 1.5)},
            r"random_resized_crop is \(0.5, 1.5\); it must be two positive numbers of",
        ),
        ({"random_resized_crop": (1.0,)}, r"random_resized_crop is \(1.0,\)"),
        ({"aspect_ratio": (2.0, 1.0)}, r"aspect_ratio is \(2.0, 1.0\); it must be two positive numbers, the smaller"),
        ({"random_resized_crop": (0.5, 1.0), "crop_padding": 4}, r"crop_padding is 4 and random_resized_crop \(0.5"),
    ],
)
def test_invalid_settings_are_one_line_errors(change, message):
    with pytest.raises(UserError, match=message):
        dataclasses.replace(OFF, **change)
