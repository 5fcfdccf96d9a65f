"""A checkpoint of a run and its predictions for a split: computed, or read from the run directory if already there."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from research.base.errors import UserError
from research.base.paths import expanded
from research.core.statistics import metric_summary
from research.data import load as data
from research.data.encoder import Encoder, Signature
from research.data.files import source as files
from research.data.pipeline import Stream
from research.data.sources.bundled import feature_names
from research.data.splits import whole
from research.devices.platform import x64
from research.inference.evaluation import evaluate
from research.inference.model import TrainedModel, on_these_devices, open_checkpoints, open_model
from research.runs import own_code
from research.runs.rundir import RunDir
from research.training.streams import split_streams


class TrainedRun:
    """The `last` or `best` checkpoint of a run. Model and data are loaded independently, when first needed.

    Raises UserError if there is no such checkpoint.
    """

    def __init__(self, run: RunDir, which: str):
        self.run = run
        self.config = on_these_devices(run.config())
        own_code.register(run, self.config)
        self._which = which
        with open_checkpoints(run, self.config) as checkpoints:
            self.step = checkpoints.step(which)

    @functools.cached_property
    def model(self) -> TrainedModel:
        """The model. Access and use it under `research.devices.platform.x64` of the config's dtype."""
        return open_model(self.run, self._which)

    @functools.cached_property
    def _encoder(self) -> tuple[Encoder, Signature]:
        return data.open_encoder(self.config.data, self.run.assets)

    def label_names(self, num_classes: int) -> tuple[str, ...]:
        """The names of the `num_classes` classes; empty if they are unknown."""
        section, (_, signature) = self.config.data, self._encoder
        names = signature.label_names
        if names is None and signature.label:  # the run is from before 0.2
            names = data.label_names(section, signature.label)
        return names if names and len(names) == num_classes else ()

    @property
    def class_names(self) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
        """The names of the classes when the run was trained, and those in its dataset now; None where unknown."""
        signature = self._encoder[1]
        return signature.label_names, data.label_names(self.config.data, signature.label) if signature.label else None

    def feature_names(self, count: int) -> tuple[str, ...]:
        """The names of the `count` features that the model reads; empty if they are unknown."""
        names = self._encoder[0].feature_names or feature_names(self.config.data.name)
        return tuple(names) if len(names) == count else ()

    @property
    def affine(self) -> tuple[np.ndarray, np.ndarray] | None:
        """As `Encoder.affine`."""
        return self._encoder[0].affine

    def dataset(self, name: str | None = None) -> data.Dataset:
        """The run's dataset, or the one called `name`, encoded as in the run. Raises UserError if unavailable.

        For a run on own files, `name` may be another file, which takes the place of `validation` and `test`.
        """
        section = ConfigDict(self.config.data)
        if name is None:
            return data.load(section, self.run.assets)
        if section.name == files.NAME and expanded(name).is_file():
            section.validation = section.test = name
            classes, saved = files.label_names(section), self._encoder[1].label_names
            if classes != saved:
                raise UserError(f"{section.train} has changed since the run: its classes were {saved}, now {classes}")
        else:
            section.name = name
        return data.load(section, encoder=self._encoder[0])

    def streams(self, name: str | None = None) -> Callable[[str], Stream]:
        """The function from a split's name to its rows, for the run's dataset (`train` as trained on) or another."""
        return split_streams(self.config, self.dataset(name), training=name is None)

    def evaluate(
        self, split: str, *, data: str | None = None, show: bool = False, inputs: bool = False
    ) -> dict[str, Any]:
        """Evaluates a split of the run's dataset, or of the dataset `data`, and writes its predictions to the run.

        `show`: whether to draw a progress bar; `inputs`: whether the predictions have the examples' inputs too.

        Returns:
          "step", "split", "metrics", "intervals" for a run of several seeds, and "predictions", the file, or None if
          the run is opened for reading only.

        Raises:
          UserError: the dataset or the split is unavailable, or does not fit the model.
        """
        return self._evaluate(split, data, show=show, inputs=inputs)[0]

    def _evaluate(
        self, split: str, data: str | None, *, show: bool, inputs: bool = False
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        with x64(self.config.dtype):
            dataset = self.dataset(data)
            stream = split_streams(self.config, dataset, training=data is None)(split)
            model = self.model
            metrics, records = evaluate(model.evaluation, model.state, stream, split, predictions=True, show=show)
            records = dataset.described(whole(split), records, inputs=inputs)
        evaluation = {"step": self.step, "split": split, **metric_summary(metrics)}
        path = self.run.write_predictions(_name(split, data, self._which), records, evaluation)
        return {**evaluation, "predictions": str(path) if self.run.writer else None}, records

    def predictions(self, split: str, *, data: str | None = None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The metrics and the records of a split from this checkpoint; evaluates it if they are not written yet.

        Raises UserError as `evaluate` does.
        """
        for which in (self._which, "last"):  # the last checkpoint may be the best
            name = _name(split, data, which)
            evaluation = self.run.evaluation(name)
            if evaluation and evaluation["step"] == self.step:
                return evaluation["metrics"], self.run.predictions(name)
        evaluation, records = self._evaluate(split, data, show=False)
        return evaluation["metrics"], records


def _name(split: str, data: str | None, which: str) -> str:
    """The name of a split's predictions in the run directory."""
    name = f"{data.replace('/', '_').replace(':', '_')}-{split}" if data else split
    return f"{name}-best" if which == "best" else name
