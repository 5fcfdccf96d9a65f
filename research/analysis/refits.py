"""A run's config trained again: over penalties, and over parts of the training split.

Each refit is a run directory under `refits/` of the run. What is finished there is not trained again, so the same call
goes on where it was interrupted.
"""

import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from research.analysis.coefficients import LINEAR, coefficients
from research.analysis.figures import MOST_COEFFICIENTS
from research.data import load as data
from research.data.pipeline import Stream
from research.errors import UserError
from research.loop import STALLED, train_and_evaluate
from research.rundir import RunDir
from research.seeds import interval
from research.solvers import SOLVERS
from research.trained import Trained

# Optimizers that end where a penalized loss is least. AdamW's and LAMB's weight decay is no penalty on a loss.
PENALIZED = ("closed_form", "lbfgs", "sgd")

FRACTIONS = (0.1, 0.2, 0.4, 0.7, 1.0)

# Makes the variables to start from, as in `train_and_evaluate`.
Initial = Callable[[Any], Any] | None


def penalty(config: Any) -> tuple[str, float] | None:
    """The key and value of a config's penalty, of which C is an inverse; None if its optimizer has none."""
    section = config.optimizer
    if section.name not in PENALIZED:
        return None
    name = next((key for key in ("C", "alpha") if section[key] is not None), "weight_decay")
    return name, section[name]


def penalties(now: float) -> list[float]:
    """Nine values from a hundredth of `now` to a hundred times it; about 1 where there is no penalty now."""
    return [float(value) for value in (now or 1.0) * np.logspace(-2, 2, 9)]


def regularization_path(run: RunDir, values: Sequence[float] | None = None, *, show: bool = True) -> dict[str, Any]:
    """Refits a linear model for each of the penalties `values`, by default `penalties` of the run's own.

    Returns:
      "penalty" (its name), "now" (the run's own), "metric", "split", "names" [D] and "points", ascending, each with
      "value", "metric" and "coefficients" [D], or "failed". They are those of the features as the model reads them,
      which the penalty is on; of many the 30 that grow largest.

    Raises:
      UserError: the model is not linear, the optimizer has no penalty, or no refit succeeded.
    """
    config = _config(run)
    found = penalty(config)
    if found is None:
        raise UserError(f"optimizer {config.optimizer.name!r} has no penalty; {', '.join(PENALIZED)} have")
    if config.model.name not in LINEAR:
        raise UserError(f"model {config.model.name!r} has no coefficients; {', '.join(LINEAR)} have")
    name, now = found
    split, metric = config.eval.splits[0], config.eval.metric
    config.eval.splits = (split,)
    config.update({"train": {"max_minutes": None}, "eval": {"patience": 0}})  # each to its end
    points: list[dict[str, Any]] = []
    for value in _progress(sorted(values or penalties(now)), "regularization path", show):
        config.optimizer[name] = value
        folder = run.refits / "regularization_path" / f"{name}={value:.4g}"
        try:
            summary = train_and_evaluate(config, folder, show=False)
        except UserError as error:  # a penalty may be too strong for the learning rate
            points.append({"value": value, "failed": str(error)})
            continue
        fit = coefficients(folder)
        found = summary["metrics"][split][metric]
        points.append({"value": value, "metric": found, "coefficients": fit.standardized.ravel()})
    fitted = [point for point in points if "failed" not in point]
    if not fitted:
        raise UserError(f"no refit succeeded: {points[0]['failed']}")
    height = np.max([np.abs(point["coefficients"]) for point in fitted], axis=0)
    largest = np.argsort(-height, kind="stable")[:MOST_COEFFICIENTS]
    for point in fitted:
        point["coefficients"] = point["coefficients"][largest].tolist()
    return {
        "penalty": f"optimizer.{name}",
        "now": now,
        "metric": metric,
        "split": split,
        "names": [fit.label(int(i)) for i in largest],
        "points": points,
    }


def learning_curve(
    run: RunDir,
    *,
    fractions: Iterable[float] = FRACTIONS,
    repeats: int = 3,
    initial: Initial = None,
    show: bool = True,
) -> dict[str, Any]:
    """Refits the config on `fractions` of what it trained on, `repeats` times with another seed.

    A seed's parts of the training split lie one in the other, and each seed has others, so the interval is over what
    is drawn as well as over where training starts. Every refit makes as many steps as the run: a smaller part is seen
    more often, not trained less. Where the part is smaller than a batch, it is the batch; to a solver it always is.

    Args:
      initial: as in `train_and_evaluate`, where the config has `init_from`.

    Returns:
      "metric", "steps", "repeats" and "points", ascending, each with "fraction", "examples" and, by split,
      "metrics": {"values" (one a seed), "mean", "low", "high"} (Student's t, 95 %).
    """
    config = _config(run)
    split, metric = config.eval.splits[0], config.eval.metric
    summary = run.summary()
    if summary is None or not (summary["status"] == "completed" or summary["reason"] == STALLED):
        raise UserError(f"{run.path} is not completed; the same training command goes on")
    first, whole = config.seed, config.data.train_fraction
    config.eval.splits = tuple(dict.fromkeys((split, "train")))
    config.train.update(steps=summary["step"], epochs=None, max_minutes=None)
    config.eval.patience = 0
    examples = data.load(config.data, run.assets).split("train")
    size = whole * len(examples)
    counted = "batch_size" if config.train.batch_rows is None else "batch_rows"
    if config.optimizer.name in SOLVERS:
        config.train[counted] = -1
    most, rows = config.train[counted], size if counted == "batch_size" else whole * len(Stream.packed(examples).rows)
    jobs = [(fraction, seed) for fraction in sorted(fractions) for seed in range(first, first + repeats)]
    found: dict[float, list[dict[str, Any]]] = {}
    for fraction, seed in _progress(jobs, "learning curve", show):
        config.seed, config.data.train_fraction = seed, fraction * whole
        if most > 0:
            config.train[counted] = min(most, max(1, round(fraction * rows)))
        folder = run.refits / "learning_curve" / f"{fraction:.4g}-seed{seed}"
        summary = train_and_evaluate(config, folder, initial=initial, show=False)
        found.setdefault(fraction, []).append(summary["metrics"])
        shutil.rmtree(RunDir(folder).checkpoints, ignore_errors=True)  # a large model's would fill the disk
    points = []
    for fraction, metrics in found.items():
        by_split = {}
        for name in config.eval.splits:
            by_split[name] = interval([one[name][metric] for one in metrics])
        points.append({"fraction": fraction, "examples": round(fraction * size), "metrics": by_split})
    return {"metric": metric, "steps": config.train.steps, "repeats": repeats, "points": points}


def _config(run: RunDir) -> ConfigDict:
    """The run's config, to be changed; of several seeds that of the first."""
    config = ConfigDict(Trained(run, "last").config)
    config.train.seeds = None
    return config


def _progress(items: Sequence[Any], what: str, show: bool) -> Iterable[Any]:
    every = 0.2 if sys.stderr.isatty() else 20.0  # seconds; a log file wants few lines
    return tqdm(items, what, unit="refit", disable=not show, dynamic_ncols=True, mininterval=every, file=sys.stderr)
