# mypy: disable-error-code="arg-type"
import json

import jax
import numpy as np
import pytest
import tokenizers
from safetensors.numpy import load_file, save_file

from research.base.errors import UserError
from research.config import load
from research.interop import pretrained
from research.interop.decoder_families import GPT2, LLAMA, read_config, write_config
from research.interop.export import export
from tests.interop import tiny_decoder
from tests.interop.tiny_decoder import CONFIGS, END

SAME = {
    "vocab_size": 257, "hidden_size": 8, "num_layers": 2, "num_heads": 2, "mlp_size": 12, "max_positions": 32,
    "norm_eps": 1e-5, "initializer_range": 0.02, "rope_scaling": "none", "rope_factor": 1.0, "rope_low": 1.0,
    "rope_high": 4.0, "rope_positions": 8192,
}  # fmt: skip
EXPECTED = {
    "gpt2": {
        **SAME, "num_kv_heads": 2, "head_size": 4, "position_encoding": "learned", "rope_theta": 10_000.0,
        "norm": "layernorm", "activation": "gelu_tanh", "use_bias": True, "tie_embeddings": True, "dropout": 0.1,
        "attention_dropout": 0.1, "scale_residual_init": True,
    },
    "llama": {
        **SAME, "num_kv_heads": 1, "head_size": 6, "position_encoding": "rotary", "rope_theta": 500.0,
        "norm": "rmsnorm", "activation": "swiglu", "use_bias": False, "tie_embeddings": False, "dropout": 0.0,
        "attention_dropout": 0.0, "scale_residual_init": False,
    },
}  # fmt: skip
both_families = pytest.mark.parametrize("family", CONFIGS)


@pytest.mark.parametrize("family", [GPT2, LLAMA], ids=lambda family: family.model_type)
def test_config_round_trips(family):
    config = CONFIGS[family.model_type]
    assert read_config(config, "config.json") == (family, EXPECTED[family.model_type])
    found, written = write_config(EXPECTED[family.model_type])
    assert found is family
    assert written == {key: value for key, value in config.items() if not key.endswith("_token_id")}


@both_families
def test_null_is_the_default(family):
    defaults = {
        "gpt2": {"n_inner": 32, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "resid_pdrop": 0.1,
                 "embd_pdrop": 0.1, "attn_pdrop": 0.1, "initializer_range": 0.02, "tie_word_embeddings": True},
        "llama": {"num_key_value_heads": 2, "head_dim": 4, "hidden_act": "silu", "rms_norm_eps": 1e-6,
                  "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}, "attention_bias": False,
                  "mlp_bias": False, "initializer_range": 0.02, "tie_word_embeddings": False, "rope_theta": None},
    }[family]  # fmt: skip
    explicit = read_config({**CONFIGS[family], **defaults}, "F")
    assert read_config({**CONFIGS[family], **dict.fromkeys(defaults)}, "F") == explicit
    assert read_config({key: CONFIGS[family][key] for key in CONFIGS[family].keys() - defaults.keys()}, "F") == explicit


