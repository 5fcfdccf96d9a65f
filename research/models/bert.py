"""BERT (Devlin et al. 2018) for classifying sentences, with RoBERTa and DistilBERT as settings of it."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from research.models.layers import Dense, Dropout
from research.models.transformer import Encoder

POOLERS = {"tanh": nn.tanh, "relu": nn.relu}


class BertClassifier(nn.Module):
    """An encoder, a pooler over each example's [CLS], dropout and a linear classifier (section 3.2).

    Attributes:
      hidden_size: D; num_heads must divide it.
      mlp_size: size of the feed-forward layers, 4·D in the paper; activation: theirs, gelu, gelu_tanh or relu.
      max_positions: the longest example, in tokens.
      position_offset: rows of the position embedding before that of the first token; RoBERTa (Liu et al. 2019) has 2.
      type_vocab_size: 0 for no type embedding, as in DistilBERT (Sanh et al. 2019).
      pooler: what follows the pooler's linear map: tanh, or relu as in DistilBERT.
      dropout: on embeddings and layer outputs; attention_dropout: on attention probabilities; pooler_dropout: on what
        the pooler reads, not 0 in RoBERTa; classifier_dropout: on what the classifier reads, None for `dropout`.
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
    activation: str
    max_positions: int
    position_offset: int
    type_vocab_size: int
    pooler: str
    dropout: float
    attention_dropout: float
    pooler_dropout: float
    classifier_dropout: float | None
    layer_norm_eps: float
    initializer_range: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> jax.Array:
        """Reads the encoder's inputs and starts, int [B, E]: where each example's [CLS] is -> logits [B, E, C]."""
        if self.pooler not in POOLERS:
            raise ValueError(f"model.pooler is {self.pooler!r}; known: {', '.join(POOLERS)}")
        kernel_init = nn.initializers.truncated_normal(stddev=self.initializer_range)
        hidden = Encoder(
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
        )(batch, train=train)
        first = jnp.take_along_axis(hidden, batch["starts"][:, :, None], axis=1)  # [B, E, D]
        first = Dropout(self.pooler_dropout, name="pooler_dropout")(first, train=train)
        pooled = POOLERS[self.pooler](
            Dense(self.hidden_size, dtype=self.dtype, kernel_init=kernel_init, name="pooler")(first)
        )
        rate = self.dropout if self.classifier_dropout is None else self.classifier_dropout
        pooled = Dropout(rate)(pooled, train=train)
        return Dense(self.num_classes, dtype=self.dtype, kernel_init=kernel_init, name="classifier")(pooled)
