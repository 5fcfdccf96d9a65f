"""GPT-2 and Llama: the names of their settings and tensors, in transformers and here."""

from collections.abc import Mapping
from typing import Any

from research.base.errors import UserError
from research.interop.families import ACTIVATIONS, Family, read_settings, written_activation
from research.interop.kinds import check_kind, check_model
from research.interop.tensors import Naming

_GPT2_LAYER = {
    "attention_norm": "ln_1",
    "attention/query": "attn.c_attn",
    "attention/key": "attn.c_attn",
    "attention/value": "attn.c_attn",
    "attention/output": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp_in": "mlp.c_fc",
    "mlp_out": "mlp.c_proj",
}
_GPT2_COLUMNS = {
    "attention/query": (0, 3),
    "attention/key": (1, 3),
    "attention/value": (2, 3),
    "attention/output": (0, 1),
    "mlp_in": (0, 1),
    "mlp_out": (0, 1),
}
_LLAMA_LAYER = {
    "attention_norm": "input_layernorm",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/output": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp_in": "mlp.up_proj",
    "mlp_gate": "mlp.gate_proj",
    "mlp_out": "mlp.down_proj",
}

# How rope_parameters with a rope_type call the keys of `model`.
_ROPE_TYPES = {
    "default": {},
    "linear": {"rope_factor": "factor"},
    "llama3": {
        "rope_factor": "factor",
        "rope_low": "low_freq_factor",
        "rope_high": "high_freq_factor",
        "rope_positions": "original_max_position_embeddings",
    },
}
_PLAIN_ROPE = {"rope_scaling": "none", "rope_factor": 1.0, "rope_low": 1.0, "rope_high": 4.0, "rope_positions": 8192}

GPT2 = Family(
    model_type="gpt2",
    architecture="GPT2LMHeadModel",
    keys={
        "vocab_size": "vocab_size",
        "hidden_size": "n_embd",
        "num_layers": "n_layer",
        "num_heads": "n_head",
        "max_positions": "n_positions",
        "activation": "activation_function",
        "norm_eps": "layer_norm_epsilon",
        "tie_embeddings": "tie_word_embeddings",
        "dropout": "resid_pdrop",
        "attention_dropout": "attn_pdrop",
        "initializer_range": "initializer_range",
    },
    defaults={
        "activation": "gelu_new",
        "norm_eps": 1e-5,
        "tie_embeddings": True,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "initializer_range": 0.02,
    },
    fixed={
        "position_encoding": "learned",
        "rope_theta": 10_000.0,  # unused, as all of rope
        **_PLAIN_ROPE,
        "norm": "layernorm",
        "use_bias": True,
        "scale_residual_init": True,
    },
    naming=Naming(
        "transformer",
        {
            "token_embedding": "transformer.wte",
            "position_embedding": "transformer.wpe",
            "final_norm": "transformer.ln_f",
            "head": "lm_head",
        }
        | {f"layer_{{}}/{own}": f"transformer.h.{{}}.{name}" for own, name in _GPT2_LAYER.items()},
        columns={f"layer_{{}}/{own}": part for own, part in _GPT2_COLUMNS.items()},
    ),
    # `gelu_new` first: what GPT-2 itself has.
    activations={"gelu_new": "gelu_tanh", **ACTIVATIONS},
)
_LLAMA_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "activation": "hidden_act",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
    "attention_dropout": "attention_dropout",
    "initializer_range": "initializer_range",
}
LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    keys=_LLAMA_KEYS,
    defaults={
        "activation": "silu",
        "norm_eps": 1e-6,
        "tie_embeddings": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
    },
    fixed={"position_encoding": "rotary", "norm": "rmsnorm", "dropout": 0.0, "scale_residual_init": False},
    naming=Naming(
        "model",
        {"token_embedding": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
        | {f"layer_{{}}/{own}": f"model.layers.{{}}.{name}" for own, name in _LLAMA_LAYER.items()},
    ),
    activations={"silu": "swiglu", "swish": "swiglu"},
)
FAMILIES = {family.model_type: family for family in (GPT2, LLAMA)}

