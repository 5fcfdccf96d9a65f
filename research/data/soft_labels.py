"""Probabilities of classes that another model gives, from the file of its predictions."""

import dataclasses
import json
from pathlib import Path

import numpy as np

from research.base.errors import UserError
from research.data.examples import ArrayExamples, Examples, TextExamples


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
    return np.asarray([record["scores"] for record in records], np.float32)


def with_soft_labels(examples: Examples, probabilities: np.ndarray) -> Examples:
    """The examples with probabilities of their classes [N, C], `soft_labels` in a batch.

    Raises UserError for another number of examples, and for ones that training augments.
    """
    if len(probabilities) != len(examples):
        raise UserError(f"there are soft labels of {len(probabilities)} examples, and the split has {len(examples)}")
    if isinstance(examples, TextExamples):
        return dataclasses.replace(examples, soft_labels=probabilities)
    if isinstance(examples, ArrayExamples):
        return ArrayExamples({**examples.columns, "soft_labels": probabilities})
    raise UserError("soft labels are for texts, pairs of them and features; these examples are of another kind")
