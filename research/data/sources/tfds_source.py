"""TensorFlow Datasets without TensorFlow: prepared array_record data, or the official download."""

import contextlib
import dataclasses
import functools
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.base.errors import UserError
from research.data.cache import digest
from research.data.examples import Columns
from research.data.sources import prepared
from research.data.splits import BySplit

# tensorflow-datasets registers a builder when its module is imported; only then does `tfds.builder` find it by name.
_MODULES = {"glue": "tensorflow_datasets.text.glue"}

_PROBE_SECONDS = 4.0


# A prepared dataset of more bytes than this is not read into memory, but a piece at a time.
IN_MEMORY_BYTES = 2**31


@dataclasses.dataclass(frozen=True)
class Shards:
    """The files of a split, in the order of its records, and the number of records in each."""

    paths: tuple[str, ...]
    sizes: tuple[int, ...]

    def path(self, index: int) -> str:
        """The file that holds the record `index`."""
        return self.paths[self._file(index)[0]]

    def record(self, index: int) -> str:
        """The name of the record `index`, FILE__NUMBER with its number in the file, as by TFDS's `add_tfds_id`."""
        file, number = self._file(index)
        return f"{Path(self.paths[file]).name}__{number}"

    def _file(self, index: int) -> tuple[int, int]:
        """The file that holds the record, and the record's number in it."""
        file = int(np.searchsorted(np.cumsum(self.sizes), index, side="right"))
        return file, index - sum(self.sizes[:file])


class Values(list[Any]):
    """One feature of a split's records, in memory."""

    def __init__(self, values: Iterable[Any], shards: Shards):
        super().__init__(values)
        self.shards = shards


class Records(Sequence[Any]):
    """One feature of a split's records, read on access."""

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
        """The records `indices` [B]; faster than one by one."""
        return [record[self._key] for record in self._source.__getitems__(indices.tolist())] if len(indices) else []

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), 4096):
            yield from self[start : start + 4096]


@functools.cache
def _builder_class(family: str) -> Any:
    """The builder class of TFDS with this name; None if there is none."""
    import tensorflow_datasets as tfds

    if family in _MODULES:
        importlib.import_module(_MODULES[family])
    try:
        return tfds.builder_cls(family)
    except tfds.core.registered.DatasetNotFoundError:
        return None


def _default_config(family: str) -> str | None:
    """The config that TFDS uses for a name without one."""
    configs = getattr(_builder_class(family), "BUILDER_CONFIGS", None)
    return configs[0].name if configs else None


def folder(name: str, data_dir: str | None) -> Path | None:
    """The folder of the prepared dataset, DATA_DIR/NAME/[CONFIG/]VERSION; None if it is not prepared.

    A name without a config means the default one, without a version the newest one. Reads file names only.

    Raises UserError for a name that is not valid or not unique.
    """
    return prepared.find(name, data_dir, _default_config)


def state(name: str, data_dir: str | None) -> str | None:
    """A hash of the names, sizes and times of a prepared dataset's files; None if it is not prepared."""
    where = folder(name, data_dir)
    if where is None:
        return None
    return digest([(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(where.glob("*"))])


def label_names(name: str, data_dir: str | None, column: str) -> tuple[str, ...] | None:
    """The names of a class label's values, as listed by the prepared dataset; None if it lists none."""
    where = folder(name, data_dir)
    file = where / f"{column}.labels.txt" if where else None
    if file is None or not file.is_file():
        return None
    return tuple(file.read_text(encoding="utf-8").splitlines())


def _builder(name: str, data_dir: str | None) -> Any:
    """The TFDS builder of the dataset; None if there is none. Raises UserError for an unknown config or version."""
    import tensorflow_datasets as tfds

    *_, reading = found = prepared.readings(name)
    builder_class = _builder_class(reading.family)
    if builder_class is None:
        return None
    configs = builder_class.builder_configs
    reading = next((one for one in found if one.config is None or one.config in configs), reading)
    where = prepared.not_prepared(name, data_dir)
    if reading.config and reading.config not in configs:
        known = prepared.handful(configs, reading.config, reading.family) if configs else "it has none"
        raise UserError(f"{where}, and TFDS knows no config {reading.config!r} of {reading.family}: {known}")
    try:
        return tfds.builder(str(reading), data_dir=prepared.data_folder(data_dir))
    except (ValueError, AssertionError, ImportError) as error:
        raise UserError(f"{where}, and TFDS cannot build it: {first_sentence(error)}") from error


def missing(name: str, data_dir: str | None) -> str | None:
    """Why the dataset is unavailable, in a few words; None if it is prepared or can be downloaded."""
    if folder(name, data_dir):
        return None
    where = prepared.not_prepared(name, data_dir)
    try:
        builder = _builder(name, data_dir)
    except UserError as error:
        return str(error)
    if builder is None:
        return f"{where} and TFDS has no builder of that name to download it with"
    hosts = _unreachable_hosts(builder)
    return f"{where} and can't be downloaded: {', '.join(hosts)} can't be reached" if hosts else None


def first_sentence(error: Exception) -> str:
    """The message of an error in one line without a full stop: TFDS's messages have several lines, and a preamble."""
    text = re.sub(r"^Failed to construct dataset .*?, builder_kwargs .*?}\"?: ", "", " ".join(str(error).split()))
    match = re.match(r".*?[.!?](?=\s|$)", text)
    return (match.group() if match else text).rstrip(" .:") or type(error).__name__


def _unreachable_hosts(builder: Any) -> list[str]:
    """The hosts of the official download, if none of them responds. TFDS itself would retry for minutes."""
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


def load(name: str, data_dir: str | None) -> Mapping[str, Columns]:
    """Loads the splits as columns, each read on first access; downloads and prepares the dataset first if necessary.

    Images are the bytes of their encoded files. Raises UserError if the dataset is unavailable or can't be read.
    """
    where = folder(name, data_dir)
    reason = None if where else missing(name, data_dir)
    if reason:
        raise UserError(f"{reason}; prepare it there, or name its folder with --config.data.data_dir=FOLDER")

    @contextlib.contextmanager
    def readable() -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # TFDS passes on any exception of its readers and downloads
            place = where or prepared.data_folder(data_dir)
            raise UserError(f"the dataset {name} in {place} can't be read: {first_sentence(error)}") from error

    with readable():
        builder = _read_only(where) if where else _downloaded(_builder(name, data_dir))
        splits = dict(builder.info.splits)

    def read(split: str) -> Columns:
        with readable():
            return _columns(builder, splits[split])

    return BySplit(splits, read)


def _downloaded(builder: Any) -> Any:
    builder.download_and_prepare(file_format="array_record")
    return _read_only(Path(builder.data_dir))


def _read_only(where: Path) -> Any:
    """A reader of a prepared dataset, built from its files: the dataset's own code is not needed."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(where)
    file_format = builder.info.file_format.value
    if file_format != "array_record":
        raise UserError(
            f"the dataset in {where} is prepared as {file_format}, which requires TensorFlow to read; prepare it with "
            'TFDS\'s download_and_prepare(file_format="array_record")'
        )
    return builder


def _columns(builder: Any, info: Any) -> Columns:
    features = builder.info.features
    source = builder.as_data_source(split=info.name, decoders=_decoders(builder))
    shards = Shards(tuple(map(str, info.filepaths)), tuple(info.shard_lengths))
    if builder.info.dataset_size > IN_MEMORY_BYTES:
        return {key: Records(source, key, shards) for key in features}
    records = source.__getitems__(list(range(len(source)))) if len(source) else []
    return {key: Values((record[key] for record in records), shards) for key in features}
