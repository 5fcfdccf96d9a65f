"""RandAugment (Cubuk et al. 2020): some of 14 operations, chosen at random, all with the same strength.

The operations and their ranges match torchvision's RandAugment with 31 bins of magnitude: a magnitude m of 0 to 30 is
m / 30 of an operation's range. In the paper's code 10 is the end of the ranges. Geometric operations use the
nearest pixel and fill with black outside the image, as torchvision does by default; the paper's code fills with grey.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from research.data.images.decoding import picture, pixels

# (image, strength from 0 to 1, sign 1 or -1) -> image. Not all operations use all arguments.
Operation = Callable[[Image.Image, float, int], Image.Image]


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    """Affine transformation: the pixel at (x, y) comes from (a·x + b·y + c, d·x + e·y + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


def _enhanced(kind: type[ImageEnhance._Enhance]) -> Operation:
    """The operation that changes the property of `kind` by a factor of at least 0.1 and at most 1.9."""
    return lambda image, strength, sign: kind(image).enhance(1 + sign * 0.9 * strength)  # type: ignore[call-arg]


def _shift(strength: float, sign: int, size: int) -> int:
    return int(sign * strength * size * 150 / 331)


OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, strength, sign: image,
    "shear_x": lambda image, strength, sign: _affine(image, 1, sign * 0.3 * strength, 0, 0, 1, 0),
    "shear_y": lambda image, strength, sign: _affine(image, 1, 0, 0, sign * 0.3 * strength, 1, 0),
    "translate_x": lambda image, strength, sign: _affine(image, 1, 0, -_shift(strength, sign, image.width), 0, 1, 0),
    "translate_y": lambda image, strength, sign: _affine(image, 1, 0, 0, 0, 1, -_shift(strength, sign, image.height)),
    "rotate": lambda image, strength, sign: image.rotate(sign * 30 * strength),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "posterize": lambda image, strength, sign: ImageOps.posterize(image, 8 - round(4 * strength)),
    "solarize": lambda image, strength, sign: ImageOps.solarize(image, math.ceil(round(255 * (1 - strength), 6))),
    "autocontrast": lambda image, strength, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, strength, sign: ImageOps.equalize(image),
}
_IN_ORDER = tuple(OPERATIONS.values())


def randaugment(image: np.ndarray, chosen: np.ndarray, signs: np.ndarray, strength: float) -> np.ndarray:
    """Applies the operations `chosen`, int [K] < 14, with signs 1 or −1, to uint8 [H, W, C] -> uint8 [H, W, C]."""
    changed = picture(image)
    for operation, sign in zip(chosen.tolist(), signs.tolist(), strict=True):
        changed = _IN_ORDER[operation](changed, strength, sign)
    return pixels(changed)
