"""The config's `data` section -> examples: a source provides columns, and a transform makes examples from them."""

import contextlib
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from research.base.errors import UserError
from research.base.registry import build, nearest
from research.data.arrays import Standardize
from research.data.cache import ArtifactCache
from research.data.columns import KEY, keys, plain
from research.data.encoder import (
    ColumnsOf,
    Encoder,
    NoSplits,
    Signature,
    Transform,
    save_signature,
    saved_signature,
)
from research.data.examples import Columns, Examples
from research.data.files import source as files
from research.data.images.transform import ImageTransform, PixelTransform
from research.data.shards import source as shards
from research.data.sources import tfds_source
from research.data.sources.bundled import BUNDLED, CLASS_NAMES
from research.data.sources.instructions import instructions
from research.data.sources.line import line
from research.data.sources.python_docs import python_docs
from research.data.sources.sentiment import SENTIMENTS, sentiment
from research.data.splits import BySplit
from research.data.table import Table
from research.data.text.bag_of_words import BagOfWords
from research.data.text.chats import Chats
from research.data.text.language_model import LanguageModelRows
from research.data.text.masked_lm import MaskedLanguageModel
from research.data.text.wordpiece import WordPiece

# Sources by name, each with its kind as named in summary.json. Any other name is "files", "shards", or that of a TFDS
# dataset.
SOURCES: dict[str, tuple[str, Callable[[], dict[str, Columns]]]] = {
    "instructions": ("embedded", instructions),
    "line": ("embedded", line),
    "python_docs": ("embedded", python_docs),
    "sentiment": ("embedded", sentiment),
    **{name: ("sklearn", function) for name, function in BUNDLED.items()},
}

