"""The model of a run directory: the network and its input encoder, without the data that it was trained on."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict, FrozenConfigDict

from research.base.errors import UserError
from research.base.registry import build
from research.core import metrics
from research.core.lora import Lora
from research.core.replicas import Replicas
from research.core.state import TrainState
from research.core.tasks import TASKS, Task
from research.data import load as data
from research.data import pipeline
from research.data.encoder import Encoder, Signature
from research.data.examples import Columns, Examples
from research.data.shards.rows import ShardRows, ShardStream
from research.devices import sharding
from research.inference.evaluation import Evaluation, eval_program
from research.models import MODELS
from research.runs import own_code
from research.runs.checkpoint import Checkpoints
from research.runs.rundir import RunDir

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float64": jnp.float64}


def build_module(config: Any) -> nn.Module:
    """Builds the config's model, computing in its dtype. Raises UserError for an unknown name, key or dtype."""
    if config.dtype not in DTYPES:
        raise UserError(f"dtype is {config.dtype!r}; known: {', '.join(DTYPES)}")
    module: nn.Module = build(MODELS, config.model, "model", dtype=DTYPES[config.dtype])
    return module


def replicas_of(config: Any) -> Replicas:
    """The models that a run of this config trains together."""
    # `jax.vmap` makes convolutions grouped ones, which are slow on CPUs.
    return Replicas(config.train.seeds, unrolled=config.compiler == "convolutions" and jax.default_backend() == "cpu")


def lora_of(config: Any) -> Lora:
    """The low-rank additions that a run of this config trains."""
    return Lora(**config.train.lora)


def with_one_seed(config: Any) -> ConfigDict:
    """A copy of the config that trains one model: for several seeds, that of the first."""
    config = ConfigDict(config)
    config.train.seeds = None
    return config


def arrange(config: Any, examples: Examples, members: Any = None) -> pipeline.Stream:
    """The examples (or their `members`) in rows: packed if the run packs, otherwise one per row."""
    pack = config.train.batch_rows is not None
    if isinstance(examples, ShardRows) and not pack:
        return ShardStream.of(examples, members)
    return (pipeline.Stream.packed if pack else pipeline.Stream.unpacked)(examples, members)


def evaluation_of(config: Any, task: Task, mesh: jax.sharding.Mesh, eval_step: Any) -> Evaluation:
    """The config's settings of evaluation."""
    packed = config.train.batch_rows is not None
    return Evaluation(
        step=eval_step,
        task=task,
        mesh=mesh,
        rows=process_rows(mesh),
        batch_rows=config.eval.batch_rows if packed else config.eval.batch_size,
        workers=config.data.workers,
        replicas=replicas_of(config),
        ema_decay=config.train.ema_decay,
        predicts_averaged=config.eval.metric.startswith(metrics.AVERAGE),
    )


def process_rows(mesh: jax.sharding.Mesh) -> pipeline.Rows:
    """The rows of a batch that this process makes."""
    return pipeline.Rows(lambda rows: sharding.process_rows(mesh, rows), sharding.batch_parts(mesh))


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A checkpoint of a run, ready to be evaluated.

    Attributes:
      signature: the inputs of the encoder, with the names of the labels if they are known.
      state: the train state without the optimizer's part.
    """

    config: Any
    module: nn.Module
    task: Task
    encoder: Encoder
    signature: Signature
    evaluation: Evaluation
    state: TrainState
    step: int

    @property
    def predicting_state(self) -> TrainState:
        """The state from which the run's predictions come: with averaged parameters if it ranks by them."""
        return self.evaluation.predicting_state(self.state)

    @property
    def variables(self) -> dict[str, Any]:
        """The module's variables from which the run's predictions come, with merged low-rank additions."""
        state = self.predicting_state
        return {"params": lora_of(self.config).merged(state.params), **state.model_state}

    @property
    def dtype(self) -> str:
        """The dtype that the model computes in."""
        name: str = self.config.dtype
        return name

    @property
    def label_dtype(self) -> str:
        """The dtype of the labels in the run's evaluation; for runs that did not save it, the usual one."""
        regresses = self.config.model.get("num_classes", 1) == 1
        return self.signature.label_dtype or ("float32" if regresses else "int32")

    def encode(self, columns: Columns, what: str) -> Examples:
        """Encodes raw inputs without labels. Raises UserError if a column is missing or a value invalid."""
        with data.fitting(self.config.data.transform.name, what):
            return self.encoder.encode(columns, labels=False)

    def arrange(self, examples: Examples) -> pipeline.Stream:
        """The examples in rows, as in the run's evaluation."""
        return arrange(self.config, examples)

    @property
    def single(self) -> "TrainedModel":
        """The model itself, or the first of its replicas."""
        replicas = self.evaluation.replicas
        if replicas.count is None:
            return self
        config = FrozenConfigDict(with_one_seed(self.config))
        return _assembled(config, replicas.first(self.state), self.step, self.encoder, self.signature)


