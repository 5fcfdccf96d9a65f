"""Refits of a run's config: for several penalties, and on parts of the training split.

Each refit is a run directory under `refits/` of the run. Finished refits are not trained again, so the same call
resumes where it was interrupted.
"""

import math
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from research.analysis.coefficients import LINEAR, coefficients
from research.analysis.figures import MOST_COEFFICIENTS
from research.base.errors import DivergedError, UserError
from research.core import optimizers
from research.core.statistics import interval
from research.core.tasks import TASKS, capabilities
from research.data import load as data
from research.data.pipeline import Stream
from research.inference.model import with_one_seed
from research.runs.rundir import RunDir
from research.solvers import SOLVERS
from research.training.loop import train_and_evaluate
from research.training.method import is_deterministic
from research.training.stopping import is_finished
from research.training.trained_run import TrainedRun

# Optimizers that minimize a penalized loss. A decoupled weight decay, as AdamW's, is not a penalty on a loss.
PENALIZED = (*SOLVERS, *optimizers.PENALIZED)

FRACTIONS = (0.1, 0.2, 0.4, 0.7, 1.0)

# The function that makes the load_variables variables, as in `train_and_evaluate`.
Initial = Callable[[Any], Any] | None


def check_path(config: Any) -> None:
    """Raises UserError if a config can't have a regularization path, which needs coefficients and a penalty on them."""
    if config.model.name not in LINEAR:
        raise UserError(
            f"model {config.model.name!r} has no coefficients; models with coefficients: {', '.join(LINEAR)}"
        )
    if config.optimizer.name not in PENALIZED:
        raise UserError(
            f"optimizer {config.optimizer.name!r} has no penalty; optimizers with a penalty: {', '.join(PENALIZED)}"
        )


def penalty(config: Any) -> tuple[str, float | None]:
    """The key of a config's penalty and its value: C, which is an inverse, alpha or weight_decay.

    If there is no penalty, the key that the task takes, and None.
    """
    section = config.optimizer
    for name in ("C", "alpha", "weight_decay"):
        if section[name]:
            return name, section[name]
    return capabilities(TASKS[config.task.name]).penalty or "weight_decay", None


def penalties(now: float | None) -> list[float]:
    """Nine values from a hundredth of `now` to a hundred times it; around 1 if there is no penalty now."""
    return [float(value) for value in (now or 1.0) * np.logspace(-2, 2, 9)]


def regularization_path(run: RunDir, values: Sequence[float] | None = None, *, show: bool = True) -> dict[str, Any]:
    """Refits a linear model for each of the penalties `values`, by default `penalties` of the run's own.

    Returns:
      "penalty" (its name), "now" (the run's own, None without one), "metric", "split", "step", "names" [D], "points",
      ascending, each with "value", "metric" and "coefficients" [D], or "failed" if it diverged; "best", the "value" and
      "metric" of the point that eval.mode ranks first, if tied the one with the strongest penalty; "unpenalized", the
      metric of a run without a penalty, else None. The coefficients refer to the features as the model reads them, and
      are the penalized ones; if there are many, the 30 that grow largest.

    Raises:
      UserError: the model is not linear, the optimizer has no penalty, no refit succeeded, the metric has no value for
        any of them, or one fails without having diverged, for example because another process holds its run.
    """
    config = _config(run)
    check_path(config)
    name, now = penalty(config)
    split, metric = config.eval.splits[0], config.eval.metric
    config.eval.splits = (split,)
    points: list[dict[str, Any]] = []
    for value in _progress(sorted(map(float, values or penalties(now))), "regularization path", show):
        config.optimizer[name] = value
        folder = run.refits / "regularization_path" / f"{name}={value!r}"
        try:
            summary = train_and_evaluate(config, folder, show=False)
        except DivergedError as error:  # a penalty may be too strong for the learning rate
            points.append({"value": value, "failed": str(error)})
            continue
        fit = coefficients(folder)
        points.append(
            {"value": value, "metric": summary["metrics"][split][metric], "coefficients": fit.standardized.ravel()}
        )
    fitted = [point for point in points if "failed" not in point]
    if not fitted:
        raise UserError(f"no refit succeeded: {points[0]['failed']}")
    ranked = [point for point in fitted if point["metric"] is not None and math.isfinite(point["metric"])]
    if not ranked:
        raise UserError(f"eval.metric {metric!r} has no value on {split!r} for any refit")
    better = {"max": 1, "min": -1}[config.eval.mode]
    stronger = -1 if name == "C" else 1
    best = max(ranked, key=lambda point: (better * point["metric"], stronger * point["value"]))
    own = (run.summary() or {}).get("metrics", {}).get(split, {}).get(metric)
    height = np.max([np.abs(point["coefficients"]) for point in fitted], axis=0)
    largest = np.argsort(-height, kind="stable")[:MOST_COEFFICIENTS]
    for point in fitted:
        point["coefficients"] = point["coefficients"][largest].tolist()
    return {
        "penalty": f"optimizer.{name}",
        "now": now,
        "metric": metric,
        "split": split,
        "step": summary["step"],
        "best": {key: best[key] for key in ("value", "metric")},
        "unpenalized": own if now is None else None,
        "names": [fit.label(int(i)) for i in largest],
        "points": points,
    }