@pytest.mark.parametrize(
    "settings",
    [
        {"rope_theta": 7.0},
        {"rope_theta": 7, "rope_scaling": None},
        {"rope_theta": 7.0, "rope_scaling": {"type": "default"}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}},
        {"rope_parameters": {"rope_theta": 7.0, "partial_rotary_factor": 1.0}, "rope_theta": 9.0},
    ],
)
def test_rotary_base_in_files_of_all_versions(settings):
    config = {key: value for key, value in CONFIGS["llama"].items() if not key.startswith("rope")}
    assert read_config({**config, **settings}, "F")[1]["rope_theta"] == 7.0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2}}, {"rope_scaling": "linear", "rope_factor": 2.0}),
        (
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.5,
                    "high_freq_factor": 3.0,
                }
            },
            {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_low": 1.5, "rope_high": 3.0, "rope_positions": 32},
        ),
    ],
)
def test_scaled_rotary_embeddings_are_read_and_written(settings, expected):
    config = {key: value for key, value in CONFIGS["llama"].items() if not key.startswith("rope")}
    model = read_config({**config, "rope_theta": 7.0, **settings}, "F")[1]
    assert model == {**EXPECTED["llama"], "rope_theta": 7.0, **expected}
    assert read_config(write_config(model)[1], "F")[1] == model


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 8.0}},
         "^F has rope_parameters of rope_type 'yarn'; supported: default, linear, llama3$"),
        ("llama", {"rope_parameters": None, "rope_scaling": {"type": "linear"}},
         "^F has rope_scaling of rope_type 'linear' without factor$"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "^F has factor '2'; it must be"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 0}}, "^F: model.rope_factor is 0"),
        ("llama", {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
         "^F has rope_parameters {'full_attention': .*}; only the same for all layers"),
        ("llama", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
         "^F has partial_rotary_factor 0.5; only 1.0 is supported$"),
        ("llama", {"rope_parameters": {"rope_theta": "big"}}, "^F has rope_theta 'big'; it must be a number$"),
        ("llama", {"rope_parameters": 3}, "^F has rope_parameters 3; it must be an object$"),
        ("llama", {"attention_bias": True}, "^F has attention_bias True and mlp_bias False; only biases in both"),
        ("llama", {"attention_bias": "qkv"}, "^F has attention_bias 'qkv'; it must be true or false$"),
        ("llama", {"sliding_window": 16}, "^F has sliding_window 16, below max_position_embeddings 32; only attention"),
        ("llama", {"hidden_act": "gelu"}, "^F has the activation 'gelu'; known: silu, swish$"),
        ("llama", {"head_dim": None, "hidden_size": 9}, "^F has hidden_size 9, which num_attention_heads 2 does not"),
        ("llama", {"num_key_value_heads": 0}, "^F: model.num_kv_heads is 0"),
        ("llama", {"rms_norm_eps": "tiny"}, "^F has rms_norm_eps 'tiny'; it must be a number$"),
        ("gpt2", {"activation_function": "silu"}, "^F has the activation 'silu'; known: gelu_new, gelu"),
        ("gpt2", {"scale_attn_weights": False}, "^F has scale_attn_weights False; only True is supported$"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "^F has scale_attn_by_inverse_layer_idx True; only False"),
        ("gpt2", {"add_cross_attention": True}, "^F has add_cross_attention True; only False is supported$"),
        ("gpt2", {"embd_pdrop": 0.3}, "^F has embd_pdrop 0.3 and resid_pdrop 0.1; only one value of both"),
        ("gpt2", {"n_embd": 9}, "^F has n_embd 9, which n_head 2 does not divide$"),
        ("gpt2", {"n_layer": None}, "^F has no n_layer, which gpt2 needs$"),
        ("gpt2", {"n_positions": 0}, "^F: model.max_positions is 0"),
        ("gpt2", {"tie_word_embeddings": 1}, "^F has tie_word_embeddings 1; it must be true or false$"),
    ],
)  # fmt: skip
def test_unsupported_variant_is_a_one_line_error(family, change, message):
    with pytest.raises(UserError, match=message):
        read_config({**CONFIGS[family], **change}, "F")


def test_window_that_covers_all_positions_is_none():
    assert read_config({**CONFIGS["llama"], "sliding_window": 32}, "F") == (LLAMA, EXPECTED["llama"])


@pytest.mark.parametrize("model_type", ["qwen2", "mistral", "gpt_neox"])
def test_other_architecture_is_a_one_line_error(model_type, tmp_path):
    tiny_decoder.write(tmp_path, "llama", model_type=model_type)
    with pytest.raises(UserError, match=rf"is of model_type '{model_type}'; known: .*gpt2, llama$"):
        pretrained.load(str(tmp_path))


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("gpt2", {"norm": "rmsnorm"}, "neither GPT-2 nor Llama .* has model.position_encoding='learned', model.activ"),
        ("gpt2", {"num_kv_heads": 1}, "neither GPT-2 nor Llama .* has model.num_kv_heads=1$"),
        ("gpt2", {"head_size": 6}, "neither GPT-2 nor Llama .* has model.head_size=6$"),
        ("gpt2", {"activation": "swiglu"}, "neither GPT-2 nor Llama .* has model.activation='swiglu'$"),
        ("llama", {"activation": "gelu"}, "neither GPT-2 nor Llama .* has model.activation='gelu'$"),
        ("llama", {"position_encoding": "learned"}, "neither GPT-2 nor Llama .* model.position_encoding='learned'$"),
        ("llama", {"hidden_size": 9}, "model.num_heads=2 does not divide model.hidden_size=9, as it must in"),
    ],
)
def test_model_without_a_transformers_equivalent_is_a_one_line_error(family, change, message):
    with pytest.raises(UserError, match=message):
        write_config({**EXPECTED[family], **change})


def _leaf(variables, path):
    for name in path.split("/"):
        variables = variables[name]
    return np.asarray(variables)


