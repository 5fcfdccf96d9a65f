import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf

from research.data.examples import Ragged, TextExamples
from research.data.pipeline import Stream, make_batch
from research.models.bert import BertClassifier
from tests.models.random_params import random_params

SIZES: dict[str, Any] = {
    "num_classes": 3,
    "vocab_size": 50,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 4,
    "mlp_size": 32,
    "activation": "gelu",
    "max_positions": 12,
    "position_offset": 0,
    "type_vocab_size": 2,
    "pooler": "tanh",
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "pooler_dropout": 0.0,
    "classifier_dropout": None,
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.3,
}
MODULE = BertClassifier(**SIZES)


def _batch(rng, lengths, width=12):
    """One example per row, with its length."""
    real = np.arange(width)[None, :] < np.asarray(lengths)[:, None]
    batch = {
        "tokens": np.where(real, rng.integers(5, 50, real.shape), 0),
        "segments": real.astype(np.int32),
        "positions": np.where(real, np.arange(width)[None, :], 0),
        "type_ids": np.where(real, rng.integers(0, 2, real.shape), 0),
        "starts": np.zeros((len(lengths), 1), np.int32),
    }
    return {name: jnp.asarray(array, jnp.int32) for name, array in batch.items()}


@functools.cache
def _random_params():
    return random_params(MODULE, _batch(np.random.default_rng(0), [3]))


@pytest.fixture
def params():
    return _random_params()


@jax.jit
def _apply(params, batch, rngs=None):
    return MODULE.apply({"params": params}, batch, train=False, rngs=rngs)


