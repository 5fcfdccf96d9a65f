"""Evaluation of one split: every example exactly once, whatever the batch size and the number of devices."""

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from tqdm import tqdm

from research.base.registry import lookup
from research.core import metrics, step
from research.core.lora import Lora
from research.core.replicas import Replicas
from research.core.state import TrainState, averaged
from research.core.statistics import Value
from research.core.tasks import Task, capabilities
from research.data import pipeline
from research.devices import sharding
from research.devices.compiled import Compiled
from research.devices.platform import compiler_options

# With several processes, `should_stop` is checked only after this many batches, because the check synchronizes them.
ASK_EVERY = 16

Records = list[dict[str, Any]]
Batches = Iterable[tuple[np.ndarray, pipeline.Batch]]


class EvaluationInterrupted(Exception):
    """`should_stop` returned True before the evaluation ended."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The settings of an evaluation, apart from the state and the examples.

    Attributes:
      step: (state, batch) -> (scores, predictions), compiled; see `eval_program`.
      rows: the rows of a global batch that this process makes.
      batch_rows: rows per batch: examples, or rows of packed texts.
      replicas: the models that the state holds.
      ema_decay: the decay of the average of the parameters, where the state keeps one.
      predicts_averaged: whether predictions come from the averaged parameters.
    """

    step: Any
    task: Task
    mesh: jax.sharding.Mesh
    rows: pipeline.Rows
    batch_rows: int
    workers: int
    replicas: Replicas
    ema_decay: float
    predicts_averaged: bool

    def averaged(self, state: TrainState) -> TrainState:
        """The state with averaged parameters, where the state keeps an average."""
        mean: TrainState = self.replicas.map(averaged, (0, None))(state, self.ema_decay)
        return mean

    def predicting_state(self, state: TrainState) -> TrainState:
        """The state from which predictions come: with the averaged parameters if the run ranks by them."""
        return self.averaged(state) if self.predicts_averaged else state

    def batches(self, stream: pipeline.Stream) -> Iterator[tuple[np.ndarray, pipeline.Batch]]:
        """The batches of an evaluation, with the indices of their examples; see `pipeline.evaluation_batches`."""
        return pipeline.evaluation_batches(stream, batch_rows=self.batch_rows, rows=self.rows, workers=self.workers)


def eval_program(
    module: nn.Module,
    task: Task,
    mesh: jax.sharding.Mesh,
    *,
    shardings: Any,
    replicas: Replicas,
    compiler: str,
    lora: Lora,
) -> Any:
    """Returns the compiled (state, batch) -> (scores, predictions), for a state with these `shardings`.

    With replicas the state, the scores and the predictions have a leading axis for them; the batch has no such axis.
    """
    program = functools.partial(step.eval_step, module=module, task=task, lora=lora)
    jitted = jax.jit(
        sharding.on_mesh(replicas.map(program, (0, None)), mesh),
        in_shardings=(shardings, sharding.batch_sharding(mesh)),
        out_shardings=sharding.replicated(mesh),
        compiler_options=compiler_options(compiler),
    )
    return jitted if replicas.count is None else Compiled(jitted, replicas=replicas.count)


def evaluate(
    evaluation: Evaluation,
    state: TrainState,
    stream: pipeline.Stream,
    name: str,
    *,
    predictions: bool = False,
    show: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, Value], Records]:
    """Returns the metrics of a split, and with `predictions` a record per example in the dataset's order.

    With replicas, metrics and all predictions in the records are lists with an entry for each.

    A metric is None if the split's labels are hidden. If the state keeps an average of the parameters, its
    metrics are included as ema_….

    Args:
      name: the name of the split in the progress bar.
      show: whether to draw a progress bar.
      should_stop: called between batches (with several processes, by all of them every ASK_EVERY batches).

    Raises:
      EvaluationInterrupted: `should_stop` returned True.
    """

    def run(state: TrainState, predictions: bool, what: str) -> tuple[dict[str, Value], Records]:
        batches = _shown(evaluation, stream, f"evaluating {name}{what}", show)
        evaluator = lookup(EVALUATORS, capabilities(evaluation.task).evaluator, "evaluator")
        return evaluator(evaluation, state, stream, predictions, _until(batches, should_stop))

    if not state.average:
        return run(state, predictions, "")
    mean, of_mean = evaluation.averaged(state), evaluation.predicts_averaged
    values, records = run(state, predictions and not of_mean, "")
    averaged_values, averaged_records = run(mean, predictions and of_mean, ", averaged parameters")
    values |= {f"{metrics.AVERAGE}{name}": value for name, value in averaged_values.items()}
    return values, averaged_records if of_mean else records


