# mypy: disable-error-code="call-arg"
import io
import warnings

import numpy as np
import pytest
from PIL import Image

from research.base.errors import UserError
from research.data.images.decoding import EvalTransform, decode
from tests.data.tiny_images import encoded


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _file(image, file_format="PNG", **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


GREY = np.random.default_rng(0).integers(0, 256, (6, 5), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def test_png_round_trips():
    np.testing.assert_array_equal(decode(encoded(COLOUR), 3), COLOUR)
    np.testing.assert_array_equal(decode(encoded(GREY), 1), GREY[:, :, None])
    np.testing.assert_array_equal(decode(np.frombuffer(encoded(GREY), np.uint8), 1), GREY[:, :, None])


def test_a_jpeg_is_decoded():
    smooth = np.linspace(0, 255, 48).astype(np.uint8).reshape(6, 8, 1).repeat(3, axis=2)
    found = decode(_file(Image.fromarray(smooth), "JPEG", quality=95), 3)
    assert np.abs(found.astype(int) - smooth).max() < 12  # measured 6


def test_grey_and_colour_are_converted():
    np.testing.assert_array_equal(decode(encoded(GREY), 3), np.repeat(GREY[:, :, None], 3, axis=2))
    luma = COLOUR @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    np.testing.assert_allclose(decode(encoded(COLOUR), 1)[:, :, 0], luma, atol=1)


def test_transparency_is_dropped():
    alpha = np.full((6, 5), 7, np.uint8)
    np.testing.assert_array_equal(decode(encoded(np.dstack([COLOUR, alpha])), 3), COLOUR)
    np.testing.assert_array_equal(
        decode(_file(Image.merge("LA", [*map(Image.fromarray, (GREY, alpha))])), 1)[..., 0], GREY
    )


@pytest.mark.parametrize("options", [{}, {"transparency": 3}, {"transparency": bytes(range(30))}])
def test_palettes_are_looked_up(options):
    image = Image.frombytes("P", (5, 6), bytes(range(30)))
    image.putpalette(COLOUR.tobytes())
    np.testing.assert_array_equal(decode(_file(image, **options), 3), COLOUR)


def test_upper_eight_of_16_bits_are_kept():
    values = np.array([[0, 255, 256, 30_000, 65_535]], np.uint16)
    assert decode(encoded(values), 1)[:, :, 0].tolist() == [[0, 0, 1, 117, 255]]
    assert decode(encoded(values), 3)[:, :, 2].tolist() == [[0, 0, 1, 117, 255]]


def test_one_bit_is_black_and_white():
    bits = np.array([[True, False, True]])
    assert decode(encoded(bits), 1)[:, :, 0].tolist() == [[255, 0, 255]]


def test_camera_orientation_is_ignored():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    assert decode(_file(Image.fromarray(COLOUR), exif=exif), 3).shape == (6, 5, 3)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"", "it is not an image"),
        (b"a text", "it is not an image"),
        (encoded(COLOUR)[:80], "truncated"),
        (_file(Image.fromarray(COLOUR), "JPEG")[:-20], "truncated"),
        (_file(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "floating-point"),
        (_file(Image.fromarray(np.full((2, 2), 2**17, np.int32)), "TIFF"), "more than 16 bits"),
    ],
)
def test_invalid_images_are_one_line_errors(file, message):
    with pytest.raises(ValueError, match=message) as caught:
        decode(file, 3)
    assert "\n" not in str(caught.value)
    assert "0x" not in str(caught.value)


@pytest.mark.parametrize(
    ("view", "shape", "expected"),
    [
        ((None, None), (9, 6), (9, 6)),
        ((None, 4), (9, 6), (4, 4)),
        ((4, None), (9, 6), (6, 4)),
        ((4, None), (7, 9), (4, 5)),  # 36 / 7 is rounded down, as in torchvision
        ((6, 4), (30, 20), (4, 4)),
        ((6, 4), (4, 4), (4, 4)),
    ],
)
def test_size_of_an_image_in_evaluation(view, shape, expected):
    view = EvalTransform(*view, "bilinear")
    assert view.shape(*shape) == expected
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert view(image).shape == (*expected, 3)
    assert view.all(np.stack([image, image])).shape == (2, *expected, 3)


def test_centre_is_cropped_and_fitting_images_are_unchanged():
    image = np.arange(7 * 8, dtype=np.uint8).reshape(7, 8, 1)
    np.testing.assert_array_equal(EvalTransform(None, 4, "bilinear")(image), image[2:6, 2:6])  # round(1.5) is 2
    batch = np.stack([image, image])
    assert EvalTransform(None, None, "bilinear").all(batch) is batch  # not even a copy
    np.testing.assert_array_equal(EvalTransform(9, 7, "bilinear")(image[:, :7]), image[:, :7])


@pytest.mark.parametrize(("interpolation", "support"), [("bilinear", 1), ("bicubic", 2)])
def test_shrinking_is_antialiased(interpolation, support):
    """Stripes one pixel wide become grey, except at the edges; without antialiasing they stay black and white."""
    stripes = np.tile(np.array([0, 255], np.uint8), (40, 20))[:, :, None]
    small = EvalTransform(10, None, interpolation)(stripes)[:, support:-support]
    assert small.min() > 110  # measured 127
    assert small.max() < 145  # measured 128
    rows = EvalTransform(10, None, interpolation)(np.swapaxes(stripes, 0, 1))[support:-support]
    assert rows.min() > 110


def test_invalid_sizes_are_one_line_errors():
    with pytest.raises(UserError, match=r"interpolation is 'cubic'; known: bilinear, bicubic"):
        EvalTransform(None, None, "cubic")
    with pytest.raises(UserError, match=r"data.transform.size is 0; it must be at least 1"):
        EvalTransform(None, 0, "bilinear")
    with pytest.raises(UserError, match=r"resize is 3, less than data.transform.size, 4"):
        EvalTransform(3, 4, "bilinear")
    with pytest.raises(UserError, match=r"an image of 3×9 is smaller than data.transform.size, 4; give"):
        EvalTransform(None, 4, "bilinear")(np.zeros((3, 9, 1), np.uint8))
