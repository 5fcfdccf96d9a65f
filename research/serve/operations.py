"""What a model can be asked for: its predictions, or the embeddings of texts."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from research.core.metrics import at_least_float32
from research.core.tasks import Task
from research.models.transformer import Encoder, EncoderSizes

# (variables, batch, module=, task=) -> values by name, each with an entry per input, or per item.
Run = Callable[..., dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Operation:
    """A function of a model and a batch.

    Attributes:
      run: (variables, batch, *, module, task) -> values by name: [R] or [R, E] and then the axes of each input.
      per_item: whether `run` gives values of each item instead, [R, L, …], which are too large to be cached.
      encodes: whether it needs a model with an encoder of texts.
    """

    run: Run
    per_item: bool = False
    encodes: bool = False

    def supports(self, module: nn.Module) -> bool:
        return not self.encodes or isinstance(module, EncoderSizes)


def _predict(variables: Any, batch: Any, *, module: nn.Module, task: Task) -> dict[str, jax.Array]:
    """The task's predictions, and `outputs`: what the model returned."""
    outputs: Any = module.apply(variables, batch, train=False)
    return {"outputs": at_least_float32(outputs), **task.predictions(outputs, batch)}


def _hidden(variables: Any, batch: Any, module: Any) -> jax.Array:
    """The encoder's hidden states [R, L, D]."""
    own = {name: tree["encoder"] for name, tree in variables.items() if "encoder" in tree}
    hidden: Any = Encoder(**module.sizes).apply(own, batch, train=False)
    return at_least_float32(hidden)


def _embed(variables: Any, batch: Any, *, module: nn.Module, task: Task) -> dict[str, jax.Array]:
    """`embedding`: the mean of each input's hidden states, [R, E, D]."""
    slots = jnp.arange(1, batch["starts"].shape[1] + 1)[None, None, :]
    of_slot = (batch["segments"][:, :, None] == slots).astype(jnp.float32)  # [R, L, E]
    # The default precision of matrix products is that of bfloat16 on some devices.
    sums = jnp.einsum("rle,rld->red", of_slot, _hidden(variables, batch, module), precision="highest")
    return {"embedding": sums / jnp.maximum(of_slot.sum(axis=1), 1)[:, :, None]}


def _embed_all(variables: Any, batch: Any, *, module: nn.Module, task: Task) -> dict[str, jax.Array]:
    """`embedding`: the hidden states of each token, [R, L, D]."""
    return {"embedding": _hidden(variables, batch, module)}


OPERATIONS = {
    "predict": Operation(_predict),
    "embed": Operation(_embed, encodes=True),
    "embed_all": Operation(_embed_all, per_item=True, encodes=True),
}
