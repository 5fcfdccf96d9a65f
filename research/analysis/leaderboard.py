"""GLUE (Wang et al. 2018): from runs on its tasks to a table of scores and the files of its leaderboard."""

import dataclasses
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.base.errors import UserError
from research.base.paths import expanded
from research.base.registry import nearest
from research.core.metrics import AVERAGE
from research.data import load as data
from research.runs.rundir import RunDir
from research.training.trained_run import TrainedRun

BINARY = ("0", "1")
ENTAILMENT = ("entailment", "not_entailment")
INFERENCE = ("entailment", "neutral", "contradiction")


@dataclasses.dataclass(frozen=True)
class GlueTask:
    """One task.

    Attributes:
      name: its name on the leaderboard.
      metrics: the leaderboard's metrics, by their names in research/core/tasks.py.
      labels: the leaderboard's names of the classes 0, 1, …; None for a number from 0 to 5.
      validation: the dev splits.
      files: the leaderboard's file -> the split that it answers, with the dataset if it is not the run's own.
    """

    name: str
    metrics: tuple[str, ...]
    labels: tuple[str, ...] | None
    files: Mapping[str, tuple[str | None, str]]
    validation: tuple[str, ...] = ("validation",)


def _one_file(name: str, metrics: tuple[str, ...], labels: tuple[str, ...] | None) -> GlueTask:
    return GlueTask(name, metrics, labels, {f"{name}.tsv": (None, "test")})


# By TFDS dataset. The classes are in TFDS's order, which varies: entailment is 1 in WNLI, but 0 in QNLI and RTE.
TASKS: dict[str, GlueTask] = {
    "glue/cola": _one_file("CoLA", ("matthews",), BINARY),
    "glue/sst2": _one_file("SST-2", ("accuracy",), BINARY),
    "glue/mrpc": _one_file("MRPC", ("f1", "accuracy"), BINARY),
    "glue/stsb": _one_file("STS-B", ("pearson", "spearman"), None),
    "glue/qqp": _one_file("QQP", ("f1", "accuracy"), BINARY),
    "glue/mnli": GlueTask(
        "MNLI",
        ("accuracy",),
        INFERENCE,
        {
            "MNLI-m.tsv": (None, "test_matched"),
            "MNLI-mm.tsv": (None, "test_mismatched"),
            "AX.tsv": ("glue/ax", "test"),
        },
        ("validation_matched", "validation_mismatched"),
    ),
    "glue/qnli": _one_file("QNLI", ("accuracy",), ENTAILMENT),
    "glue/rte": _one_file("RTE", ("accuracy",), ENTAILMENT),
    "glue/wnli": _one_file("WNLI", ("accuracy",), BINARY),
}


@dataclasses.dataclass(frozen=True)
class Scored:
    """A run's dev scores: a value for each metric on each dev split, or None."""

    task: GlueTask
    step: int
    path: Path
    values: tuple[float | None, ...]


def task_runs(workdirs: Iterable[str | Path]) -> dict[str, RunDir]:
    """The runs by their TFDS dataset.

    Raises UserError for a folder that is not a run directory, a run that is not on a task of GLUE, and two runs of one
    task.
    """
    runs: dict[str, RunDir] = {}
    for workdir in workdirs:
        run = RunDir.open(workdir, writer=True)
        name = run.config()["data"]["name"]
        if name not in TASKS:
            raise UserError(f"{run.path} is a run on {name!r}, not a task of GLUE; {nearest(name, TASKS)}")
        if name in runs:
            raise UserError(f"{runs[name].path} and {run.path} are both runs on {name}; give one for each task")
        run.check_one_seed("the leaderboard")
        runs[name] = run
    return {name: runs[name] for name in TASKS if name in runs}


