"""Predictions for a whole file, or a folder of images: a piece at a time, in constant memory."""

import dataclasses
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.base.errors import UserError
from research.base.registry import nearest
from research.data.examples import BagExamples, Examples, TextExamples
from research.data.files import folders, tables
from research.data.table import TableExamples, as_category
from research.inference.predictor import Predictor


def renamed_columns(pairs: Sequence[str]) -> dict[str, str]:
    """The values of --column flags, each "INPUT=COLUMN": columns by input. Raises UserError for another form."""
    for pair in pairs:
        if "=" not in pair:
            raise UserError(f"--column={pair} is not of the form INPUT=COLUMN")
    return dict(pair.split("=", 1) for pair in pairs)


@dataclasses.dataclass(frozen=True)
class Source:
    """Rows to predict for.

    Attributes:
      name: what error messages call it.
      rows: makes the rows, values by column, from the first one on.
      size: their number, or an estimate of it; None: unknown.
      state: what identifies the contents, such as the file's size and modification time.
    """

    name: str
    rows: Callable[[], Iterator[tables.Row]]
    size: int | None
    state: Any


def open_source(
    path: str, predictor: Predictor, *, form: str | None = None, columns: Mapping[str, str] | None = None
) -> Source:
    """The rows of a file, of a folder of images, or with "-" of standard input.

    Args:
      form: the format of a table, one of `tables.FORMATS`; None: from the suffix.
      columns: the column to read for an input of the model, by the input's name; the others are called as the input.
        The lines of a text file are the only input of a model that has one.

    Raises:
      UserError: the model does not predict for each input, there is no such file, its format is unknown, or `columns`
        has a name that is not an input.
    """
    inputs, renamed = predictor.signature.inputs, dict(columns or {})
    if predictor.signature.kind == "documents":
        raise UserError("this run predicts tokens of long rows, not a value for each input; evaluate it instead")
    for name in renamed:
        if name not in inputs:
            raise UserError(f"{name!r} is not an input of the model; {nearest(name, inputs)}")

    def rows(file: Path | None) -> Iterator[tables.Row]:
        line_column = inputs[0] if len(inputs) == 1 else "text"
        for row in tables.read_rows(file, form, line_column=line_column):
            named = {**row, **{name: row[column] for name, column in renamed.items() if column in row}}
            if predictor.signature.kind == "image" and isinstance(named.get(inputs[0]), str):
                image = (file.parent if file else Path()) / named[inputs[0]]
                named |= {inputs[0]: folders.contents(image), "file": row[renamed.get(inputs[0], inputs[0])]}
            yield named

    if path == "-":
        unique = uuid.uuid4().hex  # what another call reads there may differ
        return Source("standard input", lambda: rows(None), None, unique)
    file = Path(path).expanduser()
    if file.is_dir():
        images = folders.image_files(file)
        if predictor.signature.kind != "image":
            raise UserError(
                f"{file} is a folder, which is for images; this run reads a table with the "
                f"column{'s' if len(inputs) > 1 else ''} {', '.join(inputs)}"
            )
        column = predictor.signature.inputs[0]
        return Source(
            str(file),
            lambda: ({"file": str(image.relative_to(file)), column: folders.contents(image)} for image in images),
            len(images),
            [str(image.relative_to(file)) for image in images],
        )
    if not file.is_file():
        raise UserError(f"{file} is neither a file nor a folder")
    stat = file.stat()
    return Source(str(file), lambda: rows(file), tables.count(file), [stat.st_size, stat.st_mtime_ns])


class Unseen:
    """The values of categories that did not occur in training, which are encoded as none of the known categories."""

    def __init__(self) -> None:
        self._rows = 0
        self._first: str | None = None

    def note(self, examples: Examples, piece: list[tables.Row], start: int) -> None:
        """Counts the rows of a piece that have such a value; `start`: the number of its first row."""
        found = examples.unknown() if isinstance(examples, TableExamples) else {}
        rows = {int(i) for indices in found.values() for i in indices}
        if rows and self._first is None:
            first = min(rows)
            name = next(name for name, indices in found.items() if first in indices)
            self._first = f"row {start + first} (counting from 0): {name} {as_category(piece[first][name])!r:.40}"
        self._rows += len(rows)

    @property
    def warning(self) -> str | None:
        """One line; None if every value is known."""
        if self._first is None:
            return None
        more = f" ({self._rows:,} such rows in all)" if self._rows > 1 else ""
        return f"{self._first} was not in training; it is encoded as none of the known categories{more}"


