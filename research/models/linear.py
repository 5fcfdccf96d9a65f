"""Linear and logistic regression: one affine map of dense features, of a sparse bag of features, or of none."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from research.base.ranges import COUNT, Range
from research.models.layers import MeshRules

zeros = nn.initializers.zeros


class Constant(nn.Module):
    """The same logits for every example, initially zeros; once fitted, the log frequencies of the classes."""

    RANGES: ClassVar[dict[str, Range]] = {"num_classes": COUNT}

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> jax.Array:
        """Reads only the shape of weight [...] -> logits [..., num_classes]."""
        bias = self.param("bias", zeros, (self.num_classes,)).astype(self.dtype)
        return jnp.broadcast_to(bias, (*batch["weight"].shape, self.num_classes))


# The features of a linear model are split over both axes: its outputs are few.
_BY_FEATURE: MeshRules = (("kernel", (("fsdp", "tensor"),)),)


class LinearRegression(nn.Module):
    """Linear regression ŷ = x·w + b, starting from w = 0 and b = 0."""

    MESH_RULES: ClassVar[MeshRules] = _BY_FEATURE

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> jax.Array:
        """Reads features, float [B, D] -> predictions [B]."""
        return nn.Dense(1, dtype=self.dtype, kernel_init=zeros, name="linear")(batch["features"])[:, 0]


class LogisticRegression(nn.Module):
    """Logits x·W + b over the classes, starting from W = 0 and b = 0; the task converts them to probabilities.

    Two classes have one column of weights, that of the second; the first's logit is 0, so the softmax is the sigmoid.
    """

    RANGES: ClassVar[dict[str, Range]] = {"num_classes": COUNT}
    MESH_RULES: ClassVar[MeshRules] = _BY_FEATURE

    num_classes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> jax.Array:
        """Reads features, float [B, D] -> logits [B, num_classes]."""
        columns = _columns(self.num_classes)
        outputs = nn.Dense(columns, dtype=self.dtype, kernel_init=zeros, name="linear")(batch["features"])
        return _logits(outputs, self.num_classes)


class SparseLogisticRegression(nn.Module):
    """Logistic regression on sparse features: a bag lists the non-zero ones, so only their weights are read.

    Two classes have one column of weights, for the logit of the second; the first's is 0.
    """

    # Lets a solver fit only the weights that are read (research/solvers/table.py).
    table: ClassVar[tuple[str, str, str]] = ("kernel", "ids", "num_features")

    RANGES: ClassVar[dict[str, Range]] = {"num_classes": COUNT, "num_features": COUNT}
    MESH_RULES: ClassVar[MeshRules] = _BY_FEATURE

    num_classes: int
    num_features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> jax.Array:
        """Reads bags packed in rows -> logits [R, E, num_classes], float32; empty places get the bias.

        Reads ids, int [R, L] below num_features; their values, float [R, L] (0 in padding); segments, int [R, L], the
        number of the bag in its row, 1 to E; and the shape of weight [R, E]. Weights are read in `dtype` and summed in
        float32.
        """
        columns = _columns(self.num_classes)
        kernel = self.param("kernel", zeros, (self.num_features, columns)).astype(self.dtype)
        bias = self.param("bias", zeros, (columns,))
        terms = batch["values"][:, :, None] * kernel[batch["ids"]]  # [R, L, C]
        bags = batch["weight"].shape[1]

        # Row by row, so that rows on several devices are not moved.
        def sums(terms: jax.Array, segments: jax.Array) -> jax.Array:
            return jax.ops.segment_sum(terms, segments, bags + 1)[1:]

        outputs = jax.vmap(sums)(terms, batch["segments"])
        return _logits(outputs + bias[None, None, :], self.num_classes)


def _columns(num_classes: int) -> int:
    return 1 if num_classes == 2 else num_classes


def _logits(outputs: jax.Array, num_classes: int) -> jax.Array:
    """The logits [..., C] from the outputs of the columns."""
    return jnp.pad(outputs, (*[(0, 0)] * (outputs.ndim - 1), (num_classes - outputs.shape[-1], 0)))
