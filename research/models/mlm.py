"""BERT's masked language model (Devlin et al. 2018, section 3.1): which tokens stood where some were hidden."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from research.models.layers import Dense, affine, gelu
from research.models.transformer import Encoder


class BertMaskedLM(nn.Module):
    """An encoder, and over each hidden place a dense layer, gelu, LayerNorm and a projection onto the vocabulary.

    The projection's weights are those of the token embedding (Press & Wolf 2017); only its bias is its own. Places that
    hide nothing are left out before the projection, which is the dearest product of a small encoder.

    Attributes are those of `research.models.bert.BertClassifier`; the encoder's parameters have the same names, so that
    a classifier can start from them.
    """

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
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> jax.Array:
        """Reads the encoder's inputs and masked_positions, int [B, M] -> logits [B, M, vocab_size]."""
        kernel_init = nn.initializers.truncated_normal(stddev=self.initializer_range)
        encoder = Encoder(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            mlp_size=self.mlp_size,
            activation=self.activation,
            max_positions=self.max_positions,
            position_offset=self.position_offset,
            type_vocab_size=self.type_vocab_size,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            layer_norm_eps=self.layer_norm_eps,
            kernel_init=kernel_init,
            dtype=self.dtype,
            name="encoder",
        )
        hidden = encoder(batch, train=train)
        hidden = jnp.take_along_axis(hidden, batch["masked_positions"][:, :, None], axis=1)  # [B, M, D]
        hidden = gelu(Dense(self.hidden_size, dtype=self.dtype, kernel_init=kernel_init, name="transform")(hidden))
        hidden = nn.LayerNorm(epsilon=self.layer_norm_eps, dtype=self.dtype, name="transform_norm")(hidden)
        table = encoder.variables["params"]["token_embedding"]["embedding"]  # [vocab_size, D]
        bias = self.param("output_bias", nn.initializers.zeros_init(), (self.vocab_size,))
        return affine(hidden, table, bias, True)
