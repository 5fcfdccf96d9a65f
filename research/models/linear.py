"""Linear and logistic regression: one affine map, on dense features or on a sparse bag of them, or on none."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

zeros = nn.initializers.zeros


class Constant(nn.Module):
    """The same logits for every example, from zeros: fitted, the logarithms of the classes' frequencies."""

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> jax.Array:
        """Reads of weight [...] the shape alone -> logits [..., num_classes]."""
        bias = self.param("bias", zeros, (self.num_classes,)).astype(self.dtype)
        return jnp.broadcast_to(bias, (*batch["weight"].shape, self.num_classes))


class LinearRegression(nn.Module):
    """ŷ = x·w + b, from w = 0 and b = 0."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> jax.Array:
        """Reads features, float [B, D] -> predictions [B]."""
        return nn.Dense(1, dtype=self.dtype, kernel_init=zeros, name="linear")(batch["features"])[:, 0]


class LogisticRegression(nn.Module):
    """Logits x·W + b over the classes, from W = 0 and b = 0; the task's softmax makes probabilities of them."""

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> jax.Array:
        """Reads features, float [B, D] -> logits [B, num_classes]."""
        return nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=zeros, name="linear")(batch["features"])


class SparseLogisticRegression(nn.Module):
    """Logistic regression on sparse features: a row names its K non-zero ones, so only their weights are read."""

    num_classes: int
    num_features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> jax.Array:
        """Reads ids, int [B, K] below num_features, and values, float [B, K] -> logits [B, num_classes]."""
        shape = (self.num_features, self.num_classes)
        kernel = self.param("kernel", zeros, shape).astype(self.dtype)
        bias = self.param("bias", zeros, (self.num_classes,)).astype(self.dtype)
        logits = jnp.einsum("bk,bkc->bc", batch["values"].astype(self.dtype), kernel[batch["ids"]])
        return logits + bias[None, :]
