"""A small convolutional network in the manner of LeNet (LeCun et al. 1998), for digits of 28×28."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from research.base.ranges import ANY, COUNT, POSITIVE, RATE, Range
from research.models.images import normalized
from research.models.layers import Dense, Dropout, MeshRules

he_normal, lecun_normal = nn.initializers.he_normal(), nn.initializers.lecun_normal()


class CNN(nn.Module):
    """Two 3×3 convolutions of 32 and 64 channels, each with a ReLU and a 2×2 max-pool; a dense layer of 64 with a ReLU
    and dropout; a linear classifier.

    `padding` of the convolutions: "VALID", none, or "SAME", for images smaller than 10×10. `mean` and `std` refer to
    the stored images; see `normalized`.
    """

    RANGES: ClassVar[dict[str, Range]] = {"num_classes": COUNT, "dropout": RATE, "mean": ANY, "std": POSITIVE}
    MESH_RULES: ClassVar[MeshRules] = (
        (r"conv_\d+/kernel", (None, None, None, ("fsdp", "tensor"))),
        ("(dense|classifier)/kernel", (("fsdp", "tensor"),)),
    )

    num_classes: int
    padding: str
    dropout: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> jax.Array:
        """Reads images, uint8 or float [B, H, W, C] -> logits [B, num_classes]."""
        if self.padding not in ("VALID", "SAME"):
            raise ValueError(f"model.padding is {self.padding!r}; known: VALID, SAME")
        x = normalized(batch["images"], self.mean, self.std, self.dtype)
        smallest = 10 if self.padding == "VALID" else 4
        if min(x.shape[1:3]) < smallest:
            raise ValueError(
                f"images of {x.shape[1]}×{x.shape[2]} are too small for model 'cnn' with padding {self.padding}: "
                f"at least {smallest}×{smallest}"
            )
        for i, features in enumerate((32, 64)):
            conv = nn.Conv(
                features, (3, 3), padding=self.padding, dtype=self.dtype, kernel_init=he_normal, name=f"conv_{i}"
            )
            x = nn.max_pool(nn.relu(conv(x)), (2, 2), strides=(2, 2))
        x = x.reshape(len(x), -1)
        x = nn.relu(Dense(64, dtype=self.dtype, kernel_init=he_normal, name="dense")(x))
        x = Dropout(self.dropout)(x, train=train)
        return Dense(self.num_classes, dtype=self.dtype, kernel_init=lecun_normal, name="classifier")(x)
