"""What a model says of the tokens of a row, by the examples that are packed into it."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp


def by_example(values: jax.Array, batch: Mapping[str, jax.Array], fill: float) -> jax.Array:
    """Values [B, L] of tokens -> [B, E, L]: those of each example from its first token on, and then `fill`.

    `batch`: weight [B, E], and where E > 1 starts [B, E] and segments [B, L], as packed texts have. Where E is 1 all
    of the row is the example's, whatever its segments.
    """
    examples, length = batch["weight"].shape[1], values.shape[1]
    if examples == 1:
        return values[:, None]
    place = batch["starts"][:, :, None] + jnp.arange(length)[None, None, :]
    inside = place < length
    place = jnp.where(inside, place, 0)

    def taken(array: jax.Array) -> jax.Array:
        return jnp.take_along_axis(array[:, None, :], place, axis=2)

    own = taken(batch["segments"]) == jnp.arange(1, examples + 1)[None, :, None]
    return jnp.where(inside & own, taken(values), jnp.asarray(fill, values.dtype))