def submit(
    runs: Mapping[str, RunDir], out: Path, *, which: str, overwrite: bool, say: Callable[[str], None]
) -> tuple[list[Scored], dict[str, str]]:
    """Scores the dev splits and writes the leaderboard's files to `out`: all of them at the end, or none.

    Predictions of the checkpoint are read from the run directory if it has them, and computed otherwise.

    Args:
      runs: from `task_runs`.
      which: the checkpoint of each run, "best" or "last".
      overwrite: whether files of an earlier submission may be replaced.
      say: called with progress messages about slow steps.

    Returns:
      The scores, and the files that were not written, with the reasons.

    Raises:
      UserError: `out` can't be written to, or a run lacks checkpoint or data.
    """
    missing = {
        file: "no run on its task was given" for name, task in TASKS.items() if name not in runs for file in task.files
    }
    out = expanded(out).absolute()
    _check_folder(out, [out / file for name in runs for file in TASKS[name].files], overwrite)
    trained = {name: TrainedRun(run, which) for name, run in runs.items()}

    texts: dict[Path, str] = {}
    scored = []
    for name, checkpoint in trained.items():
        task = TASKS[name]
        say(f"{task.name}: step {checkpoint.step} of {checkpoint.run.path}")
        values = [checkpoint.predictions(split)[0] for split in task.validation]
        whose = AVERAGE if checkpoint.config.eval.metric.startswith(AVERAGE) else ""  # like the predictions
        scored.append(
            Scored(
                task,
                checkpoint.step,
                checkpoint.run.path,
                tuple(metrics.get(whose + metric) for metrics in values for metric in task.metrics),
            )
        )
        for file, (other, split) in task.files.items():
            reason = other and data.missing({"name": other, "data_dir": checkpoint.config.data.data_dir})
            if reason:
                missing[file] = reason
                continue
            _, records = checkpoint.predictions(split, data=other)
            columns = data.raw({"name": other or name, "data_dir": checkpoint.config.data.data_dir})
            texts[out / file] = tsv(records, columns[split]["idx"], task.labels, f"{file}: {other or name}, {split!r}")
    for path, text in texts.items():
        part = path.with_name(path.name + ".part")
        part.write_text(text)
        os.replace(part, path)
    return scored, missing


def tsv(records: Sequence[Mapping[str, Any]], places: Sequence[int], labels: tuple[str, ...] | None, what: str) -> str:
    """The text of a leaderboard file: a line for each example, in the order of the original test set.

    Args:
      records: predictions; their `index` is the example's position in the dataset, which TFDS has shuffled.
      places: for each example of the dataset, its position in the original test set.
      labels: names of the classes, or None for numbers, which are clipped to 0 to 5.
      what: the split, for error messages.

    Raises:
      UserError: the file would be incomplete, or a prediction is invalid.
    """
    lines = {}
    for record in records:
        prediction = record["prediction"]
        if labels is None and math.isfinite(prediction):
            text = f"{min(max(float(prediction), 0.0), 5.0):.3f}"
        elif labels is not None and prediction in range(len(labels)):
            text = labels[prediction]
        else:
            wanted = f"the classes are 0 to {len(labels) - 1}" if labels else "it must be finite"
            raise UserError(f"{what} has the prediction {prediction}; {wanted}")
        lines[int(places[record["index"]])] = text
    if sorted(lines) != list(range(len(places))):
        raise UserError(
            f"{what} has {len(lines)} predictions for {len(places)} examples; the leaderboard wants each of 0 to "
            f"{len(places) - 1} once"
        )
    return "index\tprediction\n" + "".join(f"{place}\t{lines[place]}\n" for place in sorted(lines))


def table(scored: Sequence[Scored]) -> str:
    """The dev scores in Markdown, times 100 as usual; the average weights all tasks equally."""
    lines = ["| task | metric | dev | step | run |", "|---|---|---|---|---|"]
    averages: list[float] = []
    for row in scored:
        names = " / ".join(row.task.metrics)
        if len(row.task.validation) > 1:
            names += ", " + " / ".join(split.removeprefix("validation_") for split in row.task.validation)
        values = " / ".join("–" if value is None else f"{100 * value:.1f}" for value in row.values)
        lines.append(f"| {row.task.name} | {names} | {values} | {row.step} | {row.path} |")
        there = [100 * value for value in row.values if value is not None]
        if len(there) == len(row.values):
            averages.append(sum(there) / len(there))
    if len(scored) > 1 and len(averages) == len(scored):
        lines.append(f"| average of {len(scored)} tasks | | {sum(averages) / len(scored):.1f} | | |")
    return "\n".join(lines)


def _check_folder(out: Path, paths: Sequence[Path], overwrite: bool) -> None:
    """Makes the folder. Raises UserError if that fails, or if it would overwrite an existing file."""
    present = [path for path in paths if path.exists()]
    if present and not overwrite:
        raise UserError(f"{present[0]} exists; choose another --out, or give --overwrite to replace it")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UserError(f"--out={out} can't be written ({error.strerror}); choose another folder") from error
