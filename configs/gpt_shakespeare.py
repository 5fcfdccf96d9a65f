"""GPT, a language model of characters on Shakespeare's plays, by the settings that nanoGPT publishes for them.

python -m research.train --config=configs/gpt_shakespeare.py            # char if available, else embedded
python -m research.train --config=configs/gpt_shakespeare.py:embedded
python -m research.train --config=configs/gpt_shakespeare.py:char_cpu

not yet measured

TFDS's tiny_shakespeare has one text per split. Its `train` is the first 90 % (1,003,854 characters), as nanoGPT's; its
`validation` and `test` are the first and second half of nanoGPT's validation split (55,770 characters each). The loss
over the whole of that is the mean of both.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from research.configs.defaults import defaults

PRESETS = ("embedded", "char_cpu", "char")
FULL = "char"
ON_CPU = "char_cpu"


def get_config(preset: str = "") -> ConfigDict:
    """Presets: `embedded`, `char_cpu`, `char`."""
    config = defaults()
    config.preset = preset or FULL
    config.task = ConfigDict({"name": "language_model"})
    config.optimizer.schedule = "cosine"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.end_fraction = 0.1
    config.optimizer.b2 = 0.99
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 1.0
    config.eval.metric = "loss"
    config.eval.mode = "min"
    {"embedded": _embedded, "char_cpu": _char_cpu, "char": _char}[config.preset](config)
    return config


def decoder(hidden_size: int, num_layers: int, num_heads: int, *, vocab_size: int, max_positions: int) -> ConfigDict:
    """A decoder as GPT-2's, but without biases."""
    return ConfigDict(
        {
            "name": "decoder",
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "num_kv_heads": num_heads,  # fewer: each is shared by several heads
            "head_size": hidden_size // num_heads,
            "mlp_size": 4 * hidden_size,
            "max_positions": max_positions,
            "position_encoding": "learned",  # learned, rotary
            "rope_theta": 10_000.0,  # rotary only
            "norm": "layernorm",  # layernorm, rmsnorm
            "norm_eps": 1e-5,
            "activation": "gelu",  # gelu, gelu_tanh, relu, swiglu
            "use_bias": False,
            "tie_embeddings": True,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "initializer_range": 0.02,
            "scale_residual_init": True,
            "remat": False,  # less memory for more computation
            "scan": False,  # compiles in the same time whatever the number of layers
        }
    )


def rows(tokenizer: str, vocab_size: int, row_length: int, *, end_of_text: str) -> ConfigDict:
    """A `data.transform` of documents to rows of tokens."""
    return ConfigDict(
        {
            "name": "language_model",
            "inputs": ("text",),
            "heading": "",  # a regex: a matching record between blank ones begins a document; "": each record is one
            "replace": (),  # (text, replacement), …
            "tokenizer": tokenizer,  # bpe, byte, character: learned from the training split; or a tokenizer.json
            "vocab_size": vocab_size,
            "end_of_text": end_of_text,  # the token between documents; "": none
            "row_length": row_length,
            # Of rows in evaluation; less than row_length: they overlap, so that each token has at least
            # row_length - stride tokens before it. None: row_length.
            "stride": placeholder(int),
            "blocks": "consecutive",  # a row of training: consecutive, each part of the text once an epoch; random
        }
    )


def _embedded(config: ConfigDict) -> None:
    """The documentation that comes with Python, as bytes. Other versions of Python have other texts."""
    config.model = decoder(128, 4, 4, vocab_size=257, max_positions=128)
    config.data.name = "python_docs"
    config.data.transform = rows("byte", 257, 128, end_of_text="<|endoftext|>")
    config.optimizer.warmup_fraction = 0.05
    config.train.steps = 2000
    config.train.batch_size = 12
    config.eval.batch_size = 64
    config.eval.every_steps = 500
    config.checkpoint.every_steps = 500


def _shakespeare(config: ConfigDict) -> None:
    config.data.name = "tiny_shakespeare"
    # 65 characters and one for any other; a split is a single document, and nothing stands between two.
    config.data.transform = rows("character", 66, config.model.max_positions, end_of_text="")
    config.data.transform.blocks = "random"
    config.eval.splits = ("validation", "test")


def _char_cpu(config: ConfigDict) -> None:
    """The settings that nanoGPT publishes for a CPU."""
    config.model = decoder(128, 4, 4, vocab_size=66, max_positions=64)
    _shakespeare(config)
    config.optimizer.warmup_fraction = 0.05
    config.train.steps = 2000
    config.train.batch_size = 12
    config.eval.batch_size = 64
    config.eval.every_steps = 500
    config.checkpoint.every_steps = 500


def _char(config: ConfigDict) -> None:
    """The settings that nanoGPT publishes for a GPU."""
    config.model = decoder(384, 6, 6, vocab_size=66, max_positions=256)
    config.model.dropout = 0.2
    config.model.attention_dropout = 0.2
    _shakespeare(config)
    config.needs_accelerator = True
    config.dtype = "bfloat16"
    config.optimizer.warmup_fraction = 0.02
    config.train.steps = 5000
    config.train.batch_size = 64
    config.eval.batch_size = 64
    config.eval.every_steps = 250
    config.checkpoint.every_steps = 250
