"""Normalization of stored images for the input of a network."""

from typing import Any

import jax
import jax.numpy as jnp


def normalized(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...], dtype: Any) -> jax.Array:
    """(images − mean) / std, computed in at least float32, as `dtype`: uint8 or float [B, H, W, C] -> [B, H, W, C].

    `mean` and `std` are in the units of `images`, 0 to 255 for uint8: one number per channel, or one for all. Copying
    uint8 images to the device takes a quarter of the bytes of normalized ones.

    Raises ValueError for another number of values, and for a `std` that is not above 0.
    """
    channels = images.shape[-1]
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise ValueError(f"model.{name} has {len(values)} values {tuple(values)}; images have {channels} channels")
    if min(std) <= 0:
        raise ValueError(f"model.std is {tuple(std)}; it must be above 0")
    wide = jnp.promote_types(dtype, jnp.float32)
    shift, scale = (jnp.asarray(values, wide).reshape(1, 1, 1, -1) for values in (mean, std))
    return ((images.astype(wide) - shift) / scale).astype(dtype)
