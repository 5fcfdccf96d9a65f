"""A trained network that can be changed, and written as a run that predicts, evaluates, serves and exports like any."""

import copy
import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from research.base.errors import UserError
from research.core.metrics import AVERAGE
from research.core.quantization import applied, is_quantized
from research.core.state import TrainState, param_count, params_sha256
from research.data.splits import whole
from research.inference.model import build_module, open_model
from research.inference.samples import write_samples
from research.runs.checkpoint import Checkpoints, Progress
from research.runs.rundir import RunDir
from research.training.summary import environment
from research.training.trained_run import TrainedRun

Variables = Mapping[str, Any]
Batch = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Network:
    """The model of a run: one seed, merged low-rank additions, averaged parameters if the run ranks by them.

    Attributes:
      config: that of the run, as far as the network still is as it says.
      variables: on the host.
      assets: texts by name of files of the run's encoder that changed.
      new_ids: int [V], what the tokens of the run's tokenizer are now called; None: as before.
    """

    config: ConfigDict
    variables: Variables
    assets: Mapping[str, str] = dataclasses.field(default_factory=dict)
    new_ids: np.ndarray | None = None

    @classmethod
    def open(cls, run: RunDir, which: str) -> "Network":
        """The `last` or `best` checkpoint of a run. Raises UserError for one in float64 or with weights in int8."""
        config = ConfigDict(run.config())
        if config.dtype == "float64":
            raise UserError(f"{run.path} computes in float64; only runs in float32 and bfloat16 can be compressed")
        variables = jax.device_get(open_model(run, which).single.variables)
        if is_quantized(variables):
            raise UserError(f"the weights of {run.path} are in int8 already; compress the run that it was made of")
        config.train.seeds = None
        config.train.ema_decay = 0.0
        config.train.lora.rank = None
        for key in {"remat", "scan"} & set(config.model):
            config.model[key] = False  # they change only how it is compiled, and methods treat each layer by its own
        config.eval.metric = config.eval.metric.removeprefix(AVERAGE)
        return cls(config, variables)

    @property
    def model(self) -> str:
        """The name of the model in MODELS."""
        name: str = self.config.model.name
        return name

    @property
    def parameters(self) -> int:
        """The number of parameters."""
        return param_count(self.variables["params"])

    @property
    def bytes(self) -> int:
        """The bytes of all variables in memory."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self.variables))

    def but(self, *, variables: Variables | None = None, assets: Mapping[str, str] | None = None, **model: Any) -> Any:
        """The network with other variables, or other keys of the config's `model`."""
        config = copy.deepcopy(self.config)
        for key, value in model.items():
            config.model[key] = value
        return dataclasses.replace(
            self, config=config, variables=variables or self.variables, assets={**self.assets, **(assets or {})}
        )

    def computing_in(self, dtype: str) -> "Network":
        """The network that computes in float32 or bfloat16."""
        config = copy.deepcopy(self.config)
        config.dtype = dtype
        return dataclasses.replace(self, config=config)

    def program(self) -> Callable[[Variables, Batch], Any]:
        """The compiled function (variables, batch) -> outputs."""
        module = build_module(self.config)

        @jax.jit
        def run(variables: Variables, batch: Batch) -> Any:
            with applied(variables):
                return module.apply(variables, batch, train=False)

        return run

    def renamed(self, batch: Batch) -> dict[str, Any]:
        """A batch that was made by the run's tokenizer, for this network."""
        if self.new_ids is None or "tokens" not in batch:
            return dict(batch)
        return {**batch, "tokens": self.new_ids[batch["tokens"]]}


def check_new(folder: Path) -> None:
    """Raises UserError if the folder exists and has something in it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--to={folder} exists already; nothing was changed, choose another")


def write_run(network: Network, source: TrainedRun, folder: Path, methods: Sequence[str]) -> TrainedRun:
    """Writes a network that was made of `source` as a run, evaluates it on the run's main split, and samples it.

    Raises UserError if the folder is not empty or can't be written.
    """
    check_new(folder)
    run = RunDir(folder)
    config = network.config.to_dict()
    run.start(config)
    try:
        _write_assets(network, source.run, run)
        split, metric, step = network.config.eval.splits[0], network.config.eval.metric, source.step
        state = {name: value for name, value in network.variables.items() if name != "params"}
        arrays = TrainState(jnp.int32(step), network.variables["params"], state, {}, {})
        with Checkpoints(run.checkpoints, metric=metric, mode=network.config.eval.mode) as checkpoints:
            checkpoints.save(jax.tree.map(jnp.asarray, arrays), Progress(step))
        run.keep()
        trained = TrainedRun(run, "last")
        evaluation = trained.evaluate(split, show=True)
        value = evaluation["metrics"].get(metric)
        if value is not None:
            with Checkpoints(run.checkpoints, metric=metric, mode=network.config.eval.mode) as checkpoints:
                checkpoints.rank(Progress(step, history=((step, value),)))
        dataset = trained.dataset()
        write_samples(run, dataset.columns[whole(split)], dataset.encoder.signature, run.predictions(split), step)
        run.write_summary(_summary(network, source, methods, {split: evaluation["metrics"]}))
    finally:
        run.close()
    return trained


def _write_assets(network: Network, source: RunDir, run: RunDir) -> None:
    """Copies the encoder of the source, with the files that changed; not its samples, which have other predictions."""
    for path in source.assets.iterdir():
        if path.name != "samples.json":
            (shutil.copytree if path.is_dir() else shutil.copy)(path, run.assets / path.name)
    for name, text in network.assets.items():
        (run.assets / name).write_text(text, encoding="utf-8")


def _summary(
    network: Network, source: TrainedRun, methods: Sequence[str], metrics: Mapping[str, Any]
) -> dict[str, Any]:
    before = source.run.summary() or {}
    kept = ("examples_seen", "preset", "training", "data", "throughput", "seed")
    return {
        **{key: before[key] for key in kept if key in before},
        "status": "completed",
        "reason_code": None,
        "reason": None,
        "step": source.step,
        "metrics": metrics,
        "warnings": [],
        "best": None,
        "param_count": network.parameters,
        "params_sha256": params_sha256(network.variables["params"]),
        "compressed": {
            "methods": list(methods),
            "run": str(source.run.path),
            "step": source.step,
            "params_sha256": before.get("params_sha256"),
        },
        "environment": environment(),
    }
