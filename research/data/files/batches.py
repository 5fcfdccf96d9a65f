"""Tables in files as Arrow arrays, a piece at a time, in bounded memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from research.base.errors import UserError, first_line
from research.data.files import tables

# Bytes of a CSV file that are read together: Arrow's default, 1 MiB, makes too many small batches of a large file.
_BLOCK_BYTES = 2**24

Batch = dict[str, Any]  # pyarrow.Array by column, all of one length


def read_batches(path: Path, what: str) -> Iterator[Batch]:
    """The rows of a table, in order, in batches.

    The columns of CSV and TSV files, and lines of text, are strings, as written. Those of JSON lines and Parquet have
    types; a column that a JSON line lacks is null, and columns that first appear later are in later batches only.

    `what` the caller does, for the progress bar: "reading".

    Raises:
      UserError: as `tables.read_rows`; a column of JSON lines has values of several types, or of a type that is neither
        a number, text nor a boolean. The message has the file's name and the number of the line or row, from 1.
    """
    suffix = path.suffix.lower()
    if suffix in tables.DELIMITERS:
        batches = _delimited(path, tables.DELIMITERS[suffix])
    else:
        batches = _parquet(path) if suffix == ".parquet" else _rows(path)
    with tqdm(desc=f"{what} {path.name}", unit="row", unit_scale=True, delay=1, leave=False, disable=None) as bar:
        for batch in batches:
            yield batch
            bar.update(len(next(iter(batch.values()))) if batch else 0)


def _delimited(path: Path, delimiter: str) -> Iterator[Batch]:
    import pyarrow
    from pyarrow import csv as arrow_csv

    names = tables.column_names(path)
    try:
        reader = arrow_csv.open_csv(
            path,
            read_options=arrow_csv.ReadOptions(block_size=_BLOCK_BYTES),
            parse_options=arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pyarrow.string()), strings_can_be_null=False
            ),
        )
        for batch in reader:
            yield dict(zip(names, batch.columns, strict=True))
    except (pyarrow.ArrowException, OSError) as error:
        # The other reader counts lines, and knows what is wrong with them.
        for _ in tables.read_rows(path):
            pass
        raise UserError(f"{path} can't be read: {first_line(error)}") from error


def _parquet(path: Path) -> Iterator[Batch]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(2**16):
                yield {
                    name: column.dictionary_decode() if pyarrow.types.is_dictionary(column.type) else column
                    for name, column in zip(batch.schema.names, batch.columns, strict=True)
                }
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} can't be read as Parquet: {first_line(error)}") from error


def _rows(path: Path) -> Iterator[Batch]:
    start = 0
    for piece in tables.pieces(tables.read_rows(path)):
        names = dict.fromkeys(name for row in piece for name in row)
        yield {name: _array([row.get(name) for row in piece], name, start, path) for name in names}
        start += len(piece)


def _array(values: list[Any], name: str, start: int, path: Path) -> Any:
    """The values of a column as an Arrow array; `start` is the index of their first row."""
    import pyarrow

    for i, value in enumerate(values, start + 1):
        if isinstance(value, list | dict):
            kind = "a list" if isinstance(value, list) else "an object"
            raise UserError(f"row {i} of {path}: column {name!r} is {kind}; a number, text, true or false is needed")
    try:
        return pyarrow.array(values)
    except (pyarrow.ArrowException, OverflowError):
        given = [(i, value) for i, value in enumerate(values, start + 1) if value is not None]
        (first, one), *_ = given
        for i, value in given:
            if isinstance(value, str) is not isinstance(one, str) or isinstance(value, bool) is not isinstance(
                one, bool
            ):
                raise UserError(
                    f"row {i} of {path}: column {name!r} is {value!r:.40}, and {one!r:.40} in row {first}; a column's "
                    "values must be of one type"
                ) from None
        return pyarrow.array([None if value is None else float(value) for value in values])
