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
    records: list[dict[str, Any]] = []

    def collect(members: np.ndarray, example_axes: int, outputs: Any) -> None:
        scores, columns = jax.device_get(outputs)
        # float64 sums on the host: the order and number of batches leaves no trace.
        scores = jax.tree.map(np.float64, scores)
        totals[:] = [metrics.add(totals[0], scores)] if totals else [scores]
        if predictions:
            columns = {name: np.reshape(x, (-1, *x.shape[example_axes:])) for name, x in columns.items()}
            for place, index in enumerate(members.ravel().tolist()):
                if index >= 0:
                    record = {name: column[place].tolist() for name, column in columns.items()}
                    # A task whose labels are not the dataset's gives them with its predictions.
                    label = {} if "label" in record else {"label": stream.examples.labels[index].item()}
                    records.append({"index": index, **label, **record})

    waiting: tuple[Any, ...] | None = None
    for members, batch in batches:
        outputs = experiment.eval_step(state, sharding.put_batch(batch, experiment.mesh))
        if waiting:  # the device works on this batch while the last one's results are taken in
            collect(*waiting)
        waiting = (members, batch["weight"].ndim, outputs)
    if waiting:
        collect(*waiting)
    return metrics.compute(totals[0]), sorted(records, key=lambda record: record["index"])
