"""BERT's masked language model (Devlin et al. 2018, section 3.1): predicts the tokens that were masked."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from research.models.layers import Dense, affine, gelu
from research.models.transformer import EncoderSizes


class BertMaskedLM(EncoderSizes, kw_only=True):
    """An encoder and, at each masked position, a dense layer, gelu, LayerNorm and a projection onto the vocabulary.

    The projection shares the weights of the token embedding (Press & Wolf 2017); only its bias is separate. Positions
    that are not masked are left out before the projection, the most expensive product of a small encoder.

    The encoder's parameters have the same names as in `research.models.bert.BertClassifier`, so that a classifier can
    start from them.
    """

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> jax.Array:
        """Reads the encoder's inputs and masked_positions, int [B, M] -> logits [B, M, vocab_size]."""
        encoder = self.encoder()
        hidden = encoder(batch, train=train)
        hidden = jnp.take_along_axis(hidden, batch["masked_positions"][:, :, None], axis=1)  # [B, M, D]
        hidden = gelu(Dense(self.hidden_size, dtype=self.dtype, kernel_init=self.kernel_init, name="transform")(hidden))
        hidden = nn.LayerNorm(epsilon=self.layer_norm_eps, dtype=self.dtype, name="transform_norm")(hidden)
        table = encoder.variables["params"]["token_embedding"]["embedding"]  # [vocab_size, D]
        bias = self.param("output_bias", nn.initializers.zeros_init(), (self.vocab_size,))
        return affine(hidden, table, bias, True)
