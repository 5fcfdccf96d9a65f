# mypy: disable-error-code="arg-type, call-overload, operator"
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erf

from research.core.optimizers import hidden_kernels
from research.devices.sharding import make_mesh, state_shardings
from research.models.decoder import MESH_RULES, Decoder
from tests.models.random_params import random_params

GPT2: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 4,
    "head_size": 4,
    "mlp_size": 24,
    "max_positions": 16,
    "position_encoding": "learned",
    "rope_theta": 10_000.0,
    "norm": "layernorm",
    "norm_eps": 1e-5,
    "activation": "gelu",
    "use_bias": True,
    "tie_embeddings": True,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "initializer_range": 0.02,
    "scale_residual_init": True,
}
LLAMA: dict[str, Any] = {
    **GPT2,
    "num_kv_heads": 2,
    "head_size": 6,
    "position_encoding": "rotary",
    "rope_theta": 100.0,
    "norm": "rmsnorm",
    "activation": "swiglu",
    "use_bias": False,
    "tie_embeddings": False,
}
STYLES = {"gpt2": GPT2, "llama": LLAMA}
both_styles = pytest.mark.parametrize("style", STYLES)


def _batch(rng, lengths, width=16):
    """One text per row, with its length."""
    real = np.arange(width)[None, :] < np.asarray(lengths)[:, None]
    batch = {
        "tokens": np.where(real, rng.integers(0, 50, real.shape), 0),
        "segments": real,
        "positions": np.where(real, np.arange(width)[None, :], 0),
    }
    return {name: jnp.asarray(array, jnp.int32) for name, array in batch.items()}


@functools.cache
def _params(style):
    params = random_params(Decoder(**STYLES[style]), _batch(np.random.default_rng(0), [3]))
    return jax.tree.map(lambda x: 0.8 * x, params)  # the larger they are, the more rounding errors grow


@functools.partial(jax.jit, static_argnames="style")
def _apply(style, params, batch):
    return Decoder(**STYLES[style]).apply({"params": params}, batch, train=False)["logits"]


@functools.partial(jax.jit, static_argnames=("style", "method"))
def _extend(style, params, tokens, counts, cache, method):
    return Decoder(**STYLES[style]).apply({"params": params}, tokens, counts, cache, method=method)


