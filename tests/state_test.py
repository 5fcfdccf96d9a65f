import hashlib

import jax.numpy as jnp
import numpy as np

from research.core.state import param_count, params_sha256


def test_hash_covers_sorted_names_types_shapes_and_bytes():
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(2, np.float32)
    expected = hashlib.sha256(
        b"layer/bias float32 (2,)\n" + b.tobytes() + b"layer/kernel float32 (2, 3)\n" + a.tobytes()
    ).hexdigest()
    assert params_sha256({"layer": {"kernel": jnp.asarray(a), "bias": jnp.asarray(b)}}) == expected


def test_hash_depends_on_every_bit():
    a = np.ones(4, np.float32)
    b = a.copy()
    b[2] = np.nextafter(np.float32(1), np.float32(2))
    assert params_sha256({"w": a}) != params_sha256({"w": b})


def test_param_count():
    assert param_count({"a": jnp.zeros((3, 4)), "b": jnp.zeros(())}) == 13
