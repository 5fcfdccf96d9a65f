"""Predictions for a whole file, or a folder of images: a piece at a time, resumable, in constant memory."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from research.base.errors import UserError
from research.base.paths import atomic_write
from research.base.registry import nearest
from research.base.trees import to_json
from research.data.examples import BagExamples, Examples, TextExamples
from research.data.files import folders, tables
from research.data.table import as_category
from research.inference.predictor import Predictor


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
        raise UserError("this run predicts masked tokens of long rows, not a value for each input; evaluate it instead")
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
        return Source("standard input", lambda: rows(None), None, None)
    file = Path(path).expanduser()
    if file.is_dir():
        images = folders.image_files(file)
        if predictor.signature.kind != "image":
            raise UserError(f"{file} is a folder, which is for images; this run's inputs are {_inputs(predictor)}")
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


def predict_rows(
    predictor: Predictor, source: Source, *, keys: tuple[str, ...] = (), inputs: bool = False, start: int = 0
) -> Iterator[list[dict[str, Any]]]:
    """The records of the source's rows from `start` on, a multiple of `tables.PIECE_ROWS`, in lists of at most as many.

    A record has "row", from 0; "key", as evaluation writes it, where the run's own files have a column of keys and the
    row has it too; the columns `keys` of its row, and with `inputs` those that the model reads; for texts also
    "tokens", the number of tokens that the model reads, and "truncated"; and the predictions of `Predictor`.

    Raises UserError, naming the row, for a row that lacks a column or has a value that the model can't read.
    """
    rows = source.rows()
    for _ in range(start):
        next(rows, None)
    for piece in tables.pieces(rows):
        examples = _encoded(predictor, source, piece, start)
        key = predictor.key
        shown = (*keys, *(predictor.signature.inputs if inputs else ()))
        named = [_shown(row, shown, start + i, source) for i, row in enumerate(piece)]
        yield [
            {
                "row": start + i,
                **({"key": as_category(row[key])} if key in row else {}),
                **name,
                **length,
                **{k: x for k, x in record.items() if k != "index"},
            }
            for i, (row, name, length, record) in enumerate(
                zip(piece, named, _lengths(examples), predictor.predict_examples(examples), strict=True)
            )
        ]
        start += len(piece)


def write_predictions(
    predictor: Predictor,
    source: Source,
    output: Path | None,
    *,
    identity: dict[str, Any],
    keys: tuple[str, ...] = (),
    inputs: bool = False,
    show: bool = True,
) -> int:
    """Writes a JSON line per row to `output`, None for standard output -> the number of rows.

    The lines are in OUTPUT.part until they are complete. Where that file is left from an interrupted call for the same
    model, rows and options, its complete pieces are kept.

    Args:
      identity: what identifies the model, such as the run directory and the step.

    Raises:
      UserError: as `predict_rows`; `output` exists already, or its .part file is that of another call.
    """
    if output is None:
        return _write(predict_rows(predictor, source, keys=keys, inputs=inputs), sys.stdout, 0, source, show)
    if output.exists():
        raise UserError(f"{output} exists; remove it or give another --output")
    part, about = output.with_name(output.name + ".part"), output.with_name(output.name + ".part.json")
    call = {**identity, "source": source.name, "state": source.state, "keys": list(keys), "inputs": inputs}
    start = _resumed(part, about, call)
    output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(about, json.dumps(call))
    with part.open("a", encoding="utf-8") as file:
        records = predict_rows(predictor, source, keys=keys, inputs=inputs, start=start)
        done = _write(records, file, start, source, show)
    os.replace(part, output)
    about.unlink()
    return done


def _write(records: Iterator[list[dict[str, Any]]], file: IO[str], done: int, source: Source, show: bool) -> int:
    with tqdm(
        total=source.size, initial=done, unit="row", disable=not show, delay=1.0, leave=False, file=sys.stderr
    ) as bar:
        for piece in records:
            file.writelines(to_json(record) + "\n" for record in piece)
            file.flush()
            done += len(piece)
            bar.update(len(piece))
    return done


def _resumed(part: Path, about: Path, call: dict[str, Any]) -> int:
    """The number of rows that `part` holds already: whole pieces, what follows them is cut off."""
    if not part.exists():
        return 0
    if not about.is_file() or json.loads(about.read_text()) != call:
        raise UserError(f"{part} is left from a call with another model, input or options; remove it")
    ends = [0]
    with part.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number % tables.PIECE_ROWS == 0 and line.endswith(b"\n"):
                ends.append(file.tell())
    os.truncate(part, ends[-1])
    return (len(ends) - 1) * tables.PIECE_ROWS


def _encoded(predictor: Predictor, source: Source, piece: list[tables.Row], start: int) -> Examples:
    """Encodes the rows of a piece. Raises UserError with the number of the first row that can't be encoded."""

    def encode(rows: list[tables.Row], where: str = "") -> Examples:
        columns = _Columns({name: [_value(row, name) for row in rows] for name in predictor.signature.inputs})
        columns.place = where
        return predictor.encode(columns, source.name)

    try:
        return encode(piece)
    except UserError:
        for number, row in enumerate(piece, start + 1):
            where = f"row {number} of {source.name}" + (f", {row['file']}" if "file" in row else "")
            try:
                encode([row], where)
            except UserError as error:
                said = str(error)
                raise UserError(said if said.startswith(where) else f"{where}: {said}") from error
        raise


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


def _shown(row: tables.Row, names: tuple[str, ...], number: int, source: Source) -> dict[str, Any]:
    """The columns `names` of a row that are not bytes, and the file of an image."""
    missing = [name for name in names if name not in row]
    if missing:
        raise UserError(f"row {number + 1} of {source.name} has no column {missing[0]!r}; it has {', '.join(row)}")
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


def _inputs(predictor: Predictor) -> str:
    return f"{predictor.signature.kind}: {', '.join(predictor.signature.inputs)}"
