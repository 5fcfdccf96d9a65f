"""Random augmentation of training images, each a pure function of the image and a key.

An example's key is a function of (seed, epoch, example index), and so is its augmentation.
"""

import dataclasses
import math
from typing import ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from research.base.errors import UserError
from research.base.ranges import FRACTION, POSITIVE, Range
from research.data import stateless_rng
from research.data.images.decoding import EvalTransform, resample
from research.data.images.mixing import mixed
from research.data.images.randaugment import OPERATIONS, randaugment

# The uses of a key's numbers: their order must never change, or runs would not be reproducible.
_CROP, _FLIP, _OPERATIONS, _ERASING, _MIXING = range(5)

BORDERS = {"zero": "constant", "reflect": "reflect"}  # numpy's names

ATTEMPTS = 10  # boxes to draw before giving up the search for one that fits
ERASED_AREA = (0.02, 0.33)
ERASED_RATIO = (0.3, 3.3)


@dataclasses.dataclass(frozen=True)
class Augment:
    """The augmentation of training images, applied in this order; none by default.

    Attributes:
      crop_padding: pixels added on each side before a random crop of the original size (He et al. 2015, section 4.2);
        an alternative to a random resized crop.
      crop_border: the added pixels: "zero", or "reflect", the image mirrored at its edge.
      random_resized_crop: the smallest and largest fraction of the image's area to crop; see `resized_crop_boxes`. The
        crop is resized to the size in which evaluation sees the image. None: no random resized crop.
      aspect_ratio: the smallest and largest width / height of that crop.
      flip: whether to mirror half of the images, left to right.
      randaugment_ops: the number of RandAugment operations applied to each image.
      randaugment_magnitude: their strength, 0 to 30.
      erasing: the fraction of images in which a rectangle is erased; see `erased`.
      mixup, cutmix: alpha of the share that another image has in each; 0: none. See research/data/images/mixing.py.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "crop_padding": Range(0, 1024, integer=True),
        "random_resized_crop": Range(0, 1, open="low"),
        "aspect_ratio": POSITIVE,
        "randaugment_ops": Range(0, 100, integer=True),
        "randaugment_magnitude": Range(0, 30, integer=True),
        "erasing": FRACTION,
        "mixup": Range(0, 1000),
        "cutmix": Range(0, 1000),
    }

    crop_padding: int
    crop_border: str
    random_resized_crop: tuple[float, float] | None
    aspect_ratio: tuple[float, float]
    flip: bool
    randaugment_ops: int
    randaugment_magnitude: int
    erasing: float
    mixup: float
    cutmix: float

    def __post_init__(self) -> None:
        for key, high in (
            ("crop_padding", math.inf),
            ("randaugment_ops", math.inf),
            ("randaugment_magnitude", 30),
            ("erasing", 1),
            ("mixup", math.inf),
            ("cutmix", math.inf),
        ):
            value = getattr(self, key)
            if not 0 <= value <= high:
                limit = "at least 0" if high == math.inf else f"0 to {high}"
                raise UserError(f"data.transform.augment.{key} is {value}; it must be {limit}")
        if self.crop_border not in BORDERS:
            raise UserError(f"data.transform.augment.crop_border is {self.crop_border!r}; known: {', '.join(BORDERS)}")
        for key, high in (("random_resized_crop", 1), ("aspect_ratio", math.inf)):
            pair = getattr(self, key)
            if pair is not None and not (len(pair) == 2 and 0 < pair[0] <= pair[1] <= high):
                limit = " of at most 1" if high == 1 else ""
                raise UserError(
                    f"data.transform.augment.{key} is {tuple(pair)}; it must be two positive numbers{limit}, the "
                    "smaller first"
                )
        if self.crop_padding and self.random_resized_crop:
            raise UserError(
                f"data.transform.augment.crop_padding is {self.crop_padding} and random_resized_crop "
                f"{tuple(self.random_resized_crop)}; give one of the two"
            )

    @property
    def needs_bytes(self) -> list[str]:
        """The enabled settings that need images of bytes."""
        return [key for key in ("random_resized_crop", "randaugment_ops", "erasing") if getattr(self, key)]

    def check_size(self, height: int, width: int) -> None:
        """Raises UserError if images of this size, as evaluation sees them, are too small for the augmentation."""
        _check_padding(self.crop_padding, self.crop_border, height, width)

    @property
    def redraws(self) -> bool:
        """Whether single images are changed, apart from mixing."""
        return bool(self.crop_padding or self.random_resized_crop or self.flip or self.randaugment_ops or self.erasing)

    @property
    def mixes(self) -> bool:
        return bool(self.mixup or self.cutmix)

    def mixed(self, images: np.ndarray, others: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mixes two images, [B, H, W, C] each -> images, and the share of the second, float32 [B]; keys: uint64 [B]."""
        return mixed(images, others, _own(keys, _MIXING), mixup=self.mixup, cutmix=self.cutmix)

    def __call__(self, images: np.ndarray | list[np.ndarray], keys: np.ndarray, view: EvalTransform) -> np.ndarray:
        """Augments images [H, W, C] each, or [B, H, W, C], by keys uint64 [B] -> [B, h, w, C] of the same type."""
        if self.random_resized_crop:
            found = resized_crops(
                images, _own(keys, _CROP), scale=self.random_resized_crop, ratio=self.aspect_ratio, view=view
            )
        else:
            found = view.all(images)
        if self.crop_padding:
            found = padded_crops(found, _own(keys, _CROP), padding=self.crop_padding, border=self.crop_border)
        if self.flip:
            found = flipped(found, _own(keys, _FLIP))
        if self.randaugment_ops:
            numbers = stateless_rng.numbers(_own(keys, _OPERATIONS), 2 * self.randaugment_ops)
            chosen = stateless_rng.below(numbers[:, ::2], len(OPERATIONS))
            signs = 1 - 2 * stateless_rng.below(numbers[:, 1::2], 2)
            strength = self.randaugment_magnitude / 30
            found = np.stack([randaugment(*each, strength) for each in zip(found, chosen, signs, strict=True)])
        if self.erasing:
            found = erased(found, _own(keys, _ERASING), self.erasing)
        return found


