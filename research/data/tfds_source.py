"""TensorFlow Datasets without TensorFlow: prepared array_record data, or the official download where it can be had."""

import dataclasses
import importlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.data.examples import Columns
from research.data.kept import digest
from research.errors import UserError

# tensorflow-datasets registers a builder when its module is imported; `tfds.builder` finds these by name only after.
_MODULES = {"glue": "tensorflow_datasets.text.glue"}

_PROBE_SECONDS = 4.0


# A prepared dataset of more bytes than this is not read into memory but a piece at a time.
IN_MEMORY_BYTES = 2**31


@dataclasses.dataclass(frozen=True)
class Shards:
    """The files of a split, in the order in which its records are numbered, and how many each holds."""

    paths: tuple[str, ...]
    sizes: tuple[int, ...]

    def path(self, index: int) -> str:
        """The file that holds the record `index`."""
        return self.paths[int(np.searchsorted(np.cumsum(self.sizes), index, side="right"))]


class Values(list[Any]):
    """One feature of a split's records, in memory."""

    def __init__(self, values: Iterable[Any], shards: Shards):
        super().__init__(values)
        self.shards = shards


class Records(Sequence[Any]):
    """One feature of a split's records, read when asked for."""

    def __init__(self, source: Any, key: str, shards: Shards):
        self._source = source
        self._key = key
        self.shards = shards

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return self._source[index][self._key]

    def take(self, indices: np.ndarray) -> list[Any]:
        """The records `indices` [B]; quicker than one by one."""
        return [record[self._key] for record in self._source.__getitems__(indices.tolist())] if len(indices) else []

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), 4096):
            yield from self[start : start + 4096]


def default_data_dir() -> Path:
    """Where TFDS looks when nothing is said."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def prepared(name: str, data_dir: str | None) -> bool:
    """Whether some version of the dataset lies prepared in `data_dir`. Only looks at file names."""
    folder = Path(data_dir).expanduser() if data_dir else default_data_dir()
    return any(folder.joinpath(name).glob("*.*.*/dataset_info.json"))


def state(name: str, data_dir: str | None) -> str | None:
    """A hash of the names, sizes and times of a prepared dataset's files; None where it is not prepared."""
    folder = (Path(data_dir).expanduser() if data_dir else default_data_dir()) / name
    files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.glob("*.*.*/*"))]
    return digest(files) if prepared(name, data_dir) else None


def _builder(name: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds

    family = name.split("/")[0]
    if family in _MODULES:
        importlib.import_module(_MODULES[family])
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError:
        return None
    except (ValueError, AssertionError, ImportError) as error:
        raise UserError(f"dataset name {name!r} is not good: {str(error).strip().splitlines()[0]}") from error


def missing(name: str, data_dir: str | None) -> str | None:
    """Why the dataset can't be had, in a few words; None if it is prepared or can be downloaded."""
    if prepared(name, data_dir):
        return None
    where = f"the dataset {name} is not prepared in {data_dir or default_data_dir()}"
    builder = _builder(name, data_dir)
    if builder is None:
        return f"{where} and TFDS has no builder of that name to download it with"
    hosts = _unreachable_hosts(builder)
    return f"{where} and can't be downloaded: {', '.join(hosts)} can't be reached" if hosts else None


def _unreachable_hosts(builder: Any) -> list[str]:
    """The hosts of the official download if none of them answers. TFDS itself would retry for minutes."""
    import requests

    hosts = sorted({"/".join(url.split("/")[:3]) for url in builder.url_infos or () if url.startswith("http")})
    for host in hosts:
        try:
            requests.head(host, timeout=_PROBE_SECONDS)
        except requests.RequestException:
            continue
        return []
    return hosts


def _decoders(builder: Any) -> dict[str, Any]:
    import tensorflow_datasets as tfds

    features = builder.info.features
    return {key: tfds.decode.SkipDecoding() for key in features if isinstance(features[key], tfds.features.Image)}


def load(name: str, data_dir: str | None) -> dict[str, Columns]:
    """All splits as columns, downloading and preparing the dataset first where that must and can be done.

    Images are given as the bytes of their files, as they were encoded. Raises UserError if it can't be had or read.
    """
    reason = missing(name, data_dir)
    if reason:
        raise UserError(f"{reason}; prepare it there, or name its folder with --config.data.data_dir=FOLDER")
    builder = _builder(name, data_dir)
    try:
        if not prepared(name, data_dir):
            builder.download_and_prepare(file_format="array_record")
        columns: dict[str, Columns] = {}
        for split, info in builder.info.splits.items():
            source = builder.as_data_source(split=split, decoders=_decoders(builder))
            shards = Shards(tuple(map(str, info.filepaths)), tuple(info.shard_lengths))
            if builder.info.dataset_size > IN_MEMORY_BYTES:
                columns[split] = {key: Records(source, key, shards) for key in builder.info.features}
                continue
            records = source.__getitems__(list(range(len(source)))) if len(source) else []
            columns[split] = {key: Values((record[key] for record in records), shards) for key in builder.info.features}
        return columns
    except Exception as error:  # TFDS raises whatever its readers and its downloads raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"the dataset {name} in {data_dir or default_data_dir()} can't be read: {reason}") from error
