import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.cnn import CNN


def _model(**changes):
    return CNN(**{"num_classes": 10, "padding": "VALID", "dropout": 0.5, "mean": (0.0,), "std": (1.0,), **changes})


def test_parameters_for_digits_of_28x28():
    """(9·1 + 1)·32 + (9·32 + 1)·64 + (5·5·64 + 1)·64 + 65·10: without padding 28 -> 26 -> 13 -> 11 -> 5."""
    batch = {"images": jnp.zeros((1, 28, 28, 1), jnp.uint8)}
    params = jax.eval_shape(lambda: _model().init(jax.random.key(0), batch, train=False))["params"]
    assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params)) == 121_930


def test_matches_numpy(rng):
    """Measured: differences of 2e-6."""
    images = rng.integers(0, 256, (2, 12, 12, 1), dtype=np.uint8)
    batch = {"images": jnp.asarray(images)}
    module = _model(mean=(128.0,), std=(64.0,))
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), batch, train=False))["params"]
    p = jax.tree.map(lambda x: rng.normal(0.02, 0.1, x.shape).astype(np.float32), shapes)

    def conv(x, layer):
        windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))  # [B, H, W, C, 3, 3]
        return np.einsum("bhwcij,ijco->bhwo", windows, layer["kernel"]) + layer["bias"]

    def pool(x):
        x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
        return x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).max(axis=(2, 4))

    x = (images.astype(np.float32) - 128) / 64
    for name in ("conv_0", "conv_1"):
        x = pool(np.maximum(conv(x, p[name]), 0))
    assert x.shape == (2, 1, 1, 64)
    x = np.maximum(x.reshape(2, -1) @ p["dense"]["kernel"] + p["dense"]["bias"], 0)
    expected = x @ p["classifier"]["kernel"] + p["classifier"]["bias"]

    def logits(train):
        apply = jax.jit(module.apply, static_argnames="train")
        return apply({"params": p}, batch, train=train, rngs={"dropout": jax.random.key(0)})

    np.testing.assert_allclose(logits(train=False), expected, atol=1e-5)
    assert np.abs(logits(train=True) - expected).max() > 1e-2


def test_too_small_an_image_is_an_error():
    with pytest.raises(
        ValueError, match=r"images of 8×8 are too small for model 'cnn' with padding VALID: at least 10×10"
    ):
        _model().init(jax.random.key(0), {"images": jnp.zeros((1, 8, 8, 1))}, train=False)


def test_padding_allows_smaller_images():
    batch = {"images": jnp.zeros((2, 8, 8, 1), jnp.uint8)}
    params = jax.eval_shape(lambda: _model(padding="SAME").init(jax.random.key(0), batch, train=False))["params"]
    assert params["dense"]["kernel"].shape == (2 * 2 * 64, 64)
    with pytest.raises(ValueError, match=r"model\.padding is 'FULL'; known: VALID, SAME"):
        jax.eval_shape(lambda: _model(padding="FULL").init(jax.random.key(0), batch, train=False))
