"""The loss by which a classifier learns what another one predicts."""

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
