import dataclasses

import numpy as np
import pytest

from research.configs import defaults
from research.data import stateless_rng
from research.data.images import augment
from research.data.images.augment import Augment
from research.data.images.decoding import EvalTransform
from research.data.images.randaugment import OPERATIONS, randaugment

NAMES = tuple(OPERATIONS)
COLOUR = np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8)
RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)


def _apply(name, image, strength, sign=1):
    return randaugment(image, np.array([NAMES.index(name)]), np.array([sign]), strength)


def test_operations_are_those_of_the_paper():
    """Cubuk et al. 2020, section 3.2, in torchvision's order."""
    assert list(NAMES) == [
        *("identity", "shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness", "color", "contrast"),
        *("sharpness", "posterize", "solarize", "autocontrast", "equalize"),
    ]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("channels", [1, 3])
def test_magnitude_0_is_the_identity_and_30_is_not(name, channels):
    image = np.ascontiguousarray(COLOUR[..., :channels] // 2 + 30)
    none, full = _apply(name, image, 0.0), _apply(name, image, 1.0)
    assert none.shape == full.shape == image.shape
    if name not in ("autocontrast", "equalize"):  # these have no magnitude
        np.testing.assert_array_equal(none, image)
    if name != "identity" and (name, channels) != ("color", 1):
        assert (full != image).mean() > 0.3


def test_geometry():
    """At full magnitude: translation by 150/331 of a side, shear by 0.3, rotation by 30 degrees."""
    image = np.zeros((31, 33, 1), np.uint8)
    image[15, 16] = 255  # pixel centres are at + 0.5
    where = {}
    for name in ("translate_x", "translate_y", "shear_x", "shear_y", "rotate"):
        for sign in (1, -1):
            found = _apply(name, image, 1.0, sign)[..., 0]
            where[name, sign] = tuple(int(np.flatnonzero(found.max(axis=1 - axis))[0]) for axis in (0, 1))
    # 150 / 331 of 33 and of 31 are 14.95 and 14.05.
    assert where["translate_x", 1] == (15, 30)
    assert where["translate_x", -1] == (15, 2)
    assert where["translate_y", 1] == (29, 16)
    assert where["translate_y", -1] == (1, 16)
    # x' is sampled from x = x' + 0.3 · 15.5, a shift of 4.65; vertically, 0.3 · 16.5.
    assert where["shear_x", 1] == (15, 11)
    assert where["shear_x", -1] == (15, 21)
    assert where["shear_y", 1] == (10, 16)
    assert where["rotate", 1] == where["rotate", -1] == (15, 16)
    corner = np.zeros((31, 31, 1), np.uint8)
    corner[15, 28] = 255  # 13 right of the centre, rotated left by 30 degrees: 11.3 right, 6.5 up
    ys, xs = np.nonzero(_apply("rotate", corner, 1.0)[..., 0])
    assert (abs(ys - 8.5).max(), abs(xs - 26.3).max()) <= (1, 1)


def test_colours():
    values = RAMP[..., 0].astype(float)
    for sign, factor in ((1, 1.27), (-1, 0.73)):
        bright = np.clip(factor * values, 0, 255)
        np.testing.assert_allclose(_apply("brightness", RAMP, 0.3, sign)[..., 0], bright, atol=1)
        middle = round(values.mean())
        contrast = np.clip(middle + factor * (values - middle), 0, 255)
        np.testing.assert_allclose(_apply("contrast", RAMP, 0.3, sign)[..., 0], contrast, atol=1)
        grey = (COLOUR @ np.array([0.299, 0.587, 0.114]))[..., None]
        colour = np.clip(grey + factor * (COLOUR - grey), 0, 255)
        np.testing.assert_allclose(_apply("color", COLOUR, 0.3, sign), colour, atol=2)  # grey is rounded too
    for magnitude, bits in ((0, 8), (3, 8), (4, 7), (9, 7), (30, 4)):  # 8 − round(4 · magnitude / 30)
        expected = RAMP & (256 - 2 ** (8 - bits))
        np.testing.assert_array_equal(_apply("posterize", RAMP, magnitude / 30), expected)
    for magnitude, threshold in ((0, 255), (9, 178.5), (20, 85), (30, 0)):  # 255 · (1 − magnitude / 30)
        expected = np.where(threshold > RAMP, RAMP, 255 - RAMP)
        np.testing.assert_array_equal(_apply("solarize", RAMP, magnitude / 30), expected)
    dull = RAMP // 4 + 50
    stretched = _apply("autocontrast", dull, 0.3)
    assert stretched.min() == 0
    assert stretched.max() >= 254  # Pillow truncates
    even = np.bincount(_apply("equalize", np.tile(dull, (8, 8, 1)), 0.3).ravel() // 64, minlength=4)
    assert even.tolist() == [4096] * 4


def test_operations_are_equally_likely(monkeypatch):
    seen = []

    def spy(image, chosen, signs, strength):
        seen.append((chosen, signs))
        assert strength == 0.4
        return image

    monkeypatch.setattr(augment, "randaugment", spy)
    off = Augment(**defaults.image(channels=3).augment)
    change = dataclasses.replace(off, randaugment_ops=3, randaugment_magnitude=12)
    keys = stateless_rng.keys(0, np.zeros(5000), np.arange(5000)[:, None])[:, 0]
    change(np.zeros((5000, 1, 1, 3), np.uint8), keys, EvalTransform(None, None, "bilinear"))
    chosen, signs = (np.array(part) for part in zip(*seen, strict=True))
    assert chosen.shape == signs.shape == (5000, 3)
    for column in chosen.T:
        counts = np.bincount(column, minlength=14)
        assert len(counts) == 14
        assert np.abs(counts - 5000 / 14).max() < 5 * (5000 * 13 / 14**2) ** 0.5
    assert set(signs.ravel()) == {-1, 1}
    assert abs(signs.mean()) < 5 / 15_000**0.5
    for a, b in ((chosen[:, 0], chosen[:, 1]), (chosen[:, 0], signs[:, 0]), (signs[:, 0], signs[:, 1])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / 5000**0.5
