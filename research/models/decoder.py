"""Causal language models: GPT-2 (Radford et al. 2019) and Llama (Touvron et al. 2023) as settings of one decoder.

Training and scoring read packed text:

    logits = module.apply(variables, batch, train=False)["logits"]  # [B, L, V]

Generation keeps the keys and values of all tokens so far. The rows of a batch are independent and may have any lengths:

    cache = module.empty_cache(rows, length)  # length: tokens of a prompt and its continuation
    logits, cache = module.apply(variables, tokens, counts, cache, method="prefill")  # [B, V], after each last token
    logits, cache = module.apply(variables, tokens, counts, cache, method="step")  # [B, L, V], after each token

Both append the first counts[b] of the tokens [B, L] of each row b to what the cache holds of it; the rest of the row is
padding. A prompt may thus be read in parts, a row may pause (counts 0), and one that is finished is freed for another
prompt by `cache._replace(lengths=cache.lengths.at[row].set(0))`. Compile both with the cache donated, so that it is
updated in place.
"""

from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from research.models.decoder_layers import Context, DecoderLayer, DecoderSizes, Pair, rotation
from research.models.layers import Dense, Dropout, MeshRules, affine
from research.models.stack import LAYER_RULES, run_layers


class Cache(NamedTuple):
    """The keys and values of the tokens so far, of T tokens at most.

    Attributes:
      keys, values: one array [B, G, T, K] per layer.
      lengths: int32 [B], the number of tokens of each row. What the arrays hold beyond them has no effect.
    """

    keys: tuple[jax.Array, ...]
    values: tuple[jax.Array, ...]
    lengths: jax.Array

    @property
    def length(self) -> int:
        """T."""
        return self.keys[0].shape[2]


class Decoder(DecoderSizes, kw_only=True):
    """Token embedding, `num_layers` layers, normalization and projection onto the vocabulary.

    Attributes: those of `DecoderSizes`, and
      remat, remat_policy, scan: how the layers are compiled; see `run_layers`.
    """

    MESH_RULES: ClassVar[MeshRules] = (*LAYER_RULES, ("head/kernel", ("fsdp",)))

    remat: bool = False
    remat_policy: str = "nothing"
    scan: bool = False

    def setup(self) -> None:
        self.check()
        embed = partial(nn.Embed, features=self.hidden_size, dtype=self.dtype, embedding_init=self.kernel_init)
        self.token_embedding = embed(self.vocab_size)
        if self.position_encoding == "learned":
            self.position_embedding = embed(self.max_positions)
        self.embedding_dropout = Dropout(self.dropout)
        self.layer = [DecoderLayer(**self.sizes) for _ in range(self.num_layers)]  # named layer_0, …
        self.final_norm = self.normalization()
        if not self.tie_embeddings:
            self.head = Dense(self.vocab_size, self.dtype, self.kernel_init, use_bias=False)

    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> dict[str, jax.Array]:
        """Reads tokens, segments and positions, each int [B, L] -> logits [B, L, V], of the token after each.

        A token attends to itself and the earlier ones of its segment. Positions count from 0 in each segment.
        """
        segments, order = batch["segments"], jnp.arange(batch["tokens"].shape[1])
        visible = segments[:, None, :, None] == segments[:, None, None, :]
        visible &= (order[:, None] >= order[None, :])[None, None]
        context = Context(visible, self._rotation(batch["positions"]))
        x = self._embed(batch["tokens"], batch["positions"], train=train)

        def call(layer: DecoderLayer, x: jax.Array) -> jax.Array:
            return layer(x, context, train=train)[0]

        return {"logits": self._logits(run_layers(self, self.layer, call, x, train=train))}

    @nn.nowrap
    def empty_cache(self, rows: int, length: int) -> Cache:
        """A cache for `rows` rows of up to `length` tokens. Raises ValueError if there are fewer positions."""
        if length > self.max_positions:
            raise ValueError(f"a cache of {length} tokens exceeds model.max_positions={self.max_positions}")
        empty = jnp.zeros((rows, self.num_kv_heads, length, self.head_size), self.dtype)

        def layers() -> tuple[jax.Array, ...]:
            return tuple(jnp.copy(empty) for _ in range(self.num_layers))  # copies, as each is donated

        return Cache(layers(), layers(), jnp.zeros(rows, jnp.int32))

    def prefill(self, tokens: jax.Array, counts: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Appends tokens to the cache -> logits [B, V] after each row's last one, and the new cache.

        Args:
          tokens: int [B, L], of which the first counts[b] of row b are read.
          counts: int [B], from 0 to L. The logits of a row without tokens have no meaning.
          cache: with room for them: the caller checks that cache.lengths + counts do not exceed its length.
        """
        x, cache = self._extend(tokens, counts, cache)
        last = jnp.maximum(counts - 1, 0)
        return self._logits(jnp.take_along_axis(x, last[:, None, None], axis=1)[:, 0]), cache

    def step(self, tokens: jax.Array, counts: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Like `prefill`, but returns the logits [B, L, V] after each token; L is 1 for one token at a time."""
        x, cache = self._extend(tokens, counts, cache)
        return self._logits(x), cache

    def _extend(self, tokens: jax.Array, counts: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Hidden states [B, L, D] of tokens that follow those in the cache, and the new cache."""
        length = cache.length
        offsets = jnp.arange(tokens.shape[1])[None, :]
        real = offsets < counts[:, None]
        positions = cache.lengths[:, None] + offsets
        slots = jnp.where(real, positions, length)
        positions = jnp.where(real, positions, 0)
        visible = jnp.arange(length)[None, None, None, :] <= positions[:, None, :, None]
        context = Context(visible, self._rotation(positions), slots)
        x = self._embed(tokens, positions, train=False)
        extended = []
        for layer, key, value in zip(self.layer, cache.keys, cache.values, strict=True):
            x, cached = layer(x, context, (key, value), train=False)
            extended.append(cached)
        keys, values = zip(*extended, strict=True)
        return x, Cache(keys, values, cache.lengths + counts)

    def _rotation(self, positions: jax.Array) -> Pair | None:
        if self.position_encoding != "rotary":
            return None
        return rotation(positions, self.frequencies(jnp.promote_types(self.dtype, jnp.float32)))

    def _embed(self, tokens: jax.Array, positions: jax.Array, *, train: bool) -> jax.Array:
        x = self.token_embedding(tokens)
        if self.position_encoding == "learned":
            x = x + self.position_embedding(positions)
        return self.embedding_dropout(x, train=train)

    def _logits(self, x: jax.Array) -> jax.Array:
        x = self.final_norm(x)
        return affine(x, self.token_embedding.embedding, None, True) if self.tie_embeddings else self.head(x)