def _own(keys: np.ndarray, use: int) -> np.ndarray:
    """Separate keys for one use of `keys`: uint64 [B]."""
    return stateless_rng.numbers(keys, 1, stream=use)[:, 0]


def padded_crops(images: np.ndarray, keys: np.ndarray, *, padding: int, border: str) -> np.ndarray:
    """Random H × W crops of images [B, H, W, C] with `padding` pixels added on each side.

    As torchvision's RandomCrop(size, padding=padding, padding_mode="constant" or "reflect"), uniform over positions.
    Raises UserError if the images are too small to be mirrored.
    """
    batch, height, width, channels = images.shape
    _check_padding(padding, border, height, width)
    top, left = stateless_rng.below(stateless_rng.numbers(keys, 2), 2 * padding + 1).T
    wider = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), BORDERS[border])  # type: ignore[call-overload]
    # A view of all crops, with contiguous pixels per line: faster than an index for each pixel.
    lines = wider.reshape(batch, height + 2 * padding, -1)
    crops = sliding_window_view(lines, (height, width * channels), axis=(1, 2))
    return crops[np.arange(batch), top, left * channels].reshape(images.shape)


def _check_padding(padding: int, border: str, height: int, width: int) -> None:
    if border == "reflect" and padding >= min(height, width):
        raise UserError(
            f"data.transform.augment.crop_padding is {padding}; images of {height}×{width} can be mirrored by at most "
            f"{min(height, width) - 1}"
        )


