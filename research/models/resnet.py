"""ResNets (He et al. 2015), v1.5: a bottleneck's stride is on its 3×3 convolution."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

# Weights for a network of ReLUs: normal, variance 2 / fan-out (He et al. 2015, "Delving deep", section 2.2).
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    features: int
    stride: int
    conv: Callable[..., Any]
    norm: Callable[..., Any]

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array) -> jax.Array:
        """x: [B, H, W, C]; real: bool [B, 1, 1, 1] -> [B, H/stride, W/stride, features]."""
        y = self.conv(self.features, (3, 3), strides=self.stride, padding=1, name="conv_1")(x)
        y = nn.relu(self.norm(name="norm_1")(y, mask=real))
        y = self.conv(self.features, (3, 3), padding=1, name="conv_2")(y)
        y = self.norm(name="norm_2", scale_init=nn.initializers.zeros)(y, mask=real)
        return nn.relu(_shortcut(self, x, real, y.shape) + y)


class BottleneckBlock(nn.Module):
    """A 1×1, a 3×3 and a 1×1 convolution that widens by four, and a shortcut."""

    features: int
    stride: int
    conv: Callable[..., Any]
    norm: Callable[..., Any]

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array) -> jax.Array:
        """x: [B, H, W, C]; real: bool [B, 1, 1, 1] -> [B, H/stride, W/stride, 4·features]."""
        y = self.conv(self.features, (1, 1), padding=0, name="conv_1")(x)
        y = nn.relu(self.norm(name="norm_1")(y, mask=real))
        y = self.conv(self.features, (3, 3), strides=self.stride, padding=1, name="conv_2")(y)
        y = nn.relu(self.norm(name="norm_2")(y, mask=real))
        y = self.conv(4 * self.features, (1, 1), padding=0, name="conv_3")(y)
        y = self.norm(name="norm_3", scale_init=nn.initializers.zeros)(y, mask=real)
        return nn.relu(_shortcut(self, x, real, y.shape) + y)


BLOCKS: dict[str, type[nn.Module]] = {"basic": BasicBlock, "bottleneck": BottleneckBlock}


def _shortcut(block: BasicBlock | BottleneckBlock, x: jax.Array, real: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The input itself, or projected where the block changes its shape (option B of section 3.3)."""
    if x.shape == shape:
        return x
    x = block.conv(shape[-1], (1, 1), strides=block.stride, padding=0, name="conv_shortcut")(x)
    return block.norm(name="norm_shortcut")(x, mask=real)


class ResNet(nn.Module):
    """Stages of residual blocks, global average pooling and a linear classifier.

    The last normalization of a block starts with scale 0, so that a block starts as its shortcut (Goyal et al. 2017,
    section 5.1). Batch statistics are those of the whole batch, padding rows left out.

    Attributes:
      block: "basic" or "bottleneck".
      stage_sizes: blocks a stage; each stage after the first halves the resolution and doubles the width.
      width: features of the first stage.
      stem: "imagenet" (7×7 stride 2, 3×3 max-pool stride 2) or "small" (3×3 stride 1).
    """

    num_classes: int
    block: str
    stage_sizes: tuple[int, ...]
    width: int
    stem: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, batch: dict[str, jax.Array], *, train: bool) -> jax.Array:
        """Reads images, float [B, H, W, C], and weight [B] -> logits [B, num_classes]."""
        if self.block not in BLOCKS:
            raise ValueError(f"model.block is {self.block!r}; known: {', '.join(BLOCKS)}")
        if self.stem not in ("imagenet", "small"):
            raise ValueError(f"model.stem is {self.stem!r}; known: imagenet, small")
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype, kernel_init=he_normal)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        real = jnp.reshape(batch["weight"] > 0, (-1, 1, 1, 1))
        x = batch["images"].astype(self.dtype)
        if self.stem == "imagenet":
            x = conv(self.width, (7, 7), strides=2, padding=3, name="conv_stem")(x)
            x = nn.relu(norm(name="norm_stem")(x, mask=real))
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        else:
            x = conv(self.width, (3, 3), padding=1, name="conv_stem")(x)
            x = nn.relu(norm(name="norm_stem")(x, mask=real))
        for i, size in enumerate(self.stage_sizes):
            for j in range(size):
                stride = 2 if i > 0 and j == 0 else 1
                x = BLOCKS[self.block](self.width * 2**i, stride, conv, norm, name=f"stage_{i}_block_{j}")(x, real)
        x = jnp.mean(x.astype(jnp.float32), axis=(1, 2))
        return nn.Dense(self.num_classes, dtype=self.dtype, name="classifier")(x)
