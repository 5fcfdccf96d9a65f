"""The training loop, from start to summary. Nothing here depends on which model is trained."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from ml_collections import FrozenConfigDict

from research.base.errors import UserError
from research.core.state import TrainState
from research.core.statistics import Value, metric_summary
from research.core.tasks import capabilities
from research.data.splits import whole
from research.devices.compiled import Compiled
from research.devices.platform import x64
from research.devices.sharding import prefetch_to_device, process_share, put_batch
from research.devices.throughput import Throughput
from research.inference.evaluation import EvaluationInterrupted
from research.inference.samples import write_samples
from research.runs import own_code
from research.runs.checkpoint import Checkpoints, Progress
from research.runs.reporting import Reporter, plot_training_curve
from research.runs.rundir import RunDir
from research.runs.saved_config import without_retired
from research.training.console import conclude, describe, describe_evaluation, describe_extension
from research.training.deadline import Deadline
from research.training.divergence import FiniteCheck
from research.training.experiment import Experiment, prepare
from research.training.start import restore_or_init, start_run
from research.training.stopping import (
    Reason,
    any_process,
    check_data_wait,
    is_finished,
    ranking_metric,
    stalled,
)
from research.training.summary import failed_summary, summarize, truncation_warnings


def train_and_evaluate(
    config: Any,
    workdir: str | Path,
    *,
    note: str | None = None,
    config_file: Path | None = None,
    load_variables: Callable[[Any], Any] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    show: bool = True,
) -> dict[str, Any]:
    """Trains, evaluates and writes the run directory; resumes the run in `workdir`, if there is one.

    Args:
      note: one line for summary.json saying why a preset replaces another.
      config_file: the file of the config; reopening the run executes it again if it registers a name that the run uses.
      load_variables: maps fresh variables, {"params": …, "batch_stats": …}, to those to start from, and may donate
        them; needed where the config has `init_from` (research/interop/pretrained.py). Not called when a run is
        resumed.
      should_stop: called after every step (with several processes, every `train.log_every`) and every batch of an
        evaluation; when it returns True, the run saves its state and ends as "preempted".
      show: whether to print and to draw a progress bar.

    Returns:
      The summary, as written to summary.json.

    Raises:
      UserError: the config, the data or the workdir is invalid. A rejected workdir is left unchanged, and nothing is
        left of a new one.
    """
    config = FrozenConfigDict(without_retired(config))
    with x64(config.dtype):
        return _run(
            config,
            workdir,
            note=note,
            show=show,
            config_file=config_file,
            load_variables=load_variables,
            should_stop=should_stop,
        )


def _run(config: Any, workdir: str | Path, *, note: str | None, show: bool, **options: Any) -> dict[str, Any]:
    """As `train_and_evaluate`, for a frozen config; `options` are the arguments of `_prepare_and_train`."""
    with contextlib.closing(RunDir(workdir, writer=jax.process_index() == 0)) as run:
        start_run(run, config.to_dict())
        summary = run.summary() or {}
        if is_finished(summary):
            if show:
                print(
                    f"{run.path} is {summary['status']} at step {summary['step']}; use a new --workdir to retrain, or "
                    "--extend=N with this --workdir and without --config to train it further"
                )
            return summary
        try:
            summary = {**_prepare_and_train(config, run, show=show, **options), "preset_note": note}
            if extensions := run.extensions():
                summary["extensions"] = extensions
            run.write_summary(summary)
        except Exception as error:
            if isinstance(error, UserError) and run.discard():  # refused before training
                raise
            run.write_summary(failed_summary(run, error, config.preset))
            raise
        plot_training_curve(run, config.eval.metric)
        return summary


def _prepare_and_train(
    config: Any,
    run: RunDir,
    *,
    show: bool,
    config_file: Path | None,
    load_variables: Callable[[Any], Any] | None,
    should_stop: Callable[[], bool],
) -> dict[str, Any]:
    """Builds the experiment, restores or initializes the state, and trains -> the summary."""
    own_code.record(run, config, config_file)
    experiment = prepare(config, run.assets)
    with Checkpoints(run.checkpoints, metric=config.eval.metric, mode=config.eval.mode) as checkpoints:
        state, progress = restore_or_init(experiment, checkpoints, load_variables)
        # A finished run that is extended keeps all its evaluations.
        extended = any(extension["step"] == progress.step for extension in run.extensions())
        evaluated = config.eval.splits if extended else config.eval.splits[:1] if progress.is_evaluated else ()
        run.truncate_metrics(progress.step, evaluated)
        learning_rate = experiment.method.learning_rate
        check = FiniteCheck(config.seed, experiment.replicas, learning_rate)
        reporter = Reporter(
            run,
            progress.step,
            experiment.length.total_steps,
            learning_rate,
            metric=config.eval.metric,
            check=check.metrics,
            show=show,
        )
        with reporter:
            reporter.say(describe(experiment, state, run, progress))
            for extension in run.extensions()[-1:]:
                reporter.say(describe_extension(experiment, extension))
            for warning in truncation_warnings(experiment):
                reporter.say(f"  warning: {warning}")
            rows = {split: len(experiment.streams(split).rows) for split in config.eval.splits}
            deadline = Deadline(config.train.max_minutes, rows, batch_rows=experiment.length.batch_rows)
            parts = _Parts(experiment, checkpoints, reporter, run, check, deadline, lambda: any_process(should_stop()))
            return _train(parts, state, progress)


@dataclasses.dataclass(frozen=True)
class _Parts:
    """The objects that training, evaluation and saving share."""

    experiment: Experiment
    checkpoints: Checkpoints
    reporter: Reporter
    run: RunDir
    check: FiniteCheck
    deadline: Deadline
    should_stop: Callable[[], bool]  # returns the same in every process

    @property
    def main_split(self) -> str:
        """The split whose metric ranks checkpoints and decides early stopping."""
        return self.experiment.config.eval.splits[0]


def _train(parts: _Parts, state: TrainState, progress: Progress) -> dict[str, Any]:
    """Trains from `progress` to the end of the run -> its summary.

    A state is saved before it is evaluated, so that a failed evaluation does not lose training.
    """
    experiment, reporter, section = parts.experiment, parts.reporter, parts.experiment.config.train
    total_steps, every_steps = experiment.length.total_steps, experiment.config.eval.every_steps
    save_every = (every_steps, experiment.config.checkpoint.every_steps)
    if experiment.replicas.count is not None:
        _check_memory(experiment, state)
    parts.run.keep()
    batches = prefetch_to_device(experiment.training_batches(progress.step), experiment.mesh, experiment.batch_axis)
    train_step = Compiled(experiment.train_step, repeats=section.accumulate, replicas=experiment.replicas.count)
    throughput, share = Throughput(train_step), process_share(experiment.mesh)
    results: dict[str, Any] = {}
    reason: Reason | None = None
    try:
        while progress.step < total_steps:
            if reason is None and _due(progress.step, every_steps) and not progress.is_evaluated:
                with throughput.aside():
                    results, progress = _evaluate_and_rank(parts, state, progress)
            if stalled(progress.history, experiment.config.eval):
                reason = Reason.STALLED
            if reason:
                break
            with throughput.waiting():
                batch, on_devices = next(batches)
            state, scores = train_step(state, on_devices)
            throughput.count(batch, scores, share)
            parts.deadline.step(scores)
            progress = progress.after(experiment.length.batch_rows, experiment.length.total_rows)
            reporter.step(scores)
            if progress.step < total_steps:
                reason = _log_and_check_stop(parts, state, progress, throughput)
            if reason or any(_due(progress.step, every) for every in save_every):
                reporter.flush(progress.step)  # waits for the device, which counts as training time
                with throughput.aside():
                    _save(parts, state, progress)
        reporter.flush(progress.step)
        with throughput.aside():
            _save(parts, state, progress)
            if reason != Reason.ASKED:
                results, progress = _evaluate_at_the_end(parts, state, progress, ranking=reason is None)
    except EvaluationInterrupted:
        reason = Reason.ASKED
    if reason in (None, Reason.STALLED):
        check_data_wait(throughput, section.max_data_wait_fraction)  # everything is saved by now
    summary = _summary(parts, state, progress, reason, results, throughput)
    said = truncation_warnings(experiment)
    reporter.say(conclude(summary, parts.run, capabilities(experiment.task), said=said))
    return summary


def _check_memory(experiment: Experiment, state: TrainState) -> None:
    """Raises UserError if there are too many replicas to evaluate together: before training, not after it."""
    for split in experiment.config.eval.splits:
        _, batch = next(experiment.evaluation.batches(experiment.streams(split)))
        experiment.eval_step.compiled(state, put_batch(batch, experiment.mesh))


def _log_and_check_stop(parts: _Parts, state: TrainState, progress: Progress, throughput: Throughput) -> Reason | None:
    """Logs if due -> the reason to stop at this step, or None."""
    section = parts.experiment.config.train
    logging = _due(progress.step, section.log_every)
    if logging:
        parts.reporter.log(progress.step)
        try:
            check_data_wait(throughput, section.max_data_wait_fraction)
        except UserError:
            parts.reporter.flush(progress.step)
            _save(parts, state, progress)
            raise
    if jax.process_count() > 1 and not logging:  # synchronizing processes takes time
        return None
    if parts.should_stop():
        return Reason.ASKED
    evaluates = parts.main_split if _due(progress.step, parts.experiment.config.eval.every_steps) else None
    if any_process(parts.deadline.reached(evaluates=evaluates)):
        parts.reporter.say(parts.deadline.describe_end())
        return Reason.OUT_OF_TIME
    if notice := parts.deadline.notice():
        parts.reporter.say(notice)
    return None


def _save(parts: _Parts, state: TrainState, progress: Progress) -> None:
    """Starts saving the state. Raises DivergedError instead if a parameter is not finite."""
    parts.check.params(state.params, progress.step)
    with parts.deadline.saving():
        parts.checkpoints.save(state, progress)


def _evaluate_and_rank(
    parts: _Parts, state: TrainState, progress: Progress
) -> tuple[dict[str, dict[str, Value]], Progress]:
    """Evaluates the main split during training -> its metrics by split, and the progress with the metric added."""
    values, _ = _evaluate(parts, state, parts.main_split, predictions=False)
    parts.reporter.evaluation(progress.step, parts.main_split, values)
    parts.reporter.say(describe_evaluation(progress.step, parts.main_split, values))
    return {parts.main_split: values}, _rank(parts, progress, values)


def _evaluate_at_the_end(
    parts: _Parts, state: TrainState, progress: Progress, *, ranking: bool
) -> tuple[dict[str, dict[str, Value]], Progress]:
    """Evaluates all splits and writes their predictions -> metrics by split, progress.

    Without `ranking` the run will resume here, and this evaluation is not part of its history.
    """
    results = {}
    for split in parts.experiment.config.eval.splits:
        values, records = _evaluate(parts, state, split, predictions=True)
        results[split] = values
        if not (split == parts.main_split and progress.is_evaluated):
            parts.reporter.evaluation(progress.step, split, values)
        if parts.run.writer:
            if split == parts.main_split:
                _write_samples(parts, records, progress.step)
            records = parts.experiment.dataset.described(whole(split), records)
        parts.run.write_predictions(split, records, {"step": progress.step, "split": split, **metric_summary(values)})
        if split == parts.main_split and ranking:
            progress = _rank(parts, progress, values)
    return results, progress


def _write_samples(parts: _Parts, records: list[dict[str, Any]], step: int) -> None:
    """Writes the first inputs of the main split with their predictions, those of the first seed."""
    dataset = parts.experiment.dataset
    if parts.experiment.replicas.count is not None:
        records = [{**record, **{k: x[0] for k, x in record.items() if isinstance(x, list)}} for record in records]
    write_samples(parts.run, dataset.columns[whole(parts.main_split)], dataset.encoder.signature, records, step)


def _evaluate(
    parts: _Parts, state: TrainState, split: str, *, predictions: bool
) -> tuple[dict[str, Value], list[dict[str, Any]]]:
    with parts.deadline.evaluating(split):
        return parts.experiment.evaluate(
            state,
            split,
            predictions=predictions,
            show=parts.reporter.show,
            should_stop=parts.should_stop,
        )


def _rank(parts: _Parts, progress: Progress, values: dict[str, Value]) -> Progress:
    """Ranks the checkpoint of this step by its metric -> the progress with that metric."""
    progress = progress.evaluated(ranking_metric(values, parts.experiment.config.eval.metric))
    parts.checkpoints.rank(progress)
    return progress


def _summary(
    parts: _Parts,
    state: TrainState,
    progress: Progress,
    reason: Reason | None,
    results: dict[str, dict[str, Value]],
    throughput: Throughput,
) -> dict[str, Any]:
    training = parts.run.metrics("train")[-1:] or [{}]
    if reason == Reason.ASKED and not progress.is_evaluated:
        results = {}  # those of an earlier step
    return summarize(
        parts.experiment,
        state,
        status={None: "completed", Reason.ASKED: "preempted"}.get(reason, "stopped_early"),
        reason=reason,
        progress=progress,
        metrics=results,
        throughput=throughput.report(),
        training={key: value for key, value in training[0].items() if key not in ("step", "split")},
    )


def _due(step: int, every: int) -> bool:
    return every > 0 and step > 0 and step % every == 0
