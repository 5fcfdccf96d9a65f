"""Examples of the training split by which methods decide what to keep: how much outputs and losses depend on it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from research.compress.network import Network, Variables
from research.core.quantization import applied
from research.core.tasks import Task
from research.inference.model import arrange, build_module
from research.training.trained_run import TrainedRun

EXAMPLES = 512


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Batches of examples of the training split, as the run's encoder makes them."""

    batches: tuple[Mapping[str, np.ndarray], ...]
    task: Task

    @classmethod
    def of(cls, trained: TrainedRun, examples: int = EXAMPLES) -> "Calibration":
        """`examples` of the run's training split, drawn by its seed; all if there are fewer."""
        stream = trained.streams()("train")
        rng = np.random.RandomState(trained.config.seed)
        members = np.sort(rng.permutation(stream.members)[:examples])
        evaluation = trained.model.evaluation
        batches = evaluation.batches(arrange(trained.config, stream.examples, members))
        return cls(tuple(batch for _, batch in batches), evaluation.task)

    def outputs(self, network: Network, variables: Variables, run: Callable[..., Any]) -> np.ndarray:
        """The outputs of all examples, [N, …]; `run` is `network.program()`."""
        found = []
        for batch in self.batches:
            outputs = run(variables, network.renamed(batch))
            outputs = outputs["logits"] if isinstance(outputs, dict) else outputs
            real = np.asarray(batch["weight"]) > 0
            found.append(np.asarray(outputs)[: len(real)][real if outputs.ndim > real.ndim else ...])
        return np.concatenate([each.reshape(-1, each.shape[-1]) for each in found])

    def gradients(self, network: Network) -> "list[tuple[Variables, Variables]]":
        """For each batch the parameters and the gradient of its mean loss."""
        module, task = build_module(network.config), self.task

        @jax.jit
        def gradient(variables: Variables, batch: Mapping[str, Any]) -> Any:
            def loss(params: Any) -> Any:
                with applied(variables):
                    outputs = module.apply({**variables, "params": params}, batch, train=False)
                found = task.scores(outputs, dict(batch))["loss"]
                return found.total / jnp.maximum(found.weight, 1)

            return jax.grad(loss)(variables["params"])

        return [
            (network.variables["params"], jax.device_get(gradient(network.variables, network.renamed(batch))))
            for batch in self.batches
        ]


def agreement(expected: np.ndarray, found: np.ndarray) -> float:
    """The share of examples [N, C] with the same largest output; for one output, 1 − the relative RMS difference."""
    if expected.shape[-1] > 1:
        return float(np.mean(expected.argmax(-1) == found.argmax(-1)))
    return 1 - difference(expected, found)


def difference(expected: np.ndarray, found: np.ndarray) -> float:
    """The root mean square of the differences, in standard deviations of what is expected."""
    spread = float(np.std(expected)) or 1.0
    return float(np.sqrt(np.mean((expected - found) ** 2))) / spread
