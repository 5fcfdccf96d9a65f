"""Trains a compressed network again, by the labels and by what the run that it was made of predicts."""

import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from research.base.errors import UserError
from research.base.paths import atomic_write
from research.compress import teaching
from research.compress.context import Say
from research.compress.network import Network
from research.runs.rundir import RunDir
from research.training.loop import train_and_evaluate
from research.training.trained_run import TrainedRun


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How a network is trained again.

    Attributes:
      epochs: over the training split.
      learning_rate: None for that of the run.
      soft_weight, temperature, hidden_weight: as in the task `classification`; other tasks learn the labels alone.
      unlabelled: a file of further inputs to learn the predictions for.
      columns: its columns by input, of those that are not called so.
    """

    epochs: float = 1.0
    learning_rate: float | None = None
    soft_weight: float = 0.5
    temperature: float = 2.0
    hidden_weight: float = 0.0
    unlabelled: str | None = None
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def check(self, task: str) -> None:
        """Raises UserError if networks of this task can't be trained so."""
        for flag, is_given in (("unlabelled", self.unlabelled), ("hidden_weight", self.hidden_weight)):
            if is_given and task != "classification":
                raise UserError(f"--{flag} is for runs of task 'classification'; this one's is {task!r}")
            if is_given and self.soft_weight == 0:
                raise UserError(f"--{flag} adds to the run's predictions; raise --soft_weight, which is 0")


def tuned(
    network: Network, source: TrainedRun, folder: Path, tuning: Tuning, *, say: Say = print, show: bool = True
) -> Network:
    """Trains in the run directory `folder`, from where a run of it stopped -> its best checkpoint, or the last one
    if it prunes.

    Raises UserError if the folder holds something else, or training does not finish.
    """
    config = copy.deepcopy(network.config)
    config.train.epochs, config.train.steps = tuning.epochs, None
    config.train.max_minutes = None
    config.init_from, config.init_fresh = None, ""
    if tuning.learning_rate is not None:
        config.optimizer.learning_rate = tuning.learning_rate
    folder.parent.mkdir(parents=True, exist_ok=True)
    if "tokenizer" in config.data.transform:
        config.data.transform.tokenizer = str(source.run.assets / "tokenizer.json")
        if text := network.assets.get("tokenizer.json"):
            path = folder.with_name(f"{folder.name}-tokenizer.json")
            atomic_write(path, text)
            config.data.transform.tokenizer = str(path)
    _teach(config, source, folder, tuning, say)

    def start(fresh: Any) -> Any:
        return jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), dict(network.variables), dict(fresh))

    summary = train_and_evaluate(config, folder, load_variables=start, show=show)
    if summary["status"] == "preempted":
        raise UserError(f"training stopped at step {summary['step']}; the same command resumes it")
    # Earlier checkpoints of gradual pruning have more weights than asked for.
    trained = Network.open(RunDir.open(folder), "last" if config.optimizer.sparsity else "best")
    return dataclasses.replace(network, config=trained.config, variables=trained.variables)


def _teach(config: ConfigDict, source: TrainedRun, folder: Path, tuning: Tuning, say: Say) -> None:
    """Writes what the run predicts to files called like `folder`, where they do not exist, and their paths to `config`.

    Raises UserError if the run can't teach a network of this config so.
    """
    data, task = config.data, config.task
    data.soft_labels = data.unlabelled = data.soft_hidden = None  # of an earlier compression
    tuning.check(task.name)
    if task.name != "classification" or tuning.soft_weight == 0:
        return
    task.soft_weight, task.temperature, task.hidden_weight = tuning.soft_weight, tuning.temperature, 0.0
    if tuning.hidden_weight > 0:
        teaching.check_hidden(source, config)
    labels = folder.with_name(f"{folder.name}-soft_labels.jsonl")
    if not labels.is_file():
        teaching.write_soft_labels(source, labels)
    data.soft_labels, which = str(labels), ""
    if tuning.unlabelled is not None:
        # In the name, so that the run in `folder` is not continued with another file.
        which = f"-{teaching.digest_of(tuning.unlabelled, tuning.columns)}"
        unlabelled = folder.with_name(f"{folder.name}-unlabelled{which}.jsonl")
        if not unlabelled.is_file():
            teaching.write_unlabelled(source, tuning.unlabelled, tuning.columns, unlabelled, say)
        data.unlabelled = str(unlabelled)
    if tuning.hidden_weight > 0:
        hidden = folder.with_name(f"{folder.name}-soft_hidden{which}.npy")
        if not hidden.is_file():
            teaching.write_hidden(source, data, hidden, say)
        data.soft_hidden, task.hidden_weight = str(hidden), tuning.hidden_weight
