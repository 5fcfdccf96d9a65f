# mypy: disable-error-code="arg-type, call-overload, operator"
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.core.optim import layer_factors
from research.core.optimizers import hidden_kernels
from research.devices.sharding import make_mesh, state_shardings
from research.models.decoder import Decoder
from tests.models.small_decoders import GPT2, LLAMA, STYLES, both_styles, logits_of, random_params_of, text_batch


@functools.cache
def _logits_and_gradients(style, **options):
    batch, params = text_batch(np.random.default_rng(0), [16, 7]), random_params_of(style)
    module = Decoder(**STYLES[style], **options)

    @jax.jit
    def both(params):
        def loss(params):
            logits = module.apply({"params": params}, batch, train=False)["logits"]
            return -jnp.mean(jax.nn.log_softmax(logits)[..., 3]), logits

        gradients, logits = jax.grad(loss, has_aux=True)(params)
        return logits, gradients

    return both(params)


@pytest.mark.extended
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
    batch = text_batch(rng, [16])

    def traced(**options):
        module = Decoder(**LLAMA, **options)
        return str(jax.make_jaxpr(lambda p: module.apply({"params": p}, batch, train=False))(random_params_of("llama")))

    primitive = r" scan\[" if "scan" in options else r" (remat2|checkpoint)\["  # the latter in other versions of JAX
    assert len(re.findall(primitive, traced(**options))) == (1 if "scan" in options else 2)
    assert not re.search(primitive, traced())


def _init(**sizes):
    batch = text_batch(np.random.default_rng(0), [3])
    return jax.jit(lambda: Decoder(**sizes).init(jax.random.key(0), batch, train=False))()["params"]


@pytest.mark.extended
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
    batch = text_batch(np.random.default_rng(0), [3])
    params = jax.eval_shape(lambda: Decoder(**sizes).init(jax.random.key(0), batch, train=False))["params"]
    assert sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params)) == count


@pytest.mark.extended
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


@pytest.mark.extended
@both_styles
def test_mesh_rules_split_every_product(style, rng):
    """On eight devices, over `fsdp` and `tensor`: same logits as on one, with each kernel split as the rules say."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    params, batch = random_params_of(style), text_batch(rng, [16, 7, 3, 12])
    shardings = state_shardings(params, Decoder.MESH_RULES, mesh)
    for path, sharding in jax.tree_util.tree_leaves_with_path(shardings):
        is_matrix = path[-1].key in ("kernel", "embedding")
        assert any(sharding.spec) == (is_matrix or path[-2].key in ("query", "key", "value", "mlp_in")), path
    placed = jax.device_put(params, shardings)
    kernel = placed["layer_0"]["attention"]["query"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (8, kernel.shape[1] // 2)
    np.testing.assert_allclose(logits_of(style, placed, batch), logits_of(style, params, batch), atol=1e-5)


def test_layer_decay_reaches_the_embeddings():
    """Two layers below the last normalization and the output layer, and the embeddings below them."""
    for style in STYLES:
        factors = layer_factors(random_params_of(style), 0.5)
        assert {path.split("/")[0]: factor for path, factor in factors.items()} == {
            "layer_1": 0.5, "layer_0": 0.25, "token_embedding": 0.125,
            **({"position_embedding": 0.125} if style == "gpt2" else {}),
        }  # fmt: skip


def test_muon_leaves_out_the_output_layer():
    found = hidden_kernels(random_params_of("llama"))
    assert not found["head"]["kernel"]
    assert not found["token_embedding"]["embedding"]
    assert found["layer_0"]["mlp_gate"]["kernel"]
