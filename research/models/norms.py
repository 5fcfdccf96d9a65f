"""Normalization layers of convolutional networks, by the name in a config's `model.norm`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

EPSILON = 1e-5
MOMENTUM = 0.9  # decay of the running statistics; torch's momentum is 1 − 0.9


class BatchNorm(nn.Module):
    """Normalizes each channel over the batch's real rows and their pixels (Ioffe & Szegedy 2015, Algorithm 1).

    Differs from `nn.BatchNorm` in three ways. The running variance is the unbiased estimate, n / (n − 1) times that of
    the batch, as in the paper (Algorithm 2, step 10) and in torch; Flax keeps the batch variance. Padding rows are
    counted once, where Flax's `mask` sums a mask of the input's size. And training on a batch of padding only gives
    zeros, where an empty mean would be NaN.

    Statistics cover the whole batch across devices, in at least float32.
    """

    dtype: Any
    scale_init: Any = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array, *, train: bool) -> jax.Array:
        """x: [B, H, W, C]; real: bool [B], the rows that count -> [B, H, W, C] of `dtype`."""
        channels = x.shape[-1:]
        scale = self.param("scale", self.scale_init, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        x = x.astype(jnp.promote_types(self.dtype, jnp.float32))
        if train:
            count = jnp.sum(real) * (x.shape[1] * x.shape[2])
            visible = jnp.where(real[:, None, None, None], x, 0)
            # Both sums in one pass over x. Rounding may make a variance of 0 slightly negative.
            mean = jnp.sum(visible, axis=(0, 1, 2)) / jnp.maximum(count, 1)
            square = jnp.sum(visible * visible, axis=(0, 1, 2)) / jnp.maximum(count, 1)
            var = jnp.maximum(square - mean * mean, 0)
            if not self.is_initializing():
                unbiased = var * (count / jnp.maximum(count - 1, 1))
                running_mean.value = MOMENTUM * running_mean.value + (1 - MOMENTUM) * mean
                running_var.value = MOMENTUM * running_var.value + (1 - MOMENTUM) * unbiased
        else:
            mean, var = running_mean.value, running_var.value
        factor = jax.lax.rsqrt(var + EPSILON) * scale
        mean, factor, bias = (channel[None, None, None, :] for channel in (mean, factor, bias))
        return ((x - mean) * factor + bias).astype(self.dtype)


def batch_norm(x: jax.Array, real: jax.Array, *, train: bool, dtype: Any, name: str, scale_init: Any) -> jax.Array:
    """Applies `BatchNorm` as the submodule `name` of the calling module."""
    return BatchNorm(dtype, scale_init, name=name)(x, real, train=train)


def group_norm(x: jax.Array, real: jax.Array, *, train: bool, dtype: Any, name: str, scale_init: Any) -> jax.Array:
    """Normalizes groups of an image's channels (Wu & He 2018), independent of the batch; keeps no statistics.

    The number of groups is the largest, up to the paper's 32, that gives each at least two channels. One channel per
    group would be instance normalization, after which channel means carry no information about the image.
    """
    channels = x.shape[-1]
    groups = max((count for count in range(1, 33) if channels % count == 0 and count < channels), default=1)
    return nn.GroupNorm(groups, epsilon=EPSILON, dtype=dtype, scale_init=scale_init, name=name)(x)


NORMS: dict[str, Callable[..., jax.Array]] = {"batch": batch_norm, "group": group_norm}
