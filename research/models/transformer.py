"""A Transformer encoder as in Vaswani et al. 2017, with the post-layer normalization of BERT (Devlin et al. 2018).

Shapes: B rows, L tokens per row, D hidden size, H heads of size K, M size of the feed-forward layer.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from research.base.ranges import COUNT, COUNT_OR_NONE, LAYERS, NOT_NEGATIVE, POSITIVE, RATE, Range
from research.models.layers import Dense, Dropout, MeshRules, gelu
from research.models.stack import LAYER_RULES, run_layers

DType = Any
Initializer = Any

# `gelu_tanh` is the approximation of GPT and of BERT's first release.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_tanh": partial(nn.gelu, approximate=True),
    "relu": nn.relu,
}


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, visible: jax.Array, *, dropout: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Scaled dot-product attention of every head (section 3.2.1); the softmax is in float32 or wider.

    Args:
      query: [B, L, H, K]; key, value: [B, S, H, K].
      visible: bool [B, 1, L, S], the keys that each query attends to: at least one.
      dropout: applied to the probabilities [B, H, L, S].

    Returns:
      The weighted sums of the values [B, L, H, K].
    """
    logits = jnp.einsum("bqhk,bshk->bhqs", query, key) / jnp.sqrt(query.shape[-1]).astype(query.dtype)
    # bfloat16 is not precise enough for the sums of a softmax.
    wide = jnp.promote_types(query.dtype, jnp.float32)
    logits = jnp.where(visible, logits.astype(wide), jnp.finfo(wide).min)
    probabilities = nn.softmax(logits, axis=-1).astype(query.dtype)
    return jnp.einsum("bhqs,bshk->bqhk", dropout(probabilities), value)


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention within segments (section 3.2.2)."""

    num_heads: int
    attention_dropout: float
    kernel_init: Initializer
    dtype: DType
    head_size: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, segments: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, L, D]; segments: int [B, L] -> [B, L, D]. A token attends only to tokens of its own segment."""
        hidden_size = x.shape[-1]
        if self.head_size is None and hidden_size % self.num_heads:
            raise ValueError(f"model.num_heads={self.num_heads} does not divide model.hidden_size={hidden_size}")
        heads = (self.num_heads, self.head_size or hidden_size // self.num_heads)

        def project(name: str) -> jax.Array:
            y = Dense(heads[0] * heads[1], dtype=self.dtype, kernel_init=self.kernel_init, name=name)(x)
            return y.reshape(*x.shape[:2], *heads)

        query, key, value = project("query"), project("key"), project("value")  # [B, L, H, K]
        visible = segments[:, None, :, None] == segments[:, None, None, :]
        dropout = partial(Dropout(self.attention_dropout), train=train)
        mixed = attend(query, key, value, visible, dropout=dropout)
        return Dense(hidden_size, dtype=self.dtype, kernel_init=self.kernel_init, name="output")(
            mixed.reshape(*x.shape[:2], heads[0] * heads[1])
        )


class EncoderLayer(nn.Module):
    """Attention and a feed-forward layer, each followed by dropout, the residual sum and LayerNorm."""

    num_heads: int
    mlp_size: int
    activation: str
    dropout: float
    attention_dropout: float
    layer_norm_eps: float
    kernel_init: Initializer
    dtype: DType
    head_size: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, segments: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, L, D]; segments: int [B, L] -> [B, L, D]."""

        def residual_norm(x: jax.Array, y: jax.Array, name: str) -> jax.Array:
            y = Dropout(self.dropout)(y, train=train)
            return nn.LayerNorm(epsilon=self.layer_norm_eps, dtype=self.dtype, name=name)(x + y)

        attention = SelfAttention(
            self.num_heads, self.attention_dropout, self.kernel_init, self.dtype, self.head_size, name="attention"
        )
        y = attention(x, segments, train=train)
        x = residual_norm(x, y, "attention_norm")
        y = Dense(self.mlp_size, dtype=self.dtype, kernel_init=self.kernel_init, name="mlp_in")(x)
        y = ACTIVATIONS[self.activation](y)
        y = Dense(x.shape[-1], dtype=self.dtype, kernel_init=self.kernel_init, name="mlp_out")(y)
        return residual_norm(x, y, "mlp_norm")


class EncoderSizes(nn.Module, kw_only=True):
    """The hyperparameters that an encoder and the models around it share.

    Attributes:
      hidden_size: D; num_heads must divide it, unless there is a head_size.
      head_size: K; None: D / H.
      mlp_size: size of the feed-forward layers, 4·D in the paper.
      activation: activation of the feed-forward layers: gelu, gelu_tanh or relu.
      max_positions: the length of the longest example, in tokens.
      position_offset: rows of the position embedding before that of the first token; RoBERTa (Liu et al. 2019) has 2.
      type_vocab_size: number of token types; 0 for no type embedding, as in DistilBERT (Sanh et al. 2019).
      dropout: dropout rate on embeddings and layer outputs.
      attention_dropout: dropout rate on attention probabilities.
      initializer_range: standard deviation of the truncated normal initializer of the weights; 0.02 in the paper, whose
        layers are wide. A narrow layer needs about hidden_size^-1/2.
      remat, remat_policy, scan: how the layers are compiled; see `research.models.stack.run_layers`.
      dtype: dtype of the computation; parameters are float32.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "vocab_size": COUNT,
        "hidden_size": COUNT,
        "num_layers": LAYERS,
        "num_heads": COUNT,
        "head_size": COUNT,
        "mlp_size": COUNT,
        "max_positions": COUNT,
        "position_offset": COUNT_OR_NONE,
        "type_vocab_size": COUNT_OR_NONE,
        "dropout": RATE,
        "attention_dropout": RATE,
        "layer_norm_eps": POSITIVE,
        "initializer_range": NOT_NEGATIVE,
    }
    MESH_RULES: ClassVar[MeshRules] = (*LAYER_RULES, ("(pooler|transform|classifier)/kernel", ("fsdp",)))

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_size: int
    activation: str
    max_positions: int
    position_offset: int
    type_vocab_size: int
    dropout: float
    attention_dropout: float
    layer_norm_eps: float
    initializer_range: float
    head_size: int | None = None
    remat: bool = False
    remat_policy: str = "nothing"
    scan: bool = False
    dtype: Any = jnp.float32

    @property
    def kernel_init(self) -> Initializer:
        return nn.initializers.truncated_normal(stddev=self.initializer_range)

    @property
    def sizes(self) -> dict[str, Any]:
        """These hyperparameters by name."""
        names = {field.name for field in dataclasses.fields(EncoderSizes)} - {"parent", "name"}
        return {name: getattr(self, name) for name in names}

    def encoder(self) -> "Encoder":
        """The encoder with these sizes, to be called in a compact method; its parameters are under `encoder`."""
        return Encoder(**self.sizes, name="encoder")


