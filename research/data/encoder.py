"""Encoders from raw columns to examples: fitted once, saved with the run, and used for all later inputs."""

import abc
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np

from research.base.errors import UserError
from research.data.cache import NO_CACHE, ArtifactCache
from research.data.columns import place
from research.data.examples import Columns, Examples

FILE = "encoder.json"
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Signature:
    """The inputs of an encoder.

    Attributes:
      kind: "text", "text_pair", "text_or_pair" (the second column may be missing), "documents", "image", "features" or
        "table".
      inputs: the columns that it reads.
      label: the column of labels; None if labels are not a column.
      limits: limits on an input by name, such as {"max_length": 128, "unit": "tokens"}.
      label_names: the names of the classes, in order; None if they are unknown or there are none.
      label_dtype: numpy's name of the labels' dtype; None if it is unknown.
    """

    kind: str
    inputs: tuple[str, ...]
    label: str | None
    limits: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    label_names: tuple[str, ...] | None = None
    label_dtype: str | None = None

    @property
    def required(self) -> tuple[str, ...]:
        """The columns that every input has."""
        return self.inputs[:1] if self.kind == "text_or_pair" else self.inputs


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in an input something stands: the characters from `start` to `stop` of a column's text.

    `word`: the number of the word that it is part of, counted through all columns.
    """

    column: str
    start: int
    stop: int
    word: int


class Encoder(abc.ABC):
    """Raw columns -> examples. Holds everything that was learned from the training split."""

    @property
    @abc.abstractmethod
    def signature(self) -> Signature:
        """What the encoder reads."""

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """The names of the features [D] that it makes; None if they have none."""
        return None

    @property
    def affine(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The mean and scale [D] by which it makes features, (x − mean) · scale; None if they are as in the data."""
        return None

    def places(self, columns: Columns) -> list[tuple[Place, ...]]:
        """Of the first input, where each item that `encode` makes of it stands: a token once or, if it is special,
        nowhere; a term of a bag wherever its words are. Empty if it is not a text.
        """
        return []

    def encode(
        self,
        columns: Columns,
        *,
        split: str = "input",
        labels: bool = True,
        cache: ArtifactCache = NO_CACHE,
    ) -> Examples:
        """Returns the examples of the columns, in order.

        Args:
          columns: values by column, all of one length; read only if the cache lacks something.
          split: the name of these columns in error messages.
          labels: whether the columns have labels; if not, neither do the examples.
          cache: where slow results are kept.

        Raises:
          UserError: a column is missing, or its values are not valid for the encoder.
        """
        return self._encode(columns, split, labels, cache)

    @abc.abstractmethod
    def _encode(self, columns: Columns, split: str, labels: bool, cache: ArtifactCache) -> Examples:
        """As `encode`."""


class Transform(Protocol):
    """The options in a config's `data.transform`, from which an encoder is fitted."""

    def fit(self, splits: Mapping[str, Columns], cache: ArtifactCache) -> Encoder:
        """Fits the encoder. What it learns from `train` is written to the cache's `assets`, or read from there."""
        ...


class ColumnsOf(Mapping[str, Any]):
    """The columns of one of several splits, read when first accessed."""

    def __init__(self, splits: Mapping[str, Columns], split: str):
        self._splits = splits
        self._split = split

    def __getitem__(self, name: str) -> Any:
        return self._splits[self._split][name]

    def where(self, index: int) -> str:
        """Where the example `index` comes from; see `research.data.columns.place`."""
        return place(self._splits[self._split], self._split, index)

    def __iter__(self) -> Iterator[str]:
        return iter(self._splits[self._split])

    def __len__(self) -> int:
        return len(self._splits[self._split])


class NoSplits(Mapping[str, Columns]):
    """Replaces the data where everything learned from it must be in `assets` already."""

    def __init__(self, assets: Path):
        self._assets = assets

    def __getitem__(self, split: str) -> NoReturn:
        raise UserError(f"{self._assets} lacks files that the run's encoder learned from its training split")

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def to_json(signature: Signature, **more: Any) -> str:
    """The text of encoder.json, with `more` keys."""
    return json.dumps({"format": _FORMAT, **dataclasses.asdict(signature), **more}, indent=2)


def save_signature(signature: Signature, cache: ArtifactCache) -> None:
    """Writes assets/encoder.json, unless it exists."""
    cache.text(FILE, lambda: to_json(signature))


def saved_signature(assets: Path, signature: Signature) -> Signature:
    """`signature` with the labels' fields from assets/encoder.json, which runs from before 0.2 lack."""
    try:
        saved = json.loads((assets / FILE).read_text())
    except FileNotFoundError:
        return signature
    except (OSError, ValueError) as error:
        raise UserError(f"{assets / FILE} can't be read ({error})") from error
    if saved.get("format") != _FORMAT:
        raise UserError(f"{assets / FILE} has format {saved.get('format')!r}; this version reads {_FORMAT}")
    names = saved["label_names"]
    return dataclasses.replace(
        signature, label_names=None if names is None else tuple(names), label_dtype=saved["label_dtype"]
    )
