"""BERT (Devlin et al. 2018) for classifying sentences."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from research.models.layers import Dense, Dropout
from research.models.transformer import Encoder


class BertClassifier(nn.Module):
    """An encoder, a tanh pooler over each example's [CLS], dropout and a linear classifier (section 3.2).

    Attributes:
      hidden_size: D; num_heads must divide it.
      mlp_size: size of the feed-forward layers, 4·D in the paper.
      max_positions: the longest example, in tokens.
      dropout: on embeddings, layer outputs and the pooled vector; attention_dropout: on attention probabilities.
      initializer_range: standard deviation of the truncated normal that weights start from; 0.02 in the paper, whose
        layers are wide. A narrow layer wants about hidden_size^-1/2.
      dtype: of the computation; parameters are float32.
    """

    num_classes: int
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    mlp_size: int
    max_positions: int
    type_vocab_size: int
    dropout: float
    attention_dropout: float
    layer_norm_eps: float
    initializer_range: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> jax.Array:
        """Reads the encoder's inputs and starts, int [B, E]: where each example's [CLS] is -> logits [B, E, C]."""
        kernel_init = nn.initializers.truncated_normal(stddev=self.initializer_range)
        hidden = Encoder(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            mlp_size=self.mlp_size,
            max_positions=self.max_positions,
            type_vocab_size=self.type_vocab_size,
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            layer_norm_eps=self.layer_norm_eps,
            kernel_init=kernel_init,
            dtype=self.dtype,
            name="encoder",
        )(batch, train=train)
        first = jnp.take_along_axis(hidden, batch["starts"][:, :, None], axis=1)  # [B, E, D]
        dense = Dense(self.hidden_size, dtype=self.dtype, kernel_init=kernel_init, name="pooler")
        pooled = Dropout(self.dropout)(nn.tanh(dense(first)), train=train)
        return Dense(self.num_classes, dtype=self.dtype, kernel_init=kernel_init, name="classifier")(pooled)