class Encoder(EncoderSizes, kw_only=True):
    """Token, position and type embeddings (none where `type_vocab_size` is 0), then `num_layers` encoder layers.

    The position embedding has `max_positions` rows after `position_offset` unused ones.
    """

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> jax.Array:
        """Reads tokens, positions, type_ids and segments, each int [B, L] -> hidden states [B, L, D]."""

        if self.activation not in ACTIVATIONS:
            raise ValueError(f"model.activation is {self.activation!r}; known: {', '.join(ACTIVATIONS)}")

        def embed(size: int, ids: jax.Array, name: str) -> jax.Array:
            return nn.Embed(size, self.hidden_size, dtype=self.dtype, embedding_init=self.kernel_init, name=name)(ids)

        x = embed(self.vocab_size, batch["tokens"], "token_embedding")
        positions = batch["positions"] + self.position_offset
        x = x + embed(self.max_positions + self.position_offset, positions, "position_embedding")
        if self.type_vocab_size:
            x = x + embed(self.type_vocab_size, batch["type_ids"], "type_embedding")
        x = nn.LayerNorm(epsilon=self.layer_norm_eps, dtype=self.dtype, name="embedding_norm")(x)
        x = Dropout(self.dropout)(x, train=train)
        names = (field.name for field in dataclasses.fields(EncoderLayer) if field.name not in ("parent", "name"))
        sizes = {name: getattr(self, name) for name in names}
        layers = [EncoderLayer(**sizes, name=f"layer_{i}") for i in range(self.num_layers)]

        def call(layer: EncoderLayer, x: jax.Array) -> jax.Array:
            return layer(x, batch["segments"], train=train)

        return run_layers(self, layers, call, x, train=train)
