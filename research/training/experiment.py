"""From a config to the things a run is made of: data, model, task, optimizer, mesh, and the two compiled steps."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from research import solvers
from research.base.errors import UserError
from research.base.ranges import LARGEST
from research.base.registry import build, lookup
from research.core import metrics, optim, step
from research.core.state import TrainState, init_state, param_count
from research.core.tasks import TASKS, Task, training_weight, with_class_weights
from research.data import load as data
from research.data import pipeline, splits
from research.data.examples import Examples
from research.devices import memory, sharding
from research.devices.compiled import Compiled
from research.devices.platform import check_compiler, compiler_options
from research.models import MODELS
from research.training import checks


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything but the state. `state` is abstract: shapes, types and shardings."""

    config: Any
    dataset: data.Dataset
    # The name of a split, or of a part such as "test[:5%]" -> its rows, with several texts in each if `packed`.
    streams: Callable[[str], pipeline.Stream]
    packed: bool
    module: nn.Module
    task: Task
    tx: optax.GradientTransformation
    learning_rate: optax.Schedule | None  # None of a solver
    batch_rows: int  # of one step: its examples, or its rows of packed texts
    total_steps: int
    total_rows: int | None  # where the run is given in epochs
    mesh: jax.sharding.Mesh
    rows: pipeline.Rows
    blocks: int  # of the rows of a training batch that each device has: parts of an update, or of a solver's pass
    weight_decay: float  # as optimizer.weight_decay, C or alpha has it
    state: TrainState
    init: Callable[[], TrainState]
    train_step: Any  # jitted (state, batch) -> (state, scores); the state passed in is given up
    eval_step: Any  # jitted (state, batch) -> (scores, predictions)
    # With train.seeds all of the state, the scores, the predictions and the training batches have a leading axis, one
    # entry for each seed; a batch to evaluate has none, all seeds get the same.

    @property
    def batch_axis(self) -> int:
        """The axis of a training batch that its rows are counted on."""
        return 0 if self.config.train.seeds is None else 1

    def on(self, name: str, assets: Path) -> "Experiment":
        """The same model on another dataset, to be evaluated there. `assets`: as in `prepare`, of the trained run.

        Raises UserError if the dataset is unavailable; its `streams` do if a split does not fit the model.
        """
        dataset = data.load(self.config.data, assets, other=name)
        return dataclasses.replace(self, dataset=dataset, streams=_streams(self.config, dataset, training=False))

    def training_batches(self, start_step: int) -> Iterator[pipeline.Batch]:
        """This process's rows of the batches from `start_step` to the end of the run."""
        return pipeline.training_batches(
            self.streams("train"),
            batch_rows=self.batch_rows,
            start_step=start_step,
            steps=self.total_steps,
            total_rows=self.total_rows,
            seed=self.config.seed,
            rows=dataclasses.replace(self.rows, multiple=self.rows.multiple * self.blocks),
            workers=self.config.data.workers,
            seeds=self.config.train.seeds,
        )