# Required values of settings that would change what a decoder computes.
_EXPECTED: dict[str, dict[str, Any]] = {
    "gpt2": {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    "llama": {},
}
_INTEGER = ((int,), "an integer")


def read_config(config: Mapping[str, Any], where: str) -> tuple[Family, dict[str, Any]]:
    """A config.json of a family -> the family, and every key of `model` except `name` and those of `free`.

    Null is the default, as in transformers. Raises UserError, naming `where`, for settings that are unsupported,
    missing or of the wrong type.
    """
    config = {key: value for key, value in config.items() if value is not None}
    family = FAMILIES[config["model_type"]]
    model = read_settings(family, config, where, _EXPECTED[family.model_type])
    check_model(where, model)
    model |= (_read_gpt2 if family is GPT2 else _read_llama)(config, model, where)
    check_model(where, model)
    return family, model


def _read_gpt2(config: Mapping[str, Any], model: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The keys of `model` that depend on others."""
    embedding_dropout = config.get("embd_pdrop", 0.1)
    if embedding_dropout != model["dropout"]:
        raise UserError(
            f"{where} has embd_pdrop {embedding_dropout!r} and resid_pdrop {model['dropout']}; only one value of both "
            "is supported"
        )
    return {
        "num_kv_heads": model["num_heads"],
        "head_size": _head_size(config, model, "n_embd", "n_head", where),
        "mlp_size": _integer(config, "n_inner", 4 * model["hidden_size"], where),
    }


def _read_llama(config: Mapping[str, Any], model: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The keys of `model` that depend on others."""
    biases = {key: config.get(key, False) for key in ("attention_bias", "mlp_bias")}
    for key, value in biases.items():
        check_kind(where, key, value, (bool,), "true or false")
    if biases["attention_bias"] != biases["mlp_bias"]:
        raise UserError(
            f"{where} has attention_bias {biases['attention_bias']} and mlp_bias {biases['mlp_bias']}; only biases in "
            "both, or in neither, are supported"
        )
    window = config.get("sliding_window")
    if window is not None and window < model["max_positions"]:
        raise UserError(
            f"{where} has sliding_window {window!r}, below max_position_embeddings {model['max_positions']}; only "
            "attention to all earlier tokens is supported"
        )
    return {
        "num_kv_heads": _integer(config, "num_key_value_heads", model["num_heads"], where),
        "head_size": (
            _integer(config, "head_dim", 0, where)
            if "head_dim" in config
            else _head_size(config, model, "hidden_size", "num_attention_heads", where)
        ),
        "use_bias": biases["attention_bias"],
        **_rope(config, model, where),
    }


def _integer(config: Mapping[str, Any], key: str, default: int, where: str) -> int:
    value = config.get(key, default)
    check_kind(where, key, value, *_INTEGER)
    return int(value)


def _head_size(config: Mapping[str, Any], model: Mapping[str, Any], width: str, heads: str, where: str) -> int:
    if model["hidden_size"] % model["num_heads"]:
        raise UserError(f"{where} has {width} {config[width]}, which {heads} {config[heads]} does not divide")
    return int(model["hidden_size"] // model["num_heads"])


def _rope(config: Mapping[str, Any], model: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The keys of the rotary embedding, in `rope_parameters`, or in older files in `rope_theta` and `rope_scaling`.

    Raises UserError for other scalings than those of _ROPE_TYPES, and for ones that rotate only a part of each head.
    """
    key = "rope_parameters" if "rope_parameters" in config else "rope_scaling"
    settings = config.get(key, {})
    check_kind(where, key, settings, (dict,), "an object")
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind not in _ROPE_TYPES:
        raise UserError(f"{where} has {key} of rope_type {kind!r}; supported: {', '.join(_ROPE_TYPES)}")
    if any(isinstance(value, dict) for value in settings.values()):
        raise UserError(f"{where} has {key} {settings!r}; only the same for all layers are supported")
    found = {name: settings.get(name, config.get(name)) for name in ("partial_rotary_factor", "rope_theta")}
    if found["partial_rotary_factor"] not in (None, 1):
        raise UserError(f"{where} has partial_rotary_factor {found['partial_rotary_factor']!r}; only 1.0 is supported")
    theta = 10_000.0 if found["rope_theta"] is None else found["rope_theta"]
    check_kind(where, "rope_theta", theta, (int, float), "a number")
    rope: dict[str, Any] = {**_PLAIN_ROPE, "rope_theta": float(theta)}
    if kind == "default":
        return rope
    given = {"original_max_position_embeddings": model["max_positions"], **settings}
    for own, theirs in _ROPE_TYPES[kind].items():
        if theirs not in given:
            raise UserError(f"{where} has {key} of rope_type {kind!r} without {theirs}")
        if own == "rope_positions":
            rope[own] = _integer(given, theirs, 0, where)
        else:
            check_kind(where, theirs, given[theirs], (int, float), "a number")
            rope[own] = float(given[theirs])
    return {**rope, "rope_scaling": kind}


def write_config(model: Mapping[str, Any]) -> tuple[Family, dict[str, Any]]:
    """The `model` section of a config -> the family that computes the same, and its config.json.

    GPT-2 without biases is one whose biases are 0. Raises UserError if there is no such family.
    """
    model = {**_PLAIN_ROPE, **model}  # older runs lack these
    gpt2 = {"position_encoding": "learned", "norm": "layernorm"}
    family = GPT2 if {key: model[key] for key in gpt2} == gpt2 else LLAMA
    fixed = gpt2 if family is GPT2 else {"position_encoding": "rotary", "norm": "rmsnorm"}
    expected = {key: (value,) for key, value in fixed.items()} | {"activation": tuple(family.activations.values())}
    if model["hidden_size"] % model["num_heads"]:
        raise UserError(
            f"model.num_heads={model['num_heads']} does not divide model.hidden_size={model['hidden_size']}, as it "
            "must in transformers"
        )
    if family is GPT2:
        sizes = {"num_kv_heads": model["num_heads"], "head_size": model["hidden_size"] // model["num_heads"]}
        expected |= {key: (size,) for key, size in sizes.items()}
    differing = [f"model.{key}={model[key]!r}" for key, allowed in expected.items() if model[key] not in allowed]
    if differing:
        raise UserError(f"neither GPT-2 nor Llama in transformers has {', '.join(differing)}")
    config = {theirs: model[key] for key, theirs in family.keys.items()}
    config[family.keys["activation"]] = written_activation(family, model["activation"])
    config |= {"model_type": family.model_type, "architectures": [family.architecture]}
    if family is GPT2:
        return family, {**config, "n_inner": model["mlp_size"], "embd_pdrop": model["dropout"]}
    theta = model["rope_theta"]
    kind = "default" if model["rope_scaling"] == "none" else model["rope_scaling"]
    return family, {
        **config,
        "num_key_value_heads": model["num_kv_heads"],
        "head_dim": model["head_size"],
        "attention_bias": model["use_bias"],
        "mlp_bias": model["use_bias"],
        "rope_theta": theta,  # as read by older versions
        "rope_parameters": {"rope_type": kind, "rope_theta": theta}
        | {theirs: model[own] for own, theirs in _ROPE_TYPES[kind].items()},
    }