def _reference(params, tokens, type_ids):
    """Devlin et al. 2018 for one example, in float64 numpy, one head at a time."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    encoder = p["encoder"]

    def norm(x, w):
        x = x - x.mean(axis=-1, keepdims=True)
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-12) * w["scale"] + w["bias"]

    x = encoder["token_embedding"]["embedding"][tokens]
    x = x + encoder["position_embedding"]["embedding"][: len(tokens)]
    x = x + encoder["type_embedding"]["embedding"][type_ids]
    x = norm(x, encoder["embedding_norm"])
    for i in range(SIZES["num_layers"]):
        layer = encoder[f"layer_{i}"]
        a = layer["attention"]
        y = 0
        width = SIZES["hidden_size"] // SIZES["num_heads"]
        for h in range(SIZES["num_heads"]):
            mine = slice(h * width, (h + 1) * width)
            q, k, v = (x @ a[n]["kernel"][:, mine] + a[n]["bias"][mine] for n in ("query", "key", "value"))
            weights = np.exp(q @ k.T / np.sqrt(q.shape[1]))
            y = y + weights / weights.sum(axis=1, keepdims=True) @ v @ a["output"]["kernel"][mine]
        x = norm(x + y + a["output"]["bias"], layer["attention_norm"])
        y = x @ layer["mlp_in"]["kernel"] + layer["mlp_in"]["bias"]
        y = y * 0.5 * (1 + erf(y / np.sqrt(2)))
        x = norm(x + y @ layer["mlp_out"]["kernel"] + layer["mlp_out"]["bias"], layer["mlp_norm"])
    pooled = np.tanh(x[0] @ p["pooler"]["kernel"] + p["pooler"]["bias"])
    return pooled @ p["classifier"]["kernel"] + p["classifier"]["bias"]


def test_matches_the_formula_of_the_paper(rng, params):
    """Measured: differences of at most 2e-6, for logits of size 1 to 5."""
    lengths = [12, 7, 1]
    batch = _batch(rng, lengths)
    logits = _apply(params, batch)
    assert logits.shape == (3, 1, 3)
    for row, length in enumerate(lengths):
        expected = _reference(params, *(np.asarray(batch[n][row, :length]) for n in ("tokens", "type_ids")))
        np.testing.assert_allclose(logits[row, 0], expected, atol=1e-5)


def test_padding_changes_nothing(rng, params):
    batch = _batch(rng, [5, 8])
    padding = batch["segments"] == 0
    noisy = {**batch, **{n: jnp.where(padding, 1, batch[n]) for n in ("tokens", "positions", "type_ids")}}
    np.testing.assert_array_equal(_apply(params, noisy), _apply(params, batch))


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=8), seed=st.integers(0, 2**16))
def test_packed_and_unpacked_agree(lengths, seed):
    """Logits and parameter gradients of the same texts in packed rows and in one row each.

    Measured over 300 draws: logits differ by at most 1.4e-6, gradients by 2e-5 of the largest entry of each (and by
    1e-6 for the key biases, whose gradients are 0 up to rounding).
    """
    rng = np.random.default_rng(seed)
    tokens = Ragged.of([rng.integers(5, 50, length) for length in lengths], np.int32)
    types = Ragged.of([rng.integers(0, 2, length) for length in lengths], np.int32)
    texts = TextExamples(tokens, types, rng.integers(0, 3, len(lengths)).astype(np.int32), (12,), 24)
    results = []
    for stream in (Stream.unpacked(texts), Stream.packed(texts)):
        members = np.pad(stream.rows, ((0, 8 - len(stream.rows)), (0, 8 - stream.rows.shape[1])), constant_values=-1)
        logits, grads = _logits_and_gradients(_random_params(), make_batch(stream.examples, members))
        by_example = np.zeros((len(lengths), 3))
        by_example[members[members >= 0]] = np.asarray(logits)[members >= 0]
        results.append((by_example, grads))
    (logits, grads), (packed_logits, packed_grads) = results
    np.testing.assert_allclose(packed_logits, logits, atol=1e-5)
    for packed, unpacked in zip(jax.tree.leaves(packed_grads), jax.tree.leaves(grads), strict=True):
        np.testing.assert_allclose(packed, unpacked, atol=1e-4 * np.abs(unpacked).max() + 1e-6)


@jax.jit
def _logits_and_gradients(params, batch):
    def loss(params):
        logits = MODULE.apply({"params": params}, batch, train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        return jnp.sum(losses * batch["weight"]) / jnp.sum(batch["weight"]), logits

    grads, logits = jax.grad(loss, has_aux=True)(params)
    return logits, grads


def test_examples_in_a_row_are_independent(rng, params):
    """Logits equal those of each example alone, and no gradient flows from one example to another."""
    alone = _batch(rng, [5, 4, 3])
    tokens, types = (np.concatenate([alone[n][i, :k] for i, k in enumerate((5, 4, 3))]) for n in ("tokens", "type_ids"))
    packed = {
        "tokens": jnp.asarray(tokens)[None],
        "type_ids": jnp.asarray(types)[None],
        "segments": jnp.asarray([[1] * 5 + [2] * 4 + [3] * 3]),
        "positions": jnp.asarray([[*range(5), *range(4), *range(3)]]),
        "starts": jnp.asarray([[0, 5, 9]]),
    }
    np.testing.assert_allclose(_apply(params, packed)[0], _apply(params, alone)[:, 0], atol=1e-5)
    changed = {**packed, "tokens": packed["tokens"].at[0, 6].set(49)}
    difference = np.abs(_apply(params, changed) - _apply(params, packed))[0].max(axis=1)
    assert difference[0] == difference[2] == 0
    assert difference[1] > 0


def test_dropout_is_active_in_training_only(rng, params):
    batch = _batch(rng, [6])

    @jax.jit
    def train(seed):
        return MODULE.apply({"params": params}, batch, train=True, rngs={"dropout": jax.random.key(seed)})

    assert not np.array_equal(train(0), train(1))
    np.testing.assert_array_equal(train(0), train(0))
    np.testing.assert_array_equal(_apply(params, batch), _apply(params, batch, rngs={"dropout": jax.random.key(1)}))


@pytest.mark.extended
def test_bfloat16_is_near_float32(rng, params):
    """Measured: differences of at most 0.07, for logits of size 1 to 5."""
    batch = _batch(rng, [12, 7])
    module = BertClassifier(**SIZES, dtype=jnp.bfloat16)
    half = jax.jit(lambda params: module.apply({"params": params}, batch, train=False))(params)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), _apply(params, batch), atol=0.2)


def test_weights_are_initialized_as_in_the_paper(rng):
    """A normal of standard deviation 0.02 truncated at two deviations, which leaves 0.0176; biases 0, LayerNorm 1."""
    module = BertClassifier(**{**SIZES, "initializer_range": 0.02, "vocab_size": 5000})
    batch = _batch(rng, [3])
    params = jax.jit(lambda: module.init(jax.random.key(0), batch, train=False))()["params"]
    table = np.asarray(params["encoder"]["token_embedding"]["embedding"])
    assert np.std(table) == pytest.approx(0.8796 * 0.02, rel=0.02)
    assert 0.039 < np.abs(table).max() <= 0.04
    assert not np.any(params["pooler"]["bias"])
    np.testing.assert_array_equal(params["encoder"]["embedding_norm"]["scale"], 1.0)
