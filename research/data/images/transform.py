"""Images as inputs of a model: unchanged, augmented and mixed in training, or as feature vectors."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from research.base.errors import UserError
from research.base.ranges import ANY, PIXELS, POSITIVE, Range
from research.base.registry import build
from research.data.cache import ArtifactCache
from research.data.columns import only
from research.data.encoder import Encoder, Signature
from research.data.examples import Columns, first, labels_of
from research.data.images import store as image_store
from research.data.images.augment import Augment
from research.data.images.decoding import MODES, EvalTransform
from research.data.images.store import Decoded, Encoded

CHANNELS = Range(1, 3, integer=True)


@dataclasses.dataclass(frozen=True)
class ImageExamples:
    """Images as evaluation sees them. A batch has images [B, h, w, C], uint8, or float32 if the source has floats."""

    row_axes: ClassVar[int] = 1

    store: Decoded | Encoded
    labels: np.ndarray | None
    view: EvalTransform

    def __len__(self) -> int:
        return len(self.store)

    def batch(self, members: np.ndarray, rows: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
        indices = first(members, rows)
        return {"images": self.view.all(self.store.take(indices)), **labels_of(self.labels, indices)}


@dataclasses.dataclass(frozen=True)
class _ChangedImages(ImageExamples):
    """Images that are augmented in training, differently each epoch; evaluation sees them unchanged."""

    augment: Augment

    def drawn(self, indices: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """The images `indices` [B], augmented by keys uint64 [B]: [B, h, w, C]."""
        return self.augment(self.store.take(indices), keys, self.view)


class AugmentedImages(_ChangedImages):
    """Images that are augmented one by one."""

    def train_batch(self, members: np.ndarray, rows: np.ndarray | slice, keys: np.ndarray) -> dict[str, np.ndarray]:
        indices = first(members, rows)
        return {"images": self.drawn(indices, keys[rows, 0]), **labels_of(self.labels, indices)}


class MixedImages(_ChangedImages):
    """Images that are mixed in training with the next one of the epoch, after each was augmented.

    A training batch also has mixed_labels int32 [B], those of the other images, and mixed_weight float32 [B], their
    share.
    """

    def mixed_batch(
        self,
        members: np.ndarray,
        rows: np.ndarray | slice,
        keys: np.ndarray,
        others: np.ndarray,
        other_keys: np.ndarray,
    ) -> dict[str, np.ndarray]:
        assert self.labels is not None
        own, other = first(members, rows), first(others, rows)
        # Nearly every row's other image is the next row's image: each is computed once.
        indices, drawn_keys = np.concatenate([own, other]), np.concatenate([keys[rows, 0], other_keys[rows, 0]])
        wanted, places = np.unique(np.stack([indices.astype(np.uint64), drawn_keys]), axis=1, return_inverse=True)
        made = self.drawn(wanted[0].astype(np.int64), wanted[1])
        here, there = made[places.reshape(2, -1)]
        images, shares = self.augment.mixed(here, there, keys[rows, 0])
        return {
            "images": images,
            "labels": self.labels[own],
            "mixed_labels": self.labels[other],
            "mixed_weight": shares,
        }


@dataclasses.dataclass(frozen=True)
class PixelExamples(ImageExamples):
    """Images as feature vectors: features float32 [B, H·W·C], (value − mean) / std with mean, std [C] per channel."""

    mean: np.ndarray
    std: np.ndarray

    def batch(self, members: np.ndarray, rows: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
        batch = super().batch(members, rows)
        images = (batch.pop("images").astype(np.float32) - self.mean) / self.std
        return {"features": images.reshape(len(images), -1), **batch}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """Column `inputs`, encoded images or arrays [N, H, W, C], as images in their original range.

    Attributes:
      channels: 1 or 3; encoded images are converted (research/data/images/decoding.py), arrays must have that many.
      resize, size, interpolation: the evaluation transform; see `EvalTransform`.
      augment: the augmentation in training; see `Augment`.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "channels": CHANNELS,
        "resize": PIXELS,
        "size": PIXELS,
        **{f"augment.{key}": limits for key, limits in Augment.RANGES.items()},
    }

    inputs: tuple[str, ...]
    label: str
    channels: int
    resize: int | None
    size: int | None
    interpolation: str
    augment: Mapping[str, Any]

    def fit(self, splits: Mapping[str, Columns], cache: ArtifactCache) -> "ImageEncoder":
        view = EvalTransform(self.resize, self.size, self.interpolation)
        augment = build({"augment": Augment}, {"name": "augment", **self.augment}, "data.transform.augment")
        return ImageEncoder(_Images(only(self.inputs), self.label, self.channels, view), augment)


