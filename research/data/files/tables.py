"""Tables in files, read a piece at a time: CSV, TSV, JSON lines, Parquet and lines of text.

CSV and TSV values are strings; JSON lines and Parquet have types. The first line of a CSV or TSV file names its
columns. The lines of a text file (.txt), and JSON lines that are strings, are one column, by default "text". All files
are UTF-8, with or without a byte order mark.
"""

import contextlib
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from research.base.errors import UserError

Row = dict[str, Any]

# Rows that are read, encoded and predicted together.
PIECE_ROWS = 4096
# The largest field of a CSV file; Python's own limit, 128 KiB, is less than a long text.
_LARGEST_FIELD = 2**30

DELIMITERS = {".csv": ",", ".tsv": "\t"}
FORMATS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".txt")


def read_rows(path: Path | None, form: str | None = None, *, line_column: str = "text") -> Iterator[Row]:
    """The rows of a table, in order: values by column.

    Args:
      path: the file; None reads standard input.
      form: one of FORMATS; None: the file's suffix, and for standard input ".jsonl".
      line_column: the column of lines of text.

    Raises:
      UserError: the file can't be read, names a column twice, has a row with more or fewer values than columns, or is
        not valid in its format; the message has the file's name and the number of the line, from 1.
    """
    name = "standard input" if path is None else str(path)
    suffix = form or (".jsonl" if path is None else path.suffix.lower())
    if suffix not in FORMATS:
        raise UserError(f"{name} is not a table: its suffix is {suffix!r}; known: {', '.join(FORMATS)}")
    if suffix == ".parquet":
        if path is None:
            raise UserError("standard input can't be Parquet, whose index is at the end; give a file")
        return _parquet(path)
    return _text_rows(path, name, suffix, line_column)


def row_name(index: int, of: Path | str) -> str:
    """What error messages call the row `index`, from 0 as in predictions: "row 3 (counting from 0) of FILE"."""
    return f"row {index} (counting from 0) of {of}"


def column_names(path: Path) -> list[str]:
    """The columns of a CSV or TSV file. Raises UserError if it can't be read, is empty, or names a column twice."""
    with _opened(path, str(path)) as file:
        return _header(_reader(_decoded(file, str(path)), DELIMITERS[path.suffix.lower()]), str(path))


def count(path: Path) -> int | None:
    """The number of rows of a table, for a progress bar; too large where a value of a CSV file has line breaks."""
    if path.suffix.lower() == ".parquet":
        return None
    with path.open("rb") as file:
        lines = sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))
    return max(0, lines - (path.suffix.lower() in DELIMITERS))


def pieces(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """The rows in lists of at most PIECE_ROWS; those before a row that can't be read come before its UserError."""
    piece: list[Row] = []
    try:
        for row in rows:
            piece.append(row)
            if len(piece) == PIECE_ROWS:
                yield piece
                piece = []
    except UserError:
        if piece:
            yield piece
        raise
    if piece:
        yield piece


def _text_rows(path: Path | None, name: str, suffix: str, line_column: str) -> Iterator[Row]:
    with _opened(path, name) as file:
        lines = _decoded(file, name)
        if suffix in DELIMITERS:
            yield from _delimited(lines, name, DELIMITERS[suffix])
        elif suffix == ".txt":
            for line in lines:
                yield {line_column: line.rstrip("\r\n")}
        else:
            yield from _json_lines(lines, name, line_column)


@contextlib.contextmanager
def _opened(path: Path | None, name: str) -> Iterator[IO[bytes]]:
    if path is None:
        yield sys.stdin.buffer
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{name} can't be read: {error.strerror}") from error
    with file:
        yield file


def _decoded(file: IO[bytes], name: str) -> Iterator[str]:
    """The lines of a UTF-8 file. Raises UserError for the first one that is not."""
    for number, line in enumerate(file, 1):
        if number == 1:
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise UserError(f"{name} is UTF-16; convert it: iconv -f UTF-16 -t UTF-8")
            line = line.removeprefix(b"\xef\xbb\xbf")
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"line {number} of {name} is not UTF-8 (byte {line[error.start]:#x} at {error.start}); convert it, for "
                "example with iconv -f LATIN1 -t UTF-8"
            ) from error


def _reader(lines: Iterator[str], delimiter: str) -> Any:
    csv.field_size_limit(_LARGEST_FIELD)
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _header(reader: Any, name: str) -> list[str]:
    """The names in the first line. Raises UserError if there are none, or one is there twice."""
    names: list[str] = next(reader, [])
    if not names:
        raise UserError(f"{name} is empty; its first line must name the columns")
    twice = {column for column in names if names.count(column) > 1}
    if twice:
        raise UserError(f"{name} has two columns called {sorted(twice)[0]!r}")
    return names


def _delimited(lines: Iterator[str], name: str, delimiter: str) -> Iterator[Row]:
    reader = _reader(lines, delimiter)
    try:
        names = _header(reader, name)
        for values in reader:
            if len(values) == len(names):
                yield dict(zip(names, values, strict=True))
            elif values:  # else an empty line
                raise UserError(
                    f"line {reader.line_num} of {name} has {len(values)} values; its first line names {len(names)} "
                    f"columns ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})"
                )
    except csv.Error as error:
        raise UserError(f"line {reader.line_num} of {name} is not valid: {error}") from error


def _json_lines(lines: Iterator[str], name: str, line_column: str) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line.rstrip())
        except json.JSONDecodeError as error:
            what = error.msg.removesuffix(" at").removesuffix(" starting")  # which end with the column
            raise UserError(f"line {number}, column {error.colno} of {name} is not valid JSON: {what}") from error
        except ValueError as error:  # such as an integer of too many digits
            raise UserError(f"line {number} of {name} can't be read: {error}") from error
        if isinstance(row, str):
            row = {line_column: row}
        if not isinstance(row, dict):
            raise UserError(f"line {number} of {name} is a JSON {type(row).__name__}; it must be an object of columns")
        yield row


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(PIECE_ROWS):
                yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} can't be read as Parquet: {str(error).splitlines()[0]}") from error
