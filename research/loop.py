"""The story of a run, top to bottom. Nothing here asks which model it is running."""

import dataclasses
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import FrozenConfigDict

from research import solvers
from research.checkpoint import Checkpoints, Progress
from research.errors import UserError
from research.evaluation import check_memory, evaluate
from research.experiment import Experiment, prepare
from research.platform import x64
from research.reporting import Reporter, plot_training_curve
from research.rundir import RunDir
from research.seeds import Value, described, mean
from research.sharding import placed_ahead
from research.state import TrainState, param_count
from research.summary import summarize, truncation_warnings
from research.throughput import Compiled, Throughput

# Reasons a run may end before its last step. After the first it is over; after the others the same command goes on.
STALLED = "eval.metric stopped improving"
OUT_OF_TIME = "train.max_minutes is over"
ASKED = "asked to stop"


def train_and_evaluate(
    config: Any,
    workdir: str | Path,
    *,
    note: str | None = None,
    initial: Callable[[Any], Any] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    show: bool = True,
) -> dict[str, Any]:
    """Trains, evaluates and writes the run directory; goes on where the run in `workdir` left off, if there is one.

    Args:
      note: one line for summary.json: why a preset stands in for another.
      initial: makes the variables to start from, {"params": …, "batch_stats": …}, of fresh ones, which it may give up;
        needed where the config has `init_from` (research/interop/pretrained.py). A run that goes on does not call it.
      should_stop: asked after every step (with several processes, every `train.log_every`); once it says so, the run
        saves its state and ends as "preempted".
      show: whether to print and to draw a progress bar.

    Returns:
      What it wrote to summary.json.

    Raises:
      UserError: the config, the data or the workdir is not good. A workdir that is refused is not touched.
    """
    config = FrozenConfigDict(config)
    with x64(config.dtype):
        return _run(config, workdir, note, initial, should_stop, show)


def _run(
    config: Any,
    workdir: str | Path,
    note: str | None,
    initial: Callable[[Any], Any] | None,
    should_stop: Callable[[], bool],
    show: bool,
) -> dict[str, Any]:
    run = RunDir(workdir, writer=jax.process_index() == 0)
    run.start(config.to_dict())
    summary = run.summary() or {}
    try:
        if summary.get("status") == "completed" or summary.get("reason") == STALLED:
            if show:
                print(f"{run.path} is {summary['status']} since step {summary['step']}; another --workdir starts anew")
            return summary
        experiment = prepare(config, run.assets)
        with Checkpoints(run.checkpoints, metric=config.eval.metric, mode=config.eval.mode) as checkpoints:
            state, progress = restore_or_init(experiment, checkpoints, initial)
            run.forget_metrics_after(progress.step)
            reporter = Reporter(
                run,
                progress.step,
                experiment.total_steps,
                experiment.learning_rate,
                metric=config.eval.metric,
                seed=config.seed,
                show=show,
            )
            with reporter:
                reporter.say(_describe(experiment, state, run, progress))
                for warning in truncation_warnings(experiment):
                    reporter.say(f"  warning: {warning}")
                summary = _train(experiment, state, progress, checkpoints, reporter, run, should_stop)
        summary["preset_note"] = note
        run.write_summary(summary)
        plot_training_curve(run, config.eval.metric)
        return summary
    except Exception as error:
        reason = str(error) or type(error).__name__
        run.write_summary({**summary, "status": "failed", "reason": reason, "preset": config.preset})
        raise
    finally:
        run.close()


def restore_or_init(
    experiment: Experiment, checkpoints: Checkpoints, initial: Callable[[Any], Any] | None = None
) -> tuple[TrainState, Progress]:
    """The last checkpoint, or the state before the first step. Raises UserError where that needs `initial`."""
    if checkpoints.steps:
        return checkpoints.restore(experiment.state, checkpoints.steps[-1])
    if experiment.config.init_from and initial is None:
        raise UserError(
            f"init_from={experiment.config.init_from!r} is not resolved: train_and_evaluate needs `initial`, from "
            "research.interop.pretrained.start"
        )
    state = experiment.init()
    if initial:
        variables = {"params": state.params, **state.model_state}
        seeds = experiment.config.train.seeds
        variables = dict(initial(variables) if seeds is None else _initial_of_each(initial, variables, seeds))
        # The optimizer's state is the same: none of the optimizers looks at the parameters before the first step.
        state = dataclasses.replace(state, params=variables.pop("params"), model_state=variables)
    return state, Progress()