def _reference(style, params, tokens):
    """The published formulas for one text, in float64 numpy, one head at a time -> logits [L, V]."""
    sizes, p = STYLES[style], jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    order, size = np.arange(len(tokens)), sizes["head_size"]

    def norm(x, weights):
        if "bias" in weights:
            x = x - x.mean(axis=-1, keepdims=True)
        return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * weights["scale"] + weights.get("bias", 0)

    def linear(x, weights):
        return x @ weights["kernel"] + weights.get("bias", 0)

    def turned(x):
        """Pairs as complex numbers, turned by an angle in proportion to the position."""
        pairs = x[:, : size // 2] + 1j * x[:, size // 2 :]
        pairs = pairs * np.exp(1j * order[:, None] * 100.0 ** (-2 * np.arange(size // 2) / size))
        return np.concatenate([pairs.real, pairs.imag], axis=1)

    x = p["token_embedding"]["embedding"][tokens]
    if style == "gpt2":
        x = x + p["position_embedding"]["embedding"][order]
    for i in range(sizes["num_layers"]):
        layer = p[f"layer_{i}"]
        y = norm(x, layer["attention_norm"])
        query, key, value = (linear(y, layer["attention"][name]) for name in ("query", "key", "value"))
        heads = []
        for h in range(4):
            shared = h // (4 // sizes["num_kv_heads"])
            q = query[:, h * size : (h + 1) * size]
            k, v = (z[:, shared * size : (shared + 1) * size] for z in (key, value))
            if style == "llama":
                q, k = turned(q), turned(k)
            weights = np.tril(np.exp(q @ k.T / np.sqrt(size)))
            heads.append(weights / weights.sum(axis=1, keepdims=True) @ v)
        x = x + linear(np.concatenate(heads, axis=1), layer["attention"]["output"])
        y = norm(x, layer["mlp_norm"])
        inner = linear(y, layer["mlp_in"])
        if style == "gpt2":
            inner = inner * 0.5 * (1 + erf(inner / np.sqrt(2)))
        else:
            gate = linear(y, layer["mlp_gate"])
            inner = gate / (1 + np.exp(-gate)) * inner
        x = x + linear(inner, layer["mlp_out"])
    x = norm(x, p["final_norm"])
    return x @ (p["token_embedding"]["embedding"].T if style == "gpt2" else p["head"]["kernel"])


@both_styles
def test_matches_the_published_formulas(style, rng):
    """Measured: differences of at most 1e-6, for logits of size 1 to 3."""
    lengths = [16, 9, 1]
    batch = _batch(rng, lengths)
    logits = _apply(style, _params(style), batch)
    assert logits.shape == (3, 16, 50)
    for row, length in enumerate(lengths):
        expected = _reference(style, _params(style), np.asarray(batch["tokens"][row, :length]))
        np.testing.assert_allclose(logits[row, :length], expected, atol=1e-5)


@both_styles
@settings(max_examples=15, deadline=None)
@given(place=st.integers(0, 15), token=st.integers(0, 49), seed=st.integers(0, 2**16))
def test_later_tokens_do_not_change_earlier_logits(style, place, token, seed):
    batch = _batch(np.random.default_rng(seed), [16])
    changed = {**batch, "tokens": batch["tokens"].at[0, place].set(token)}
    before, after = (_apply(style, _params(style), b)[0] for b in (batch, changed))
    np.testing.assert_array_equal(after[:place], before[:place])
    if batch["tokens"][0, place] != token:
        assert np.abs(after[place:] - before[place:]).max(axis=1).min() > 1e-4


@both_styles
@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 16), min_size=1, max_size=5), seed=st.integers(0, 2**16))
def test_packed_and_unpacked_agree(style, lengths, seed):
    """Logits of the same texts in one row and in one row each. Measured over 300 draws: up to 1.7e-6 apart."""
    alone = _batch(np.random.default_rng(seed), lengths + [1] * (5 - len(lengths)))
    places = [(row, place) for row, length in enumerate(lengths) for place in range(length)]
    packed = {name: np.zeros((1, 80), np.int32) for name in alone}
    for index, (row, place) in enumerate(places):
        packed["tokens"][0, index] = alone["tokens"][row, place]
        packed["segments"][0, index] = row + 1
        packed["positions"][0, index] = place
    expected = _apply(style, _params(style), alone)[tuple(np.transpose(places))]
    logits = _apply(style, _params(style), packed)[0, : len(places)]
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@both_styles
def test_padding_changes_nothing(style, rng):
    """Padding before a text, which comes where earlier tokens do."""
    batch = {name: array[:, ::-1] for name, array in _batch(rng, [5, 8]).items()}
    padding = batch["segments"] == 0
    noisy = {**batch, **{name: jnp.where(padding, 1, batch[name]) for name in ("tokens", "positions")}}
    real = np.asarray(~padding)
    logits = [np.asarray(_apply(style, _params(style), b)) for b in (batch, noisy)]
    np.testing.assert_array_equal(logits[0][real], logits[1][real])
    assert np.isfinite(logits[0]).all()


@both_styles
@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 16), min_size=3, max_size=3), seed=st.integers(0, 2**16))
def test_cached_and_uncached_agree(style, lengths, seed):
    """Texts of different lengths, in parts of different sizes, a row with nothing to add among them.

    Measured over 80 draws: logits differ by at most 1.5e-6.
    """
    rng = np.random.default_rng(seed)
    batch = _batch(rng, lengths)
    expected = _apply(style, _params(style), batch)
    cache = Decoder(**STYLES[style]).empty_cache(3, 16)
    done = np.zeros(3, np.int32)
    while (done < lengths).any():
        counts = np.minimum(rng.integers(0, 5, 3), np.asarray(lengths) - done)
        tokens = rng.integers(0, 50, (3, 4))  # of padding, too
        for row, count in enumerate(counts):
            tokens[row, :count] = batch["tokens"][row, done[row] : done[row] + count]
        after_last, _ = _extend(style, _params(style), tokens, counts, cache, "prefill")
        logits, cache = _extend(style, _params(style), tokens, counts, cache, "step")
        assert np.isfinite(logits).all()
        for row, count in enumerate(counts):
            wanted = expected[row, done[row] : done[row] + count]
            np.testing.assert_allclose(logits[row, :count], wanted, atol=1e-5)
            if count:
                np.testing.assert_allclose(after_last[row], wanted[-1], atol=1e-5)
        done += counts
        np.testing.assert_array_equal(cache.lengths, done)


@both_styles
def test_cached_rows_are_independent(style, rng):
    """To the bit: other tokens and lengths in one row, one that is empty, and one that is used again."""
    tokens = rng.integers(0, 50, (2, 6))
    decoder = Decoder(**STYLES[style])

    def generate(other, count, cache):
        """The logits of the first row, whose prompt has five tokens; the other row has `count` tokens."""
        rows = np.stack([tokens[0], other])
        first, cache = _extend(style, _params(style), rows, np.array([5, count]), cache, "prefill")
        then, cache = _extend(style, _params(style), rows[:, 5:], np.array([1, 0]), cache, "step")
        return np.stack([first[0], then[0, 0]]), cache

    alone, _ = generate(tokens[1], 0, decoder.empty_cache(2, 12))
    beside, used = generate(tokens[1], 6, decoder.empty_cache(2, 12))
    np.testing.assert_array_equal(beside, alone)
    again, _ = generate(tokens[1], 3, used._replace(lengths=used.lengths.at[0].set(0)))
    np.testing.assert_array_equal(again, alone)