TRANSFORMS: dict[str, Callable[..., Transform]] = {
    "bag_of_words": BagOfWords,
    "chat": Chats,
    "image": ImageTransform,
    "language_model": LanguageModelRows,
    "masked_lm": MaskedLanguageModel,
    "pixels": PixelTransform,
    "standardize": Standardize,
    "table": Table,
    "wordpiece": WordPiece,
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Splits ready for batching, each made on first use.

    Attributes:
      columns: the raw columns of each split.
      source: "tfds", "sklearn", "embedded", "files" or "shards".
      fingerprint: a hash of the raw columns of all splits.
    """

    splits: Mapping[str, Examples]
    columns: Mapping[str, Columns]
    encoder: Encoder
    name: str
    source: str
    fingerprint: str

    def split(self, name: str) -> Examples:
        """A split by name. Raises UserError if it is empty, or does not exist, naming those that do."""
        examples = self.splits[name]
        if not len(examples):
            raise UserError(f"split {name!r} of dataset {self.name} is empty")
        return examples

    def described(self, split: str, records: list[dict[str, Any]], *, inputs: bool = False) -> list[dict[str, Any]]:
        """The records of a split's examples, each with its "key" where known, and on request with its `inputs`.

        The records have "index"; those of examples that are cut from the columns, such as rows of documents, are left
        as they are. Inputs that are images are left out.
        """
        columns = self.columns[split]
        found = keys(columns)
        shown = self.encoder.signature.inputs if inputs and self.encoder.signature.kind != "image" else ()
        if len(self.splits[split]) != len(next(iter(columns.values()))):
            return records
        return [
            {
                "index": record["index"],
                **({"key": found(record["index"])} if found else {}),
                **{name: plain(columns[name][record["index"]]) for name in shown},
                **{name: value for name, value in record.items() if name != "index"},
            }
            for record in records
        ]


def missing(section: Mapping[str, Any]) -> str | None:
    """Why the dataset of a `data` section is unavailable, or None if it is available."""
    if section["name"] in (*SOURCES, files.NAME, shards.NAME):
        return None
    return tfds_source.missing(section["name"], section["data_dir"])


class _Source(Mapping[str, Columns]):
    """A source's columns, read on first access: never, if the cache has everything that is needed."""

    def __init__(self, name: str, read: Callable[[], Mapping[str, Columns]]):
        self._name = name
        self._read = read

    @functools.cached_property
    def _columns(self) -> Mapping[str, Columns]:
        return self._read()

    def __getitem__(self, split: str) -> Columns:
        """The columns of a split. Raises UserError if it does not exist, naming the splits that do."""
        if split not in self._columns:
            raise UserError(f"dataset {self._name} has no split {split!r}; {nearest(split, self._columns)}")
        return self._columns[split]

    def __contains__(self, split: object) -> bool:
        return split in self._columns

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


@dataclasses.dataclass(frozen=True)
class _Origin:
    """Where a dataset comes from.

    Attributes:
      name, kind: as Dataset's name and source.
      splits: the columns of each split, before any transform, read on first access.
      state: identifies the data without reading it; None: it has to be read.
      fingerprint: computes the hash of the data.
      rows: makes the examples of `train` without its columns, of which there may be too many; None: they are encoded.
    """

    name: str
    kind: str
    splits: Mapping[str, Columns]
    state: str | None
    fingerprint: Callable[[], str]
    rows: Callable[[Encoder, ArtifactCache], Examples] | None = None


def _origin(section: Mapping[str, Any]) -> _Origin:
    name, data_dir = section["name"], section["data_dir"]
    if name == files.NAME:
        shown = files.paths(section)["train"].name
        splits = _Source(shown, functools.partial(files.load, section))
        return _Origin(shown, "files", splits, files.state(section), functools.partial(files.fingerprint, section))
    if name == shards.NAME:
        return _sharded(section)
    if name in SOURCES:
        kind, read = SOURCES[name]
        splits, state = _Source(name, read), None
    else:
        kind, state = "tfds", tfds_source.state(name, data_dir)
        splits = _Source(name, functools.partial(tfds_source.load, name, data_dir))
    return _Origin(name, kind, splits, state, functools.partial(_fingerprint, splits))


def _sharded(section: Mapping[str, Any]) -> _Origin:
    corpus = functools.cache(lambda: shards.load(section))
    return _Origin(
        name=section["train"] or shards.NAME,
        kind=shards.NAME,
        splits=_Source(section["train"], lambda: corpus().columns()),
        state=shards.state(section),
        fingerprint=functools.partial(shards.fingerprint, section),
        rows=lambda encoder, cache: corpus().rows(encoder, cache),
    )


def raw(section: Mapping[str, Any]) -> Mapping[str, Columns]:
    """The columns by split of the dataset of a `data` section, before any transform, read on first access."""
    return _origin(section).splits


def load(section: Mapping[str, Any], assets: Path | None = None, *, encoder: Encoder | None = None) -> Dataset:
    """Loads the dataset of a config's `data` section with an encoder fitted to its split `train`.

    What the encoder learns is written to `assets`, or read from there if it exists.

    Args:
      encoder: the encoder of another run, possibly on other data, to use instead of fitting one.

    Raises:
      UserError: the dataset is unavailable, does not fit the transform, or has changed since the run began.
    """
    origin = _origin(section)
    name, splits = origin.name, origin.splits
    # The fingerprint of files that did not change is not computed again.
    fingerprint = ArtifactCache(source=origin.state).text("fingerprint", origin.fingerprint, key=(3,))
    cache = ArtifactCache(None if encoder else assets, fingerprint)
    before = cache.text("data_fingerprint.txt", lambda: fingerprint)
    if before != fingerprint:
        raise UserError(
            f"dataset {name} has changed since the run began: its fingerprint was {before}, now {fingerprint}"
        )
    transform = section["transform"]["name"]
    with fitting(transform, f"dataset {name}"):
        fitted = encoder or _transform(section).fit(splits, cache)

    def examples(split: str) -> Examples:
        with fitting(transform, f"dataset {name}"):
            if origin.rows and split == "train":
                return origin.rows(fitted, cache)
            return fitted.encode(ColumnsOf(splits, split), split=split, cache=cache)

    return Dataset(BySplit(splits, examples), splits, fitted, name, origin.kind, fingerprint)


def open_encoder(section: Mapping[str, Any], assets: Path) -> tuple[Encoder, Signature]:
    """The encoder of a run with this `data` section, and its signature, without the data.

    Raises UserError if `assets` lacks something.
    """
    encoder = _transform(section).fit(NoSplits(assets), ArtifactCache(assets))
    return encoder, saved_signature(assets, encoder.signature)


def keep_signature(dataset: Dataset, section: Mapping[str, Any], assets: Path) -> None:
    """Writes the signature of the dataset's encoder to assets/encoder.json, with the labels' names and dtype."""
    signature = dataset.encoder.signature
    labels = dataset.split("train").labels
    dtype = None if labels is None else labels.dtype.name
    names = None
    if signature.label is not None and labels is not None and labels.dtype.kind in "iu":
        names = label_names(section, signature.label)
    save_signature(dataclasses.replace(signature, label_names=names, label_dtype=dtype), ArtifactCache(assets))


def label_names(section: Mapping[str, Any], column: str) -> tuple[str, ...] | None:
    """The names of the classes in a dataset's label column, in order; None if they are unknown."""
    name = section["name"]
    if name == files.NAME:
        return files.label_names(section)
    if name in SOURCES:
        return {"sentiment": SENTIMENTS, **CLASS_NAMES}.get(name)
    return tfds_source.label_names(name, section["data_dir"], column)


def _transform(section: Mapping[str, Any]) -> Transform:
    transform: Transform = build(TRANSFORMS, section["transform"], "data.transform")
    return transform


@contextlib.contextmanager
def fitting(transform: str, what: str) -> Iterator[None]:
    """Converts a transform's exceptions for unsuitable columns to UserError. `what`: the name of the columns."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:
        raise UserError(
            f"data.transform {transform!r} does not fit {what}, or has a bad value: "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error


def _fingerprint(columns: Mapping[str, Columns]) -> str:
    """A hash of every value. If this computation changes, raise the number in the cache's key above."""
    digest = hashlib.sha256()
    for split in sorted(columns):
        for name in sorted(set(columns[split]) - {KEY}):
            values = columns[split][name]
            digest.update(f"{split}/{name}/{len(values)}\n".encode())
            # For a dataset that is read a piece at a time this reads all of it.
            for value in tqdm(values, desc=f"hashing {split}/{name}", unit="", delay=2, leave=False, disable=None):
                if isinstance(value, bytes):
                    digest.update(len(value).to_bytes(8, "little"))
                    digest.update(value)
                else:
                    digest.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode() + b"\0")
    return digest.hexdigest()[:16]