def prepare(config: Any, assets: Path | None = None) -> Experiment:
    """Builds and checks everything a config names; compiles nothing. Raises UserError for what does not fit.

    With dtype float64 it and the steps must be called where `jax.enable_x64` is on (`research.devices.platform.x64`).

    `assets`: the folder that keeps what the data transform learnt, so that evaluation reads the same.
    """
    check_compiler()
    checks.check_keys(config)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    dtype = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}.get(config.dtype)
    if dtype is None:
        raise UserError(f"dtype is {config.dtype!r}; known: float32, bfloat16, float64")
    module = build(MODELS, config.model, "model", dtype=dtype)
    task = build(TASKS, config.task, "task")

    dataset = data.load(config.data, assets)
    packed = config.train.batch_rows is not None
    streams = _streams(config, dataset, training=True)
    checks.check_data(config, streams)
    stream = streams("train")
    batch_rows, total_steps, total_rows = _length(config.train, len(stream.rows))
    labels = stream.labels
    checks.check_classes(config, labels)
    task = with_class_weights(task, labels, config.model.get("num_classes"))
    decay = optim.weight_decay(config.optimizer, config.task.name, training_weight(task, labels))
    name = config.optimizer.name
    solving = name in solvers.SOLVERS
    if solving:
        full = batch_rows == len(stream.rows)
        checks.check_solver(config, task=task, examples=stream.examples, full_batch=full, total_steps=total_steps)
        tx, learning_rate = optax.identity(), None
    else:
        lookup({**optim.OPTIMIZERS, **solvers.SOLVERS}, name, "optimizer.name")
        tx, learning_rate = optim.optimizer(config.optimizer, weight_decay=decay, total_steps=total_steps)

    # Only shapes matter here: one row a device is enough to see every parameter's.
    parts = sharding.batch_parts(mesh)
    shapes = pipeline.make_batch(stream.examples, pipeline.padded(stream.rows[:parts], parts))
    for key, asked in _rows_asked(config, batch_rows, parts).items():
        memory.check_batch(shapes, asked, key)
    abstract_batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype)), shapes
    )

    def init(seed: Any = config.seed) -> TrainState:
        batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), abstract_batch)
        wide = dtype if config.dtype == "float64" else jnp.float32
        return init_state(module, tx, batch, seed, average=config.train.ema_decay > 0, dtype=wide)

    try:
        abstract = jax.eval_shape(init)
    except KeyError as error:
        raise UserError(
            f"model {config.model.name!r} needs {error}, but data.transform {config.data.transform.name!r} makes "
            f"{', '.join(abstract_batch)}"
        ) from error
    except UserError:  # of the optimizer, which looks at the parameters
        raise
    except (ValueError, TypeError, ArithmeticError) as error:  # a model that its sizes don't allow
        raise UserError(f"the model can't be built: {str(error).splitlines()[0]}") from error
    options = compiler_options(config.compiler)
    eval_step: Any = functools.partial(step.eval_step, module=module, task=task)
    try:
        scores, _ = jax.eval_shape(eval_step, abstract, abstract_batch)
    except ValueError as error:
        raise UserError(f"task {config.task.name!r} does not fit the model: {str(error).splitlines()[0]}") from error
    known = {**scores, **task.split_metrics}
    if config.train.ema_decay > 0:
        known |= {f"{metrics.AVERAGE}{name}": score for name, score in known.items()}
    lookup(known, config.eval.metric, "eval.metric")
    checks.check_metric(config, task, streams(config.eval.splits[0]).labels)
    blocks = config.train.accumulate
    if solving:
        checks.check_solved(name, module, shapes)
        table = solvers.Table.of(module, lambda: pipeline.make_batch(stream.examples, stream.rows))
        parameters = table.count(abstract.params) if table else param_count(abstract.params)
        blocks = max(blocks, solvers.blocks(shapes, rows=batch_rows, devices=parts, parameters=parameters))
        train_step = functools.partial(
            solvers.solve_step,
            module=module,
            task=task,
            solver=functools.partial(solvers.SOLVERS[name], **{key: config.optimizer[key] for key in solvers.KEYS}),
            weight_decay=decay,
            decay_exclude=config.optimizer.decay_exclude,
            devices=parts,
            blocks=blocks,
            table=table,
        )
    else:
        train_step = functools.partial(
            step.train_step,
            module=module,
            task=task,
            tx=tx,
            seed=config.seed,
            accumulate=config.train.accumulate,
            ema_decay=config.train.ema_decay,
        )
    shardings = sharding.state_shardings(abstract, config.mesh.rules, mesh)
    batch_sharding, replicated = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    first, training_sharding = init, batch_sharding
    if config.train.seeds is not None:
        numbers = config.seed + np.arange(config.train.seeds, dtype=np.uint32)
        unrolled = config.compiler == "convolutions" and jax.default_backend() == "cpu"
        each = functools.partial(step.of_each, count=config.train.seeds, unrolled=unrolled)
        first = functools.partial(jax.vmap(init), numbers)
        abstract = jax.eval_shape(first)
        shardings = sharding.for_seeds(shardings)
        training_sharding = sharding.batch_sharding(mesh, axis=1)
        of_one = functools.partial(_seeded, train_step)
        train_step = functools.partial(each(of_one, in_axes=(0, 0, 0)), numbers)
        eval_step = each(eval_step, in_axes=(0, None))
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
    eval_step = jax.jit(
        eval_step,
        in_shardings=(shardings, batch_sharding),
        out_shardings=replicated,
        compiler_options=options,
    )
    memory.check_state(state, config.train.seeds)
    if config.train.seeds is not None:
        eval_step = Compiled(eval_step, seeds=config.train.seeds)
    return Experiment(
        config=config,
        dataset=dataset,
        streams=streams,
        packed=packed,
        module=module,
        task=task,
        tx=tx,
        learning_rate=learning_rate,
        batch_rows=batch_rows,
        total_steps=total_steps,
        total_rows=total_rows,
        mesh=mesh,
        rows=pipeline.Rows(of=functools.partial(sharding.process_rows, mesh), multiple=parts),
        blocks=blocks,
        weight_decay=decay,
        state=state,
        init=jax.jit(first, out_shardings=shardings),
        train_step=jax.jit(
            train_step,
            in_shardings=(shardings, training_sharding),
            out_shardings=(shardings, replicated),
            donate_argnums=0,
            compiler_options=options,
        ),
        eval_step=eval_step,
    )


