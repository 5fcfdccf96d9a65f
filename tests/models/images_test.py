import jax.numpy as jnp
import numpy as np
import pytest

from research.models.images import normalized


def test_bytes_and_floats(rng):
    images = rng.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    mean, std = (10.0, 100.0, 200.0), (1.0, 50.0, 70.0)
    expected = (images - np.asarray(mean)) / np.asarray(std)
    for array in (jnp.asarray(images), jnp.asarray(images, jnp.float32)):
        found = normalized(array, mean, std, jnp.float32)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(normalized(images, (128.0,), (64.0,), jnp.float32), (images - 128.0) / 64.0, rtol=1e-6)


def test_bfloat16_is_rounded_last():
    """bfloat16 cannot represent 200.5, but (200.5 − 200) / 1."""
    image = jnp.full((1, 1, 1, 1), 200.5)
    found = normalized(image, (200.0,), (1.0,), jnp.bfloat16)
    assert found.dtype == jnp.bfloat16
    assert float(found[0, 0, 0, 0]) == 0.5


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.0, 0.0), (1.0,), r"model.mean has 2 values \(0.0, 0.0\); images have 3 channels"),
        ((0.0,), (1.0,) * 4, r"model.std has 4 values .*; images have 3 channels"),
        ((0.0,), (0.0,), r"model.std is \(0.0,\); it must be above 0"),
    ],
)
def test_invalid_settings_are_named(mean, std, message):
    with pytest.raises(ValueError, match=message):
        normalized(jnp.zeros((1, 2, 2, 3)), mean, std, jnp.float32)
