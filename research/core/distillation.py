"""The losses by which a classifier learns what another one predicts, and computes before its last layers."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax


def soft_divergence(logits: jax.Array, soft_labels: jax.Array, temperature: float) -> jax.Array:
    """T² · KL(q_T, p_T): logits and probabilities [..., C] -> [...] (Hinton et al. 2015, section 2).

    q_T are the soft labels and p_T the softmax of the logits, at temperature T: logarithms divided by T, normalized.
    """
    smallest = jnp.finfo(soft_labels.dtype).tiny  # a probability that was rounded to 0
    others = jax.nn.log_softmax(jnp.log(jnp.maximum(soft_labels, smallest)) / temperature, axis=-1)
    own = jax.nn.log_softmax(logits / temperature, axis=-1)
    return temperature**2 * optax.losses.kl_divergence_with_log_targets(own, others)


def logits_of(outputs: Any) -> jax.Array:
    """The logits of a classifier, which are its outputs, or those called so."""
    logits: jax.Array = outputs["logits"] if isinstance(outputs, Mapping) else outputs
    return logits


def hidden_distance(outputs: Any, soft_hidden: jax.Array) -> jax.Array:
    """The mean over D of (h − h')²: the outputs "hidden" and another model's, each [..., D] -> float32 [...].

    As for the hidden states of TinyBERT (Jiao et al. 2020, section 3.1), but without a map between different sizes, and
    as in Sun et al. 2019 only for [CLS], here without normalization, and after the last layer.

    Raises ValueError if there are none, or the sizes differ.
    """
    if not isinstance(outputs, Mapping):
        raise ValueError("the model returns no hidden state to compare with data.soft_hidden; bert does")
    hidden = outputs["hidden"]
    if hidden.shape != soft_hidden.shape:
        raise ValueError(
            f"the states of data.soft_hidden have size {soft_hidden.shape[-1]}, its own {hidden.shape[-1]}"
        )
    return jnp.mean((hidden.astype(jnp.float32) - soft_hidden.astype(jnp.float32)) ** 2, axis=-1)