def _seeded(train_step: Any, seed: Any, state: TrainState, batch: Any) -> Any:
    return train_step(state, batch, seed=seed)


def _streams(config: Any, dataset: data.Dataset, *, training: bool) -> Callable[[str], pipeline.Stream]:
    """From the name of a split, or of a part such as "test[:5%]", to its rows; checked when it is first asked for.

    With `training` its split `train` is trained on, and is the `train_fraction` of it; a part is always of the whole.
    """
    arrange = pipeline.Stream.unpacked if config.train.batch_rows is None else pipeline.Stream.packed
    fraction = config.data.train_fraction if training else 1.0

    @functools.cache
    def checked(split: str) -> Examples:
        examples = dataset.split(split)
        checks.check_split(config, split, examples, training=training and split == "train")
        return examples

    @functools.cache
    def stream(split: str) -> pipeline.Stream:
        examples = checked(splits.whole(split))
        members = splits.members(split, len(examples))
        if split == "train" and fraction < 1:
            members = pipeline.chosen(len(examples), fraction, config.seed)
        return arrange(examples, members)

    return stream


def _rows_asked(config: Any, batch_rows: int, parts: int) -> dict[str, int]:
    """The rows that are made together, by the key that asks for them, where that may be anything."""
    name = "batch_size" if config.train.batch_rows is None else "batch_rows"
    return {
        f"train.{name}": batch_rows * (config.train.seeds or 1),
        "train.accumulate": config.train.accumulate * parts,
        f"eval.{name}": config.eval[name],
    }


def _length(train: Any, rows: int) -> tuple[int, int, int | None]:
    """(rows a step, steps, rows in all if given in epochs), where an epoch has `rows` rows."""
    for one, other in (("epochs", "steps"), ("batch_size", "batch_rows")):
        if (train[one] is None) == (train[other] is None):
            raise UserError(f"train.{one} is {train[one]} and train.{other} is {train[other]}; give one of the two")
    batch_rows = train.batch_size if train.batch_rows is None else train.batch_rows
    if batch_rows == -1:
        batch_rows = rows
    if train.steps is not None:
        steps, total = train.steps, None
    else:
        total = round(train.epochs * rows)
        steps = math.ceil(total / batch_rows)
    if not 1 <= steps <= LARGEST:
        raise UserError(
            f"train.steps={train.steps}, train.epochs={train.epochs} make {steps} steps; it must be 1 to {LARGEST}"
        )
    return batch_rows, steps, total
