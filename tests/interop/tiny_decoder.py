# mypy: disable-error-code="arg-type"
"""Small decoders in transformers' layout, written without transformers: names and shapes are given explicitly."""

import json
from typing import Any

import ml_dtypes
import numpy as np
import optax
import tokenizers
from ml_collections import ConfigDict
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers

from research.config import load
from research.core.state import TrainState
from research.interop import pretrained
from research.runs.checkpoint import Checkpoints, Progress
from research.runs.rundir import RunDir

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
END = "<|endoftext|>"
CHATML = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
_VOCABULARY = [*sorted(pre_tokenizers.ByteLevel.alphabet()), END]

CONFIGS: dict[str, Any] = {
    "gpt2": {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": len(_VOCABULARY),
        "n_embd": 8,
        "n_layer": 2,
        "n_head": 2,
        "n_inner": 12,
        "n_positions": 32,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "resid_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "attn_pdrop": 0.1,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "bos_token_id": len(_VOCABULARY) - 1,
        "eos_token_id": len(_VOCABULARY) - 1,
        "pad_token_id": None,
    },
    "llama": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": len(_VOCABULARY),
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 6,
        "intermediate_size": 12,
        "max_position_embeddings": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "bos_token_id": len(_VOCABULARY) - 1,
        "eos_token_id": len(_VOCABULARY) - 1,
        "pad_token_id": None,
    },
}


def tensors(family, *, bias=False, tied=None):
    """{name: float32 tensor}. The values are sines of different frequencies, which need no random generator.

    `bias`: of a Llama's linear layers; `tied`: None: as in CONFIGS.
    """
    tied = CONFIGS[family]["tie_word_embeddings"] if tied is None else tied
    rows = CONFIGS[family]["vocab_size"]
    shapes: dict[str, tuple[int, ...]]
    if family == "gpt2":
        shapes = {"transformer.wte.weight": (rows, 8), "transformer.wpe.weight": (32, 8)}
        for i in range(2):
            layer = f"transformer.h.{i}"
            shapes |= {
                f"{layer}.attn.c_attn.weight": (8, 24),
                f"{layer}.attn.c_attn.bias": (24,),
                f"{layer}.attn.c_proj.weight": (8, 8),
                f"{layer}.attn.c_proj.bias": (8,),
                f"{layer}.mlp.c_fc.weight": (8, 12),
                f"{layer}.mlp.c_fc.bias": (12,),
                f"{layer}.mlp.c_proj.weight": (12, 8),
                f"{layer}.mlp.c_proj.bias": (8,),
            }
            shapes |= {f"{layer}.ln_{n}.{leaf}": (8,) for n in (1, 2) for leaf in ("weight", "bias")}
        shapes |= {"transformer.ln_f.weight": (8,), "transformer.ln_f.bias": (8,)}
    else:
        shapes = {"model.embed_tokens.weight": (rows, 8), "model.norm.weight": (8,)}
        for i in range(2):
            layer = f"model.layers.{i}"
            linear: dict[str, tuple[int, ...]] = {
                "self_attn.q_proj": (12, 8), "self_attn.k_proj": (6, 8), "self_attn.v_proj": (6, 8),
                "self_attn.o_proj": (8, 12), "mlp.gate_proj": (12, 8), "mlp.up_proj": (12, 8), "mlp.down_proj": (8, 12),
            }  # fmt: skip
            shapes |= {f"{layer}.{name}.weight": shape for name, shape in linear.items()}
            shapes |= {f"{layer}.{name}.bias": shape[:1] for name, shape in linear.items() if bias}
            shapes |= {f"{layer}.{name}.weight": (8,) for name in ("input_layernorm", "post_attention_layernorm")}
    if not tied:
        shapes["lm_head.weight"] = (rows, 8)
    made = {}
    for index, (name, shape) in enumerate(shapes.items()):
        values = 0.5 * np.sin(np.arange(np.prod(shape)) * (1.0 + 0.37 * index) + index)
        made[name] = (values + (1.0 if len(shape) == 1 and name.endswith("weight") else 0.0)).reshape(shape)
    return {name: tensor.astype(np.float32) for name, tensor in made.items()}


def write(folder, family, *, dtype="float32", shards=1, with_tokenizer=True, **changes):
    """Writes a complete folder -> its tensors, in `dtype` and spread over `shards` files. `changes`: to config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIGS[family], **changes}
    (folder / "config.json").write_text(json.dumps(config))
    if with_tokenizer:
        tokenizer().save(str(folder / "tokenizer.json"))
    made = tensors(family, bias=bool(config.get("attention_bias")), tied=config["tie_word_embeddings"])
    made = {name: tensor.astype(DTYPES[dtype]) for name, tensor in made.items()}
    if shards == 1:
        save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
        return made
    files = {name: f"model-{index % shards + 1:05}-of-{shards:05}.safetensors" for index, name in enumerate(made)}
    for file in set(files.values()):
        save_file({name: made[name] for name in made if files[name] == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return made


def write_chat(folder, **changes):
    """A Llama with a template for chats. `changes`: to config.json."""
    write(folder, "llama", **changes)
    settings = {"chat_template": CHATML, "eos_token": {"content": END}, "bos_token": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def tokenizer():
    """One token per byte, and one for the end of a text."""
    made = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(_VOCABULARY)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([END])
    return made


def write_run(folder, model, params):
    """A run directory whose only checkpoint, at step 7, holds these parameters; nothing was trained.

    `model`: the section of its config. Its rows of tokens are made by a transform of the user's own.
    """
    config = load("configs/bert_mlm.py:embedded", []).config.copy_and_resolve_references()
    config.model = ConfigDict({"name": "decoder", **model})
    config.data.transform = ConfigDict({"name": "own", "tokenizer": None, "end_of_text": END})
    run = RunDir(folder)
    run.start(config.to_dict())
    made = tokenizer()
    made.enable_truncation(4)  # as in some published files
    made.enable_padding()
    made.save(str(run.assets / "tokenizer.json"))
    state = TrainState(
        step=np.zeros((), np.int32), params=params, model_state={}, opt_state=optax.EmptyState(), average={}
    )
    with Checkpoints(run.checkpoints, metric="perplexity", mode="min") as checkpoints:
        checkpoints.save(state, Progress(step=7))
        checkpoints.rank(Progress(step=7, history=((7, 0.5),)))
    run.close()
    return folder


def section(folder):
    """The `model` section of a config for the weights of a folder, without the name."""
    return pretrained._weights(str(folder)).model | {"remat": False, "scan": False}


def batch(lengths=(7, 4, 1), width=9):
    """Texts of different lengths, one per row."""
    real = np.arange(width)[None, :] < np.asarray(lengths)[:, None]
    tokens = (np.arange(width)[None, :] * 7 + 31 * np.arange(len(lengths))[:, None]) % len(_VOCABULARY)
    arrays = {"tokens": tokens * real, "segments": real, "positions": np.arange(width)[None, :] * real}
    return {name: array.astype(np.int32) for name, array in arrays.items()}