def _check_places(family, variables, tensors):
    """Whether each of some tensors is where it belongs, by names and layouts written out here."""
    if family == "gpt2":
        attention = tensors["transformer.h.1.attn.c_attn.weight"].astype(np.float32)  # [I, 3 · O]
        bias = tensors["transformer.h.1.attn.c_attn.bias"].astype(np.float32)
        for part, name in enumerate(("query", "key", "value")):
            columns = slice(8 * part, 8 * part + 8)
            np.testing.assert_array_equal(_leaf(variables, f"layer_1/attention/{name}/kernel"), attention[:, columns])
            np.testing.assert_array_equal(_leaf(variables, f"layer_1/attention/{name}/bias"), bias[columns])
        pairs = {
            "layer_0/mlp_out/kernel": tensors["transformer.h.0.mlp.c_proj.weight"],
            "layer_0/mlp_norm/scale": tensors["transformer.h.0.ln_2.weight"],
            "position_embedding/embedding": tensors["transformer.wpe.weight"],
        }
    else:
        pairs = {
            "layer_1/attention/key/kernel": tensors["model.layers.1.self_attn.k_proj.weight"].T,
            "layer_0/mlp_gate/kernel": tensors["model.layers.0.mlp.gate_proj.weight"].T,
            "layer_0/mlp_norm/scale": tensors["model.layers.0.post_attention_layernorm.weight"],
            "final_norm/scale": tensors["model.norm.weight"],
        }
    if "lm_head.weight" in tensors:
        pairs["head/kernel"] = tensors["lm_head.weight"].T
    for path, expected in pairs.items():
        np.testing.assert_array_equal(_leaf(variables, path), expected.astype(np.float32), err_msg=path)


@both_families
@pytest.mark.parametrize("dtype", tiny_decoder.DTYPES)
@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_of_all_types_in_one_or_several_files(family, dtype, shards, tmp_path):
    tensors = tiny_decoder.write(tmp_path, family, dtype=dtype, shards=shards)
    module, variables = pretrained.load(str(tmp_path))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(variables))
    _check_places(family, variables["params"], tensors)
    if dtype == "float32":
        logits = jax.jit(lambda v: module.apply(v, tiny_decoder.batch(), train=False))(variables)["logits"]
        assert logits.shape == (3, 9, 257)
        assert np.isfinite(logits).all()


def test_old_file_of_the_bare_network_with_constants(tmp_path):
    """As GPT-2's first files: no prefix, and the attention mask among the tensors."""
    tensors = tiny_decoder.write(tmp_path, "gpt2")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    old |= {f"h.{i}.attn.bias": np.ones((1, 1, 32, 32), np.float32) for i in range(2)}
    save_file(old, tmp_path / "model.safetensors")
    weights = pretrained._weights(str(tmp_path))
    shapes = pretrained.shapes_of(pretrained._abstract({"name": "decoder", **weights.model}, weights.batch))
    assert weights.match(shapes).unused == ()
    _check_places("gpt2", pretrained.load(str(tmp_path))[1]["params"], tensors)


@both_families
def test_separate_and_shared_output_layers(family, tmp_path):
    """A file with `lm_head` although the config says that it is shared: it is not read, as in transformers."""
    for tied in (True, False):
        tensors = tiny_decoder.write(tmp_path / str(tied), family, tie_word_embeddings=tied)
        if tied:
            save_file(tensors | {"lm_head.weight": np.ones((257, 8), np.float32)}, tmp_path / "True/model.safetensors")
        module, variables = pretrained.load(str(tmp_path / str(tied)))
        assert module.tie_embeddings is tied
        assert ("head" in variables["params"]) is not tied
    tiny_decoder.write(tmp_path / "lacks", family, tie_word_embeddings=True)
    (tmp_path / "lacks/config.json").write_text(json.dumps({**CONFIGS[family], "tie_word_embeddings": False}))
    with pytest.raises(UserError, match=r"lacks lacks lm_head.weight, which the model needs"):
        pretrained.load(str(tmp_path / "lacks"))


def test_weights_of_another_shape_are_a_one_line_error(tmp_path):
    tiny_decoder.write(tmp_path, "gpt2", n_inner=13)
    with pytest.raises(UserError, match=r"c_fc.bias of .* has shape \(12,\); the model of this config needs \(13,\)"):
        pretrained.load(str(tmp_path))
    tensors = tiny_decoder.write(tmp_path, "gpt2")
    tensors["transformer.h.0.attn.c_attn.bias"] = np.zeros(8, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"c_attn.bias of .* has shape \(8,\); the model of this config needs \(24,\)"):
        pretrained.load(str(tmp_path))


