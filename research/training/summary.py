"""summary.json: the results of a run and its environment."""

import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import numpy as np
import optax

from research.base.errors import DivergedError, UserError
from research.core.state import TrainState, param_count, params_sha256
from research.core.statistics import Value, intervals, means
from research.core.tasks import capabilities
from research.data.examples import BagExamples, TextExamples
from research.data.files import source
from research.runs.checkpoint import Progress
from research.runs.rundir import RunDir
from research.training.experiment import Experiment
from research.training.stopping import PROSE, Reason


def environment() -> dict[str, Any]:
    """Versions, devices and the code's commit."""
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
        "backend": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "git": _git_commit(),
    }


def _git_commit() -> str | None:
    """The commit of this package's checkout, with "-dirty" if there are local changes; None outside a checkout."""
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
        "--exclude=*",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def truncation_warnings(experiment: Experiment) -> list[str]:
    """Warnings about examples truncated to data.transform.max_length, one line for each such split of the run."""
    config, lines = experiment.config, []
    for split in dict.fromkeys(("train", *config.eval.splits)):
        stream = experiment.streams(split)
        fraction, longest = stream.cut()
        if fraction:
            assert isinstance(stream.examples, TextExamples | BagExamples)
            lines.append(
                f"{fraction:.2%} of the examples of {split} are truncated: the longest has {longest:,} "
                f"{stream.examples.unit}, data.transform.max_length is {config.data.transform.max_length:,}; to keep "
                "more, raise it"
            )
    return lines


def chance_warnings(experiment: Experiment, metrics: Mapping[str, Mapping[str, Value]]) -> list[str]:
    """A warning if a classifier of own files predicts no better than the majority class of the main split."""
    config = experiment.config
    split = config.eval.splits[0]
    accuracy = means(metrics.get(split, {})).get("accuracy")
    if config.data.name != source.NAME or capabilities(experiment.task).predicts != "class" or accuracy is None:
        return []
    counts = np.bincount(experiment.streams(split).labels.astype(np.int64).ravel())
    share = float(counts.max() / counts.sum())
    if accuracy > share:
        return []
    return [
        f"on {split}, accuracy {accuracy:.4f} is not better than always predicting the most frequent class, {share:.4f}"
    ]


def summarize(
    experiment: Experiment,
    state: TrainState,
    *,
    status: str,
    reason: Reason | None,
    progress: Progress,
    metrics: dict[str, dict[str, Value]],
    throughput: dict[str, Any],
    training: dict[str, Any],
) -> dict[str, Any]:
    """The summary of a run that ended with `state`; `training` is its last line of training metrics."""
    config, dataset, replicas = experiment.config, experiment.dataset, experiment.replicas
    sign = {"max": 1, "min": -1}[config.eval.mode]
    best = max(progress.history, key=lambda pair: (sign * pair[1], pair[0]), default=None)  # the last one, if tied
    return {
        "status": status,
        "reason_code": reason,
        "reason": reason and PROSE[reason],
        "step": progress.step,
        "examples_seen": experiment.training.examples_before(progress.position, config.seed),
        "preset": config.preset,
        "metrics": {split: means(values) for split, values in metrics.items()},
        "training": training,
        "warnings": truncation_warnings(experiment)
        + chance_warnings(experiment, metrics)
        + experiment.method.warnings(training, len(experiment.training.members), param_count(state.params)),
        "best": best and {"step": best[0], "metric": config.eval.metric, "value": best[1]},
        "data": {"name": dataset.name, "source": dataset.source, "fingerprint": dataset.fingerprint},
        "throughput": throughput,
        "param_count": param_count(state.params) // replicas.size,
        "params_sha256": params_sha256(state.params),
        "seed": config.seed,
        **(
            {"seeds": replicas.count, "intervals": {split: intervals(values) for split, values in metrics.items()}}
            if replicas.count
            else {}
        ),
        "environment": environment(),
    }


def failed_summary(run: RunDir, error: Exception, preset: str) -> dict[str, Any]:
    """The summary of a run that ended with an error."""
    try:
        step = max((line["step"] for line in run.metrics()), default=0)
    except UserError:  # which may be the error itself
        step = None
    return {
        "status": "failed",
        "reason_code": Reason.DIVERGED if isinstance(error, DivergedError) else Reason.ERROR,
        "reason": str(error) or type(error).__name__,
        "step": step,
        "preset": preset,
    }


def seconds_of_a_seed(summary: Mapping[str, Any]) -> float | None:
    """The time of a run's steps, excluding compilation and evaluation, divided by the number of its seeds.

    None if the summary has no time of a step: the run failed, or was resumed with no step left.
    """
    step_time = (summary.get("throughput") or {}).get("step_time_ms")
    return None if step_time is None else summary["step"] * step_time / 1e3 / summary.get("seeds", 1)
