"""Writes predictions of whole files: resumable, and nothing is left of a call whose first row can't be read."""

import functools
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from research.base.errors import UserError
from research.base.paths import atomic_write
from research.base.trees import to_json
from research.data.files import tables
from research.inference.bulk import Source, Unseen, predict_rows
from research.inference.predictor import Predictor


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
    model, rows and options, its complete pieces are kept; that of any other call is replaced. Values of categories that
    did not occur in training are a warning at the end.

    Args:
      identity: what identifies the model, such as the run directory and the step.
      show: whether to draw a progress bar.

    Raises:
      UserError: as `predict_rows`, and nothing is created if it is the first row; `output` exists already.
    """
    unseen = Unseen()
    rows = functools.partial(predict_rows, predictor, source, keys=keys, inputs=inputs, unseen=unseen)
    try:
        if output is None:
            return _write(rows(), sys.stdout, 0, source, show)
        if output.exists():
            raise UserError(f"{output} exists; remove it or give another --output")
        part, about = output.with_name(output.name + ".part"), output.with_name(output.name + ".part.json")
        call = json.dumps({**identity, "source": source.name, "state": source.state, "keys": keys, "inputs": inputs})
        start = _resumed(part, about, call)
        records = _counted(rows(start=start), start, part)
        first = list(itertools.islice(records, 1))  # before anything is created
        if not start and part.exists():
            part.unlink()
        output.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(about, call)
        with part.open("a", encoding="utf-8") as file:
            done = _write(itertools.chain(first, records), file, start, source, show)
        os.replace(part, output)
        about.unlink()
        return done
    finally:
        if unseen.warning:
            print(f"warning: {unseen.warning}", file=sys.stderr)


def _counted(records: Iterator[list[dict[str, Any]]], done: int, part: Path) -> Iterator[list[dict[str, Any]]]:
    """The records; an error says how many come before it, with `done` earlier ones."""
    try:
        for piece in records:
            done += len(piece)
            yield piece
    except UserError as error:
        if not done:
            raise
        raise UserError(f"{error}; the {done:,} rows before it are in {part}") from error


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


def _resumed(part: Path, about: Path, call: str) -> int:
    """The number of rows that `part` holds already: whole pieces, what follows them is cut off.

    0 if `part` is of another call; a line says so.
    """
    if not part.exists():
        return 0
    if not about.is_file() or about.read_text() != call:
        print(f"starting over: {part} was made with other options or input", file=sys.stderr)
        return 0
    ends = [0]
    with part.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number % tables.PIECE_ROWS == 0 and line.endswith(b"\n"):
                ends.append(file.tell())
    os.truncate(part, ends[-1])
    return (len(ends) - 1) * tables.PIECE_ROWS
