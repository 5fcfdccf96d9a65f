# mypy: disable-error-code="arg-type"
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.mlp import MLP


def test_matches_numpy(rng):
    module = MLP(num_classes=3, hidden_sizes=(8, 5), dropout=0.5)
    x = rng.standard_normal((4, 6)).astype(np.float32)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), {"features": x}, train=False))["params"]
    p, expected = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), shapes), x
    for name in ("dense_0", "dense_1"):
        expected = np.maximum(expected @ p[name]["kernel"] + p[name]["bias"], 0)
    expected = expected @ p["classifier"]["kernel"] + p["classifier"]["bias"]
    logits = module.apply({"params": p}, {"features": x}, train=False)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_images_are_read_as_normalized_pixels(rng):
    images = rng.integers(0, 256, (4, 3, 2, 2), dtype=np.uint8)
    features = ((images.astype(np.float32) - [[[[10, 20]]]]) / [[[[2, 3]]]]).reshape(4, -1).astype(np.float32)
    plain = MLP(num_classes=3, hidden_sizes=(8,), dropout=0.0)
    variables = plain.init(jax.random.key(0), {"features": features}, train=False)
    reader = MLP(num_classes=3, hidden_sizes=(8,), dropout=0.0, mean=(10, 20), std=(2, 3))
    logits = reader.apply(variables, {"images": images}, train=False)
    # Rounding only: the largest difference seen was 6e-7.
    np.testing.assert_allclose(
        logits, plain.apply(variables, {"features": features}, train=False), rtol=1e-5, atol=1e-4
    )


def test_dropout_is_active_in_training_only(rng):
    batch = {"features": jnp.asarray(rng.standard_normal((4, 6)), jnp.float32)}
    module = MLP(num_classes=3, hidden_sizes=(8,), dropout=0.5)
    variables = module.init(jax.random.key(0), batch, train=False)
    rngs = {"dropout": jax.random.key(1)}
    evaluated = module.apply(variables, batch, train=False, rngs=rngs)
    assert not np.array_equal(module.apply(variables, batch, train=True, rngs=rngs), evaluated)
    plain = MLP(num_classes=3, hidden_sizes=(8,), dropout=0.0)
    np.testing.assert_array_equal(plain.apply(variables, batch, train=True, rngs=rngs), evaluated)


def test_without_hidden_layers_is_logistic_regression():
    variables = jax.eval_shape(
        lambda: MLP(num_classes=3, hidden_sizes=(), dropout=0.0).init(
            jax.random.key(0), {"features": jnp.zeros((1, 6))}, train=False
        )
    )
    assert jax.tree.map(lambda x: x.shape, variables["params"]) == {"classifier": {"kernel": (6, 3), "bias": (3,)}}


def test_layers_need_at_least_one_unit():
    module = MLP(num_classes=3, hidden_sizes=(4, 0), dropout=0.0)
    with pytest.raises(ValueError, match=r"model.hidden_sizes is \(4, 0\); each must be at least 1"):
        jax.eval_shape(lambda: module.init(jax.random.key(0), {"features": jnp.ones((1, 2))}, train=False))
