"""Decodes images, and resizes them for a model."""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from research.base.errors import UserError

MODES = {1: "L", 3: "RGB"}
# Formats that pillow decodes by itself: it gives PostScript to another program.
SAFE_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM")
INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def decode(encoded: bytes | np.ndarray, channels: int) -> np.ndarray:
    """Decodes a PNG, a JPEG or another format of pillow -> uint8 [H, W, channels], whatever the file's pixel format.

    One channel is luma (ITU-R 601); three are RGB, all equal for a grey image. Palettes are looked up; transparency is
    dropped, leaving the colours unchanged; of 16 bits the upper eight are kept. The orientation in a camera's metadata
    is ignored, as in TensorFlow's decoders.

    Raises ValueError describing the problem.
    """
    try:
        image: Image.Image = Image.open(io.BytesIO(encoded))
        image.load()
    except Exception as error:  # pillow passes on any exception of its readers
        # Pillow's message for bytes that are not an image contains a memory address.
        what = "it is not an image" if isinstance(error, Image.UnidentifiedImageError) else f"{error}" or repr(error)
        raise ValueError(what.splitlines()[0]) from error
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() >= 2**16:
            raise ValueError("its pixels have more than 16 bits")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
    if "transparency" in image.info and image.mode == "P":
        image = image.convert("RGBA")  # pillow warns without this step
    return pixels(image if image.mode == MODES[channels] else image.convert(MODES[channels]))


def image_size(encoded: bytes) -> tuple[int, int]:
    """The width and height that an image file declares, without decoding it.

    Raises ValueError if it is not an image in one of SAFE_FORMATS.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=SAFE_FORMATS) as image:
            return image.size
    except Exception as error:  # as in `decode`; pillow also refuses sizes from which it expects an attack
        raise ValueError(f"it is too large, or not an image in one of the formats {', '.join(SAFE_FORMATS)}") from error


def pixels(image: Image.Image) -> np.ndarray:
    """An image of mode L or RGB as uint8 [H, W, C]."""
    array = np.asarray(image)
    return array if array.ndim == 3 else array[:, :, None]


def picture(array: np.ndarray) -> Image.Image:
    """uint8 [H, W, C] as an image of mode L or RGB."""
    return Image.fromarray(array if array.shape[2] == 3 else array[:, :, 0])


@dataclasses.dataclass(frozen=True)
class EvalTransform:
    """The evaluation transform: resizes the shorter side to `resize`, then crops the central `size` × `size`.

    As torchvision's Resize (with antialiasing) and CenterCrop, except that an image of `size` × `size` is unchanged,
    and one smaller than `size` is an error instead of being padded. None omits the step.
    """

    resize: int | None
    size: int | None
    interpolation: str

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise UserError(f"data.transform.interpolation is {self.interpolation!r}; known: {known}")
        for key, value in (("resize", self.resize), ("size", self.size)):
            if value is not None and value < 1:
                raise UserError(f"data.transform.{key} is {value}; it must be at least 1")
        if self.resize and self.size and self.resize < self.size:
            raise UserError(
                f"data.transform.resize is {self.resize}, less than data.transform.size, {self.size}; it must be at "
                "least that"
            )

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """The height and width before the central crop."""
        if not self.resize or (height, width) == (self.size, self.size):
            return height, width
        shorter = min(height, width)
        return self.resize * height // shorter, self.resize * width // shorter

    def shape(self, height: int, width: int) -> tuple[int, int]:
        """The height and width of a transformed image of `height` × `width`."""
        return (self.size, self.size) if self.size else self._resized(height, width)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Transforms uint8 [H, W, C] -> uint8 [h, w, C]; any type if no step applies. Raises UserError."""
        height, width = image.shape[:2]
        resized = self._resized(height, width)
        if resized != (height, width):
            image = resample(image, resized, self.interpolation)
        height, width = image.shape[:2]
        if self.size is None:
            return image
        if min(height, width) < self.size:
            raise UserError(
                f"an image of {height}×{width} is smaller than data.transform.size, {self.size}; give "
                "data.transform.resize too"
            )
        top, left = round((height - self.size) / 2), round((width - self.size) / 2)
        return image[top : top + self.size, left : left + self.size]

    def all(self, images: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
        """Transforms images [H, W, C] or [B, H, W, C] -> [B, h, w, C]. Sizes may differ only if `size` is given."""
        if isinstance(images, np.ndarray) and self.shape(*images.shape[1:3]) == images.shape[1:3]:
            return images
        return np.stack([self(image) for image in images])


def resample(image: np.ndarray, shape: tuple[int, int], interpolation: str) -> np.ndarray:
    """Resizes uint8 [H, W, C] -> uint8 [h, w, C], antialiased when shrinking."""
    return pixels(picture(image).resize(shape[::-1], INTERPOLATIONS[interpolation]))