def predict_rows(
    predictor: Predictor,
    source: Source,
    *,
    keys: tuple[str, ...] = (),
    inputs: bool = False,
    start: int = 0,
    unseen: Unseen | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """The records of the source's rows from `start` on, a multiple of `tables.PIECE_ROWS`, in lists of at most as many.

    A record has "row", from 0; "key", as evaluation writes it, where the run's own files have a column of keys and the
    row has it too; the columns `keys` of its row, and with `inputs` those that the model reads; for texts also
    "tokens", the number of tokens that the model reads, and "truncated"; and the predictions of `Predictor`.

    `unseen` is told of values that did not occur in training.

    Raises UserError, naming the row, for a row that lacks a column or has a value that the model can't read; the
    records of all rows before it come first.
    """
    rows = source.rows()
    for _ in range(start):
        next(rows, None)
    shown = (*keys, *(predictor.signature.inputs if inputs else ()))
    for piece in tables.pieces(rows):
        error = None
        try:
            read: _Read | None = _read(predictor, source, piece, shown)
        except UserError as unnamed:
            bad, error = _first_error(predictor, source, piece, shown, start, unnamed)
            piece = piece[:bad]
            read = _read(predictor, source, piece, shown) if piece else None
        if read:
            if unseen is not None:
                unseen.note(read[0], piece, start)
            yield _records(predictor, piece, *read, start)
        if error:
            raise error
        start += len(piece)


def _records(
    predictor: Predictor, piece: list[tables.Row], examples: Examples, names: list[dict[str, Any]], start: int
) -> list[dict[str, Any]]:
    key = predictor.key
    return [
        {
            "row": start + i,
            **({"key": as_category(row[key])} if key in row else {}),
            **name,
            **length,
            **{k: x for k, x in record.items() if k != "index"},
        }
        for i, (row, name, length, record) in enumerate(
            zip(piece, names, _lengths(examples), predictor.predict_examples(examples), strict=True)
        )
    ]


# The examples of rows, and of each row the columns that are copied to its record.
_Read = tuple[Examples, list[dict[str, Any]]]


def _read(
    predictor: Predictor, source: Source, piece: list[tables.Row], shown: tuple[str, ...], where: str = ""
) -> _Read:
    """Encodes rows -> the examples, and the columns `shown` of each row. Raises UserError, at `where`."""
    columns = _Columns({name: [_value(row, name) for row in piece] for name in predictor.signature.inputs})
    columns.place = where
    return predictor.encode(columns, source.name), [_shown(row, shown) for row in piece]


def _first_error(
    predictor: Predictor,
    source: Source,
    piece: list[tables.Row],
    shown: tuple[str, ...],
    start: int,
    unnamed: UserError,
) -> tuple[int, UserError]:
    """The place of the first row of a piece that can't be read, and the error, which names the row.

    Raises `unnamed`, the error of the whole piece, if there is no such row.
    """
    for i, row in enumerate(piece):
        where = tables.row_name(start + i, source.name) + (f", {row['file']}" if "file" in row else "")
        try:
            _read(predictor, source, [row], shown, where)
        except UserError as error:
            said = str(error)
            return i, UserError(said if said.startswith(where) else f"{where}: {said}")
    raise unnamed


class _Columns(dict[str, Any]):
    """Columns of one row, which is at `place`; or of several, whose error is not shown."""

    place: str

    def where(self, index: int) -> str:
        """See `research.data.columns.place`."""
        return self.place


def _value(row: tables.Row, name: str) -> Any:
    """The value of an input. Raises UserError if the row lacks it."""
    if name not in row:
        raise UserError(
            f"it has no column {name!r}, which the model reads, but {', '.join(row)}; to read another one, give "
            f"--column={name}=COLUMN"
        )
    return row[name]


def _shown(row: tables.Row, names: tuple[str, ...]) -> dict[str, Any]:
    """The columns `names` of a row that are not bytes, and the file of an image. Raises UserError if it lacks one."""
    missing = [name for name in names if name not in row]
    if missing:
        raise UserError(f"it has no column {missing[0]!r}, but {', '.join(row)}")
    shown = {name: row[name] for name in names if not isinstance(row[name], bytes)}
    return {**({"file": row["file"]} if "file" in row else {}), **shown}


def _lengths(examples: Examples) -> list[dict[str, Any]]:
    """The entries "tokens" (or "terms") and "truncated" for each example; empty ones where they do not apply."""
    if not isinstance(examples, TextExamples | BagExamples):
        return [{}] * len(examples)
    full = examples.lengths if examples.full_lengths is None else examples.full_lengths
    return [
        {examples.unit: int(length), "truncated": bool(whole > length)}
        for length, whole in zip(examples.lengths, full, strict=True)
    ]
