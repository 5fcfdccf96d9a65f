"""What turns raw columns into examples: a value that is fitted once, saved with the run, and used everywhere after."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol

from research.base.errors import UserError
from research.data.cache import ArtifactCache
from research.data.examples import Columns, Examples

_FILE = "encoder.json"
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Signature:
    """What an encoder reads.

    Attributes:
      kind: "text", "text_pair", "documents", "image" or "features".
      inputs: the columns that it reads.
      label: the column of labels; None where a label is not a column.
      limits: what an input must not exceed, by name, such as {"max_length": 128, "unit": "tokens"}.
      label_names: of the classes, in order; None where they are not known or there are none.
      label_dtype: of the labels, as numpy names it; None where they are not known.
    """

    kind: str
    inputs: tuple[str, ...]
    label: str | None
    limits: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    label_names: tuple[str, ...] | None = None
    label_dtype: str | None = None


class Encoder(Protocol):
    """Raw columns -> examples. Everything that was learnt from the training split is in it."""

    @property
    def signature(self) -> Signature: ...

    def encode(
        self,
        columns: Columns,
        *,
        split: str = "input",
        labels: bool = True,
        cache: ArtifactCache = ArtifactCache(),  # noqa: B008 - it is frozen
    ) -> Examples:
        """Examples of the columns, in their order.

        Args:
          columns: values by column, all of one length; looked at only where the cache lacks something.
          split: what messages call these columns.
          labels: whether they have labels; without, the examples have none.
          cache: where what takes long is kept.

        Raises:
          UserError: a column is missing, or its values are not what the encoder takes.
        """
        ...


class Transform(Protocol):
    """The options of a config's `data.transform`, of which an encoder is made."""

    def fit(self, splits: Mapping[str, Columns], cache: ArtifactCache) -> Encoder:
        """The encoder; what it learns from `train` is kept in the cache's `assets`, and read where it is there."""
        ...


class ColumnsOf(Mapping[str, Any]):
    """The columns of one of several splits, which are read when one is first asked for."""

    def __init__(self, splits: Mapping[str, Columns], split: str):
        self._splits = splits
        self._split = split

    def __getitem__(self, name: str) -> Any:
        return self._splits[self._split][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._splits[self._split])

    def __len__(self) -> int:
        return len(self._splits[self._split])


class NoSplits(Mapping[str, Columns]):
    """Stands for the data where all that was learnt from it must be in `assets` already."""

    def __init__(self, assets: Path):
        self._assets = assets

    def __getitem__(self, split: str) -> NoReturn:
        raise UserError(f"{self._assets} lacks what the run's encoder learnt from its training split")

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def save_signature(signature: Signature, cache: ArtifactCache) -> None:
    """Writes assets/encoder.json, unless it is there."""
    cache.text(_FILE, lambda: json.dumps({"format": _FORMAT, **dataclasses.asdict(signature)}, indent=2))


def saved_signature(assets: Path, signature: Signature) -> Signature:
    """`signature` with what assets/encoder.json says of the labels; runs of before 0.2 have none."""
    try:
        saved = json.loads((assets / _FILE).read_text())
    except FileNotFoundError:
        return signature
    except (OSError, ValueError) as error:
        raise UserError(f"{assets / _FILE} can't be read ({error})") from error
    if saved.get("format") != _FORMAT:
        raise UserError(f"{assets / _FILE} has format {saved.get('format')!r}; this version reads {_FORMAT}")
    names = saved["label_names"]
    return dataclasses.replace(
        signature, label_names=None if names is None else tuple(names), label_dtype=saved["label_dtype"]
    )
