# mypy: disable-error-code="arg-type"
"""Small encoders in transformers' layout, written without transformers: names and shapes are given explicitly."""

import json
import string
from typing import Any

import numpy as np
import optax
import tokenizers
from safetensors.numpy import save_file
from tokenizers import models, pre_tokenizers, processors

from research.config import load
from research.core.state import TrainState
from research.data.text.wordpiece import SPECIAL_TOKENS, read_tokenizer
from research.interop import pretrained
from research.runs.checkpoint import Checkpoints, Progress
from research.runs.rundir import RunDir

VOCABULARY = [*SPECIAL_TOKENS, *string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]

CONFIGS: dict[str, Any] = {
    "bert": {
        "model_type": "bert",
        "architectures": ["BertModel"],
        "vocab_size": len(VOCABULARY),
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "hidden_act": "gelu",
        "max_position_embeddings": 32,
        "type_vocab_size": 2,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "layer_norm_eps": 1e-12,
        "initializer_range": 0.02,
        "pad_token_id": 0,
    },
    "roberta": {
        "model_type": "roberta",
        "architectures": ["RobertaForMaskedLM"],
        "vocab_size": 261,
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "hidden_act": "gelu",
        "max_position_embeddings": 34,
        "type_vocab_size": 1,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "layer_norm_eps": 1e-5,
        "initializer_range": 0.02,
        "pad_token_id": 1,
    },
    "distilbert": {
        "model_type": "distilbert",
        "architectures": ["DistilBertForMaskedLM"],
        "vocab_size": len(VOCABULARY),
        "dim": 8,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 12,
        "activation": "gelu",
        "max_position_embeddings": 32,
        "dropout": 0.1,
        "attention_dropout": 0.1,
        "seq_classif_dropout": 0.2,
        "initializer_range": 0.02,
        "sinusoidal_pos_embds": False,
        "pad_token_id": 0,
    },
}


def tensors(family, num_classes=None, vocab_size=None):
    """{name: float32 tensor} of the encoder and its head, and of a classifier if it has classes.

    `vocab_size`: rows of the word embedding; None: as in CONFIGS.

    The values are sines of different frequencies, which do not depend on a random generator.
    """
    config = CONFIGS[family]
    size, width = 8, 12
    prefix = f"{family}."
    shapes = {
        f"{prefix}embeddings.word_embeddings.weight": (vocab_size or config["vocab_size"], size),
        f"{prefix}embeddings.position_embeddings.weight": (config["max_position_embeddings"], size),
        f"{prefix}embeddings.LayerNorm.weight": (size,),
        f"{prefix}embeddings.LayerNorm.bias": (size,),
    }
    if family != "distilbert":
        shapes[f"{prefix}embeddings.token_type_embeddings.weight"] = (config["type_vocab_size"], size)
    for layer in range(2):
        if family == "distilbert":
            p = f"{prefix}transformer.layer.{layer}."
            attention = [f"{p}attention.{name}" for name in ("q_lin", "k_lin", "v_lin", "out_lin")]
            mlp = [f"{p}ffn.lin1", f"{p}ffn.lin2"]
            norms = [f"{p}sa_layer_norm", f"{p}output_layer_norm"]
        else:
            p = f"{prefix}encoder.layer.{layer}."
            attention = [f"{p}attention.self.{name}" for name in ("query", "key", "value")]
            attention.append(f"{p}attention.output.dense")
            mlp = [f"{p}intermediate.dense", f"{p}output.dense"]
            norms = [f"{p}attention.output.LayerNorm", f"{p}output.LayerNorm"]
        for name, out, into in [
            *((name, size, size) for name in attention),
            (mlp[0], width, size),
            (mlp[1], size, width),
        ]:
            shapes |= {f"{name}.weight": (out, into), f"{name}.bias": (out,)}
        for name in norms:
            shapes |= {f"{name}.weight": (size,), f"{name}.bias": (size,)}
    head, classifier = {
        "bert": ("bert.pooler.dense", "classifier"),
        "roberta": ("classifier.dense", "classifier.out_proj"),
        "distilbert": ("pre_classifier", "classifier"),
    }[family]
    shapes |= {f"{head}.weight": (size, size), f"{head}.bias": (size,)}
    if num_classes:
        shapes |= {f"{classifier}.weight": (num_classes, size), f"{classifier}.bias": (num_classes,)}
    made = {}
    for index, (name, shape) in enumerate(shapes.items()):
        values = 0.5 * np.sin(np.arange(np.prod(shape)) * (1.0 + 0.37 * index) + index)
        made[name] = (values + (1.0 if len(shape) == 1 and name.endswith("weight") else 0.0)).reshape(shape)
    return {name: tensor.astype(np.float32) for name, tensor in made.items()}


def write(folder, family="bert", *, num_classes=None, **changes):
    """Writes a complete folder -> its tensors. `changes`: to config.json, including the vocab_size of the tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIGS[family], **changes}))
    if family == "roberta":
        _roberta_tokenizer().save(str(folder / "tokenizer.json"))
    else:
        (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    made = tensors(family, num_classes, changes.get("vocab_size"))
    save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
    return made


def _roberta_tokenizer():
    """A byte-level tokenizer without merges."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "<mask>"]
    tokenizer = tokenizers.Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return tokenizer


def write_run(folder, init_from, num_classes=3):
    """A run directory whose only checkpoint, at step 7, holds the parameters of `init_from`; nothing was trained."""
    overrides = [f"init_from={init_from}", f"model.num_classes={num_classes}"]
    experiment = load("configs/bert_sst2.py:embedded", overrides)
    config = pretrained.resolve_init_from(experiment.config, experiment.given, folder).config
    run = RunDir(folder)
    run.start(config.to_dict())
    transform = config.data.transform
    tokenizer = read_tokenizer(transform.tokenizer, lowercase=transform.lowercase)
    tokenizer.enable_truncation(4)  # as in some published files
    tokenizer.enable_padding()
    tokenizer.save(str(run.assets / "tokenizer.json"))
    _, variables = pretrained.load(str(init_from), num_classes)
    state = TrainState(
        step=np.zeros((), np.int32), **variables, model_state={}, opt_state=optax.EmptyState(), average={}
    )
    with Checkpoints(run.checkpoints, metric="accuracy", mode="max") as checkpoints:
        checkpoints.save(state, Progress(step=7))
        checkpoints.rank(Progress(step=7, history=((7, 0.5),)))
    run.close()
    return folder


def batch(vocab_size, lengths=(7, 4, 1), type_ids=True):
    """Three examples of different lengths, one per row; the first is a pair."""
    tokens = np.zeros((len(lengths), 9), np.int32)
    segments = np.zeros_like(tokens)
    types = np.zeros_like(tokens)
    for row, length in enumerate(lengths):
        tokens[row, :length] = 5 + (np.arange(length) * 7 + row) % (vocab_size - 6)
        segments[row, :length] = 1
        types[row, length // 2 : length] = type_ids
    positions = np.where(segments, np.arange(9)[None, :], 0).astype(np.int32)
    starts = np.zeros((len(lengths), 1), np.int32)
    return {"tokens": tokens, "segments": segments, "positions": positions, "type_ids": types, "starts": starts}