def on_these_devices(config: Mapping[str, Any]) -> Any:
    """A saved config with its mesh adapted to the available devices: `data` takes what the other axes leave, or all."""
    mesh = config["mesh"]
    if jax.device_count() % (mesh["fsdp"] * mesh["tensor"]):  # other devices than the run had
        mesh = {**mesh, "fsdp": 1, "tensor": 1}
    return FrozenConfigDict({**config, "mesh": {**mesh, "data": -1}})


def open_checkpoints(run: RunDir, config: Any) -> Checkpoints:
    """Opens the run's checkpoints for reading."""
    return Checkpoints(run.checkpoints, metric=config.eval.metric, mode=config.eval.mode, writable=False)


def checkpoint_step(run: RunDir, which: str) -> int:
    """The step of the `last` or the `best` checkpoint of a run. Raises UserError if there is none."""
    with open_checkpoints(run, FrozenConfigDict(run.config())) as checkpoints:
        return checkpoints.step(which)


def open_model(run: RunDir, which: str = "last", *, dtype: str | None = None) -> TrainedModel:
    """Loads the `last` or `best` checkpoint of a run, to compute in `dtype`; None for that of its config.

    Call this, and the step of the result, under `research.devices.platform.x64` of the dtype.

    Raises UserError if there is no such checkpoint, or a file of the run is missing.
    """
    config = run.config()
    config = on_these_devices({**config, "dtype": dtype or config["dtype"]})
    own_code.register(run, config)
    encoder, signature = data.open_encoder(config.data, run.assets)
    mesh = make_mesh(config)
    with open_checkpoints(run, config) as checkpoints:
        step = checkpoints.step(which)
        abstract = checkpoints.inference_state(step, average=config.train.ema_decay > 0)
        shardings = _shardings(config, mesh, abstract)
        placed = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), abstract, shardings)
        state = checkpoints.restore_inference(placed, step)
    return _assembled(config, state, step, encoder, signature)


def make_mesh(config: Any, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """The config's mesh over `devices`; by default all of this machine."""
    return sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices)


def _shardings(config: Any, mesh: jax.sharding.Mesh, state: Any) -> Any:
    replicas = replicas_of(config)
    first = jax.eval_shape(replicas.first, state)
    one = sharding.state_shardings(first, config.mesh.rules, mesh, build_module(config))
    return sharding.with_leading_axes(one, replicas.axes)


def _assembled(config: Any, state: TrainState, step: int, encoder: Encoder, signature: Signature) -> TrainedModel:
    module, mesh = build_module(config), make_mesh(config)
    section = dict(config.task)
    if isinstance(section.get("class_weight"), str):
        section["class_weight"] = None  # "balanced" needs the training split, and only the training loss uses it
    task: Task = build(TASKS, section, "task")
    eval_step = eval_program(
        module,
        task,
        mesh,
        shardings=_shardings(config, mesh, state),
        replicas=replicas_of(config),
        compiler=config.compiler,
        lora=lora_of(config),
    )
    evaluation = evaluation_of(config, task, mesh, eval_step)
    return TrainedModel(config, module, task, encoder, signature, evaluation, state, step)
