"""Own files as a dataset: tables, or folders of images with a folder per class.

The section `data` of a config names a file or a folder for each split (`train`, `validation`, `test`) and the kinds of
a table's columns; research/training/own_files.py fills in what a user leaves out.
"""

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.base.errors import UserError
from research.base.paths import expanded
from research.data.cache import ArtifactCache, digest
from research.data.columns import KEY, only
from research.data.examples import Columns
from research.data.files import folders
from research.data.files.columns import Categories, Rows, Texts, read_columns
from research.data.files.cutting import cut
from research.data.files.kinds import declared
from research.data.files.tables import row_name
from research.data.sources.tfds_source import IN_MEMORY_BYTES, Records, Shards, Values
from research.data.splits import BySplit

NAME = "files"  # of the dataset, in `data.name`
SPLITS = ("train", "validation", "test")
_CUT = ("validation", "test")  # splits that may be cut off `train`


def paths(section: Mapping[str, Any]) -> dict[str, Path]:
    """The file or folder of each split that has one. Raises UserError if `train` has none, or one does not exist."""
    if not section["train"]:
        raise UserError(
            "data.train is missing: give the file or folder to train on, --config.data.train=FILE (.csv, .tsv, .jsonl, "
            ".parquet, or a folder of images with a folder per class)"
        )
    found = {split: expanded(section[split]).absolute() for split in SPLITS if section[split]}
    for split, path in found.items():
        if not path.exists():
            raise UserError(f"data.{split}={section[split]} does not exist")
    return found


def state(section: Mapping[str, Any]) -> str:
    """A hash of the names, sizes and times of the files. Raises UserError as `paths`, and as `folders.classes`."""
    listed = []
    for split, path in paths(section).items():
        for file in _files(path, section):
            stat = file.stat()
            listed.append((split, str(file), stat.st_size, stat.st_mtime_ns))
    return digest(listed, _settings(section))


def fingerprint(section: Mapping[str, Any]) -> str:
    """A hash of the contents of the files, and of the settings that determine splits and columns."""
    content = hashlib.sha256(digest(_settings(section)).encode())
    for split, path in paths(section).items():
        for file in _files(path, section):
            name = str(file.relative_to(path)) if path.is_dir() else ""
            content.update(f"{split}/{name}\n".encode())
            with file.open("rb") as stream:
                content.update(hashlib.file_digest(stream, "sha256").digest())
    return content.hexdigest()[:16]


def _settings(section: Mapping[str, Any]) -> list[Any]:
    keys = ("kinds", "validation_fraction", "test_fraction", "group_by", "time_by", "split_seed")
    return [section["transform"].get("label"), *(section[key] for key in keys)]


def _files(path: Path, section: Mapping[str, Any]) -> Iterator[Path]:
    """The files that the data of a split is in: a table and its images, or the images of a folder."""
    if path.is_dir():
        yield from (image for images in folders.classes(path).values() for image in images)
        return
    yield path
    kinds = _kinds(section)
    for name in [name for name, kind in kinds.items() if kind == "image"]:
        cache = ArtifactCache(source=_state_of(path))
        yield from _images(path, read_columns(path, kinds, cache)[name])


def _state_of(path: Path) -> str:
    stat = path.stat()
    return digest(str(path), stat.st_size, stat.st_mtime_ns)


def _kinds(section: Mapping[str, Any]) -> dict[str, str]:
    """The kinds of the columns that are read."""
    kinds = declared(tuple(section["kinds"]), tuple(text.rpartition("=")[0] for text in section["kinds"]))
    return {name: kind for name, kind in kinds.items() if kind != "ignored"}