@both_styles
def test_tokens_beyond_the_cache_are_lost_and_no_others(style, rng):
    """As are those of padding."""
    tokens = rng.integers(0, 50, (1, 4))
    found = []
    for length, count in ((8, 1), (5, 1), (5, 3)):
        cache = Decoder(**STYLES[style]).empty_cache(1, length)
        _, cache = _extend(style, _params(style), tokens, np.array([4]), cache, "step")
        _, cache = _extend(style, _params(style), tokens, np.array([count]), cache, "step")
        found.append(np.stack([cache.keys, cache.values])[:, :, :, :5])
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], atol=1e-6)


def test_cache_is_limited_by_the_positions():
    with pytest.raises(ValueError, match=r"a cache of 17 tokens exceeds model.max_positions=16"):
        Decoder(**GPT2).empty_cache(1, 17)


@functools.cache
def _logits_and_gradients(style, **options):
    batch, params = _batch(np.random.default_rng(0), [16, 7]), _params(style)
    module = Decoder(**STYLES[style], **options)

    @jax.jit
    def both(params):
        def loss(params):
            logits = module.apply({"params": params}, batch, train=False)["logits"]
            return -jnp.mean(jax.nn.log_softmax(logits)[..., 3]), logits

        gradients, logits = jax.grad(loss, has_aux=True)(params)
        return logits, gradients

    return both(params)


@pytest.mark.parametrize(
    ("style", "options"),
    [("gpt2", {"scan": True}), ("llama", {"remat": True}), ("llama", {"remat": True, "scan": True})],
    ids=str,
)
def test_remat_and_scan_change_no_numbers(style, options):
    """Logits and gradients without dropout. Measured: at most 2e-8 apart."""
    logits, gradients = _logits_and_gradients(style)
    other_logits, other_gradients = _logits_and_gradients(style, **options)
    np.testing.assert_allclose(other_logits, logits, atol=1e-6)
    for other, own in zip(jax.tree.leaves(other_gradients), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(other, own, atol=1e-6 * np.abs(own).max() + 1e-9)


@pytest.mark.parametrize("options", [{"remat": True}, {"scan": True}], ids=str)
def test_remat_and_scan_are_used(options, rng):
    """Seen in what is traced: computing each layer again, or one loop."""
    batch = _batch(rng, [16])

    def traced(**options):
        module = Decoder(**LLAMA, **options)
        return str(jax.make_jaxpr(lambda p: module.apply({"params": p}, batch, train=False))(_params("llama")))

    primitive = r" scan\[" if "scan" in options else r" (remat2|checkpoint)\["  # the latter in other versions of JAX
    assert len(re.findall(primitive, traced(**options))) == (1 if "scan" in options else 2)
    assert not re.search(primitive, traced())


def _training(sizes, batch, seed):
    """Logits with dropout."""

    def apply(params, rngs):
        return Decoder(**sizes).apply({"params": params}, batch, train=True, rngs=rngs)["logits"]

    return jax.jit(apply)(_params("gpt2"), {"dropout": jax.random.key(seed)})


@pytest.mark.parametrize("options", [{}, {"remat": True}, {"scan": True}], ids=str)
def test_attention_dropout_is_active_in_training(options, rng):
    batch, sizes = _batch(rng, [16]), {**GPT2, "dropout": 0.0, "attention_dropout": 0.5, **options}
    first, again, other = (_training(sizes, batch, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(other - first)[0, 1:].max(axis=1).min() > 1e-3


def test_dropout_is_applied_to_the_embedding_and_each_branch(rng):
    """At a rate of 1 nothing is left but the biases of the last LayerNorm."""
    logits = _training({**GPT2, "dropout": 1.0}, _batch(rng, [16]), 0)
    params = _params("gpt2")
    expected = params["token_embedding"]["embedding"] @ params["final_norm"]["bias"]
    np.testing.assert_allclose(logits, np.broadcast_to(expected, (1, 16, 50)), atol=1e-6)


def _init(**sizes):
    batch = _batch(np.random.default_rng(0), [3])
    return jax.jit(lambda: Decoder(**sizes).init(jax.random.key(0), batch, train=False))()["params"]


@pytest.mark.parametrize("scaled", [True, False])
def test_weights_are_initialized_as_published(scaled):
    """Normal of standard deviation 0.02; for the last projections of the branches 0.02 / sqrt(2 · 2 layers)."""
    params = _init(**GPT2 | {"hidden_size": 128, "head_size": 32, "mlp_size": 512, "scale_residual_init": scaled})
    layer = params["layer_1"]
    for kernel in (params["token_embedding"]["embedding"], layer["attention"]["key"]["kernel"]):
        assert np.std(kernel) == pytest.approx(0.02, rel=0.03)
    for kernel in (layer["attention"]["output"]["kernel"], layer["mlp_out"]["kernel"]):
        assert np.std(kernel) == pytest.approx(0.02 / 2 if scaled else 0.02, rel=0.03)
    assert not np.any(layer["mlp_out"]["bias"])
    np.testing.assert_array_equal(params["final_norm"]["scale"], 1.0)


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        # GPT-2 (Radford et al. 2019), as in its published weights; the shared embedding counts once.
        (
            GPT2 | {
                "vocab_size": 50_257, "hidden_size": 768, "num_layers": 12, "num_heads": 12, "num_kv_heads": 12,
                "head_size": 64, "mlp_size": 3072, "max_positions": 1024,
            },
            124_439_808,
        ),
        # Llama 7B (Touvron et al. 2023), and SmolLM2 with 135 million parameters.
        (
            LLAMA | {
                "vocab_size": 32_000, "hidden_size": 4096, "num_layers": 32, "num_heads": 32, "num_kv_heads": 32,
                "head_size": 128, "mlp_size": 11_008, "max_positions": 2048,
            },
            6_738_415_616,
        ),
        (
            LLAMA | {
                "vocab_size": 49_152, "hidden_size": 576, "num_layers": 30, "num_heads": 9, "num_kv_heads": 3,
                "head_size": 64, "mlp_size": 1536, "max_positions": 8192, "tie_embeddings": True,
            },
            134_515_008,
        ),
    ],
    ids=["gpt2", "llama-7b", "smollm2-135m"],
)  # fmt: skip
def test_published_numbers_of_parameters(sizes, count):
    batch = _batch(np.random.default_rng(0), [3])
    params = jax.eval_shape(lambda: Decoder(**sizes).init(jax.random.key(0), batch, train=False))["params"]
    assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params)) == count


