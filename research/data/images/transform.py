"""Images as a model takes them: as they are, as training changes and mixes them, or as feature vectors."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from research.base.errors import UserError
from research.base.registry import build
from research.data.cache import Kept
from research.data.columns import only
from research.data.examples import Columns, Examples, first
from research.data.images import store as image_store
from research.data.images.augment import Augment
from research.data.images.decoding import View
from research.data.images.store import Decoded, Encoded
from research.data.splits import BySplit


@dataclasses.dataclass(frozen=True)
class ImageExamples:
    """Images as evaluation sees them. A batch has images [B, h, w, C], uint8 or, where the source has them, float32."""

    store: Decoded | Encoded
    labels: np.ndarray
    view: View

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, members: np.ndarray, rows: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
        indices = first(members, rows)
        return {"images": self.view.all(self.store.take(indices)), "labels": self.labels[indices]}


@dataclasses.dataclass(frozen=True)
class _ChangedImages(ImageExamples):
    """Images that training sees changed, in another way each epoch; evaluation sees them as they are."""

    augment: Augment

    def drawn(self, indices: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """The images `indices` [B], as changed by keys uint64 [B]: [B, h, w, C]."""
        return self.augment(self.store.take(indices), keys, self.view)


class AugmentedImages(_ChangedImages):
    """Images each of which is changed by itself."""

    def drawn_batch(self, members: np.ndarray, rows: np.ndarray | slice, keys: np.ndarray) -> dict[str, np.ndarray]:
        indices = first(members, rows)
        return {"images": self.drawn(indices, keys[rows, 0]), "labels": self.labels[indices]}


class MixedImages(_ChangedImages):
    """Images each of which training sees mixed with the next one of the epoch, after either was changed by itself.

    A training batch also has mixed_labels int32 [B], the other image's, and mixed_weight float32 [B], its share.
    """

    def mixed_batch(
        self,
        members: np.ndarray,
        rows: np.ndarray | slice,
        keys: np.ndarray,
        others: np.ndarray,
        other_keys: np.ndarray,
    ) -> dict[str, np.ndarray]:
        own, other = first(members, rows), first(others, rows)
        # Nearly every row's other image is the next row's own: each is made once.
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
    """Images as feature vectors: features float32 [B, H·W·C], (value − mean) / std, those of each channel [C]."""

    mean: np.ndarray
    std: np.ndarray

    def batch(self, members: np.ndarray, rows: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
        batch = super().batch(members, rows)
        images = (batch["images"].astype(np.float32) - self.mean) / self.std
        return {"features": images.reshape(len(images), -1), "labels": batch["labels"]}


def image(
    splits: Mapping[str, Columns],
    kept: Kept,
    *,
    inputs: tuple[str, ...],
    label: str,
    channels: int,
    resize: int | None,
    size: int | None,
    interpolation: str,
    augment: Mapping[str, Any],
) -> Mapping[str, Examples]:
    """Column `inputs`, encoded images or arrays [N, H, W, C], as images in the range that they come in.

    Args:
      channels: 1 or 3; encoded images are converted (research/data/images/decoding.py), arrays must have as many.
      resize, size, interpolation: how evaluation sees an image; see `View`.
      augment: what training does to it; see `Augment`.
    """
    view = View(resize, size, interpolation)
    augmentation = build({"augment": Augment}, {"name": "augment", **augment}, "data.transform.augment")
    needs_bytes = ["resize"] * bool(resize) + [f"augment.{key}" for key in augmentation.needs_bytes]
    plain_images = _plain(splits, kept, inputs, label, channels, view)

    def examples(split: str) -> Examples:
        plain = plain_images[split]
        if needs_bytes and isinstance(plain.store, Decoded) and plain.store.images.dtype != np.uint8:
            raise UserError(
                f"data.transform.{needs_bytes[0]} takes images of bytes; those of split {split!r} are floating-point"
            )
        if len(plain) and isinstance(plain.store, Decoded):
            augmentation.check_size(*view.shape(*plain.store.images.shape[1:3]))
        if augmentation.mixes and not np.issubdtype(plain.labels.dtype, np.integer):
            raise UserError(
                f"data.transform.augment mixes classes (mixup, cutmix); labels of split {split!r} are not classes"
            )
        if augmentation.mixes:
            return MixedImages(plain.store, plain.labels, plain.view, augmentation)
        if augmentation.redraws:
            return AugmentedImages(plain.store, plain.labels, plain.view, augmentation)
        return plain  # no keys are drawn for what has no use for them

    return BySplit(splits, examples)


def pixels(
    splits: Mapping[str, Columns],
    kept: Kept,
    *,
    inputs: tuple[str, ...],
    label: str,
    channels: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Mapping[str, Examples]:
    """Column `inputs` as in `image`, as feature vectors; `mean` and `std` have a number for each channel."""
    for key, values in (("mean", mean), ("std", std)):
        if len(values) != channels or (key == "std" and min(values) <= 0):
            positive = "positive " if key == "std" else ""
            raise UserError(f"data.transform.{key} is {tuple(values)}; it must be {channels} {positive}numbers")
    plain_images = _plain(splits, kept, inputs, label, channels, View(None, None, "bilinear"))
    middle, scale = np.asarray(mean, np.float32), np.asarray(std, np.float32)

    def examples(split: str) -> PixelExamples:
        plain = plain_images[split]
        return PixelExamples(plain.store, plain.labels, plain.view, middle, scale)

    return BySplit(splits, examples)


def _plain(
    splits: Mapping[str, Columns], kept: Kept, inputs: tuple[str, ...], label: str, channels: int, view: View
) -> Mapping[str, ImageExamples]:
    stored = image_store.read(splits, kept, name=only(inputs), label=label, channels=channels)

    def plain(split: str) -> ImageExamples:
        store, labels = stored[split]
        if isinstance(store, Encoded) and view.size is None:
            raise UserError(
                f"images of split {split!r} differ in size, or are too many to be kept decoded; transform image with "
                "data.transform.size brings them to one size"
            )
        return ImageExamples(store, labels, view)

    return BySplit(splits, plain)