def label_names(section: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes, in order; None if the label is a number."""
    path = paths(section)["train"]
    if path.is_dir():
        return tuple(folders.classes(path))
    return _Table(section).label_names


def load(section: Mapping[str, Any]) -> Mapping[str, Columns]:
    """The columns of each split: `train`, and `validation` and `test` where there are files or fractions for them.

    Each split has the column KEY: the value of the first column of kind "key", or the row, from 0; of an image its path
    in the folder. Labels that are classes are int32, in the order of `label_names`.

    Raises:
      UserError: a file is missing or not valid, a label is missing, occurs in another split than `train` only, or is
        the only one; the message has the row or the file.
    """
    given = paths(section)
    if given["train"].is_dir():
        whole = {split: _folder(section, path, label_names(section) or ()) for split, path in given.items()}
    else:
        table = _Table(section)
        whole = {split: table.columns(path) for split, path in given.items()}
    fractions = {split: section[f"{split}_fraction"] for split in _CUT if split not in given}
    fractions = {split: fraction for split, fraction in fractions.items() if fraction > 0}
    if fractions:
        train = whole.pop("train")
        cuts = _cut(section, given["train"], train, fractions)
        whole |= {name: train.rows(rows) for name, rows in cuts.items()}
    splits = {split: whole[split] for split in SPLITS if split in whole}

    def read(split: str) -> Columns:
        return splits[split].opened()

    return BySplit(splits, read)


class _Paths(list[Path]):
    """A column of images: their files, which are read when their split is."""


class _Columns(dict[str, Any]):
    """Columns of a file or a folder, `path`; `numbers`: their rows there, None for all."""

    def __init__(self, columns: Mapping[str, Any], path: Path, numbers: np.ndarray | None = None):
        super().__init__(columns)
        self._path = path
        self._numbers = numbers

    def where(self, index: int) -> str:
        """Where the example `index` comes from; see `research.data.columns.place`."""
        if self._path.is_dir():
            return str(self._path / self[KEY][index])
        return row_name(index if self._numbers is None else self._numbers[index], self._path)

    def rows(self, numbers: np.ndarray) -> "_Columns":
        """Some rows of all columns."""

        def some(values: Any) -> Any:
            if isinstance(values, _Paths):
                return _Paths(values[number] for number in numbers.tolist())
            return values[numbers] if type(values) is np.ndarray else Rows(values, numbers)

        return _Columns({name: some(values) for name, values in self.items()}, self._path, numbers)

    def opened(self) -> "_Columns":
        """The columns, with the contents of images."""
        opened = {name: _encoded(x) if isinstance(x, _Paths) else x for name, x in self.items()}
        return _Columns(opened, self._path, self._numbers)


def _cut(section: Mapping[str, Any], path: Path, train: Columns, fractions: Mapping[str, float]) -> dict[str, Any]:
    size = len(train[KEY])
    labels = train.get(section["transform"].get("label", ""))
    options: dict[str, Any] = {}
    if isinstance(labels, np.ndarray) and labels.dtype.kind == "i":
        options["classes"] = np.asarray(labels)
    for option, key in (("groups", "group_by"), ("times", "time_by")):
        if section[key]:
            options[option] = _order(path, section[key], option, _state_of(path))
    return cut(size, fractions, seed=section["split_seed"], **options)


def _order(path: Path, name: str, option: str, state: str) -> np.ndarray:
    """The groups of a table's rows as numbers, or its times in an order. Raises UserError for a missing value."""
    if path.is_dir():
        raise UserError(f"data.{option[:-1]}_by={name} needs a table with that column; {path} is a folder")
    values = read_columns(path, {name: "text"}, ArtifactCache(source=state))[name]
    array = np.array(values[:], np.str_)
    empty = np.flatnonzero(array == "")
    if len(empty):
        raise UserError(f"{row_name(empty[0], path)}: column {name!r}, data.{option[:-1]}_by, has no value")
    if option == "times":
        try:
            return array.astype(np.float64)
        except ValueError:
            try:
                return array.astype("datetime64[us]").astype(np.int64)
            except ValueError as error:
                raise UserError(
                    f"{path}: column {name!r}, data.time_by, must be numbers or dates such as 2024-12-31: {error}"
                ) from error
    return np.unique(array, return_inverse=True)[1]


class _Table:
    """The tables of a dataset, whose columns are of the kinds that the section declares."""

    def __init__(self, section: Mapping[str, Any]):
        self._kinds = _kinds(section)
        self._label = section["transform"].get("label")
        self._train = paths(section)["train"]

    @functools.cached_property
    def label_names(self) -> tuple[str, ...] | None:
        if self._kinds.get(self._label) != "category":
            return None
        names = self._read(self._train)[self._label].names
        if len(names) < 2:
            raise UserError(
                f"{self._train}: the label {self._label!r} is {names[0] if names else ''!r} in all rows; at least two "
                "classes are needed"
            )
        return sorted_names(names)

    def _read(self, path: Path) -> dict[str, Any]:
        return _table(path, tuple(sorted(self._kinds.items())), _state_of(path))

    def columns(self, path: Path) -> _Columns:
        """The columns of a table. Raises UserError as `load`."""
        values = dict(self._read(path))
        size = len(next(iter(values.values()))) if values else 0
        if self._label in values:
            values[self._label] = self._labels(path, values[self._label])
        images = [name for name, kind in self._kinds.items() if kind == "image"]
        values |= {name: _images(path, values[name]) for name in images}
        keys = [name for name, kind in self._kinds.items() if kind == "key"]
        return _Columns({**values, KEY: values[keys[0]] if keys else np.arange(size)}, path)

    def _labels(self, path: Path, values: Any) -> np.ndarray:
        if isinstance(values, Categories):
            assert self.label_names is not None
            position = {name: i for i, name in enumerate(self.label_names)}
            unknown = [name for name in values.names if name not in position]
            if unknown:
                row = int(np.flatnonzero(values.codes == values.names.index(unknown[0]))[0])
                raise UserError(
                    f"{row_name(row, path)}: the label {unknown[0]!r} is not in {self._train}, whose labels are "
                    f"{', '.join(self.label_names[:10])}{', …' if len(self.label_names) > 10 else ''}"
                )
            codes = np.array([*(position[name] for name in values.names), -1], np.int32)
            labels = codes[values.codes]
            missing = np.flatnonzero(labels < 0)
        else:
            labels = values
            missing = np.flatnonzero(np.isnan(labels))
        if len(missing):
            raise UserError(
                f"{row_name(missing[0], path)}: the label {self._label!r} is missing; give it, or remove the row"
            )
        return labels


@functools.lru_cache(maxsize=4)
def _table(path: Path, kinds: tuple[tuple[str, str], ...], state: str) -> dict[str, Any]:
    return read_columns(path, dict(kinds), ArtifactCache(source=state))


def sorted_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of classes in order: of their numbers, if all are integers."""
    try:
        return tuple(sorted(names, key=int))
    except ValueError:
        return tuple(sorted(names))


class _ImageFiles:
    """Image files by index, as a source of `Records`."""

    def __init__(self, files: Sequence[Path]):
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, bytes]:
        return {"image": folders.contents(self._files[index])}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, bytes]]:
        return [self[index] for index in indices]


def _encoded(files: _Paths) -> Values | Records:
    """The contents of image files: in memory, or read on access where they are large."""
    shards = Shards(tuple(map(str, files)), (1,) * len(files))
    if sum(file.stat().st_size for file in files) > IN_MEMORY_BYTES:
        return Records(_ImageFiles(files), "image", shards)
    return Values(map(folders.contents, files), shards)


def _images(path: Path, names: Texts) -> _Paths:
    """The images that a table's column names. Raises UserError with the row of one that does not exist."""
    files = _Paths(path.parent / name for name in names)
    for row, file in enumerate(files):
        if not file.is_file():
            raise UserError(f"{row_name(row, path)}: there is no image {file}")
    return files


def _folder(section: Mapping[str, Any], path: Path, names: tuple[str, ...]) -> _Columns:
    found = folders.classes(path)
    for name, images in found.items():
        if name not in names:
            raise UserError(f"{images[0].parent}: the class {name!r} is not in data.train: {', '.join(names[:10])}")
    files = _Paths(file for images in found.values() for file in images)
    labels = np.repeat([names.index(name) for name in found], [len(images) for images in found.values()])
    columns = {
        only(tuple(section["transform"]["inputs"])): files,
        section["transform"]["label"]: labels.astype(np.int32),
        KEY: np.array([str(file.relative_to(path)) for file in files]),
    }
    return _Columns(columns, path)
