"""A checkpoint of a run, and what it makes of a split: computed, or read where the run directory has it already."""

import functools
from typing import Any

import jax
from ml_collections import ConfigDict, FrozenConfigDict

from research.core.state import TrainState
from research.core.statistics import described
from research.devices.platform import x64
from research.runs.checkpoint import Checkpoints
from research.runs.rundir import RunDir
from research.training.evaluation import evaluate
from research.training.experiment import Experiment, prepare


class Trained:
    """The `last` or `best` checkpoint of a run. Model and data are loaded when first needed.

    Raises UserError where there is no such checkpoint.
    """

    def __init__(self, run: RunDir, which: str):
        saved = run.config()
        mesh = saved["mesh"]
        if jax.device_count() % (mesh["fsdp"] * mesh["tensor"]):  # other devices than the run had
            mesh |= {"fsdp": 1, "tensor": 1}
        self.run = run
        self.config = FrozenConfigDict({**saved, "mesh": {**mesh, "data": -1}})
        self._which = which
        with self._checkpoints() as checkpoints:
            self.step = checkpoints.step(which)

    def evaluate(self, split: str, *, data: str | None = None, show: bool = False) -> dict[str, Any]:
        """Evaluates a split of the run's dataset, or of another named `data`, and writes its predictions to the run.

        `show`: whether to draw a progress bar.

        Returns:
          "step", "split", "metrics", "intervals" of a run of several seeds, and "predictions", the file.

        Raises:
          UserError: the dataset or the split is unavailable, or does not fit the model.
        """
        with x64(self.config.dtype):
            experiment, state = self.loaded
            if data is not None:
                experiment = experiment.on(data, self.run.assets)
            metrics, records = evaluate(experiment, state, split, predictions=True, show=show)
        evaluation = {"step": self.step, "split": split, **described(metrics)}
        path = self.run.write_predictions(_name(split, data, self._which), records, evaluation)
        return {**evaluation, "predictions": str(path)}

    def predictions(self, split: str, *, data: str | None = None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The metrics and the records of a split, by this very checkpoint; evaluates it if they were not written yet.

        Raises UserError as `evaluate` does.
        """
        for which in (self._which, "last"):  # the last checkpoint may be the best
            name = _name(split, data, which)
            evaluation = self.run.evaluation(name)
            if evaluation and evaluation["step"] == self.step:
                return evaluation["metrics"], self.run.predictions(name)
        return self.evaluate(split, data=data)["metrics"], self.run.predictions(_name(split, data, self._which))

    @functools.cached_property
    def single(self) -> tuple[Experiment, TrainState]:
        """As `loaded`; of a run of several seeds its first one's."""
        experiment, state = self.loaded
        if self.config.train.seeds is None:
            return experiment, state
        config = ConfigDict(self.config)
        config.train.seeds = None
        experiment = prepare(FrozenConfigDict(config), self.run.assets)
        return experiment, jax.tree.map(lambda x, one: jax.device_put(x[0], one.sharding), state, experiment.state)

    def _checkpoints(self) -> Checkpoints:
        section = self.config.eval
        return Checkpoints(self.run.checkpoints, metric=section.metric, mode=section.mode, writable=False)

    @functools.cached_property
    def loaded(self) -> tuple[Experiment, TrainState]:
        """Model, data and state, to be used under `research.devices.platform.x64` of the config's dtype."""
        experiment = prepare(self.config, self.run.assets)
        with self._checkpoints() as checkpoints:
            state, _ = checkpoints.restore(experiment.state, self.step)
        return experiment, state


def _name(split: str, data: str | None, which: str) -> str:
    """What the predictions of a split are called in the run directory."""
    name = f"{data.replace('/', '_').replace(':', '_')}-{split}" if data else split
    return f"{name}-best" if which == "best" else name
