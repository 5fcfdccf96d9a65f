"""Evaluation of one split: every example exactly once, whatever the batch size and the number of devices."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from research.core import metrics
from research.core.state import TrainState, averaged
from research.core.statistics import Value
from research.core.tasks import SplitMetric
from research.data import pipeline
from research.devices import sharding
from research.training.experiment import Experiment

# With several processes, how many batches pass between two questions whether to stop: asking takes time.
ASK_EVERY = 16


class EvaluationInterrupted(Exception):
    """`should_stop` said so before the evaluation ended."""


def evaluate(
    experiment: Experiment,
    state: TrainState,
    split: str,
    *,
    predictions: bool = False,
    show: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, Value], list[dict[str, Any]]]:
    """The metrics of a split, and with `predictions` a record per example in the dataset's order.

    With train.seeds a metric, and in the records all that is predicted, is a list, one entry for each seed.

    A metric is None where the split's labels are hidden. Where the state keeps an average of the parameters, there are
    metrics of that too, ema_…; the predictions are its own if `eval.metric` is one of these.

    Args:
      show: whether to draw a progress bar.
      should_stop: asked between two batches (with several processes, every ASK_EVERY batches, by all of them).

    Raises:
      EvaluationInterrupted: `should_stop` said so.
    """

    def of(state: TrainState, predictions: bool, what: str) -> tuple[dict[str, Value], list[dict[str, Any]]]:
        batches = _shown(experiment, split, f"evaluating {split}{what}", show)
        return _evaluate(experiment, state, split, predictions, _until(batches, should_stop))

    if not state.average:
        return of(state, predictions, "")
    ranked = experiment.config.eval.metric.startswith(metrics.AVERAGE)
    average = averaged if experiment.config.train.seeds is None else jax.vmap(averaged, in_axes=(0, None))
    mean = average(state, experiment.config.train.ema_decay)
    values, records = of(state, predictions and not ranked, "")
    of_average, records_of_average = of(mean, predictions and ranked, ", averaged parameters")
    values |= {f"{metrics.AVERAGE}{name}": value for name, value in of_average.items()}
    return values, records_of_average if ranked else records


def check_memory(experiment: Experiment, state: TrainState) -> None:
    """Raises UserError where the run's seeds are too many to be evaluated together: before training, not after it."""
    for split in experiment.config.eval.splits:
        _, batch = next(_batches(experiment, split))
        experiment.eval_step.compiled(state, sharding.put_batch(batch, experiment.mesh))


Batches = Iterable[tuple[np.ndarray, pipeline.Batch]]


def _batch_rows(experiment: Experiment) -> int:
    section = experiment.config.eval
    return section.batch_rows if experiment.packed else section.batch_size


def _batches(experiment: Experiment, split: str) -> Iterator[tuple[np.ndarray, pipeline.Batch]]:
    return pipeline.evaluation_batches(
        experiment.streams(split),
        batch_rows=_batch_rows(experiment),
        rows=experiment.rows,
        workers=experiment.config.data.workers,
    )


def _shown(experiment: Experiment, split: str, what: str, show: bool) -> Batches:
    """The batches of a split, with a progress bar where they take more than a second."""
    return tqdm(
        _batches(experiment, split),
        what,
        total=-(-len(experiment.streams(split).rows) // _batch_rows(experiment)),
        unit="batch",
        disable=not show,
        delay=1.0,
        leave=False,
        dynamic_ncols=True,
        mininterval=0.2 if sys.stderr.isatty() else 20.0,
        file=sys.stderr,
    )


def _until(batches: Batches, should_stop: Callable[[], bool]) -> Batches:
    """The batches; raises EvaluationInterrupted where `should_stop` says so before the last one."""
    every = 1 if jax.process_count() == 1 else ASK_EVERY
    for i, batch in enumerate(batches):
        if i and i % every == 0 and should_stop():
            raise EvaluationInterrupted
        yield batch


def _evaluate(
    experiment: Experiment, state: TrainState, split: str, predictions: bool, batches: Batches
) -> tuple[dict[str, Value], list[dict[str, Any]]]:
    stream = experiment.streams(split)
    totals: list[dict[str, Any]] = []
    gathered: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []  # of each batch: example indices, their predictions
    split_metrics, seeds = experiment.task.split_metrics, experiment.config.train.seeds

    def collect(members: np.ndarray, example_axes: int, outputs: Any) -> None:
        scores, columns = jax.device_get(outputs)
        # float64 sums on the host: the order and number of batches leaves no trace.
        scores = jax.tree.map(np.float64, scores)
        totals[:] = [metrics.add(totals[0], scores)] if totals else [scores]
        if predictions or split_metrics:
            real = members.ravel() >= 0
            if seeds is not None:  # behind the axes of examples
                columns = {name: np.moveaxis(x, 0, example_axes) for name, x in columns.items()}
            columns = {name: np.reshape(x, (-1, *x.shape[example_axes:]))[real] for name, x in columns.items()}
            gathered.append((members.ravel()[real], columns))

    waiting: tuple[Any, ...] | None = None
    for members, batch in batches:
        outputs = experiment.eval_step(state, sharding.put_batch(batch, experiment.mesh))
        if waiting:  # the device works on this batch while the last one's results are taken in
            collect(*waiting)
        waiting = (members, batch["weight"].ndim, outputs)
    if waiting:
        collect(*waiting)
    values = metrics.compute(totals[0])
    if not gathered:
        return values, []
    # In the dataset's order: that of the batches leaves no trace here either.
    indices = np.concatenate([part for part, _ in gathered])
    order = np.argsort(indices)
    columns = {name: np.concatenate([part[name] for _, part in gathered])[order] for name in gathered[0][1]}
    labels = stream.examples.labels[indices[order]]
    if seeds is None:
        values |= _of_split(split_metrics, columns, labels)
    else:
        by_seed = [_of_split(split_metrics, {k: x[:, i] for k, x in columns.items()}, labels) for i in range(seeds)]
        values |= {name: [each[name] for each in by_seed] for name in split_metrics}
    if not predictions:
        return values, []
    listed = {"index": indices[order].tolist(), "label": labels.tolist()}
    listed |= {name: column.tolist() for name, column in columns.items()}
    return values, [dict(zip(listed, record, strict=True)) for record in zip(*listed.values(), strict=True)]


def _of_split(
    split_metrics: Mapping[str, SplitMetric], columns: dict[str, np.ndarray], labels: np.ndarray
) -> dict[str, float | None]:
    return {name: metric(columns, labels) for name, metric in split_metrics.items()}
