"""Trains a compressed network again, by the labels and by what the run that it was made of predicts."""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax

from research.base.errors import UserError
from research.base.paths import atomic_write
from research.compress.network import Network
from research.core.tasks import capabilities
from research.runs.rundir import RunDir
from research.training.loop import train_and_evaluate
from research.training.trained_run import TrainedRun


@dataclasses.dataclass(frozen=True)
class Tuning:
    """How a network is trained again.

    Attributes:
      epochs: over the training split.
      learning_rate: None for that of the run.
      soft_weight, temperature: as in the task `classification`; other tasks learn the labels alone.
    """

    epochs: float = 1.0
    learning_rate: float | None = None
    soft_weight: float = 0.5
    temperature: float = 2.0


def tuned(network: Network, source: TrainedRun, folder: Path, tuning: Tuning, *, show: bool = True) -> Network:
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
    if config.task.name == "classification" and tuning.soft_weight > 0:
        path = folder.with_name(f"{folder.name}-soft_labels.jsonl")
        if not path.is_file():
            write_soft_labels(source, path)
        config.data.soft_labels = str(path)
        config.task.soft_weight, config.task.temperature = tuning.soft_weight, tuning.temperature

    def start(fresh: Any) -> Any:
        return jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), dict(network.variables), dict(fresh))

    summary = train_and_evaluate(config, folder, load_variables=start, show=show)
    if summary["status"] == "preempted":
        raise UserError(f"training stopped at step {summary['step']}; the same command resumes it")
    # Earlier checkpoints of gradual pruning have more weights than asked for.
    trained = Network.open(RunDir.open(folder), "last" if config.optimizer.sparsity else "best")
    return dataclasses.replace(network, config=trained.config, variables=trained.variables)


def write_soft_labels(source: TrainedRun, path: Path) -> None:
    """Writes the run's predictions for its training split. Raises UserError if the run saw a part of it only."""
    if source.config.data.train_fraction != 1:
        raise UserError(
            f"{source.run.path} was trained on data.train_fraction={source.config.data.train_fraction} of its data; "
            "learning its predictions needs a run on all of it, or --soft_weight=0"
        )
    if capabilities(source.model.task).predicts != "class":
        raise UserError(f"{source.run.path} predicts no classes, so there is nothing to learn but its labels")
    _, records = source.predictions("train")
    lines = (json.dumps({"index": record["index"], "scores": record["scores"]}) for record in records)
    atomic_write(path, "".join(f"{line}\n" for line in lines))