def _initial_of_each(initial: Callable[[Any], Any], variables: Any, seeds: int) -> Any:
    """`initial` of each seed's fresh variables: what is not pretrained differs."""
    placed = jax.tree.map(lambda x: x.sharding, variables)
    parts = [initial(jax.tree.map(lambda x, i=i: x[i], variables)) for i in range(seeds)]
    stack = jax.jit(lambda parts: jax.tree.map(lambda *x: jnp.stack(x), *parts), out_shardings=placed)
    return stack(parts)


def _train(
    experiment: Experiment,
    state: TrainState,
    progress: Progress,
    checkpoints: Checkpoints,
    reporter: Reporter,
    run: RunDir,
    should_stop: Callable[[], bool],
) -> dict[str, Any]:
    """From `progress` to the end of the run -> its summary."""
    config, total_steps = experiment.config, experiment.total_steps
    if config.train.seeds is not None:
        check_memory(experiment, state)
    batches = placed_ahead(experiment.training_batches(progress.step), experiment.mesh, experiment.batch_axis)
    train_step = Compiled(experiment.train_step, repeats=config.train.accumulate, seeds=config.train.seeds)
    throughput = Throughput(train_step)
    deadline = time.monotonic() + 60 * (config.train.max_minutes or float("inf"))
    main_split = config.eval.splits[0]
    results: dict[str, Any] = {}
    reason = STALLED if stalled(progress.history, config.eval) else None

    while progress.step < total_steps and not reason:
        with throughput.waiting():
            batch, on_devices = next(batches)
        state, scores = train_step(state, on_devices)
        throughput.count(batch, scores, jax.process_count())
        progress = progress.after(experiment.batch_rows, experiment.total_rows)
        step, value = progress.step, None
        reporter.step(scores)
        if step == total_steps:
            break  # the evaluation and the checkpoint of the end follow below
        if _due(step, config.train.log_every):
            reporter.log(step)
            try:
                _check_data_wait(throughput, config.train.max_data_wait_fraction)
            except UserError:
                reporter.flush(step)
                checkpoints.save(state, progress, None)
                raise
        if jax.process_count() == 1 or _due(step, config.train.log_every):  # asking the other processes takes time
            if _any_process(should_stop()):
                reason = ASKED
            elif _any_process(time.monotonic() > deadline):
                reason = OUT_OF_TIME

        evaluating = _due(step, config.eval.every_steps)
        if not (evaluating or _due(step, config.checkpoint.every_steps) or reason):
            continue
        reporter.flush(step)  # waits for the device; a loss that is not finite ends the run before it is saved
        with throughput.aside():
            if evaluating:
                results[main_split], _ = evaluate(experiment, state, main_split)
                reporter.evaluation(step, main_split, results[main_split])
                value = _ranking(results[main_split], config.eval.metric)
                progress = progress.evaluated(value)
                reason = STALLED if stalled(progress.history, config.eval) else reason
            checkpoints.save(state, progress, value)

    reporter.flush(progress.step)
    speed = throughput.report()
    if reason == ASKED and progress.step not in dict(progress.history):
        results = {}  # those of an earlier step
    if reason != ASKED:
        for split in config.eval.splits:
            results[split], records = evaluate(experiment, state, split, predictions=True)
            if not (split == main_split and progress.step in dict(progress.history)):
                reporter.evaluation(progress.step, split, results[split])
            if split == main_split and not reason:
                value = _ranking(results[main_split], config.eval.metric)
                progress = progress.evaluated(value)
                checkpoints.save(state, progress, value)
            evaluation = {"step": progress.step, "split": split, **described(results[split])}
            run.write_predictions(split, records, evaluation)
    if reason in (None, STALLED):
        _check_data_wait(throughput, config.train.max_data_wait_fraction)  # all is saved by now
    summary = summarize(
        experiment,
        state,
        status={None: "completed", ASKED: "preempted"}.get(reason, "stopped_early"),
        reason=reason,
        progress=progress,
        metrics=results,
        throughput=speed,
        training={k: v for k, v in (run.metrics("train") or [{}])[-1].items() if k not in ("step", "split")},
    )
    reporter.say(_conclude(summary, run))
    return summary


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _of_all_processes(value: float) -> np.ndarray:
    """What each process has for the value."""
    return np.asarray([value] if jax.process_count() == 1 else multihost_utils.process_allgather(value))


