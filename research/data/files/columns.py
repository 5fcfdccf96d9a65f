"""The columns of a table's file, as typed arrays that are kept in the cache and memory-mapped."""

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np

from research.base.errors import UserError
from research.base.paths import cache_folder
from research.data.cache import ArtifactCache
from research.data.examples import pack_array, unpack_array
from research.data.files.batches import Batch, read_batches
from research.data.files.kinds import as_numbers, declare
from research.data.files.tables import row_name

_PIECE = 2**16  # texts that are inspected together

# Part of the cache keys: raise it when the results of this module change.
_VERSION = 2


class Texts(Sequence[str]):
    """N texts, concatenated as UTF-8: in memory, or memory-mapped."""

    def __init__(self, values: np.ndarray, offsets: np.ndarray):
        self._values = values
        self._offsets = offsets

    def __reduce__(self) -> tuple[Any, ...]:
        return unpack_array, (type(self), *map(pack_array, (self._values, self._offsets)))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def empty(self) -> np.ndarray:
        """The indices of texts that are empty or white space."""
        found = []
        for start in range(0, len(self), _PIECE):
            offsets = np.asarray(self._offsets[start : start + _PIECE + 1])
            visible = ~np.isin(self._values[offsets[0] : offsets[-1]], list(b" \t\r\n\v\f"))
            before = np.concatenate([[0], np.cumsum(visible)])[offsets - offsets[0]]
            found.append(start + np.flatnonzero(np.diff(before) == 0))
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def take(self, indices: np.ndarray) -> list[str]:
        """The texts `indices` [B]."""
        return [self[int(index)] for index in indices]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return self._values[self._offsets[index] : self._offsets[index + 1]].tobytes().decode()


@dataclasses.dataclass(frozen=True)
class Categories:
    """Text with few distinct values: codes, int32 [N], that index `names`; −1 where it is missing."""

    codes: np.ndarray
    names: tuple[str, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return _categories, (pack_array(self.codes), self.names)

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, indices: np.ndarray) -> "Categories":
        """The values `indices` [B]."""
        return Categories(self.codes[indices], self.names)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._name(code) for code in self.codes[index]]
        return self._name(self.codes[index])

    def __iter__(self) -> Iterator[str | None]:
        return map(self._name, self.codes)

    def _name(self, code: int) -> str | None:
        return self.names[code] if code >= 0 else None


def _categories(codes: np.ndarray | Path, names: tuple[str, ...]) -> Categories:
    return Categories(unpack_array(lambda array: array, codes), names)


@dataclasses.dataclass(frozen=True)
class Rows(Sequence[Any]):
    """Some rows of a column: `rows`, int64 [M], of `values`, an array or another class of this module."""

    values: Any
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, indices: Any) -> Any:
        """The values `indices` [B], a slice or an array of indices."""
        rows = self.rows[indices]
        return self.values[rows] if isinstance(self.values, np.ndarray) else self.values.take(rows)

    def __getitem__(self, index: Any) -> Any:
        return self.take(index) if isinstance(index, slice | np.ndarray) else self.values[int(self.rows[index])]

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self), 4096):
            yield from self.take(slice(start, start + 4096))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = np.asarray(self.take(slice(None)))
        return values if dtype is None else values.astype(dtype)


def read_columns(path: Path, kinds: Mapping[str, str], cache: ArtifactCache) -> dict[str, Any]:
    """The columns of a table of the kinds "number" (float64 [N], NaN where missing), "category" and the others, text.

    They come from the cache where it has them. A category's names are in the order of their first row.

    Raises UserError as `read_batches`, for a column that the table lacks, and for a value that is not a number where
    `kinds` says so, with its row.
    """

    def make() -> dict[str, np.ndarray]:
        with _Writer(kinds, path) as writer:
            nested = "json" in kinds.values()
            for batch in read_batches(path, "reading", kinds.__contains__, nested=nested):
                writer.add(batch)
            return writer.arrays()

    arrays = cache.arrays("table", make, key=(_VERSION, sorted(kinds.items())))
    columns: dict[str, Any] = {}
    for i, (name, kind) in enumerate(sorted(kinds.items())):
        if kind == "number":
            columns[name] = arrays[f"{i}"]
        elif kind == "category":
            columns[name] = Categories(arrays[f"{i}"], tuple(json.loads(bytes(arrays[f"{i}.names"]))))
        else:
            columns[name] = Texts(arrays[f"{i}"], arrays[f"{i}.offsets"])
    return columns