def _shown(evaluation: Evaluation, stream: pipeline.Stream, what: str, show: bool) -> Batches:
    """The batches of a split, with a progress bar if they take more than a second."""
    return tqdm(
        evaluation.batches(stream),
        what,
        total=-(-len(stream.rows) // evaluation.batch_rows),
        unit="batch",
        disable=not show,
        delay=1.0,
        leave=False,
        dynamic_ncols=True,
        mininterval=0.2 if sys.stderr.isatty() else 20.0,
        file=sys.stderr,
    )


def _until(batches: Batches, should_stop: Callable[[], bool]) -> Batches:
    """The batches; raises EvaluationInterrupted if `should_stop` returns True before the last one."""
    every = 1 if jax.process_count() == 1 else ASK_EVERY
    for i, batch in enumerate(batches):
        if i and i % every == 0 and should_stop():
            raise EvaluationInterrupted
        yield batch


def forward(
    evaluation: Evaluation, state: TrainState, stream: pipeline.Stream, predictions: bool, batches: Batches
) -> tuple[dict[str, Value], Records]:
    """Evaluates by one forward pass: sums of `scores`, and the task's metrics of a whole split, if any."""
    split_metrics = evaluation.task.split_metrics
    gather = bool(predictions or split_metrics)
    totals, indices, columns = forward_pass(evaluation, state, batches, gather=gather)
    values = metrics.compute(totals)
    if not gather:
        return values, []
    if "label" in columns and not split_metrics:
        return values, records(indices, columns)
    assert stream.examples.labels is not None
    labels = np.asarray(stream.examples.labels[indices])
    parts = list(evaluation.replicas.split(columns, axis=1))
    values |= {
        name: evaluation.replicas.join([metric(part, labels) for part in parts])
        for name, metric in split_metrics.items()
    }
    if not predictions:
        return values, []
    # A task whose examples have several labels provides them itself.
    return values, records(indices, {**({} if "label" in columns else {"label": labels}), **columns})


# Ways to evaluate a split, by the name in a task's capabilities.
EVALUATORS: dict[str, Callable[..., tuple[dict[str, Value], Records]]] = {"forward": forward}


def forward_pass(
    evaluation: Evaluation, state: TrainState, batches: Batches, *, gather: bool
) -> tuple[dict[str, Any], np.ndarray, dict[str, np.ndarray]]:
    """One pass over the batches -> sums of scores, and with `gather` the example indices [N] and predictions [N, …].

    Both are in the dataset's order. With replicas the predictions are [N, replicas, …].
    """
    totals: list[dict[str, Any]] = []
    gathered: list[tuple[np.ndarray, dict[str, np.ndarray]]] = []  # for each batch: example indices, their predictions

    def collect(members: np.ndarray, example_axes: int, outputs: Any) -> None:
        scores, columns = jax.device_get(outputs)
        # float64 sums on the host, so that the order and number of batches do not matter.
        scores = jax.tree.map(np.float64, scores)
        totals[:] = [metrics.add(totals[0], scores)] if totals else [scores]
        if gather:
            real = members.ravel() >= 0
            if evaluation.replicas.axes:  # theirs, after the axes of examples
                columns = {name: np.moveaxis(x, 0, example_axes) for name, x in columns.items()}
            columns = {name: np.reshape(x, (-1, *x.shape[example_axes:]))[real] for name, x in columns.items()}
            gathered.append((members.ravel()[real], columns))

    waiting: tuple[Any, ...] | None = None
    for members, batch in batches:
        outputs = evaluation.step(state, sharding.put_batch(batch, evaluation.mesh))
        if waiting:  # the device works on this batch while the results of the last one are collected
            collect(*waiting)
        waiting = (members, batch["weight"].ndim, outputs)
    if waiting:
        collect(*waiting)
    if not gathered:
        return totals[0], np.zeros(0, np.int64), {}
    # In the dataset's order, so that the order of the batches does not matter here either.
    indices = np.concatenate([part for part, _ in gathered])
    order = np.argsort(indices)
    columns = {name: np.concatenate([part[name] for _, part in gathered])[order] for name in gathered[0][1]}
    return totals[0], indices[order], columns


def records(indices: np.ndarray, columns: Mapping[str, np.ndarray]) -> Records:
    """Makes a record for each example: its entry of `indices` [N], and of each column [N, …]."""
    listed = {"index": indices.tolist(), **{name: column.tolist() for name, column in columns.items()}}
    return [dict(zip(listed, record, strict=True)) for record in zip(*listed.values(), strict=True)]