def _any_process(flag: bool) -> bool:
    """Whether any process says so: all must leave the loop at the same step."""
    return bool(_of_all_processes(flag).any())


# How long a run goes on before it is judged by how it waits for data: its first seconds are no measure.
SETTLED_SECONDS = 10.0


def _check_data_wait(throughput: Throughput, limit: float | None) -> None:
    """Raises UserError where a process has waited for data longer than the config allows."""
    if limit is None:
        return
    settled = throughput.seconds >= SETTLED_SECONDS
    fraction = float(_of_all_processes(throughput.data_wait_fraction if settled else 0.0).max())
    if fraction > limit:
        raise UserError(
            f"{fraction:.3f} of the time went into waiting for data; train.max_data_wait_fraction is {limit}: raise "
            "data.workers or the limit; the same command then goes on from here"
        )


def _ranking(metrics: dict[str, Value], name: str) -> float:
    """The metric that ranks evaluations, its mean over the seeds. Raises UserError if it has no value there."""
    value = mean(metrics[name])
    if value is None:
        raise UserError(
            f"eval.metric {name!r} has no value on the first of eval.splits; choose another metric or split"
        )
    return value


def stalled(history: tuple[tuple[int, float], ...], section: Any) -> bool:
    """Whether the last `patience` evaluations brought no improvement of `min_delta` over the best before them."""
    if section.patience <= 0:
        return False
    sign = 1 if section.mode == "max" else -1
    best, since = -float("inf"), 0
    for _, value in history:
        if sign * value > best + section.min_delta:
            best, since = sign * value, 0
        else:
            since += 1
    return since >= section.patience


def _describe(experiment: Experiment, state: TrainState, run: RunDir, progress: Progress) -> str:
    devices = jax.devices()
    config, seeds = experiment.config, experiment.config.train.seeds
    stream = experiment.streams("train")
    packed = f", packed into {len(stream.rows):,} rows that are {stream.fullness:.1%} full" if experiment.packed else ""
    many = f", {_counted(seeds, 'seed')}" if seeds else ""
    steps = _counted(experiment.total_steps, "step")
    start = f"going on after step {progress.step}" if progress.step else steps
    return (
        f"{config.model.name} ({param_count(state.params) // (seeds or 1):,} parameters, {config.dtype}{many}) on "
        f"{experiment.dataset.name} "
        f"({len(stream.members):,} training examples{packed}), preset {config.preset}, "
        f"{_counted(len(devices), f'{devices[0].device_kind} device')}, {start} -> {run.path}"
    )


def _conclude(summary: dict[str, Any], run: RunDir) -> str:
    lines = [f"{summary['status']} at step {summary['step']}" + (f": {summary['reason']}" if summary["reason"] else "")]
    if solved := solvers.report(summary["training"]):
        lines.append(f"  solver: {solved}")
    lines += [f"  warning: {warning}" for warning in summary["warnings"]]
    for split, values in summary["metrics"].items():
        bands = summary["intervals"][split] if "intervals" in summary else {}
        text = ", ".join(
            f"{name} {value:.4f}{_margin(bands.get(name))}" for name, value in values.items() if value is not None
        )
        many = f" ({_counted(summary['seeds'], 'seed')})" if text and bands else ""
        lines.append(f"  {split}: {text or 'no metrics, its labels are hidden'}{many}")
    if summary["status"] == "completed" or summary["reason"] == STALLED:
        if summary["step"] > 1:
            lines.append(f"  curve: {run.plots / 'training_curve.png'}")
        lines.append(
            f"  again: python -m research.evaluate --workdir={run.path} "
            f"--split={shlex.quote(next(iter(summary['metrics'])))}"
        )
        lines.append(f"  plots: python -m research.plot --workdir={run.path}")
    else:
        lines.append("  the same command with this --workdir goes on from here")
    return "\n".join(lines)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _margin(band: dict[str, Any] | None) -> str:
    return f" ± {band['high'] - band['mean']:.4f}" if band and band["high"] is not None else ""
