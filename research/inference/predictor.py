"""Predictions for raw inputs from a run directory alone."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from research.base.errors import UserError
from research.data.encoder import Signature
from research.data.examples import Columns, Examples
from research.devices.platform import keep_compiled_programs, x64
from research.inference.evaluation import Records, forward_pass, records
from research.inference.model import TrainedModel, open_model
from research.runs.rundir import RunDir


class Predictor:
    """Predicts as the run's evaluation does: the same records, bitwise equal for the same devices and batch size.

    >>> predictor = Predictor.open("runs/…")
    >>> predictor.predict({"sentence": ["a gripping, moving film"]})
    [{'index': 0, 'prediction': 1, 'scores': [0.002, 0.998], 'label_name': 'positive'}]
    """

    def __init__(self, model: TrainedModel):
        """Call this under `research.devices.platform.x64` of the model's dtype."""
        self._model = model
        self._state = model.predicting_state

    @classmethod
    def open(cls, workdir: str | Path, checkpoint: str = "last") -> "Predictor":
        """Opens the `last` or the `best` checkpoint of a run; for several seeds, the first one's.

        Needs neither the run's dataset nor network access. Compiled programs are kept in the user's cache, unless JAX
        is configured to keep them elsewhere. Raises UserError if `workdir` is not a complete run directory.
        """
        keep_compiled_programs()
        run = RunDir.open(workdir)
        with x64(run.config()["dtype"]):
            return cls(open_model(run, checkpoint).single)

    @property
    def signature(self) -> Signature:
        """The columns to pass to `predict`, and the names of the labels if they are known."""
        return self._model.signature

    @property
    def key(self) -> str | None:
        """The column of own files that names a row; None if there is none."""
        kinds = self._model.config.data.get("kinds", ())
        return next((text.removesuffix("=key") for text in kinds if text.endswith("=key")), None)

    @property
    def step(self) -> int:
        """The training step of the checkpoint."""
        return self._model.step

    @property
    def batch_rows(self) -> int:
        """The number of rows in a batch of the run's evaluation: examples, or rows of packed texts."""
        return self._model.evaluation.batch_rows

    def predict(self, columns: Columns, *, batch_rows: int | None = None) -> Records:
        """Returns a record for each example, in order: its index and the task's predictions.

        Args:
          columns: values by column, all of one length: texts, images [H, W, C] or their files' bytes, or features.
          batch_rows: rows per batch; each number of them is compiled once. By default those of the run's evaluation,
            and for fewer rows the next power of two. Sums of products may be rounded differently in batches of
            different sizes: for the bits of an evaluation pass this predictor's `batch_rows`.

        Raises:
          UserError: a column is missing, or a value is not valid for the model.
        """
        if self._length(columns) == 0:
            return []
        return self.predict_examples(self.encode(columns), batch_rows=batch_rows)

    def _length(self, columns: Columns) -> int | None:
        """The number of inputs; None if there is no column of them. Raises UserError if it is not unique."""
        for name, value in columns.items():
            if isinstance(value, str | bytes):
                raise UserError(f"column {name!r} is one value, {value!r:.40}; give a list of values")
        lengths = {name: len(columns[name]) for name in self.signature.inputs if name in columns}
        if len(set(lengths.values())) > 1:
            raise UserError(f"the columns differ in length: {lengths}")
        return next(iter(lengths.values()), None)

    def encode(self, columns: Columns, what: str = "the input") -> Examples:
        """Encodes raw inputs as `predict` does; errors call them `what`. Raises UserError as `predict` does."""
        self._length(columns)
        with x64(self._model.dtype):
            return self._model.encode(columns, what)

    def predict_examples(self, examples: Examples, *, batch_rows: int | None = None) -> Records:
        """As `predict`, for encoded inputs."""
        if not len(examples):
            return []
        with x64(self._model.dtype):
            return [self._named(record) for record in self._predict(examples, batch_rows)]

    def _predict(self, examples: Examples, batch_rows: int | None) -> Records:
        model = self._model
        stream = model.arrange(examples)
        rows = batch_rows or min(self.batch_rows, 1 << (len(stream.rows) - 1).bit_length())
        evaluation = dataclasses.replace(model.evaluation, batch_rows=rows)
        batches = ((members, _with_labels(batch, model.label_dtype)) for members, batch in evaluation.batches(stream))
        _, indices, columns = forward_pass(evaluation, self._state, batches, gather=True)
        return records(indices, columns)

    def _named(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record, with the label's name if it predicts a class that has one."""
        names, prediction = self.signature.label_names or (), record["prediction"]
        if isinstance(prediction, int) and prediction < len(names):
            return {**record, "label_name": names[prediction]}
        return record


def _with_labels(batch: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Adds zero labels to a batch without labels, because the evaluation program computes scores."""
    return {"labels": np.zeros(batch["weight"].shape, dtype), **batch}
