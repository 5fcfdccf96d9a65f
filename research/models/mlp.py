"""A multilayer perceptron."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from research.base.ranges import ANY, COUNT, POSITIVE, RATE, Range
from research.models.images import normalized
from research.models.layers import Dense, Dropout, MeshRules

# For ReLUs: variance 2 / fan-in (He et al. 2015, "Delving deep", section 2.2). The classifier has no ReLU after it.
he_normal, lecun_normal = nn.initializers.he_normal(), nn.initializers.lecun_normal()


class MLP(nn.Module):
    """Dense layers of `hidden_sizes`, each with a ReLU and dropout, and a linear classifier.

    If `mean` and `std` are given, the model reads images, normalized by them, instead of features: see `normalized`.
    The outputs are `output_mean` + `output_std` · (the classifier's): a regression's are of the scale of its labels.
    """

    RANGES: ClassVar[dict[str, Range]] = {
        "num_classes": COUNT,
        "hidden_sizes": dataclasses.replace(COUNT, may_be_empty=True),
        "dropout": RATE,
        "mean": dataclasses.replace(ANY, may_be_empty=True),
        "std": dataclasses.replace(POSITIVE, may_be_empty=True),
        "output_mean": ANY,
        "output_std": POSITIVE,
    }
    MESH_RULES: ClassVar[MeshRules] = (("(dense_[0-9]+|classifier)/kernel", (("fsdp", "tensor"),)),)

    num_classes: int
    hidden_sizes: tuple[int, ...]
    dropout: float
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    output_mean: float = 0.0
    output_std: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> jax.Array:
        """Reads features, float [B, D], or images, uint8 or float [B, H, W, C] -> logits [B, num_classes]."""
        if any(size < 1 for size in self.hidden_sizes):
            raise ValueError(f"model.hidden_sizes is {tuple(self.hidden_sizes)}; each must be at least 1")
        if self.mean or self.std:
            images = normalized(batch["images"], self.mean, self.std, self.dtype)
            x = images.reshape(len(images), -1)
        else:
            x = batch["features"].astype(self.dtype)
        for i, size in enumerate(self.hidden_sizes):
            x = nn.relu(Dense(size, dtype=self.dtype, kernel_init=he_normal, name=f"dense_{i}")(x))
            x = Dropout(self.dropout)(x, train=train)
        x = Dense(self.num_classes, dtype=self.dtype, kernel_init=lecun_normal, name="classifier")(x)
        if (self.output_mean, self.output_std) == (0.0, 1.0):
            return x
        return self.output_mean + self.output_std * x.astype(jnp.promote_types(self.dtype, jnp.float32))
