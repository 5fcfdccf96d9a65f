import jax
import jax.numpy as jnp
import numpy as np

from research.models.linear import Constant, LinearRegression, LogisticRegression, SparseLogisticRegression


def test_linear_is_an_affine_map(rng):
    x, w = rng.standard_normal((5, 3)).astype(np.float32), rng.standard_normal((3, 1)).astype(np.float32)
    params = {"linear": {"kernel": jnp.asarray(w), "bias": jnp.array([0.5])}}
    y = LinearRegression().apply({"params": params}, {"features": jnp.asarray(x)}, train=False)
    np.testing.assert_allclose(y, (x @ w)[:, 0] + 0.5, rtol=1e-5)


def test_it_starts_at_zero(rng):
    x = {"features": jnp.asarray(rng.standard_normal((5, 3)), jnp.float32)}
    for module in (LinearRegression(), LogisticRegression(num_classes=4)):
        outputs, _ = module.init_with_output(jax.random.key(0), x, train=False)
        np.testing.assert_array_equal(outputs, 0.0)


def test_a_constant_is_the_same_for_all():
    bias = jnp.array([0.5, -1.0, 2.0])
    for shape in ((4,), (2, 3)):
        logits = Constant(num_classes=3).apply({"params": {"bias": bias}}, {"weight": jnp.ones(shape)}, train=False)
        assert logits.shape == (*shape, 3)
        np.testing.assert_array_equal(logits, np.broadcast_to(bias, logits.shape))


def test_sparse_logistic_is_dense_logistic(rng):
    dense = np.zeros((4, 10), np.float32)
    ids = np.array([[1, 3, 9], [2, 0, 0], [5, 6, 0], [0, 0, 0]])
    values = np.array([[0.5, 1.0, -2.0], [3.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    for row in range(4):
        np.add.at(dense[row], ids[row], values[row])
    kernel, bias = jnp.asarray(rng.standard_normal((10, 2)), jnp.float32), jnp.array([0.1, -0.2])
    sparse = SparseLogisticRegression(num_classes=2, num_features=10).apply(
        {"params": {"kernel": kernel, "bias": bias}},
        {"ids": jnp.asarray(ids), "values": jnp.asarray(values)},
        train=False,
    )
    expected = LogisticRegression(num_classes=2).apply(
        {"params": {"linear": {"kernel": kernel, "bias": bias}}},
        {"features": jnp.asarray(dense)},
        train=False,
    )
    np.testing.assert_allclose(sparse, expected, rtol=1e-5, atol=1e-6)
