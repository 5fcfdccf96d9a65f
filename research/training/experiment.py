"""Builds the components of a run from its config: data, model, task, method, mesh and the compiled programs."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from research.base.errors import UserError, first_line
from research.base.registry import build
from research.core import metrics, step
from research.core.class_weights import with_class_weights
from research.core.replicas import Replicas
from research.core.state import TrainState, init_state
from research.core.statistics import Value
from research.core.tasks import TASKS, Task
from research.data import load as data
from research.data import pipeline
from research.devices import memory, sharding
from research.devices.platform import check_compiler, compiler_options
from research.devices.rules import check_used
from research.inference.evaluation import Evaluation, Records, eval_program, evaluate
from research.inference.model import build_module, evaluation_of, lora_of, make_mesh, replicas_of
from research.training import checks
from research.training.length import Length, length_of
from research.training.method import Method, make_method
from research.training.program import make_program
from research.training.streams import split_streams
from research.training.teaching import taught


@dataclasses.dataclass(frozen=True)
class Experiment:
    """All components of a run except the arrays: `state` is abstract, i.e. shapes, types and shardings.

    With replicas the state, the scores, the predictions and the training batches have a leading axis for them;
    evaluation batches don't, as all replicas share them.
    """

    config: Any
    dataset: data.Dataset
    streams: Callable[[str], pipeline.Stream]  # by the name of a split, or of a part such as "test[:5%]"
    training: pipeline.Stream  # what is trained on: `train`, with what another model gives
    module: nn.Module
    task: Task
    method: Method
    length: Length
    mesh: jax.sharding.Mesh
    blocks: int  # into which each device's rows of a training batch are split: parts of an update or of a solver's pass
    batch_axis: int  # the axis of rows in a training batch
    state: TrainState
    init: Callable[[], TrainState]
    train_step: Any  # jitted (state, batch) -> (state, scores); the input state is donated
    evaluation: Evaluation

    @property
    def replicas(self) -> Replicas:
        """The models that are trained together."""
        return self.evaluation.replicas

    @property
    def eval_step(self) -> Any:
        """Compiled (state, batch) -> (scores, predictions)."""
        return self.evaluation.step

    def evaluate(self, state: TrainState, split: str, **options: Any) -> tuple[dict[str, Value], Records]:
        """Returns the metrics and the records of a split; see `research.inference.evaluation.evaluate`."""
        return evaluate(self.evaluation, state, self.streams(split), split, **options)

    def training_batches(self, start_step: int) -> Iterator[pipeline.Batch]:
        """This process's rows of the batches from `start_step` to the end of the run."""
        rows = self.evaluation.rows
        return pipeline.training_batches(
            self.training,
            batch_rows=self.length.batch_rows,
            start_step=start_step,
            steps=self.length.total_steps,
            total_rows=self.length.total_rows,
            seed=self.config.seed,
            rows=dataclasses.replace(rows, multiple=rows.multiple * self.blocks),
            workers=self.config.data.workers,
            replicas=self.replicas.count,
        )


def prepare(config: Any, assets: Path | None = None, *, devices: Sequence[jax.Device] | None = None) -> Experiment:
    """Builds and validates everything that a config names; compiles nothing. Raises UserError for invalid settings.

    With dtype float64, `prepare` and the steps must be called with `jax.enable_x64` (`research.devices.platform.x64`).

    `assets`: the folder of what the encoder learned, so that evaluation and prediction encode in the same way.
    `devices`: of the mesh, by default this machine's; others need not be here, so its memory is not checked.
    """
    check_compiler()
    checks.check_keys(config)
    mesh, module, replicas = make_mesh(config, devices), build_module(config), replicas_of(config)
    task = build(TASKS, config.task, "task")

    dataset = data.load(config.data, assets)
    streams = split_streams(config, dataset, training=True)
    checks.check_data(config, streams)
    labels = streams("train").labels
    checks.check_classes(config, labels)
    stream = taught(config, dataset, streams("train"))
    length = length_of(config.train, len(stream.rows))
    if assets is not None:
        data.keep_signature(dataset, config.data, assets)

    task = with_class_weights(task, labels, config.model.get("num_classes"))
    method = make_method(config, task, stream, batch_rows=length.batch_rows, total_steps=length.total_steps, mesh=mesh)
    batch = _example_batch(stream, mesh)
    if devices is None:
        _check_batches(config, batch, length.batch_rows, mesh)
    init, abstract = _initialization(config, module, method, batch)
    checks.check_lora(config, abstract.params)
    checks.check_exact(config, abstract.model_state, length.batch_rows, sharding.batch_parts(mesh))
    checks.check_metric(config, task, _scores(config, module, task, abstract, batch), streams)
    train_step, blocks = method.train_step(module, abstract.params, batch)
    shardings = sharding.state_shardings(abstract, config.mesh.rules, mesh, module)
    check_used(config.mesh.rules, shardings, mesh)
    program = make_program(init, train_step, config.seed, state=abstract, shardings=shardings, replicas=replicas)
    if devices is None:
        memory.check_state(program.placed_state(), replicas.count)
    options = compiler_options(config.compiler, exact=config.train.exact_shards is not None)
    first, compiled = program.compiled(mesh, options)
    return Experiment(
        config=config,
        dataset=dataset,
        streams=streams,
        training=stream,
        module=module,
        task=task,
        method=method,
        length=length,
        mesh=mesh,
        blocks=blocks,
        batch_axis=program.batch_axis,
        state=program.placed_state(),
        init=first,
        train_step=compiled,
        evaluation=_evaluation(config, module, task, mesh, program.shardings),
    )


