"""Storage of a split's images: decoded once if their pixels are not too many, else decoded on access."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from tqdm import tqdm

from research.base.errors import UserError
from research.data.cache import ArtifactCache
from research.data.columns import as_labels, check_finite, column
from research.data.examples import Columns, Ragged, pack_array, unpack_array
from research.data.images.decoding import decode
from research.data.sources.tfds_source import Records, Values

# A split whose pixels would take more bytes than this is kept encoded.
DECODED_BYTES = 2**31

# Part of the cache keys: raise it when the results of `decode` change.
_VERSION = 1

_PIECE = 256  # images that a thread decodes at a time


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A split's images, all of one size: uint8 or float32 [N, H, W, C], in memory or memory-mapped."""

    images: np.ndarray

    def __reduce__(self) -> tuple[Any, ...]:
        return unpack_array, (type(self), pack_array(self.images))

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: np.ndarray) -> np.ndarray:
        """The images `indices` [B]: [B, H, W, C]."""
        return self.images[indices]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A split's images as the bytes of their files."""

    files: Ragged | Records
    split: str
    channels: int

    def __len__(self) -> int:
        return len(self.files.offsets) - 1 if isinstance(self.files, Ragged) else len(self.files)

    def take(self, indices: np.ndarray) -> list[np.ndarray]:
        """The images `indices` [B], uint8 [H, W, C] each. Raises UserError for an image that can't be decoded."""
        named = zip(self.files.take(indices), indices.tolist(), strict=True)
        return [_decode(encoded, self.channels, self.split, index, self.files) for encoded, index in named]


def read(
    columns: Columns, split: str, cache: ArtifactCache, *, name: str, label: str | None, channels: int
) -> tuple[Decoded | Encoded, np.ndarray | None]:
    """Reads a split's images, column `name`, and its labels, unless `label` is None.

    Other runs on the same data find the decoded images in the cache.

    Raises UserError for an image that can't be decoded, or an array that is not of images with `channels` channels.
    """

    def make() -> dict[str, np.ndarray]:
        arrays = {"labels": as_labels(column(columns, label, split))} if label else {}
        values = column(columns, name, split)
        decoded = _decoded(values, split, channels, getattr(columns, "where", None))
        if decoded is not None:
            arrays["images"] = decoded
        elif not isinstance(values, Records):  # records remain on disk
            lengths = np.fromiter(map(len, values), np.int64, len(values))
            arrays["files"] = np.frombuffer(b"".join(values), np.uint8)
            arrays["offsets"] = np.concatenate([[0], np.cumsum(lengths)])
        return arrays

    arrays = cache.arrays("images", make, key=(_VERSION, name, label, channels, split))
    labels = arrays.get("labels")
    if "images" in arrays:
        return Decoded(arrays["images"]), labels
    if "files" in arrays:
        return Encoded(Ragged(arrays["files"], arrays["offsets"]), split, channels), labels
    return Encoded(column(columns, name, split), split, channels), labels


def _decoded(values: Any, split: str, channels: int, where: Callable[[int], str] | None = None) -> np.ndarray | None:
    """The column as uint8 or float32 [N, H, W, C]; None where encoded images differ in size or take too many bytes.

    Images in memory are decoded in any case, so that an invalid one is found before training; others only if they may
    fit.
    """
    if not len(values):
        return np.zeros((0, 1, 1, channels), np.uint8)
    if not isinstance(values[0], bytes):
        return _checked(np.asarray(values), split, channels)
    in_memory = not isinstance(values, Records)
    shape = _decode(values[0], channels, split, 0, values, where).shape
    fits = len(values) * math.prod(shape) <= DECODED_BYTES
    if not (fits or in_memory):
        return None
    images = np.empty((len(values) if fits else 0, *shape), np.uint8)

    def decode_piece(start: int) -> tuple[int, bool]:
        """The number of images in a piece, and whether all have the size of the first."""
        piece = values[start : start + _PIECE]
        found = [_decode(encoded, channels, split, index, values, where) for index, encoded in enumerate(piece, start)]
        alike = all(image.shape == shape for image in found)
        if fits and alike:
            images[start : start + len(found)] = found
        return len(found), alike

    with (
        ThreadPoolExecutor() as pool,
        tqdm(total=len(values), desc=f"decoding {split}", unit="image", delay=1, leave=False, disable=None) as bar,
    ):
        try:
            for count, alike in pool.map(decode_piece, range(0, len(values), _PIECE)):
                bar.update(count)
                fits = fits and alike
                if not (fits or in_memory):
                    break
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return images if fits else None


def _checked(values: np.ndarray, split: str, channels: int) -> np.ndarray:
    if values.ndim != 4 or values.shape[3] != channels:
        raise UserError(
            f"images of split {split!r} have the shape {list(values.shape)}; [N, H, W, C] is needed, where C is "
            f"data.transform.channels, {channels}"
        )
    if values.dtype == np.uint8:
        return values
    check_finite(f"images of split {split!r}", values)
    return values.astype(np.float32)


def _decode(
    encoded: bytes | np.ndarray,
    channels: int,
    split: str,
    index: int,
    origin: Sequence[Any] | Ragged,
    where: Callable[[int], str] | None = None,
) -> np.ndarray:
    """Decodes an image, which is at `where(index)` if that is known: see `research.data.columns.place`."""
    try:
        return decode(encoded, channels)
    except ValueError as error:
        place = where(index) if where else f"example {index} of split {split!r}"
        file = origin.shards.path(index) if isinstance(origin, Values | Records) else place
        raise UserError(
            f"{place}{'' if file in place else f' ({file})'}: the image can't be decoded: {error}"
        ) from error