def learning_curve(
    run: RunDir,
    *,
    fractions: Iterable[float] = FRACTIONS,
    repeats: int = 3,
    load_variables: Initial = None,
    show: bool = True,
) -> dict[str, Any]:
    """Refits the config on `fractions` of what it trained on, `repeats` times with another seed.

    The parts of the training split are nested for one seed and differ between seeds, so the interval covers both the
    sampling and the initialization. The larger the parts, the more examples the seeds share: from about a half, the
    interval is narrower than for independent training sets. What the transform learns (standardization, idf, a
    vocabulary) comes from the whole training split at every fraction. Every refit makes as many steps as the run: a
    smaller part is seen more often, not trained less. A part that is smaller than a batch is the batch; for a solver it
    always is, and as a solver's optimum does not depend on the seed, it fits the whole split once.

    Args:
      load_variables: as in `train_and_evaluate`, if the config has `init_from`.

    Returns:
      "metric", "split" (the one that it ranks on), "step", "repeats" and "points", ascending, each with "fraction",
      "examples" and, by split, "metrics": {"values" (one per seed), "mean", "low", "high"} (Student's t, 95 %; low and
      high are None for a single value).
    """
    config = _config(run)
    split, metric = config.eval.splits[0], config.eval.metric
    summary = run.summary()
    if summary is None or not is_finished(summary):
        raise UserError(f"{run.path} is not completed; rerun its training command to resume it")
    first, whole = config.seed, config.data.train_fraction
    config.eval.splits = tuple(dict.fromkeys((split, "train")))
    config.train.update(steps=summary["step"], epochs=None)
    examples = data.load(config.data, run.assets).split("train")
    size = whole * len(examples)
    counted = "batch_size" if config.train.batch_rows is None else "batch_rows"
    solving = is_deterministic(config.optimizer.name)
    if solving:
        config.train[counted] = -1
    most, rows = config.train[counted], size if counted == "batch_size" else whole * len(Stream.packed(examples).rows)

    def seeds(fraction: float) -> range:
        return range(first, first + (1 if solving and fraction * whole == 1 else repeats))

    jobs = [(fraction, seed) for fraction in sorted(map(float, fractions)) for seed in seeds(fraction)]
    found: dict[float, list[dict[str, Any]]] = {}
    for fraction, seed in _progress(jobs, "learning curve", show):
        config.seed, config.data.train_fraction = seed, fraction * whole
        if most > 0:
            config.train[counted] = min(most, max(1, round(fraction * rows)))
        folder = run.refits / "learning_curve" / f"{fraction!r}-seed{seed}"
        found.setdefault(fraction, []).append(_refit_metrics(config, folder, load_variables))
    points = [
        {"fraction": fraction, "examples": round(fraction * size), "metrics": _intervals(metrics, metric)}
        for fraction, metrics in found.items()
    ]
    return {"metric": metric, "split": split, "step": config.train.steps, "repeats": repeats, "points": points}


def _refit_metrics(config: ConfigDict, folder: Path, load_variables: Initial) -> dict[str, Any]:
    """Trains a refit -> its metrics by split. Its checkpoints are removed, as they may fill the disk."""
    summary = train_and_evaluate(config, folder, load_variables=load_variables, show=False)
    shutil.rmtree(RunDir(folder).checkpoints, ignore_errors=True)
    metrics: dict[str, Any] = summary["metrics"]
    return metrics


def _intervals(summaries: Sequence[dict[str, Any]], metric: str) -> dict[str, Any]:
    """By split the mean and interval of `metric` over the metrics of several summaries."""
    return {split: interval([one[split][metric] for one in summaries]) for split in summaries[0]}


def _config(run: RunDir) -> ConfigDict:
    """A copy of the run's config with one seed, the first; refits do not stop early."""
    config = with_one_seed(TrainedRun(run, "last").config)
    config.update({"train": {"max_minutes": None}, "eval": {"patience": 0}})
    return config


def _progress(items: Sequence[Any], what: str, show: bool) -> Iterable[Any]:
    every = 0.2 if sys.stderr.isatty() else 20.0  # seconds; keeps log files short
    return tqdm(items, what, unit="refit", disable=not show, dynamic_ncols=True, mininterval=every, file=sys.stderr)