@both_families
def test_load_export_load_round_trips_every_byte(family, tmp_path):
    tensors = tiny_decoder.write(tmp_path / "F", family)
    _, variables = pretrained.load(str(tmp_path / "F"))
    run = tiny_decoder.write_run(tmp_path / "W", tiny_decoder.section(tmp_path / "F"), variables["params"])
    assert export(run, tmp_path / "out") == 7
    written = load_file(tmp_path / "out/model.safetensors")
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (written[name].dtype, written[name].tobytes()) == (np.float32, tensor.tobytes()), name
    assert json.loads((tmp_path / "out/config.json").read_text()) == CONFIGS[family]
    saved = tokenizers.Tokenizer.from_file(str(tmp_path / "out/tokenizer.json"))
    assert (saved.truncation, saved.padding) == (None, None)
    assert saved.encode("a word").ids == tiny_decoder.tokenizer().encode("a word").ids
    settings = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert (settings["eos_token"], settings["model_max_length"]) == (END, 32)


def test_gpt2_without_biases_is_exported_with_biases_of_zero(tmp_path):
    """And computes the same when it is read again."""
    tiny_decoder.write(tmp_path / "F", "gpt2", tie_word_embeddings=False)
    _, variables = pretrained.load(str(tmp_path / "F"))
    params = jax.tree.map(lambda x: x, variables["params"])

    def without_biases(tree):
        return {key: without_biases(value) if isinstance(value, dict) else value
                for key, value in tree.items() if key != "bias"}  # fmt: skip

    section = tiny_decoder.section(tmp_path / "F") | {"use_bias": False}
    params = without_biases(params)
    export(tiny_decoder.write_run(tmp_path / "W", section, params), tmp_path / "out")
    module, again = pretrained.load(str(tmp_path / "out"))
    assert module.use_bias
    plain = module.clone(use_bias=False)
    logits, expected = (
        jax.jit(lambda v, m=m: m.apply(v, tiny_decoder.batch(), train=False))(v)["logits"]
        for m, v in ((module, again), (plain, {"params": params}))
    )
    np.testing.assert_array_equal(logits, expected)


@both_families
def test_config_starts_from_the_weights_and_their_tokenizer(family, tmp_path):
    tiny_decoder.write(tmp_path / "F", family, eos_token_id=[256, 0])
    config = load("configs/bert_mlm.py:embedded", []).config.copy_and_resolve_references()
    config.init_from = str(tmp_path / "F")
    config.model = {"name": "decoder", **EXPECTED["gpt2"], "hidden_size": 99, "remat": True, "scan": False}
    config.data.transform = {"name": "own", "tokenizer": "byte", "vocab_size": 5, "end_of_text": ""}
    resolved = pretrained.resolve_init_from(config, {"model.dropout"}, tmp_path / "W")
    model = resolved.config.model.to_dict()
    assert model == {**EXPECTED[family], "name": "decoder", "dropout": 0.1, "remat": True, "scan": False}
    assert resolved.config.data.transform.to_dict() == {
        "name": "own", "tokenizer": str(tmp_path / "F/tokenizer.json"), "vocab_size": 257, "end_of_text": END,
    }  # fmt: skip
    assert resolved.note == f"weights: {tmp_path / 'F'} ({family})"


def test_folder_without_a_tokenizer_leaves_that_of_the_config(tmp_path):
    tiny_decoder.write(tmp_path / "F", "gpt2", with_tokenizer=False)
    config = load("configs/bert_mlm.py:embedded", []).config.copy_and_resolve_references()
    config.init_from = str(tmp_path / "F")
    config.model = {"name": "decoder", **EXPECTED["gpt2"]}
    transform = {"name": "own", "tokenizer": "byte", "vocab_size": 257, "end_of_text": ""}
    config.data.transform = transform
    assert pretrained.resolve_init_from(config, {}, tmp_path / "W").config.data.transform.to_dict() == transform


def test_tokenizer_with_more_tokens_than_the_embedding_is_a_one_line_error(tmp_path):
    tiny_decoder.write(tmp_path, "gpt2", vocab_size=256)
    with pytest.raises(
        UserError, match=r"tokenizer.json has token ids up to 256, out of range for an embedding of 256"
    ):
        pretrained.load(str(tmp_path))
