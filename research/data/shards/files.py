"""Shards: array_record and Parquet files of texts that are read by index, and never as a whole.

A record of an array_record file is a document's text in UTF-8; of a Parquet file it is a value of a text column. All
that is held in memory is the number of records of each file or, for Parquet, of each row group.

To read one document of a Parquet file its row group has to be decoded. Files with small row groups, or an order in
which neighbours stay together (data.shards.run), read each of them less often; array_record files need neither.
"""

import dataclasses
import functools
import glob
import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from research.base.errors import UserError, first_line
from research.base.paths import expanded

_OPEN_FILES = 256  # array_record files that a process keeps open
_KEPT_GROUPS = 2  # row groups that a process keeps decoded: some have hundreds of megabytes
_EDGE = 2**16  # bytes at both ends of a file that its fingerprint covers

_RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"
# The index of an open array_record file of more records remains on disk: a record then takes a millisecond to read
# instead of a twentieth of one.
_INDEXED_RECORDS = 2**17
_OFFLOADED = f"{_RANDOM_ACCESS},index_storage_option:offloaded,footer_prefetch_bytes:0"


def find(pattern: str, key: str) -> tuple[Path, ...]:
    """The files that globs, separated by commas, match, in order of their names; `key`: of the config.

    Raises UserError if one of the globs matches none, or if a file is of no known kind.
    """
    found: list[Path] = []
    for part in pattern.split(","):
        matched = sorted(map(Path, glob.glob(str(expanded(part.strip())), recursive=True)))
        found += [path.absolute() for path in matched if path.is_file()]
        if not any(path.is_file() for path in matched):
            raise UserError(f"{key}={part.strip()} matches no file; give the shards, such as 'corpus/*.parquet'")
    for path in found:
        if kind(path) not in KINDS:
            raise UserError(
                f"{path} is of no known kind: shards are {' or '.join(f'.{name}' for name in KINDS)} files; "
                "pyarrow.json.read_json and pyarrow.parquet.write_table make a Parquet file of JSON lines"
            )
    return tuple(dict.fromkeys(found))


def kind(path: Path) -> str:
    """The kind of a file, by its name: corpus.parquet, corpus.array_record-00000-of-00100."""
    return path.suffix.removeprefix(".").partition("-")[0]


@dataclasses.dataclass(frozen=True)
class Shards:
    """The documents of several files as one sequence, read by index.

    Attributes:
      paths: the files.
      file_bytes: the size of each when the index was made.
      file: int64 [G], the file that each group of records is in: a row group, or a whole array_record file.
      ends: int64 [G], the number of documents in each group and all before it.
      column: the column of Parquet files that has the texts.
    """

    paths: tuple[Path, ...]
    file_bytes: tuple[int, ...]
    file: np.ndarray
    ends: np.ndarray
    column: str

    @classmethod
    def of(cls, paths: tuple[Path, ...], counts: Iterable[np.ndarray], column: str) -> "Shards":
        """The files with these numbers of records, int64 [groups of the file] for each."""
        counts = list(counts)
        file = np.repeat(np.arange(len(paths)), [len(each) for each in counts])
        return cls(paths, tuple(path.stat().st_size for path in paths), file, np.cumsum(np.concatenate(counts)), column)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def texts(self, indices: np.ndarray) -> list[str | bytes]:
        """The documents `indices` [N], in that order. Raises UserError if a file has changed or can't be read."""
        groups = np.searchsorted(self.ends, indices, side="right")
        found: list[str | bytes] = [b""] * len(indices)
        for group in np.unique(groups).tolist():
            places = np.flatnonzero(groups == group)
            begin = self.ends[group - 1] if group else 0
            file = int(self.file[group])
            within = group - int(np.searchsorted(self.file, file))
            read = _Group(self.paths[file], self.file_bytes[file], self.column, within, int(self.ends[group] - begin))
            texts = KINDS[kind(read.path)].texts(read, indices[places] - begin)
            for place, text in zip(places.tolist(), texts, strict=True):
                found[place] = text
        return found


