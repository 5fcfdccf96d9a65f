"""What a run prints at its start and at its end."""

import shlex
from collections.abc import Collection, Mapping
from typing import Any

import jax

from research import solvers
from research.base.paths import shown
from research.core.state import TrainState, param_count
from research.core.statistics import Value, means
from research.core.tasks import Capabilities
from research.data.shards.rows import ShardStream
from research.inference.model import lora_of
from research.runs.checkpoint import Progress
from research.runs.rundir import RunDir
from research.training.experiment import Experiment
from research.training.stopping import is_finished

_MUCH_CUT = 0.1  # of the tokens of documents in shards


def describe(experiment: Experiment, state: TrainState, run: RunDir, progress: Progress) -> str:
    """Describes a run in one line: the model, the data, the devices, the steps, the run directory."""
    devices = jax.devices()
    config, replicas = experiment.config, experiment.replicas
    stream = experiment.training
    packed = ""
    if stream.lengths is not None:
        rows, each = len(stream.rows), min(experiment.length.batch_rows, len(stream.rows))
        packed = (
            f", packed into {rows:,} rows that are {stream.fullness:.1%} full, about "
            f"{round(len(stream.members) / rows * each):,} examples a step"
        )
    if isinstance(stream, ShardStream):
        plan = stream.examples.plan
        packed = (
            f", groups of {_counted(plan.documents, 'document')} in {_counted(plan.rows, 'row')} that are about "
            f"{plan.fullness:.1%} full, {plan.cut:.1%} of the documents' tokens cut off"
            + ("; less with more data.shards.rows" if plan.cut > _MUCH_CUT else "")
        )
    many = f", {_counted(replicas.count, 'seed')}" if replicas.count else ""
    parameters, trained = (
        param_count(params) // replicas.size for params in (state.params, lora_of(config).split(state.params)[0])
    )
    some = f", {trained:,} of them trained" if trained < parameters else ""
    steps = _counted(experiment.length.total_steps, "step")
    start = f"resuming after step {progress.step}" if progress.step else steps
    return (
        f"{config.model.name} ({parameters:,} parameters{some}, {config.dtype}{many}) on {experiment.dataset.name} "
        f"({len(stream.members):,} training examples{packed}), preset {config.preset}, "
        f"{_counted(len(devices), f'{devices[0].device_kind} device')}, {start} -> {shown(run.path)}"
    )


def describe_extension(experiment: Experiment, extension: Mapping[str, Any]) -> str:
    """Describes in one line how a finished run is continued, and what its learning rate does there."""
    step, unit, before = extension["step"], extension["unit"], extension["length"]
    line = f"  extended at step {step} from {before:g} to {before + extension['by']:g} {unit}"
    rate = experiment.method.learning_rate
    if rate is None:
        return line
    schedule = experiment.config.optimizer.schedule
    what = "" if schedule == "constant" else f", by the {schedule} schedule of all steps"
    return f"{line}; the learning rate continues at {float(rate(step)):.3g}{what}"


def describe_evaluation(step: int, split: str, values: Mapping[str, Value]) -> str:
    """Describes an evaluation during training in one line."""
    return f"  step {step}: {split}: {_metrics(means(values), {})}"


def conclude(summary: dict[str, Any], run: RunDir, task: Capabilities, *, said: Collection[str] = ()) -> str:
    """Describes how a run ended, its metrics, and the commands that follow, a line each.

    `task`: what the run's task predicts. `said`: the warnings that were printed at the start.
    """
    lines = [f"{summary['status']} at step {summary['step']}" + (f": {summary['reason']}" if summary["reason"] else "")]
    if solved := solvers.report(summary["training"]):
        lines.append(f"  solver: {solved}")
    lines += [f"  warning: {warning}" for warning in summary["warnings"] if warning not in said]
    for split, values in summary["metrics"].items():
        bands = summary["intervals"][split] if "intervals" in summary else {}
        text = _metrics(values, bands)
        many = f" ({_counted(summary['seeds'], 'seed')})" if text and bands else ""
        lines.append(f"  {split}: {text or 'no metrics, its labels are hidden'}{many}")
    best = summary["best"]
    if is_finished(summary) and best and best["step"] != summary["step"]:
        lines.append(
            f"  best: {best['metric']} {best['value']:.4f} at step {best['step']}; predict and evaluate use the last "
            "checkpoint unless --checkpoint=best"
        )
    workdir = shlex.quote(str(shown(run.path)))
    if is_finished(summary):
        if summary["step"] > 1:
            lines.append(f"  curve: {shown(run.plots / 'training_curve.png')}")
        lines.append(
            f"  again: python -m research.evaluate --workdir={workdir} "
            f"--split={shlex.quote(next(iter(summary['metrics'])))}"
        )
        if task.predicts != "token":  # an example has one prediction
            lines.append(f"  predict: python -m research.predict --workdir={workdir} --input=FILE")
        if task.generates:
            chat = " --chat" if run.config()["data"]["transform"]["name"] == "chat" else ""
            lines.append(f"  generate: python -m research.generate --workdir={workdir}{chat} --prompt=TEXT")
        lines.append(f"  serve: python -m research.serve --workdir={workdir}")
        lines.append(f"  plots: python -m research.plot --workdir={workdir}")
    else:
        lines.append("  rerun the same command with this --workdir to resume")
    return "\n".join(lines)


def _metrics(values: Mapping[str, float | None], bands: Mapping[str, Any]) -> str:
    """The metrics that have a value, with the intervals that they have."""
    return ", ".join(
        f"{name} {value:.4f}{_margin(bands.get(name))}" for name, value in values.items() if value is not None
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _margin(band: dict[str, Any] | None) -> str:
    return f" ± {band['high'] - band['mean']:.4f}" if band and band["high"] is not None else ""
