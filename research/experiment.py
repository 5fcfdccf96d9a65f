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

from research import memory, optim, sharding, solvers, step
from research.build import build, lookup
from research.data import load as data
from research.data import pipeline
from research.data.checks import check_inputs, check_labels
from research.data.examples import MixedExamples
from research.errors import UserError
from research.models import MODELS
from research.platform import compiler_options
from research.rundir import flatten
from research.state import TrainState, init_state, param_count
from research.tasks import TASKS, Task, training_weight, with_class_weights
from research.throughput import Compiled

# What the metrics of the averaged parameters begin with.
AVERAGE = "ema_"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything but the state. `state` is abstract: shapes, types and shardings."""

    config: Any
    dataset: data.Dataset
    streams: Callable[[str], pipeline.Stream]  # a split's name -> its rows, with several texts in each if `packed`
    packed: bool
    module: nn.Module
    task: Task
    tx: optax.GradientTransformation
    learning_rate: optax.Schedule
    batch_rows: int  # of one step: its examples, or its rows of packed texts
    total_steps: int
    total_rows: int | None  # where the run is given in epochs
    mesh: jax.sharding.Mesh
    rows: pipeline.Rows
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

        Raises UserError if the dataset can't be had or does not fit the model.
        """
        dataset = data.load(self.config.data, assets, other=name)
        _check_splits(self.config, dataset, training=False)
        return dataclasses.replace(self, dataset=dataset, streams=_streams(self.config, dataset))

    def training_batches(self, start_step: int) -> Iterator[pipeline.Batch]:
        """This process's rows of the batches from `start_step` to the end of the run."""
        return pipeline.training_batches(
            self.streams("train"),
            batch_rows=self.batch_rows,
            start_step=start_step,
            steps=self.total_steps,
            total_rows=self.total_rows,
            seed=self.config.seed,
            rows=self.rows,
            workers=self.config.data.workers,
            seeds=self.config.train.seeds,
        )