def _example_batch(stream: pipeline.Stream, mesh: jax.sharding.Mesh) -> pipeline.Batch:
    """A batch of one row per device."""
    parts = sharding.batch_parts(mesh)
    return pipeline.make_batch(stream.examples, pipeline.padded(stream.rows[:parts], parts))


def _evaluation(config: Any, module: nn.Module, task: Task, mesh: jax.sharding.Mesh, shardings: Any) -> Evaluation:
    """The evaluation of states with these `shardings`."""
    program = eval_program(
        module,
        task,
        mesh,
        shardings=shardings,
        replicas=replicas_of(config),
        compiler=config.compiler,
        lora=lora_of(config),
    )
    return evaluation_of(config, task, mesh, program)


def _check_batches(config: Any, batch: pipeline.Batch, batch_rows: int, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError if batches as large as the config asks for, of rows like those of `batch`, do not fit here."""
    name = "batch_size" if config.train.batch_rows is None else "batch_rows"
    asked = {
        f"train.{name}": batch_rows * replicas_of(config).size,
        "train.accumulate": config.train.accumulate * sharding.batch_parts(mesh),
        f"eval.{name}": config.eval[name],
    }
    for key, rows in asked.items():
        memory.check_batch(batch, rows, sharding.process_share(mesh), key)


def _initialization(
    config: Any, module: nn.Module, method: Method, batch: pipeline.Batch
) -> tuple[Callable[[Any], TrainState], TrainState]:
    """The function seed -> initial state, and that state's shapes and types. Raises UserError for an invalid model."""
    shapes = jax.tree.map(lambda x: (x.shape, jax.dtypes.canonicalize_dtype(x.dtype)), batch)
    dtype, lora = jnp.float64 if config.dtype == "float64" else jnp.float32, lora_of(config)

    def init(seed: Any) -> TrainState:
        zeros = {name: jnp.zeros(shape, kind) for name, (shape, kind) in shapes.items()}
        average = config.train.ema_decay > 0
        return init_state(module, method.tx, zeros, seed, average=average, dtype=dtype, lora=lora)

    try:
        return init, jax.eval_shape(functools.partial(init, config.seed))
    except KeyError as error:
        raise UserError(
            f"model {config.model.name!r} needs {error}, but data.transform {config.data.transform.name!r} provides "
            f"{', '.join(batch)}"
        ) from error
    except UserError:  # from the optimizer, which inspects the parameters
        raise
    except (ValueError, TypeError, ArithmeticError) as error:  # invalid sizes of the model
        raise UserError(f"the model can't be built: {first_line(error)}") from error


def _scores(config: Any, module: nn.Module, task: Task, state: TrainState, batch: pipeline.Batch) -> dict[str, Any]:
    """The metrics of an evaluation, by name. Raises UserError if the task does not accept the model's outputs."""
    try:
        program = functools.partial(step.eval_step, module=module, task=task, lora=lora_of(config))
        scores, _ = jax.eval_shape(program, state, batch)
    except ValueError as error:
        raise UserError(f"task {config.task.name!r} does not fit the model: {first_line(error)}") from error
    known = {**scores, **task.split_metrics}
    if config.train.ema_decay > 0:
        known |= {f"{metrics.AVERAGE}{name}": score for name, score in known.items()}
    return known
