"""Checks that examples fit the model, before anything is compiled. Each raises UserError in one line."""

import numpy as np

from research.base.errors import UserError
from research.data.columns import check_finite
from research.data.examples import ArrayExamples, BagExamples, Examples, TextExamples
from research.data.shards.rows import ShardRows
from research.data.text.language_model import TokenRows
from research.data.text.masked_lm import MaskedExamples


def check_labels(
    split: str, labels: np.ndarray, num_classes: int | None, *, training: bool, hidden: float | None = None
) -> None:
    """Checks that class labels are in [0, num_classes), or −1, a hidden label, except in training.

    `num_classes` None: regression, whose labels must be finite; `hidden` is the value of a hidden label, if any.
    """
    if num_classes is None:
        check_finite(f"label of split {split!r}", labels)
        if training and hidden is not None and (labels == hidden).any():
            raise UserError(f"split {split!r} has the label {hidden}: task.hidden_label can't be trained on")
        return
    large = np.abs(labels) > np.iinfo(np.int32).max  # integers stored as float64, as int32 is too small
    if not (np.issubdtype(labels.dtype, np.integer) or large.any()):
        raise UserError(f"split {split!r} has labels of type {labels.dtype}; a classifier needs integers")
    wrong = np.flatnonzero((labels >= num_classes) | (labels < (0 if training else -1)))
    if len(wrong):
        raise UserError(
            f"label {labels[wrong[0]]} of example {wrong[0]} of split {split!r} is out of range: "
            f"model.num_classes is {num_classes}"
            + (" and a hidden label (-1) can't be trained on" if labels[wrong[0]] == -1 else "")
        )


def check_inputs(
    split: str, examples: Examples, *, vocab_size: int | None, max_positions: int | None, num_features: int | None
) -> None:
    """Checks that tokens, positions and feature ids are below the model's limits, and that features are finite."""
    if isinstance(examples, TextExamples):
        longest = int(examples.tokens.lengths.max(initial=0))
        if max_positions is not None and longest > max_positions:
            raise UserError(
                f"split {split!r} has an example of {longest} tokens: model.max_positions is {max_positions}; raise it "
                "or lower data.transform.max_length"
            )
        _check_ids(split, "token", examples.tokens.values, "model.vocab_size", vocab_size)
    elif isinstance(examples, MaskedExamples | TokenRows | ShardRows):
        if max_positions is not None and examples.row_length > max_positions:
            raise UserError(
                f"data.transform.row_length is {examples.row_length}: model.max_positions is {max_positions}; raise it "
                "or lower data.transform.row_length"
            )
        if isinstance(examples, TokenRows):
            _check_ids(split, "token", examples.sequence, "model.vocab_size", vocab_size)
            return
        if isinstance(examples, ShardRows):
            _check_ids(split, "token", examples.labels, "model.vocab_size", vocab_size)
            return
        # Any token of the vocabulary may replace a masked one, even if it does not occur in the text.
        vocabulary = np.array([len(examples.masking.special) - 1])
        _check_ids(split, "token", vocabulary, "model.vocab_size", vocab_size)
    elif isinstance(examples, BagExamples):
        _check_ids(split, "feature", examples.ids.values, "model.num_features", num_features)
    elif isinstance(examples, ArrayExamples):
        for name, column in examples.columns.items():
            if np.issubdtype(column.dtype, np.floating):
                check_finite(f"{name} of split {split!r}", column)


def _check_ids(split: str, what: str, ids: np.ndarray, key: str, limit: int | None) -> None:
    largest, smallest = int(ids.max(initial=0)), int(ids.min(initial=0))
    if limit is not None and (largest >= limit or smallest < 0):
        wrong = largest if largest >= limit else smallest
        raise UserError(f"{what} id {wrong} in split {split!r} is out of range: {key} is {limit}")
