"""The sizes and the layers of a decoder: pre-layer normalization, causal attention with grouped queries.

Shapes: B rows, L tokens per row, S keys per row, D hidden size, H heads, G key/value heads, K head size.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from research.base.ranges import COUNT, LAYERS, NOT_NEGATIVE, POSITIVE, RATE, Range
from research.models.layers import Dense, Dropout
from research.models.transformer import ACTIVATIONS, Initializer, attend

POSITION_ENCODINGS = ("learned", "rotary")
ROPE_SCALINGS = ("none", "linear", "llama3")
NORMS = ("layernorm", "rmsnorm")
SWIGLU = "swiglu"

# The keys and the values of a layer, or the cosines and sines of a rotation.
Pair = tuple[jax.Array, jax.Array]


class Context(NamedTuple):
    """What all layers need to know about the tokens besides their hidden states.

    Attributes:
      visible: bool [B, 1, L, S], the keys that each token attends to.
      rotation: the cosines and sines of the rotary embedding, each [B, L, 1, K / 2]; None without one.
      slots: int [B, L], where in the cache each token's key and value are stored; outside the cache, they are not.
        None without a cache.
    """

    visible: jax.Array
    rotation: Pair | None = None
    slots: jax.Array | None = None


class DecoderSizes(nn.Module, kw_only=True):
    """The hyperparameters that a decoder and its layers share.

    Attributes:
      hidden_size: D, the width.
      num_heads: H, the heads of the queries.
      num_kv_heads: G, the heads of the keys and values, each shared by H / G consecutive heads of the queries (Ainslie
        et al. 2023); H for standard attention. It must divide num_heads.
      head_size: K; usually D / H.
      mlp_size: size of the feed-forward layers.
      max_positions: the length of the longest document, in tokens.
      position_encoding: learned, an embedding added to that of the token, or rotary (Su et al. 2021).
      rope_theta: base of the wavelengths of a rotary embedding.
      rope_scaling: how they are lengthened for more positions than the model was first trained with; see `frequencies`.
      rope_factor: how many times the longest ones are lengthened.
      rope_low, rope_high, rope_positions: of llama3.
      norm: layernorm, or rmsnorm (Zhang & Sennrich 2019).
      norm_eps: added to the variance, or to the mean square.
      activation: of the feed-forward layers: gelu, gelu_tanh, relu, or swiglu (Shazeer 2020), which has a third kernel.
      use_bias: whether the linear layers, except the output layer, and layernorm have biases.
      tie_embeddings: whether the output layer shares the token embedding (Press & Wolf 2017).
      dropout: dropout rate on embeddings and layer outputs.
      attention_dropout: dropout rate on attention probabilities.
      initializer_range: standard deviation of the normal initializer of the weights.
      scale_residual_init: whether that deviation is divided by sqrt(2 · num_layers) for the last projection of each
        residual branch, so that the sum of all branches does not grow with depth (Radford et al. 2019, section 2.3).
      dtype: dtype of the computation; parameters are float32.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "vocab_size": COUNT,
        "hidden_size": COUNT,
        "num_layers": LAYERS,
        "num_heads": COUNT,
        "num_kv_heads": COUNT,
        "head_size": COUNT,
        "mlp_size": COUNT,
        "max_positions": COUNT,
        "rope_theta": POSITIVE,
        "rope_factor": POSITIVE,
        "rope_low": POSITIVE,
        "rope_high": POSITIVE,
        "rope_positions": COUNT,
        "norm_eps": POSITIVE,
        "dropout": RATE,
        "attention_dropout": RATE,
        "initializer_range": NOT_NEGATIVE,
    }

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    mlp_size: int
    max_positions: int
    position_encoding: str
    rope_theta: float
    norm: str
    norm_eps: float
    activation: str
    use_bias: bool
    tie_embeddings: bool
    dropout: float
    attention_dropout: float
    initializer_range: float
    scale_residual_init: bool
    rope_scaling: str = "none"  # as in runs from before these keys existed
    rope_factor: float = 1.0
    rope_low: float = 1.0
    rope_high: float = 4.0
    rope_positions: int = 8192
    dtype: Any = jnp.float32

    @property
    def sizes(self) -> dict[str, Any]:
        """These hyperparameters by name."""
        names = {field.name for field in dataclasses.fields(DecoderSizes)} - {"parent", "name"}
        return {name: getattr(self, name) for name in names}

    @property
    def kernel_init(self) -> Initializer:
        return nn.initializers.normal(self.initializer_range)

    @property
    def residual_init(self) -> Initializer:
        """The initializer of a residual branch's last projection."""
        scale = (2 * self.num_layers) ** 0.5 if self.scale_residual_init else 1.0
        return nn.initializers.normal(self.initializer_range / scale)

    @nn.nowrap
    def dense(self, features: int, name: str, *, kernel_init: Initializer | None = None) -> Dense:
        """A linear layer of the calling module."""
        init = kernel_init or self.kernel_init
        return Dense(features, dtype=self.dtype, kernel_init=init, use_bias=self.use_bias, name=name)

    @nn.nowrap
    def normalization(self, name: str | None = None) -> nn.Module:
        """A normalization of the calling module."""
        if self.norm == "rmsnorm":
            return nn.RMSNorm(epsilon=self.norm_eps, dtype=self.dtype, name=name)
        return nn.LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, use_bias=self.use_bias, name=name)

    @nn.nowrap
    def check(self) -> None:
        """Raises ValueError for settings that don't fit together."""
        known = {
            "position_encoding": POSITION_ENCODINGS,
            "rope_scaling": ROPE_SCALINGS,
            "norm": NORMS,
            "activation": (*ACTIVATIONS, SWIGLU),
        }
        for key, values in known.items():
            if getattr(self, key) not in values:
                raise ValueError(f"model.{key} is {getattr(self, key)!r}; known: {', '.join(values)}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"model.num_kv_heads={self.num_kv_heads} does not divide model.num_heads={self.num_heads}")
        if self.position_encoding == "rotary" and self.head_size % 2:
            raise ValueError(f"model.head_size={self.head_size} is odd; a rotary embedding rotates pairs")
        if self.rope_low >= self.rope_high:
            raise ValueError(f"model.rope_low={self.rope_low} is not below model.rope_high={self.rope_high}")

    @nn.nowrap
    def frequencies(self, dtype: Any) -> jax.Array:
        """The angles of a rotary embedding from one position to the next, [K / 2] (Su et al. 2021, section 3.2.2).

        `linear` divides all by rope_factor (Chen et al. 2023). `llama3` (the code of Llama 3.1) divides those of the
        wavelengths above rope_positions / rope_low, leaves those below rope_positions / rope_high as they are, and
        interpolates between, linearly in the number of waves that rope_positions hold.
        """
        plain = self.rope_theta ** (-jnp.arange(0, self.head_size, 2, dtype=dtype) / self.head_size)
        if self.rope_scaling == "none":
            return plain
        scaled = plain / self.rope_factor
        if self.rope_scaling == "linear":
            return scaled
        waves = self.rope_positions * plain / (2 * jnp.pi)
        kept = jnp.clip((waves - self.rope_low) / (self.rope_high - self.rope_low), 0, 1)
        return kept * plain + (1 - kept) * scaled


def rotation(positions: jax.Array, frequencies: jax.Array) -> Pair:
    """Cosines and sines for `rotate`: int [B, L] and [K / 2] -> each [B, L, 1, K / 2]."""
    angles = positions[:, :, None, None].astype(frequencies.dtype) * frequencies[None, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, rotation: Pair) -> jax.Array:
    """Rotates the pairs (i, i + K / 2) of x [B, L, heads, K], as Llama's published weights are arranged."""
    cos, sin = rotation
    first, second = jnp.split(x.astype(cos.dtype), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def attend_in_groups(
    query: jax.Array, key: jax.Array, value: jax.Array, visible: jax.Array, *, dropout: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """`attend` with query [B, L, H, K] and key, value [B, S, G, K] -> [B, L, H, K].

    The queries of H / G heads that share a key become that many queries of one head, so that no key is copied.
    """
    rows, length, heads, size = query.shape
    groups = key.shape[2]
    shared = heads // groups
    query = query.reshape(rows, length, groups, shared, size).swapaxes(2, 3)
    query = query.reshape(rows, length * shared, groups, size)
    mixed = attend(query, key, value, jnp.repeat(visible, shared, axis=2), dropout=dropout)
    return mixed.reshape(rows, length, shared, groups, size).swapaxes(2, 3).reshape(rows, length, heads, size)


def attend_to_cache(query: jax.Array, key: jax.Array, value: jax.Array, visible: jax.Array) -> jax.Array:
    """`attend_in_groups` with key and value as a cache has them, [B, G, S, K]; without gradients in mind.

    Nothing is transposed but the query, and all products accumulate in float32 or wider, as matrix units do: on a CPU,
    256 queries of 9 heads and 1,024 keys of 3 take a quarter of the time.
    """
    rows, length, heads, size = query.shape
    groups = key.shape[1]
    shared = heads // groups
    wide = jnp.promote_types(query.dtype, jnp.float32)
    product = partial(jnp.einsum, preferred_element_type=wide)
    query = query.reshape(rows, length, groups, shared, size).transpose(0, 2, 3, 1, 4)
    logits = product("bgqk,bgsk->bgqs", query.reshape(rows, groups, shared * length, size), key) / size**0.5
    logits = jnp.where(jnp.tile(visible, (1, 1, shared, 1)), logits, jnp.finfo(wide).min)
    mixed = product("bgqs,bgsk->bgqk", nn.softmax(logits, axis=-1).astype(query.dtype), value).astype(query.dtype)
    return mixed.reshape(rows, groups, shared, length, size).transpose(0, 3, 1, 2, 4).reshape(rows, length, heads, size)


def _stored(cache: jax.Array, new: jax.Array, slots: jax.Array) -> jax.Array:
    """The cache [B, G, S, K] with new values [B, L, G, K] in their slots, int [B, L]."""
    rows, groups = (jnp.arange(size)[:, None, None] for size in cache.shape[:2])
    # All leading axes are indexed, in their order: otherwise XLA transposes the whole cache to have them so.
    index = rows, groups.swapaxes(0, 1), slots[:, None, :]
    return cache.at[index].set(new.swapaxes(1, 2).astype(cache.dtype), mode="drop")


class CausalAttention(DecoderSizes, kw_only=True):
    """Multi-head attention to the keys that the context makes visible."""

    @nn.compact
    def __call__(
        self, x: jax.Array, context: Context, cached: Pair | None, *, train: bool
    ) -> tuple[jax.Array, Pair | None]:
        """x: [B, L, D] -> [B, L, D], and the cached keys and values [B, G, S, K] with those of x."""

        def project(heads: int, name: str) -> jax.Array:
            return self.dense(heads * self.head_size, name)(x).reshape(*x.shape[:2], heads, self.head_size)

        query = project(self.num_heads, "query")
        key, value = project(self.num_kv_heads, "key"), project(self.num_kv_heads, "value")
        if context.rotation is not None:
            query, key = rotate(query, context.rotation), rotate(key, context.rotation)
        if cached is None:
            dropout = partial(Dropout(self.attention_dropout), train=train)
            mixed = attend_in_groups(query, key, value, context.visible, dropout=dropout)
        else:
            assert context.slots is not None
            cached = _stored(cached[0], key, context.slots), _stored(cached[1], value, context.slots)
            mixed = attend_to_cache(query, *cached, context.visible)
        output = self.dense(self.hidden_size, "output", kernel_init=self.residual_init)
        return output(mixed.reshape(*x.shape[:2], self.num_heads * self.head_size)), cached


class DecoderLayer(DecoderSizes, kw_only=True):
    """Attention and a feed-forward layer: each normalizes its input and is added, after dropout, to it."""

    @nn.compact
    def __call__(
        self, x: jax.Array, context: Context, cached: Pair | None = None, *, train: bool
    ) -> tuple[jax.Array, Pair | None]:
        """x: [B, L, D] -> [B, L, D], and the cached keys and values as in CausalAttention."""
        y = self.normalization("attention_norm")(x)
        y, cached = CausalAttention(**self.sizes, name="attention")(y, context, cached, train=train)
        x = x + Dropout(self.dropout)(y, train=train)
        y = self.normalization("mlp_norm")(x)
        inner = self.dense(self.mlp_size, "mlp_in")(y)
        if self.activation == SWIGLU:
            inner = nn.silu(self.dense(self.mlp_size, "mlp_gate")(y)) * inner
        else:
            inner = ACTIVATIONS[self.activation](inner)
        y = self.dense(self.hidden_size, "mlp_out", kernel_init=self.residual_init)(inner)
        return x + Dropout(self.dropout)(y, train=train), cached
