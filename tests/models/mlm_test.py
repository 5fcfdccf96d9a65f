# mypy: disable-error-code="arg-type"
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import erf

from research.core.tasks import MaskedLM
from research.models.bert import BertClassifier
from research.models.mlm import BertMaskedLM
from tests.models.random_params import random_params

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_layers": 1,
    "num_heads": 4,
    "mlp_size": 32,
    "activation": "gelu",
    "position_offset": 0,
    "max_positions": 12,
    "type_vocab_size": 2,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "layer_norm_eps": 1e-12,
    "initializer_range": 0.3,
}
MODULE = BertMaskedLM(**SIZES)


def _batch(rng, positions, width=12):
    """Rows in which the tokens at `positions` are masked, padded to one number of slots."""
    rows, slots = len(positions), max(map(len, positions)) + 1
    labels, places = np.full((rows, slots), -1), np.zeros((rows, slots), np.int32)
    for row, here in enumerate(positions):
        places[row, : len(here)] = here
        labels[row, : len(here)] = rng.integers(5, 50, len(here))
    batch = {
        "tokens": rng.integers(0, 50, (rows, width)),
        "segments": np.ones((rows, width)),
        "positions": np.tile(np.arange(width), (rows, 1)),
        "type_ids": np.zeros((rows, width)),
        "masked_positions": places,
        "labels": labels,
    }
    batch = {name: jnp.asarray(array, jnp.int32) for name, array in batch.items()}
    return {**batch, "weight": jnp.ones((rows, 1))}


def _everywhere(batch):
    """The same rows with a slot for every token; unmasked tokens have the label −1."""
    rows, width = batch["tokens"].shape
    labels = np.full((rows, width), -1, np.int32)
    for row in range(rows):
        for place, label in zip(batch["masked_positions"][row], batch["labels"][row], strict=True):
            if label >= 0:
                labels[row, place] = label
    return {**batch, "masked_positions": batch["positions"], "labels": jnp.asarray(labels)}


@functools.cache
def _params():
    return random_params(MODULE, _batch(np.random.default_rng(0), [[3]]))


@jax.jit
def _apply(params, batch):
    return MODULE.apply({"params": params}, batch, train=False)


@functools.partial(jax.jit, static_argnames="name")
def _logits_and(params, batch, name):
    """The logits, and the output of the submodule of that name."""
    logits, state = MODULE.apply(
        {"params": params}, batch, train=False, capture_intermediates=lambda module, _: module.name == name
    )
    return logits, state["intermediates"][name]["__call__"][0]


def test_head_matches_the_published_formula(rng):
    """Dense, gelu, LayerNorm, token embedding and bias, in float64 numpy."""
    batch = _batch(rng, [[2, 7], [4]])
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), _params())
    logits, hidden = _logits_and(_params(), batch, "encoder")
    x = np.asarray(hidden, np.float64)[np.arange(2)[:, None], batch["masked_positions"]]
    x = x @ p["transform"]["kernel"] + p["transform"]["bias"]
    x = x * 0.5 * (1 + erf(x / np.sqrt(2)))
    x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-12)
    x = x * p["transform_norm"]["scale"] + p["transform_norm"]["bias"]
    expected = x @ p["encoder"]["token_embedding"]["embedding"].T + p["output_bias"]
    assert logits.shape == (2, 3, 50)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.extended
def test_loss_and_gradients_match_all_positions_with_masked_labels(rng):
    batch = _batch(rng, [[2, 7, 11], [4], [0, 5]])

    def loss(params, batch):
        scores = MaskedLM().scores(_apply(params, batch), batch)
        return scores["loss"].total / scores["loss"].weight, scores

    few, everywhere = (jax.jit(jax.grad(loss, has_aux=True))(_params(), b) for b in (batch, _everywhere(batch)))
    for name in ("loss", "accuracy", "perplexity"):
        assert few[1][name].compute() == pytest.approx(everywhere[1][name].compute(), rel=1e-5)
    assert few[1]["loss"].weight == everywhere[1]["loss"].weight == 6
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), few[0], everywhere[0])


@pytest.mark.extended
def test_token_embedding_has_gradients_from_both_uses(rng):
    """As a projection: Σ (softmax − one-hot) · h over the masked positions. As a lookup: only the tokens read."""
    batch = _batch(rng, [[2, 7], [4]])

    @jax.jit
    @jax.grad
    def gradient(params):
        logits = _apply(params, batch)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(batch["labels"], 0))
        return jnp.sum(losses * (batch["labels"] >= 0))

    logits, features = _logits_and(_params(), batch, "transform_norm")
    used = batch["labels"] >= 0
    error = (jax.nn.softmax(logits) - jax.nn.one_hot(batch["labels"], 50))[used]  # [3, V]
    whole = gradient(_params())
    by_lookup = whole["encoder"]["token_embedding"]["embedding"] - error.T @ features[used]
    read = np.isin(np.arange(50), batch["tokens"])
    assert 10 < read.sum() < 40
    assert np.abs(by_lookup[~read]).max() < 1e-5
    assert np.abs(by_lookup[read]).max(axis=1).min() > 1e-4
    np.testing.assert_allclose(whole["output_bias"], error.sum(axis=0), atol=1e-5)


HEAD = {"num_classes": 2, "pooler": "tanh", "pooler_dropout": 0.0, "classifier_dropout": None}


def test_encoder_has_the_parameters_of_the_classifier():
    """A classifier can therefore start from a pretrained encoder."""
    batch = {**_batch(np.random.default_rng(0), [[3]]), "starts": jnp.zeros((1, 1), jnp.int32)}
    shapes = [
        jax.eval_shape(lambda m=module: m.init(jax.random.key(0), batch, train=False))["params"]["encoder"]
        for module in (MODULE, BertClassifier(**SIZES, **HEAD))
    ]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes[0]) == jax.tree.map(
        lambda x: (x.shape, x.dtype), shapes[1]
    )


def test_parameters_of_bert_base():
    """109,514,298, as for transformers' BertForMaskedLM of bert-base-uncased, counting the shared embedding once."""
    from research.configs import bert_mlm

    section = bert_mlm.get_config("base").model.to_dict()
    section.pop("name")
    batch = _batch(np.random.default_rng(0), [[3]])
    params = jax.eval_shape(lambda: BertMaskedLM(**section).init(jax.random.key(0), batch, train=False))["params"]
    assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params)) == 109_514_298


def test_bfloat16_is_near_float32(rng):
    batch = _batch(rng, [[2, 7], [4]])
    module = BertMaskedLM(**SIZES, dtype=jnp.bfloat16)
    half = jax.jit(lambda params: module.apply({"params": params}, batch, train=False))(_params())
    assert half.dtype == jnp.bfloat16
    full = _apply(_params(), batch)
    np.testing.assert_allclose(half.astype(jnp.float32), full, atol=0.05 * np.abs(full).max())


@pytest.mark.extended
def test_trains_in_bfloat16(rng):
    """The gradients are close to those of float32. Measured: cosine similarity 0.99999."""
    batch = _batch(rng, [[2, 7], [4]])

    def gradient(dtype):
        module = BertMaskedLM(**SIZES, dtype=dtype)

        def loss(params):
            logits = module.apply({"params": params}, batch, train=False).astype(jnp.float32)
            return -jnp.mean(jax.nn.log_softmax(logits)[..., 3])

        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(jax.jit(jax.grad(loss))(_params()))])

    half, full = gradient(jnp.bfloat16), gradient(jnp.float32)
    assert half @ full / jnp.linalg.norm(half) / jnp.linalg.norm(full) > 0.999
