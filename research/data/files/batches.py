"""Tables in files as Arrow arrays, a piece at a time, in bounded memory."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from research.base.errors import UserError, first_line
from research.data.files import tables

# Bytes of a CSV file that are read together: Arrow's default, 1 MiB, makes too many small batches of a large file.
_BLOCK_BYTES = 2**24

Batch = dict[str, Any]  # pyarrow.Array by column, all of one length


def read_batches(
    path: Path, what: str, wanted: Callable[[str], bool] = lambda name: True, *, nested: bool = False
) -> Iterator[Batch]:
    """The rows of a table, in order, in batches.

    The columns of CSV and TSV files, and lines of text, are strings, as written. Those of JSON lines and Parquet have
    types; a column that a JSON line lacks is null, and columns that first appear later are in later batches only.

    Args:
      what: what the caller does, for the progress bar: "reading".
      wanted: whether to read the column of this name.
      nested: whether lists and objects of JSON lines and Parquet are read, as their JSON.

    Raises:
      UserError: as `tables.read_rows`; a column of JSON lines has values of several types, or of a type that is neither
        a number, text nor a boolean, and not `nested`. The message has the file's name and the number of the line, from
        1, or of the row, from 0.
    """
    suffix = path.suffix.lower()
    delimiter = tables.DELIMITERS.get(suffix)
    if delimiter and not _has_stray_quotes(path, delimiter):
        batches = _delimited(path, delimiter, wanted)
    else:
        batches = (_parquet if suffix == ".parquet" else _rows)(path, wanted, nested)
    with tqdm(desc=f"{what} {path.name}", unit="row", unit_scale=True, delay=1, leave=False, disable=None) as bar:
        for batch in batches:
            yield batch
            bar.update(len(next(iter(batch.values()))) if batch else 0)


def _has_stray_quotes(path: Path, delimiter: str) -> bool:
    """Whether a CSV file may have quotes that neither begin nor end a value.

    Arrow joins the rows between them, and the strict reader, which is slower, refuses them.
    """
    mark = delimiter.encode()
    try:
        with path.open("rb") as file:
            while block := file.read(2**22):
                block = b"\n" + (block + file.readline()).replace(b'""', b"") + b"\n"
                ends = (mark + b'"', b'\n"', b'"' + mark, b'"\n', b'"\r')
                if sum(map(block.count, ends)) != block.count(b'"'):
                    return True
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}") from error
    return False


def _delimited(path: Path, delimiter: str, wanted: Callable[[str], bool]) -> Iterator[Batch]:
    import pyarrow
    from pyarrow import csv as arrow_csv

    names = tables.column_names(path)
    read = [name for name in names if wanted(name)]
    try:
        reader = arrow_csv.open_csv(
            path,
            read_options=arrow_csv.ReadOptions(block_size=_BLOCK_BYTES),
            parse_options=arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pyarrow.string()), strings_can_be_null=False, include_columns=read
            ),
        )
        for batch in reader:
            yield dict(zip(batch.schema.names, batch.columns, strict=True))
    except (pyarrow.ArrowException, OSError) as error:
        # The other reader counts lines, and knows what is wrong with them.
        for _ in tables.read_rows(path):
            pass
        raise UserError(f"{path} can't be read: {first_line(error)}") from error


def _parquet(path: Path, wanted: Callable[[str], bool], nested: bool) -> Iterator[Batch]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            read = [name for name in file.schema_arrow.names if wanted(name)]
            for batch in file.iter_batches(2**16, columns=read):
                columns = (_as_json(x) if nested and pyarrow.types.is_nested(x.type) else x for x in batch.columns)
                yield dict(zip(batch.schema.names, map(_decoded, columns), strict=True))
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} can't be read as Parquet: {first_line(error)}") from error


def _decoded(column: Any) -> Any:
    """A column without a dictionary; text always of Arrow's type `string`."""
    import pyarrow
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pyarrow.string()) if types.is_large_string(column.type) else column


def _as_json(column: Any) -> Any:
    """A column of lists or objects as their JSON."""
    import pyarrow

    return pyarrow.array(
        [None if value is None else json.dumps(value, ensure_ascii=False, default=str) for value in column.to_pylist()],
        pyarrow.string(),
    )


def _rows(path: Path, wanted: Callable[[str], bool], nested: bool) -> Iterator[Batch]:
    start = 0
    for piece in tables.pieces(tables.read_rows(path)):
        names = dict.fromkeys(name for row in piece for name in row if wanted(name))
        yield {name: _array([row.get(name) for row in piece], name, start, path, nested) for name in names}
        start += len(piece)


def _array(values: list[Any], name: str, start: int, path: Path, nested: bool) -> Any:
    """The values of a column as an Arrow array; `start` is the index of their first row."""
    import pyarrow

    if nested:
        values = [json.dumps(x, ensure_ascii=False) if isinstance(x, list | dict) else x for x in values]
    for i, value in enumerate(values, start):
        if isinstance(value, list | dict):
            kind = "a list" if isinstance(value, list) else "an object"
            raise UserError(
                f"{tables.row_name(i, path)}: column {name!r} is {kind}; a number, text, true or false is needed; to "
                f"leave the column out: --config.data.kinds={name}=ignored"
            )
    try:
        return pyarrow.array(values)
    except UnicodeEncodeError:
        wrong = next(i for i, value in enumerate(values, start) if isinstance(value, str) and not _is_text(value))
        raise UserError(
            f"{tables.row_name(wrong, path)}: column {name!r} has half of a surrogate pair, not text"
        ) from None
    except (pyarrow.ArrowException, OverflowError):
        given = [(i, value) for i, value in enumerate(values, start) if value is not None]
        (first, one), *_ = given
        for i, value in given:
            if isinstance(value, str) is not isinstance(one, str) or isinstance(value, bool) is not isinstance(
                one, bool
            ):
                raise UserError(
                    f"{tables.row_name(i, path)}: column {name!r} is {value!r:.40}, and {one!r:.40} in row {first}; a "
                    "column's values must be of one type"
                ) from None
        return pyarrow.array([None if value is None else float(value) for value in values])


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