@dataclasses.dataclass(frozen=True)
class _Images:
    """Settings for reading images: the columns, the channels, and the evaluation transform."""

    name: str
    label: str
    channels: int
    view: EvalTransform

    def __post_init__(self) -> None:
        if self.channels not in MODES:
            raise UserError(f"data.transform.channels is {self.channels}; it must be 1 or 3")

    @property
    def signature(self) -> Signature:
        limits = {"channels": self.channels} | ({"size": self.view.size} if self.view.size else {})
        return Signature("image", (self.name,), self.label, limits)

    def read(self, columns: Columns, split: str, labels: bool, cache: ArtifactCache) -> ImageExamples:
        label = self.label if labels else None
        store, given = image_store.read(columns, split, cache, name=self.name, label=label, channels=self.channels)
        if isinstance(store, Encoded) and self.view.size is None:
            raise UserError(
                f"images of split {split!r} differ in size, or are too many to be kept decoded; transform image with "
                "data.transform.size resizes them to one size"
            )
        return ImageExamples(store, given, self.view)


@dataclasses.dataclass(frozen=True)
class ImagesEncoder(Encoder):
    """What the encoders of images share."""

    images: _Images

    @property
    def signature(self) -> Signature:
        return self.images.signature


@dataclasses.dataclass(frozen=True)
class ImageEncoder(ImagesEncoder):
    """Encodes images, with augmentation and mixing for training."""

    augment: Augment

    def _encode(self, columns: Columns, split: str, labels: bool, cache: ArtifactCache) -> ImageExamples:
        plain = self.images.read(columns, split, labels, cache)
        if not labels:
            return plain  # nothing is trained on it
        augment, given = self.augment, plain.labels
        assert given is not None
        needs_bytes = ["resize"] * bool(plain.view.resize) + [f"augment.{key}" for key in augment.needs_bytes]
        if needs_bytes and isinstance(plain.store, Decoded) and plain.store.images.dtype != np.uint8:
            raise UserError(
                f"data.transform.{needs_bytes[0]} takes images of bytes; those of split {split!r} are floating-point"
            )
        if len(plain) and isinstance(plain.store, Decoded):
            augment.check_size(*plain.view.shape(*plain.store.images.shape[1:3]))
        if augment.mixes and not np.issubdtype(given.dtype, np.integer):
            raise UserError(
                f"data.transform.augment mixes classes (mixup, cutmix); labels of split {split!r} are not classes"
            )
        if augment.mixes:
            return MixedImages(plain.store, given, plain.view, augment)
        if augment.redraws:
            return AugmentedImages(plain.store, given, plain.view, augment)
        return plain  # without augmentation no keys are drawn


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelTransform:
    """Column `inputs` of images as in `ImageTransform`, as feature vectors.

    Attributes:
      mean, std: one number per channel.
    """

    RANGES: ClassVar[dict[str, Range]] = {"channels": CHANNELS, "mean": ANY, "std": POSITIVE}

    inputs: tuple[str, ...]
    label: str
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels or (key == "std" and min(values) <= 0):
                positive = "positive " if key == "std" else ""
                raise UserError(
                    f"data.transform.{key} is {tuple(values)}; it must be {self.channels} {positive}numbers"
                )

    def fit(self, splits: Mapping[str, Columns], cache: ArtifactCache) -> "PixelEncoder":
        images = _Images(only(self.inputs), self.label, self.channels, EvalTransform(None, None, "bilinear"))
        return PixelEncoder(images, np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32))


@dataclasses.dataclass(frozen=True)
class PixelEncoder(ImagesEncoder):
    """Encodes images as feature vectors; mean and std are [C]."""

    mean: np.ndarray
    std: np.ndarray

    def _encode(self, columns: Columns, split: str, labels: bool, cache: ArtifactCache) -> PixelExamples:
        plain = self.images.read(columns, split, labels, cache)
        return PixelExamples(plain.store, plain.labels, plain.view, self.mean, self.std)