@dataclasses.dataclass(frozen=True)
class _Group:
    """A group of records in a file: the file, its bytes, the column, the number of the group in it, its records."""

    path: Path
    file_bytes: int
    column: str
    number: int
    records: int

    def check(self) -> None:
        """Raises UserError if the file is no longer there, or of another size."""
        try:
            now = self.path.stat().st_size
        except OSError as error:
            raise UserError(f"{self.path} has changed since the run began: {first_line(error)}") from error
        if now != self.file_bytes:
            raise UserError(
                f"{self.path} has changed since the run began: it had {self.file_bytes:,} bytes, now {now:,}"
            )


def counts(path: Path, column: str) -> np.ndarray:
    """The number of records in each group of a file: int64. Raises UserError if it is empty, or not valid."""
    found = KINDS[kind(path)].counts(path, column)
    if not found.sum():
        raise UserError(f"{path} has no records; remove it, or make it again")
    return found


def file_digest(path: Path) -> str:
    """A hash of a file's size and of both its ends, where the formats keep their indices: it is not read as a whole."""
    size = path.stat().st_size
    content = hashlib.sha256(str(size).encode())
    with path.open("rb") as stream:
        content.update(stream.read(_EDGE))
        stream.seek(max(size - _EDGE, 0))
        content.update(stream.read(_EDGE))
    return content.hexdigest()


def _array_record() -> Any:
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise UserError(
            "array_record files need the package array-record, which is for Linux; use Parquet files"
        ) from error
    return array_record_module


def _records(path: Path, _: str) -> np.ndarray:
    reader = _array_record().ArrayRecordReader(str(path), _RANDOM_ACCESS)
    if not reader.ok():
        raise UserError(f"{path} is not a valid array_record file")
    count = reader.num_records()
    reader.close()
    return np.array([count], np.int64)


@functools.lru_cache(maxsize=_OPEN_FILES)
def _reader(group: _Group) -> Any:
    group.check()
    options = _RANDOM_ACCESS if group.records <= _INDEXED_RECORDS else _OFFLOADED
    return _array_record().ArrayRecordReader(str(group.path), options)


def _record_texts(group: _Group, indices: np.ndarray) -> list[bytes]:
    try:
        records: list[bytes] = _reader(group).read(indices.tolist())
    except UserError:
        raise
    except Exception as error:  # the library's are of several kinds
        group.check()
        raise UserError(f"{group.path} can't be read: {first_line(error)}") from error
    return records


def _row_groups(path: Path, column: str) -> np.ndarray:
    import pyarrow
    from pyarrow import parquet, types

    try:
        file = parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path} is not a valid Parquet file: {first_line(error)}") from error
    with file:
        names = file.schema_arrow.names
        if column not in names:
            raise UserError(f"{path} has no column {column!r}; it has {', '.join(names)}: set data.transform.inputs")
        given = file.schema_arrow.field(column).type
        if types.is_dictionary(given):
            given = given.value_type
        if not any(check(given) for check in (types.is_string, types.is_large_string, types.is_binary)):
            raise UserError(f"{path}: column {column!r} is of type {given}; it must be text")
        return np.array([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)], np.int64)


@functools.lru_cache(maxsize=_KEPT_GROUPS)
def _row_group(group: _Group) -> Any:
    import pyarrow
    from pyarrow import parquet

    group.check()
    try:
        with parquet.ParquetFile(group.path) as file:
            return file.read_row_group(group.number, columns=[group.column])[group.column]
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{group.path} can't be read: {first_line(error)}") from error


def _row_texts(group: _Group, indices: np.ndarray) -> list[str | bytes]:
    values = _row_group(group).take(indices).to_pylist()
    return ["" if value is None else value for value in values]


@dataclasses.dataclass(frozen=True)
class _Kind:
    """How files of a kind are read.

    counts: (path, column) -> records per group, int64; texts: (group, indices in it [N]) -> their texts.
    """

    counts: Callable[[Path, str], np.ndarray]
    texts: Callable[[_Group, np.ndarray], Any]


KINDS: dict[str, _Kind] = {
    "array_record": _Kind(_records, _record_texts),
    "parquet": _Kind(_row_groups, _row_texts),
}
