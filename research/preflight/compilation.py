"""Compiles the train step of a config for devices, and measures the program."""

import dataclasses
import math
import re
import time
from typing import Any

import jax

from research.data import pipeline
from research.devices import sharding
from research.preflight import flops, hlo
from research.preflight.collectives import Traffic, traffic
from research.preflight.flops import Flops
from research.preflight.topology import Topology
from research.preflight.traffic import moved_bytes
from research.training.experiment import Experiment, prepare


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes per device while a step runs. `layout`: what devices add to the arguments, such as padding of tiles."""

    parameters: float
    optimizer: float
    other_state: float
    batch: float
    next_batch: float  # copied to the device while the step runs
    layout: float
    temporaries: float
    code: float

    @property
    def state(self) -> float:
        return self.parameters + self.optimizer + self.other_state

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in dataclasses.fields(self))


@dataclasses.dataclass(frozen=True)
class Program:
    """What is known of a compiled step.

    Attributes:
      memory: its temporaries are unknown, 0, if the compiler refused the program.
      refused: (bytes needed, bytes available) where the compiler refused the program for lack of memory.
      state_bytes: of the whole state, on however many devices.
      rows, row_tokens: rows of a batch, and places for tokens in each; 0 if they are not texts.
      traffic, moved: None if the compiler refused the program.
    """

    memory: Memory
    refused: tuple[float, float] | None
    state_bytes: float
    flops: Flops
    rows: int
    row_tokens: int
    blocks: int
    steps: int
    parameter_count: int
    has_rules: bool
    traffic: Traffic | None
    moved: float | None
    seconds: float


def compile_step(config: Any, topology: Topology) -> Program:
    """Compiles the train step. Raises UserError for an invalid config."""
    # A program from the cache of an earlier process does not know its memory.
    jax.config.update("jax_enable_compilation_cache", False)
    experiment = prepare(config, devices=topology.devices)
    batch = _abstract_batch(experiment)
    start = time.perf_counter()
    traced = experiment.train_step.trace(experiment.state, batch)
    lowered = traced.lower()
    refused, compiled = None, None
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        refused = exhausted(str(error))
        if refused is None:
            raise
    seconds = time.perf_counter() - start
    module = hlo.parse(compiled.as_text()) if compiled else None
    tokens = batch.get("tokens")
    return Program(
        memory=_memory(experiment, batch, compiled, refused),
        refused=refused,
        state_bytes=sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(experiment.state)),
        flops=flops.count(traced.jaxpr),
        rows=experiment.length.batch_rows * experiment.replicas.size,
        row_tokens=0 if tokens is None else tokens.shape[-1],
        blocks=experiment.blocks,
        steps=experiment.length.total_steps,
        parameter_count=sum(x.size for x in jax.tree.leaves(experiment.state.params)),
        has_rules=hasattr(experiment.module, "MESH_RULES"),
        traffic=traffic(module, len(topology.devices)) if module else None,
        moved=moved_bytes(module) if module else None,
        seconds=seconds,
    )


def _abstract_batch(experiment: Experiment) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a training batch, from one of a row per device."""
    parts, axis = sharding.batch_parts(experiment.mesh), experiment.batch_axis
    (example,) = pipeline.training_batches(
        experiment.streams("train"),
        batch_rows=parts,
        start_step=0,
        steps=1,
        total_rows=None,
        seed=experiment.config.seed,
        rows=pipeline.Rows(),
        replicas=experiment.replicas.count,
    )
    multiple = parts * experiment.blocks
    rows = -(-experiment.length.batch_rows // multiple) * multiple
    placed = sharding.batch_sharding(experiment.mesh, axis)

    def abstract(x: Any) -> jax.ShapeDtypeStruct:
        shape = (*x.shape[:axis], rows, *x.shape[axis + 1 :])
        return jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(x.dtype), sharding=placed)

    return {name: abstract(x) for name, x in example.items()}


def _device_bytes(tree: Any) -> float:
    """The bytes that each device holds of a tree of shapes with shardings."""
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def _memory(experiment: Experiment, batch: Any, compiled: Any, refused: tuple[float, float] | None) -> Memory:
    state = experiment.state
    parameters, optimizer = _device_bytes(state.params), _device_bytes(state.opt_state)
    rest = _device_bytes(state) - parameters - optimizer
    rows = _device_bytes(batch)
    layout, temporaries, code = 0.0, 0.0, 0.0
    if compiled is not None:
        sizes = compiled.memory_analysis()
        layout = max(0.0, sizes.argument_size_in_bytes - parameters - optimizer - rest - rows)
        temporaries = sizes.temp_size_in_bytes + max(0, sizes.output_size_in_bytes - sizes.alias_size_in_bytes)
        code = sizes.generated_code_size_in_bytes
    elif refused is not None:
        temporaries = max(0.0, refused[0] - parameters - optimizer - rest - rows)
    return Memory(parameters, optimizer, rest, rows, rows, layout, temporaries, code)


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def exhausted(message: str) -> tuple[float, float] | None:
    """The bytes needed and available, from a compiler's error; None if that is about something else."""
    if "RESOURCE_EXHAUSTED" not in message and "Ran out of memory" not in message:
        return None
    used = re.search(r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", message)
    if used:
        return float(used[1]) * _UNITS[used[2]], float(used[3]) * _UNITS[used[4]]
    allocation = re.search(r"\(size=(\d+)\) would exceed memory \(size=(\d+)\)", message)
    return (float(allocation[1]), float(allocation[2])) if allocation else None
