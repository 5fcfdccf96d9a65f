"""The arrays of texts that are continued together: the cache and the settings of sampling, with a row for each text."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from research.core.sampling import Kind, Rows, Sampling, choose
from research.models.decoder import Cache


@functools.partial(jax.jit, static_argnums=(2, 3), donate_argnums=1)
def choose_tokens(logits: jax.Array, rows: Rows, kind: Kind, top: int) -> tuple[tuple[jax.Array, ...], Rows]:
    """The tokens [B], the logarithms of their probabilities [B], and the `top` most likely ones with theirs [B, N]."""
    tokens, rows = choose(logits, rows, kind)
    logprobs = jax.nn.log_softmax(logits.astype(jnp.float32))
    chosen = jnp.take_along_axis(logprobs, tokens[:, None], axis=-1)[:, 0]
    likely, ids = jax.lax.top_k(logprobs, top)
    return (tokens, chosen, ids, likely), rows


def empty_settings(rows: int, vocab_size: int) -> Rows:
    """Rows with the usual settings that have seen no token."""
    usual = Sampling()
    return Rows(
        repetition_penalty=jnp.full(rows, usual.repetition_penalty, jnp.float32),
        temperature=jnp.full(rows, usual.temperature, jnp.float32),
        top_k=jnp.full(rows, usual.top_k, jnp.int32),
        top_p=jnp.full(rows, usual.top_p, jnp.float32),
        min_p=jnp.full(rows, usual.min_p, jnp.float32),
        seed=jnp.full(rows, usual.seed, jnp.uint32),
        drawn=jnp.zeros(rows, jnp.int32),
        seen=jnp.zeros((rows, vocab_size), bool),
    )


@functools.partial(jax.jit, donate_argnums=0)
def place_row(arrays: Any, ones: Any, row: Any) -> Any:
    """The arrays [B, …] with the values of one row; of a shorter cache, those of its first tokens."""

    def place(array: jax.Array, one: jax.Array) -> jax.Array:
        one = jnp.asarray(one, array.dtype)
        one = one if one.ndim == array.ndim else one[None]
        return jax.lax.dynamic_update_slice(array, one, (row, *[0] * (array.ndim - 1)))

    return jax.tree.map(place, arrays, ones)


@functools.partial(jax.jit, donate_argnums=0)
def move_row(arrays: Any, source: Any, target: Any) -> Any:
    """The arrays [B, …] with the values of a row in another one too."""
    return jax.tree.map(lambda array: array.at[target].set(array[source]), arrays)


@functools.partial(jax.jit, static_argnums=(1, 2))
def resized(arrays: tuple[Cache, Rows], rows: int, length: int) -> tuple[Cache, Rows]:
    """The arrays with other numbers of rows and tokens: cut, or with zeros at the end."""

    cache, settings = arrays
    return _resized(cache, rows, length), jax.tree.map(lambda x: _fit(x, (rows, *x.shape[1:])), settings)


@functools.partial(jax.jit, static_argnums=1)
def lengthened(cache: Cache, length: int) -> Cache:
    """The cache with room for `length` tokens."""
    return _resized(cache, len(cache.lengths), length)


def _resized(cache: Cache, rows: int, length: int) -> Cache:
    def resize(array: jax.Array) -> jax.Array:
        return _fit(array, (rows, array.shape[1], length, array.shape[3]))

    keys, values = jax.tree.map(resize, (cache.keys, cache.values))
    return Cache(keys, values, _fit(cache.lengths, (rows,)))


def _fit(array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    array = array[tuple(slice(size) for size in shape)]
    return jnp.pad(array, [(0, size - present) for size, present in zip(shape, array.shape, strict=True)])