def prepare(config: Any, assets: Path | None = None) -> Experiment:
    """Builds and checks everything a config names; compiles nothing. Raises UserError for what does not fit.

    With dtype float64 it has to be called, and the steps too, where `jax.enable_x64` is on (`research.platform.x64`).

    `assets`: the folder that keeps what the data transform learnt, so that evaluation reads the same.
    """
    _check_keys(config)
    mesh = sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    dtype = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}.get(config.dtype)
    if dtype is None:
        raise UserError(f"dtype is {config.dtype!r}; known: float32, bfloat16, float64")
    module = build(MODELS, config.model, "model", dtype=dtype)
    task = build(TASKS, config.task, "task")

    dataset = data.load(config.data, assets)
    _check_data(config, dataset)
    packed = config.train.batch_rows is not None
    streams = _streams(config, dataset)
    stream = streams("train")
    batch_rows, total_steps, total_rows = _length(config.train, len(stream.rows))
    labels = stream.labels
    task = with_class_weights(task, labels, config.model.get("num_classes"))
    decay = optim.weight_decay(config.optimizer, config.task.name, training_weight(task, labels))
    name = config.optimizer.name
    solving = name in solvers.SOLVERS
    if solving:
        solvers.check(config, task=task, full_batch=batch_rows == len(stream.rows), total_steps=total_steps)
        tx, learning_rate = optax.identity(), optax.constant_schedule(1.0)
    else:
        lookup({**optim.OPTIMIZERS, **solvers.SOLVERS}, name, "optimizer.name")
        tx, learning_rate = build(
            {name: functools.partial(optim.optimizer, name)},
            {**config.optimizer, "weight_decay": decay},
            "optimizer",
            total_steps=total_steps,
        )

    # Only shapes matter here: one row a device is enough to see every parameter's.
    parts = sharding.batch_parts(mesh)
    shapes = pipeline.make_batch(stream.examples, pipeline.padded(stream.rows[:parts], parts))
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
    except (ValueError, TypeError, ZeroDivisionError) as error:  # a model that its sizes don't allow
        raise UserError(f"the model can't be built: {str(error).splitlines()[0]}") from error
    options = compiler_options(config.compiler)
    eval_step: Any = functools.partial(step.eval_step, module=module, task=task)
    try:
        scores, _ = jax.eval_shape(eval_step, abstract, abstract_batch)
    except ValueError as error:
        raise UserError(f"task {config.task.name!r} does not fit the model: {str(error).splitlines()[0]}") from error
    known = {**scores, **task.split_metrics}
    if config.train.ema_decay > 0:
        known |= {f"{AVERAGE}{name}": score for name, score in known.items()}
    lookup(known, config.eval.metric, "eval.metric")
    blocks = config.train.accumulate
    if solving:
        solvers.check_model(name, module, task, shapes)
        blocks = max(
            blocks, solvers.blocks(shapes, rows=batch_rows, devices=parts, parameters=param_count(abstract.params))
        )
        train_step = functools.partial(
            solvers.solve_step,
            module=module,
            task=task,
            solver=functools.partial(solvers.SOLVERS[name], **{key: config.optimizer[key] for key in solvers.KEYS}),
            weight_decay=decay,
            decay_exclude=config.optimizer.decay_exclude,
            devices=parts,
            blocks=blocks,
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
        first = functools.partial(jax.vmap(init), numbers)
        abstract = jax.eval_shape(first)
        shardings = sharding.for_seeds(shardings)
        training_sharding = sharding.batch_sharding(mesh, axis=1)
        train_step = functools.partial(_of_each_seed, train_step, numbers)
        eval_step = jax.vmap(eval_step, in_axes=(0, None))
    state = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
    eval_step = jax.jit(
        eval_step,
        in_shardings=(shardings, batch_sharding),
        out_shardings=replicated,
        compiler_options=options,
    )
    if config.train.seeds is not None:
        memory.check_state(state, config.train.seeds)
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
        rows=pipeline.Rows(of=functools.partial(sharding.process_rows, mesh), multiple=parts * blocks),
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


def _of_each_seed(train_step: Any, numbers: np.ndarray, state: TrainState, batch: Any) -> Any:
    """`train_step` of each seed of `numbers` [K], on its own part of the state and of the batch."""
    return jax.vmap(lambda state, batch, seed: train_step(state, batch, seed=seed))(state, batch, numbers)


def _streams(config: Any, dataset: data.Dataset) -> Callable[[str], pipeline.Stream]:
    """Of `train`, what is trained on: `data.train_fraction` of it."""
    arrange = pipeline.Stream.unpacked if config.train.batch_rows is None else pipeline.Stream.packed
    fraction = config.data.train_fraction

    def stream(split: str) -> pipeline.Stream:
        examples = dataset.split(split)
        if split == "train" and fraction < 1:
            return arrange(examples, pipeline.chosen(len(examples), fraction, config.seed))
        return arrange(examples)

    return functools.cache(stream)


# What a value must lie between, ends included.
_LIMITS: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "train.batch_size": (1, math.inf),
    "train.batch_rows": (1, math.inf),
    "train.accumulate": (1, math.inf),
    "train.seeds": (1, math.inf),
    "train.ema_decay": (0, 0.999999),  # beyond, a step changes less than float32 can tell
    "train.log_every": (1, math.inf),
    "train.epochs": (0, 10**9),
    "train.max_minutes": (0, math.inf),
    "train.max_data_wait_fraction": (0, 1),
    "data.workers": (0, 1024),
    "data.train_fraction": (0, 1),
    "eval.batch_size": (1, math.inf),
    "eval.batch_rows": (1, math.inf),
    "eval.every_steps": (0, math.inf),
    "eval.patience": (0, math.inf),
    "checkpoint.every_steps": (0, math.inf),
    "optimizer.learning_rate": (0, math.inf),
    "optimizer.warmup_fraction": (0, 1),
    "optimizer.weight_decay": (0, math.inf),
    "optimizer.tolerance": (0, math.inf),
    "optimizer.max_iterations": (1, math.inf),
    "mesh.fsdp": (1, math.inf),
    "mesh.tensor": (1, math.inf),
    "model.dropout": (0, 1),
    "model.attention_dropout": (0, 1),
    "model.pooler_dropout": (0, 1),
    "model.classifier_dropout": (0, 1),
    "model.position_offset": (0, math.inf),
    "model.type_vocab_size": (0, math.inf),
    "model.hidden_size": (1, math.inf),
    "model.num_layers": (1, math.inf),
    "model.num_heads": (1, math.inf),
    "model.width": (1, math.inf),
    "model.stochastic_depth": (0, 1),
    "task.label_smoothing": (0, 1),
}


