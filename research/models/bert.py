"""BERT (Devlin et al. 2018) for sentence classification, with RoBERTa and DistilBERT as settings of it."""

from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from research.base.ranges import COUNT, RATE, Range
from research.models.layers import Dense, Dropout
from research.models.transformer import EncoderSizes

POOLERS = {"tanh": nn.tanh, "relu": nn.relu}


class BertClassifier(EncoderSizes, kw_only=True):
    """An encoder, a pooler over each example's [CLS], dropout and a linear classifier (section 3.2).

    Attributes: those of `EncoderSizes`, and
      pooler: the activation after the pooler's linear map: tanh, or relu as in DistilBERT.
      pooler_dropout: dropout rate on the pooler's input, not 0 in RoBERTa.
      classifier_dropout: dropout rate on the classifier's input; None for `dropout`.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        **EncoderSizes.RANGES,
        "num_classes": COUNT,
        "pooler_dropout": RATE,
        "classifier_dropout": RATE,
    }

    num_classes: int
    pooler: str
    pooler_dropout: float
    classifier_dropout: float | None

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> jax.Array | dict[str, jax.Array]:
        """Reads the encoder's inputs and starts, int [B, E]: where each example's [CLS] is -> logits [B, E, C].

        For a batch with soft_hidden: {"logits", "hidden": the pooler's inputs [B, E, D], before dropout}.
        """
        if self.pooler not in POOLERS:
            raise ValueError(f"model.pooler is {self.pooler!r}; known: {', '.join(POOLERS)}")
        dense = partial(Dense, dtype=self.dtype, kernel_init=self.kernel_init)
        hidden = self.encoder()(batch, train=train)
        states = jnp.take_along_axis(hidden, batch["starts"][:, :, None], axis=1)  # [B, E, D]
        first = Dropout(self.pooler_dropout, name="pooler_dropout")(states, train=train)
        pooled = POOLERS[self.pooler](dense(self.hidden_size, name="pooler")(first))
        rate = self.dropout if self.classifier_dropout is None else self.classifier_dropout
        pooled = Dropout(rate)(pooled, train=train)
        logits = dense(self.num_classes, name="classifier")(pooled)
        return {"logits": logits, "hidden": states} if "soft_hidden" in batch else logits
