"""What a model can be asked for: its predictions, the tokens for masks, or the embeddings of texts."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from research.core.metrics import at_least_float32
from research.core.tasks import Task
from research.models.mlm import BertMaskedLM
from research.models.transformer import Encoder, EncoderSizes

MOST_TOKENS = 20  # for a mask

# (variables, batch, module=, task=) -> values by name, each with an entry per input, or per item.
Run = Callable[..., dict[str, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Operation:
    """A function of a model and a batch.

    Attributes:
      run: (variables, batch, *, module, task) -> values by name: [R] or [R, E] and then the axes of each input.
      supports: whether a module can be asked for it.
      per_item: whether `run` gives values of each item instead, [R, L, …], which are too large to be cached.
      per_mask: whether it gives values of each mask instead, [R, E, …]: its batches have `masked_positions` [R, E], and
        no row has more masks than places for inputs.
    """

    run: Run
    supports: Callable[[nn.Module], bool]
    per_item: bool = False
    per_mask: bool = False


def _predict(variables: Any, batch: Any, *, module: nn.Module, task: Task | None) -> dict[str, jax.Array]:
    """The task's predictions, and `outputs`: what the model returned."""
    assert task is not None
    outputs: Any = module.apply(variables, batch, train=False)
    return {"outputs": at_least_float32(outputs), **task.predictions(outputs, batch)}


def _hidden(variables: Any, batch: Any, module: Any) -> jax.Array:
    """The encoder's hidden states [R, L, D]."""
    own = {name: tree["encoder"] for name, tree in variables.items() if "encoder" in tree}
    hidden: Any = Encoder(**module.sizes).apply(own, batch, train=False)
    return at_least_float32(hidden)


def _embed(variables: Any, batch: Any, *, module: nn.Module, task: Task | None) -> dict[str, jax.Array]:
    """`embedding`: the mean of each input's hidden states, [R, E, D]."""
    slots = jnp.arange(1, batch["starts"].shape[1] + 1)[None, None, :]
    of_slot = (batch["segments"][:, :, None] == slots).astype(jnp.float32)  # [R, L, E]
    # The default precision of matrix products is that of bfloat16 on some devices.
    sums = jnp.einsum("rle,rld->red", of_slot, _hidden(variables, batch, module), precision="highest")
    return {"embedding": sums / jnp.maximum(of_slot.sum(axis=1), 1)[:, :, None]}


def _embed_all(variables: Any, batch: Any, *, module: nn.Module, task: Task | None) -> dict[str, jax.Array]:
    """`embedding`: the hidden states of each token, [R, L, D]."""
    return {"embedding": _hidden(variables, batch, module)}


def _fill(variables: Any, batch: Any, *, module: nn.Module, task: Task | None) -> dict[str, jax.Array]:
    """The most probable tokens of each mask, `token` [R, E, K], and their probabilities, `score`; best first."""
    outputs: Any = module.apply(variables, batch, train=False)
    logits = at_least_float32(outputs)
    score, token = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), min(MOST_TOKENS, logits.shape[-1]))
    return {"token": token, "score": score}


def _predicts(module: nn.Module) -> bool:
    return not isinstance(module, BertMaskedLM | Encoder)


def _encodes(module: nn.Module) -> bool:
    return isinstance(module, EncoderSizes)


def _fills(module: nn.Module) -> bool:
    return isinstance(module, BertMaskedLM)


OPERATIONS = {
    "predict": Operation(_predict, _predicts),
    "fill": Operation(_fill, _fills, per_mask=True),
    "embed": Operation(_embed, _encodes),
    "embed_all": Operation(_embed_all, _encodes, per_item=True),
}
# What every model is asked for that supports it. One that supports neither, an encoder without a head, has all others.
USUAL = ("predict", "fill")


def chosen(names: Sequence[str], module: nn.Module) -> list[str]:
    """The operations among `names` that a module supports; if it supports none of them, all that it does."""
    supported = [name for name, operation in OPERATIONS.items() if operation.supports(module)]
    return [name for name in supported if name in names] or supported


def run_all(names: Sequence[str], variables: Any, batch: Any, **options: Any) -> dict[str, dict[str, jax.Array]]:
    """What each operation gives for a batch: XLA computes the encoder that they share once."""
    return {name: OPERATIONS[name].run(variables, batch, **options) for name in names}