def _check_keys(config: Any) -> None:
    flat = flatten(config.to_dict())
    for key, (low, high) in _LIMITS.items():
        value = flat.get(key)
        if key in ("train.batch_size", "train.batch_rows") and value == -1:  # all
            continue
        if value is not None and not low <= value <= high:
            raise UserError(
                f"{key} is {value}; it must be " + (f"at least {low}" if high == math.inf else f"{low} to {high}")
            )
    if config["eval"]["metric"].startswith(AVERAGE) and config["train"]["ema_decay"] == 0:
        raise UserError(
            f"eval.metric is {config['eval']['metric']!r}, of the average of the parameters, and train.ema_decay is 0, "
            "which keeps none; it must be above 0"
        )
    if config["train"]["seeds"] is not None and config["data"]["train_fraction"] != 1:
        raise UserError(
            f"train.seeds is {config['train']['seeds']} and data.train_fraction {config['data']['train_fraction']}; "
            "each seed draws another part of the data, so train them one after another"
        )
    last = config["seed"] + (config["train"]["seeds"] or 1) - 1
    if last > _LIMITS["seed"][1]:
        raise UserError(
            f"seed={config['seed']} with train.seeds={config['train']['seeds']} goes up to {last}; the largest seed is "
            f"{_LIMITS['seed'][1]}"
        )
    if config["eval"]["mode"] not in ("max", "min"):
        raise UserError(f"eval.mode is {config['eval']['mode']!r}; known: max, min")
    if not config["eval"]["splits"]:
        raise UserError("eval.splits is empty; name at least one split")


def _check_splits(config: Any, dataset: data.Dataset, *, training: bool) -> None:
    """Raises UserError where a split does not fit the model. With `training` its split `train` is trained on."""
    # A model with one output regresses.
    num_classes = config.model.get("num_classes")
    for split, examples in dataset.splits.items():
        if len(examples):
            check_labels(
                split,
                examples.labels,
                None if num_classes == 1 else num_classes,
                training=training and split == "train",
                hidden=config.task.get("hidden_label"),
            )
            check_inputs(
                split,
                examples,
                vocab_size=config.model.get("vocab_size"),
                max_positions=config.model.get("max_positions"),
                num_features=config.model.get("num_features"),
            )


def _check_data(config: Any, dataset: data.Dataset) -> None:
    _check_splits(config, dataset, training=True)
    labels = dataset.split("train").labels
    if config.task.name in ("classification", "squared_hinge") and (labels == labels[0]).all():
        raise UserError(f"all training examples of {dataset.name} have the label {labels[0]}; a classifier needs two")
    if isinstance(dataset.split("train"), MixedExamples) and config.task.name != "classification":
        raise UserError(
            f"data.transform mixes the labels of two examples, which task {config.task.name!r} does not take"
        )
    for split in config.eval.splits:
        dataset.split(split)
    main = dataset.split(config.eval.splits[0])
    hidden = config.task.get("hidden_label", -1)
    if "num_classes" in config.model and (main.labels == hidden).all():
        raise UserError(
            f"the labels of split {config.eval.splits[0]!r} are hidden; name another one first in eval.splits"
        )


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
    if steps < 1:
        raise UserError(f"train.steps={train.steps}, train.epochs={train.epochs} make no step; give more")
    return batch_rows, steps, total