@pytest.mark.parametrize("options", [{"remat": True}, {"scan": True}], ids=str)
def test_remat_and_scan_have_the_same_parameters(options):
    plain, other = _init(**LLAMA), _init(**LLAMA, **options)
    assert jax.tree.structure(plain) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, plain, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_encoding": "alibi"}, "model.position_encoding is 'alibi'; known: learned, rotary"),
        ({"norm": "batch"}, "model.norm is 'batch'; known: layernorm, rmsnorm"),
        ({"activation": "swish"}, "model.activation is 'swish'; known: gelu, gelu_tanh, relu, swiglu"),
        ({"num_kv_heads": 3}, "model.num_kv_heads=3 does not divide model.num_heads=4"),
        ({"head_size": 5}, "model.head_size=5 is odd"),
    ],
)
def test_settings_that_do_not_fit_are_one_line_errors(change, message):
    with pytest.raises(ValueError, match=message):
        _init(**LLAMA | change)


@both_styles
def test_bfloat16_is_near_float32(style, rng):
    """Measured: differences of at most 0.041, for logits of size 1 to 3."""
    batch = _batch(rng, [16, 7])
    module = Decoder(**STYLES[style], dtype=jnp.bfloat16)
    half = jax.jit(lambda params: module.apply({"params": params}, batch, train=False))(_params(style))["logits"]
    assert half.dtype == jnp.bfloat16
    full = _apply(style, _params(style), batch)
    np.testing.assert_allclose(half.astype(jnp.float32), full, atol=0.05 * np.abs(full).max())
    assert module.empty_cache(1, 4).keys[0].dtype == jnp.bfloat16


@both_styles
def test_mesh_rules_split_every_product(style, rng):
    """On eight devices, over `fsdp` and `tensor`: same logits as on one, with each kernel split as the rules say."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    params, batch = _params(style), _batch(rng, [16, 7, 3, 12])
    shardings = state_shardings(params, MESH_RULES, mesh)
    for path, sharding in jax.tree_util.tree_leaves_with_path(shardings):
        is_matrix = path[-1].key in ("kernel", "embedding")
        assert any(sharding.spec) == (is_matrix or path[-2].key in ("query", "key", "value", "mlp_in")), path
    placed = jax.device_put(params, shardings)
    kernel = placed["layer_0"]["attention"]["query"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (8, kernel.shape[1] // 2)
    np.testing.assert_allclose(_apply(style, placed, batch), _apply(style, params, batch), atol=1e-5)


def test_muon_leaves_out_the_output_layer():
    found = hidden_kernels(_params("llama"))
    assert not found["head"]["kernel"]
    assert not found["token_embedding"]["embedding"]
    assert found["layer_0"]["mlp_gate"]["kernel"]
