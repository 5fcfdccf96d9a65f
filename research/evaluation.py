"""Evaluation of one split: every example exactly once, whatever the batch size and the number of devices."""

from typing import Any

import jax
import numpy as np

from research import metrics, sharding
from research.data import pipeline
from research.experiment import Experiment
from research.state import TrainState


def evaluate(
    experiment: Experiment, state: TrainState, split: str, *, predictions: bool = False
) -> tuple[dict[str, float | None], list[dict[str, Any]]]:
    """The metrics of a split, and with `predictions` a record per example in the dataset's order.

    A metric is None where the split's labels are hidden.
    """
    stream, section = experiment.streams(split), experiment.config.eval
    batch_rows = section.batch_rows if experiment.packed else section.batch_size
    batches = pipeline.evaluation_batches(stream, batch_rows=batch_rows, rows=experiment.rows)
    totals: list[dict[str, Any]] = []
    gathered: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []  # of each batch: example indices, their predictions
    split_metrics = experiment.task.split_metrics

    def collect(members: np.ndarray, example_axes: int, outputs: Any) -> None:
        scores, columns = jax.device_get(outputs)
        # float64 sums on the host: the order and number of batches leaves no trace.
        scores = jax.tree.map(np.float64, scores)
        totals[:] = [metrics.add(totals[0], scores)] if totals else [scores]
        if predictions or split_metrics:
            real = members.ravel() >= 0
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
    values |= {name: metric(columns, labels) for name, metric in split_metrics.items()}
    if not predictions:
        return values, []
    listed = {"index": indices[order].tolist(), "label": labels.tolist()}
    listed |= {name: column.tolist() for name, column in columns.items()}
    return values, [dict(zip(listed, record, strict=True)) for record in zip(*listed.values(), strict=True)]