def flipped(images: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Mirrors about half of the images [B, H, W, C] left to right, as torchvision's RandomHorizontalFlip."""
    mirrored = stateless_rng.uniform(stateless_rng.numbers(keys, 1)[:, 0]) < 0.5
    found = images.copy()
    found[mirrored] = images[mirrored, :, ::-1]
    return found


def resized_crops(
    images: np.ndarray | list[np.ndarray],
    keys: np.ndarray,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    view: EvalTransform,
) -> np.ndarray:
    """Random boxes of images uint8 [H, W, C], resized to the size in which `view` shows each -> [B, h, w, C].

    As torchvision's RandomResizedCrop with antialiasing.
    """
    heights, widths = (np.array([image.shape[axis] for image in images]) for axis in (0, 1))
    boxes = resized_crop_boxes(heights, widths, keys, scale=scale, ratio=ratio)
    return np.stack(
        [
            resample(image[top : top + height, left : left + width], view.shape(*image.shape[:2]), view.interpolation)
            for image, (top, left, height, width) in zip(images, boxes, strict=True)
        ]
    )


def resized_crop_boxes(
    heights: np.ndarray, widths: np.ndarray, keys: np.ndarray, *, scale: tuple[float, float], ratio: tuple[float, float]
) -> np.ndarray:
    """Boxes (top, left, height, width) inside images of heights and widths int [B]: int64 [B, 4].

    Szegedy et al. 2015 ("Going deeper", section 6), with torchvision's rules: a part of the area, uniform in `scale`,
    and an aspect ratio, log-uniform in `ratio`; the first of ten such boxes that fits, at a uniform place; if none
    does, the largest box in the centre whose aspect ratio is in `ratio`.
    """
    heights, widths = heights[:, None], widths[:, None]  # [B, 1], to broadcast with attempts [B, ATTEMPTS]
    area, shape, top, left = np.moveaxis(stateless_rng.numbers(keys, 4 * ATTEMPTS).reshape(-1, ATTEMPTS, 4), -1, 0)
    tall, wide = _sides(heights * widths, area, shape, scale=scale, ratio=ratio)
    fits = (tall > 0) & (tall <= heights) & (wide > 0) & (wide <= widths)
    tops, lefts = stateless_rng.below(top, heights - tall + 1), stateless_rng.below(left, widths - wide + 1)
    drawn = np.stack([tops, lefts, tall, wide], axis=-1)[np.arange(len(keys)), fits.argmax(axis=1)]

    low, high = ratio
    most_wide = np.where(widths / heights > high, np.rint(heights * high), widths)
    most_tall = np.where(widths / heights < low, np.rint(widths / low), heights)
    most_tall, most_wide = np.maximum(most_tall, 1), np.maximum(most_wide, 1)  # for images one pixel wide
    centre = np.stack([(heights - most_tall) // 2, (widths - most_wide) // 2, most_tall, most_wide], axis=-1)[:, 0]
    return np.where(fits.any(axis=1, keepdims=True), drawn, centre).astype(np.int64)


def _sides(
    whole: np.ndarray | int,
    area: np.ndarray,
    shape: np.ndarray,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray]:
    """Heights and widths, int64, of boxes: a uniform fraction of the area `whole`, a log-uniform aspect ratio."""
    part = whole * (scale[0] + stateless_rng.uniform(area) * (scale[1] - scale[0]))
    aspect = np.exp(math.log(ratio[0]) + stateless_rng.uniform(shape) * math.log(ratio[1] / ratio[0]))
    return np.rint(np.sqrt(part / aspect)).astype(np.int64), np.rint(np.sqrt(part * aspect)).astype(np.int64)


def erased(images: np.ndarray, keys: np.ndarray, probability: float) -> np.ndarray:
    """Fills a rectangle in some images, uint8 [B, H, W, C], with random pixels (Zhong et al. 2020, "random erasing").

    The rectangles are those of torchvision's RandomErasing: 2 to 33 % of the area, an aspect ratio of 0.3 to 3.3, the
    first of ten that is less high and less wide than the image, else none. They are filled with a random number for
    each pixel and channel, which the paper found best; torchvision's default is zeros.
    """
    _, height, width, channels = images.shape
    chance = stateless_rng.uniform(stateless_rng.numbers(keys, 1)[:, 0]) < probability
    # From the second number on, four per attempt; after those, the pixels.
    used = 1 + 4 * ATTEMPTS
    area, shape, top, left = np.moveaxis(stateless_rng.numbers(keys, used)[:, 1:].reshape(-1, ATTEMPTS, 4), -1, 0)
    tall, wide = _sides(height * width, area, shape, scale=ERASED_AREA, ratio=ERASED_RATIO)
    fits = (tall > 0) & (tall < height) & (wide > 0) & (wide < width)
    tops, lefts = stateless_rng.below(top, height - tall + 1), stateless_rng.below(left, width - wide + 1)
    found = images.copy()
    for i in np.flatnonzero(chance & fits.any(axis=1)):
        attempt = fits[i].argmax()
        h, w, y, x = (int(side[i, attempt]) for side in (tall, wide, tops, lefts))
        noise = stateless_rng.numbers(keys[i], used + -(-h * w * channels // 8))[used:].view(np.uint8)
        found[i, y : y + h, x : x + w] = noise[: h * w * channels].reshape(h, w, channels)
    return found
