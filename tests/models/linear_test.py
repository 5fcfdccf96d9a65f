# mypy: disable-error-code="arg-type, call-overload, operator"
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.tasks import Classification
from research.data.examples import BagExamples, Ragged
from research.data.pipeline import Stream, make_batch, padded
from research.devices.sharding import make_mesh, put_batch, replicated
from research.models.linear import Constant, LinearRegression, LogisticRegression, SparseLogisticRegression


def test_linear_is_an_affine_map(rng):
    x, w = rng.standard_normal((5, 3)).astype(np.float32), rng.standard_normal((3, 1)).astype(np.float32)
    params = {"linear": {"kernel": jnp.asarray(w), "bias": jnp.array([0.5])}}
    y = LinearRegression().apply({"params": params}, {"features": jnp.asarray(x)}, train=False)
    np.testing.assert_allclose(y, (x @ w)[:, 0] + 0.5, rtol=1e-5)


def test_parameters_start_at_zero(rng):
    x = {"features": jnp.asarray(rng.standard_normal((5, 3)), jnp.float32)}
    for module in (LinearRegression(), LogisticRegression(num_classes=4)):
        outputs, _ = module.init_with_output(jax.random.key(0), x, train=False)
        np.testing.assert_array_equal(outputs, 0.0)


def test_constant_model_ignores_the_input():
    bias = jnp.array([0.5, -1.0, 2.0])
    for shape in ((4,), (2, 3)):
        logits = Constant(num_classes=3).apply({"params": {"bias": bias}}, {"weight": jnp.ones(shape)}, train=False)
        assert logits.shape == (*shape, 3)
        np.testing.assert_array_equal(logits, np.broadcast_to(bias, logits.shape))


def _bags(rng, lengths, num_features):
    """Random bags, some with repeated terms -> examples, and their features: [N, num_features]."""
    ids = [rng.integers(0, num_features, length) for length in lengths]
    values = [rng.standard_normal(length).astype(np.float32) for length in lengths]
    dense = np.zeros((len(lengths), num_features), np.float32)
    for row, (where, what) in enumerate(zip(ids, values, strict=True)):
        np.add.at(dense[row], where, what)
    labels = rng.integers(0, 2, len(lengths)).astype(np.int32)
    return BagExamples(Ragged.of(ids, np.int32), Ragged.of(values, np.float32), labels, (8, 16), 16), dense


@pytest.mark.parametrize("num_classes", [2, *(pytest.param(n, marks=pytest.mark.extended) for n in (1, 3))])
def test_packed_and_unpacked_bags_match_a_dense_product(num_classes, rng):
    """Logits, and the gradient of a mean over the examples; two classes have one column, and zeros for the other."""
    lengths = [16, 1, 7, 8, 3, 16, 5, 5, 2, 1, 1, 12]  # full rows, and rows with several bags
    examples, dense = _bags(rng, lengths, 20)
    columns = 1 if num_classes == 2 else num_classes
    params = {
        "kernel": jnp.asarray(rng.standard_normal((20, columns)), jnp.float32),
        "bias": jnp.asarray(rng.standard_normal(columns), jnp.float32),
    }
    module = SparseLogisticRegression(num_classes=num_classes, num_features=20)
    goal = jnp.asarray(rng.standard_normal((len(lengths), num_classes)), jnp.float32)

    def of_dense(params):
        logits = jnp.asarray(dense) @ params["kernel"] + params["bias"][None, :]
        logits = jnp.concatenate([jnp.zeros_like(logits), logits], axis=1) if num_classes == 2 else logits
        return jnp.sum((logits - goal) ** 2) / len(lengths), logits

    (_, expected), gradient = jax.jit(jax.value_and_grad(of_dense, has_aux=True))(params)
    for arrange in (Stream.packed, Stream.unpacked):
        stream = arrange(examples)
        rows = padded(stream.rows, 4)
        batch = make_batch(stream.examples, rows)

        def of_bags(params, rows=rows, batch=batch):
            logits = module.apply({"params": params}, batch, train=False)
            error = (logits - goal[jnp.maximum(rows, 0)]) ** 2 * batch["weight"][:, :, None]
            return jnp.sum(error) / jnp.sum(batch["weight"]), logits

        (_, logits), found = jax.jit(jax.value_and_grad(of_bags, has_aux=True))(params)
        logits, expected = np.asarray(logits), np.asarray(expected)
        assert logits.shape == (*rows.shape, num_classes)
        pairs = [(logits[rows >= 0], expected[rows[rows >= 0]]), *((found[name], gradient[name]) for name in found)]
        for mine, reference in pairs:
            # The order of summation differs: the largest difference seen was 2e-7 of the largest value.
            np.testing.assert_allclose(mine, reference, rtol=0, atol=2e-6 * np.abs(reference).max())


def test_bags_in_bfloat16_are_summed_in_float32(rng):
    """Only weights are rounded, by at most 2**-9 relative; a sum in bfloat16 would stop growing at 256."""
    module = SparseLogisticRegression(num_classes=3, num_features=20, dtype=jnp.bfloat16)
    batch = {
        "ids": jnp.zeros((1, 4096), jnp.int32),
        "values": jnp.ones((1, 4096)),
        "segments": jnp.ones((1, 4096), jnp.int32),
        "weight": jnp.ones((1, 1)),
    }
    params = {"kernel": jnp.full((20, 3), 1.01), "bias": jnp.zeros(3)}
    logits = module.apply({"params": params}, batch, train=False)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, 4096 * 1.01, rtol=2**-8)


def test_rows_of_bags_are_not_transferred_between_devices(rng):
    """Only gradients and the mean are communicated, nothing of the batch."""
    stream = Stream.packed(_bags(rng, [5] * 48, 20)[0])
    mesh = make_mesh()
    batch = put_batch(make_batch(stream.examples, padded(stream.rows, 8)), mesh)
    module = SparseLogisticRegression(num_classes=3, num_features=20)
    params = jax.device_put({"kernel": jnp.zeros((20, 3)), "bias": jnp.zeros(3)}, replicated(mesh))

    def loss(params, batch):
        scores = Classification().scores(module.apply({"params": params}, batch, train=True), batch)["loss"]
        return scores.total / scores.weight

    program = jax.jit(jax.grad(loss)).lower(params, batch).compile().as_text()
    assert "all-reduce" in program
    assert "all-gather" not in program
    assert "all-to-all" not in program


def test_two_classes_have_one_column_whose_softmax_is_the_sigmoid(rng):
    x, w = rng.standard_normal((5, 3)).astype(np.float32), rng.standard_normal((3, 1)).astype(np.float32)
    params = {"linear": {"kernel": jnp.asarray(w), "bias": jnp.array([0.5])}}
    logits = LogisticRegression(num_classes=2).apply({"params": params}, {"features": jnp.asarray(x)}, train=False)
    np.testing.assert_array_equal(logits[:, 0], 0)
    np.testing.assert_allclose(jax.nn.softmax(logits)[:, 1], 1 / (1 + np.exp(-x @ w - 0.5))[:, 0], rtol=1e-5)