class _Writer:
    """Writes columns to files of their own, as they may be larger than the memory."""

    def __init__(self, kinds: Mapping[str, str], path: Path):
        self._kinds = sorted(kinds.items())
        self._path = path
        self._names: list[dict[str, int]] = [{} for _ in kinds]
        self._ends = [0 for _ in kinds]
        self._rows = 0
        self._seen: set[str] = set()

    def __enter__(self) -> "_Writer":
        parent = cache_folder()
        try:
            parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix="table-", dir=parent))
        except OSError:  # a cache that can't be written
            self._folder = Path(tempfile.mkdtemp(prefix="table-"))
        self._files = {
            name: (self._folder / name).open("wb")
            for i, (_, kind) in enumerate(self._kinds)
            for name in ((f"{i}",) if kind in ("number", "category") else (f"{i}", f"{i}.offsets"))
        }
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()
        shutil.rmtree(self._folder, ignore_errors=True)  # memory maps of its files stay valid

    def add(self, batch: Batch) -> None:
        import pyarrow

        self._seen |= batch.keys()
        size = len(next(iter(batch.values()))) if batch else 0
        for i, (name, kind) in enumerate(self._kinds):
            array = batch[name] if name in batch else pyarrow.nulls(size)
            if kind == "number":
                self._number(i, name, array)
            elif kind == "category":
                self._category(i, array)
            else:
                self._text(i, array, trimmed=kind == "key")
        self._rows += size

    def _number(self, i: int, name: str, array: Any) -> None:
        import pyarrow
        import pyarrow.compute as pc

        numbers = as_numbers(array) if pyarrow.types.is_string(array.type) else _cast(array, pyarrow.float64())
        if numbers is None:
            for place, value in enumerate(array):
                if as_numbers(pyarrow.array([value.as_py()], pyarrow.string())) is None:
                    raise UserError(
                        f"{row_name(self._rows + place, self._path)}: column {name!r} is {value.as_py()!r:.40}, not "
                        f"a number; mend it, or declare the column: {declare(name, 'category')}"
                    )
        pc.fill_null(numbers, float("nan")).to_numpy(zero_copy_only=False).tofile(self._files[f"{i}"])

    def _category(self, i: int, array: Any) -> None:
        import pyarrow.compute as pc

        text = _text(array)
        trimmed = pc.utf8_trim_whitespace(text)
        encoded = pc.if_else(pc.equal(trimmed, ""), None, trimmed).dictionary_encode()
        names = self._names[i]
        known = np.array([names.setdefault(name, len(names)) for name in encoded.dictionary.to_pylist()], np.int32)
        codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
        np.append(known, np.int32(-1))[codes].astype(np.int32).tofile(self._files[f"{i}"])

    def _text(self, i: int, array: Any, *, trimmed: bool) -> None:
        import pyarrow
        import pyarrow.compute as pc

        text = pc.fill_null(_text(array), "")
        text = pc.utf8_trim_whitespace(text) if trimmed else text
        lengths = pc.binary_length(text).to_numpy(zero_copy_only=False).astype(np.int64)
        ends = self._ends[i] + np.cumsum(lengths)
        ends.tofile(self._files[f"{i}.offsets"])
        self._ends[i] = int(ends[-1]) if len(ends) else self._ends[i]
        if text.offset or not isinstance(text, pyarrow.StringArray):
            text = pyarrow.concat_arrays([text.cast(pyarrow.string())])
        first, data = text.buffers()[1:]
        if data is not None:
            offsets = np.frombuffer(first, np.int32)[text.offset : text.offset + len(text) + 1]
            np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]].tofile(self._files[f"{i}"])

    def arrays(self) -> dict[str, np.ndarray]:
        """What was written, memory-mapped; the offsets of text begin with 0.

        Raises UserError for a column that the table lacks.
        """
        missing = next((name for name, _ in self._kinds if name not in self._seen), None)
        if missing is not None:
            raise UserError(
                f"{self._path} has no column {missing!r}, or no rows; it has {', '.join(sorted(self._seen))}"
            )
        found: dict[str, np.ndarray] = {}
        for file in self._files.values():
            file.flush()
        for i, (_, kind) in enumerate(self._kinds):
            if kind == "number":
                found[f"{i}"] = _mapped(self._folder / f"{i}", np.float64)
            elif kind == "category":
                found[f"{i}"] = _mapped(self._folder / f"{i}", np.int32)
                found[f"{i}.names"] = np.frombuffer(json.dumps(list(self._names[i])).encode(), np.uint8)
            else:
                found[f"{i}"] = _mapped(self._folder / f"{i}", np.uint8)
                ends = _mapped(self._folder / f"{i}.offsets", np.int64)
                found[f"{i}.offsets"] = np.concatenate([np.zeros(1, np.int64), ends])
        return found


def _mapped(path: Path, dtype: Any) -> np.ndarray:
    return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)


def _text(array: Any) -> Any:
    """An Arrow array as strings: whole numbers without a decimal point."""
    import pyarrow
    import pyarrow.compute as pc

    if pyarrow.types.is_floating(array.type):
        array = pc.if_else(pc.is_nan(array), None, array)
        whole = pc.and_(pc.equal(pc.floor(array), array), pc.less(pc.abs(array), 2.0**63))
        integers = pc.cast(pc.floor(array), pyarrow.int64(), safe=False)
        return pc.if_else(whole, integers.cast(pyarrow.string()), array.cast(pyarrow.string()))
    return _cast(array, pyarrow.string())


def _cast(array: Any, kind: Any) -> Any:
    import pyarrow

    if pyarrow.types.is_boolean(array.type) and not pyarrow.types.is_string(kind):
        array = array.cast(pyarrow.int8())
    return array.cast(kind, safe=False)
