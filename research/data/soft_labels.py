"""What another model gives for the training examples, and for further ones without labels."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from research.base.errors import UserError
from research.base.paths import expanded
from research.data.encoder import Encoder
from research.data.examples import ArrayExamples, Examples, Ragged, TextExamples
from research.data.files import tables
from research.data.load import fitting

_MORE = ("unlabelled", "soft_hidden")
_HIDDEN_LABEL = -1


def taught(examples: Examples, section: Mapping[str, Any], encoder: Encoder) -> Examples:
    """The training examples with `soft_labels` in a batch, and followed by those of `unlabelled`, with label −1.

    Args:
      section: the config's `data`: `soft_labels`; `unlabelled`, if any; and for all these examples `soft_hidden`, if
        any, which a batch then has too.

    Raises:
      UserError: a file can't be read, has another number of examples or classes, or the examples are of a kind that
        training augments.
    """
    if section["soft_labels"] is None:
        for key in _MORE:
            if section[key] is not None:
                raise UserError(f"data.{key}={section[key]} adds to data.soft_labels; give that too")
        return examples
    soft_labels = read_soft_labels(expanded(section["soft_labels"]))
    if len(soft_labels) != len(examples):
        raise UserError(f"there are soft labels of {len(soft_labels)} examples, and the split has {len(examples)}")
    if section["unlabelled"] is not None:
        path = expanded(section["unlabelled"])
        columns, more = read_unlabelled(path, encoder.signature.inputs)
        if more.shape[1] != soft_labels.shape[1]:
            raise UserError(
                f"data.unlabelled={path} has scores of {more.shape[1]} classes, and data.soft_labels of "
                f"{soft_labels.shape[1]}"
            )
        with fitting(section["transform"]["name"], f"data.unlabelled={path}"):
            examples = joined(examples, encoder.encode(columns, split="data.unlabelled", labels=False))
        soft_labels = np.concatenate([soft_labels, more])
    soft = {"soft_labels": soft_labels}
    if section["soft_hidden"] is not None:
        soft["soft_hidden"] = _read_hidden(expanded(section["soft_hidden"]), len(examples))
    return with_soft(examples, soft)


def read_soft_labels(path: Path) -> np.ndarray:
    """The `scores` of a file of predictions, as `research.evaluate` writes it: float32 [N, C].

    Raises UserError if the file can't be read, has no scores, or is not of all examples in order.
    """
    try:
        records = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"data.soft_labels={path} can't be read ({error})") from error
    if not records or any("scores" not in record for record in records):
        raise UserError(f"data.soft_labels={path} has no scores; a classifier's predictions have")
    if [record.get("index") for record in records] != list(range(len(records))):
        raise UserError(f"data.soft_labels={path} is not of all examples of a split, in their order")
    return _probabilities([record["scores"] for record in records], f"data.soft_labels={path}")


def read_unlabelled(path: Path, inputs: tuple[str, ...]) -> tuple[dict[str, list[Any]], np.ndarray]:
    """The columns `inputs` of JSON lines, and their `scores`: float32 [N, C].

    Raises UserError if the file can't be read, has no rows, or a row lacks one of them.
    """
    rows = list(tables.read_rows(path, ".jsonl"))
    if not rows:
        raise UserError(f"data.unlabelled={path} has no rows")
    for number, row in enumerate(rows):
        lacking = [name for name in (*inputs, "scores") if name not in row]
        if lacking:
            raise UserError(f"{tables.row_name(number, path)} lacks {lacking[0]!r}, which data.unlabelled needs")
    scores = _probabilities([row["scores"] for row in rows], f"data.unlabelled={path}")
    return {name: [row[name] for row in rows] for name in inputs}, scores


def _probabilities(scores: list[Any], what: str) -> np.ndarray:
    """float32 [N, C]. Raises UserError if they are not probabilities of the same number of classes."""
    try:
        array = np.asarray(scores, np.float32)
    except (ValueError, TypeError) as error:
        raise UserError(f"{what} has scores that are not lists of as many numbers") from error
    if array.ndim != 2 or not (np.isfinite(array) & (array >= 0)).all():
        raise UserError(f"{what} has scores that are not probabilities of classes")
    return array


def _read_hidden(path: Path, count: int) -> np.ndarray:
    """float [N, D]. Raises UserError if the file can't be read, or is not of `count` examples."""
    try:
        states: np.ndarray = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"data.soft_hidden={path} can't be read ({error})") from error
    if states.ndim != 2 or len(states) != count or states.dtype.kind != "f":
        raise UserError(
            f"data.soft_hidden={path} is {states.dtype} {list(states.shape)}; it must be float [{count}, D], a row for "
            "each example"
        )
    return states


def joined(examples: Examples, more: Examples) -> Examples:
    """The examples, followed by others of the same encoder, whose labels are hidden.

    Raises UserError for examples of a kind that training augments.
    """
    assert examples.labels is not None
    labels = np.concatenate([examples.labels, np.full(len(more), _HIDDEN_LABEL, examples.labels.dtype)])
    if isinstance(examples, TextExamples) and isinstance(more, TextExamples):
        return dataclasses.replace(
            examples,
            tokens=Ragged.joined([examples.tokens, more.tokens], np.int32),
            type_ids=Ragged.joined([examples.type_ids, more.type_ids], np.int32),
            labels=labels,
            full_lengths=None
            if examples.full_lengths is None or more.full_lengths is None
            else np.concatenate([examples.full_lengths, more.full_lengths]),
        )
    if isinstance(examples, ArrayExamples) and isinstance(more, ArrayExamples):
        columns = {
            name: np.concatenate([column, more.columns[name]])
            for name, column in examples.columns.items()
            if name != "labels"
        }
        return ArrayExamples({**columns, "labels": labels})
    raise _unsuitable()


def with_soft(examples: Examples, soft: Mapping[str, np.ndarray]) -> Examples:
    """The examples with further entries of a batch, each [N, …]. Raises UserError for ones that training augments."""
    if isinstance(examples, TextExamples):
        return dataclasses.replace(examples, soft=soft)
    if isinstance(examples, ArrayExamples):
        return ArrayExamples({**examples.columns, **soft})
    raise _unsuitable()


def _unsuitable() -> UserError:
    return UserError("soft labels are for texts, pairs of them and features; these examples are of another kind")
