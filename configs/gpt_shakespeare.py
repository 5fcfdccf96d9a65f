"""GPT, a language model of characters on Shakespeare's plays, with nanoGPT's published settings.

python -m research.train --config=configs/gpt_shakespeare.py            # char if available, else embedded
python -m research.train --config=configs/gpt_shakespeare.py:embedded
python -m research.train --config=configs/gpt_shakespeare.py:char_cpu

Measured on 2 CPU cores with AMX, JAX 0.10.1, seed 0, with other work on the machine:
  char_cpu: loss 1.7673 on `validation` and 1.8423 on `test`, together 1.8048; 109 seconds of processor time.
  char_cpu with --config.model.position_encoding=learned --config.dtype=float32, as nanoGPT's: 1.8951 and 1.9223,
    together 1.9087, and with --config.data.transform.stride=32, 1.8842; nanoGPT's settings in plain PyTorch: 1.9081
    and 1.8843 (benchmarks/gpt_shakespeare.py).
  embedded: validation loss 1.6775, 2.4206 bits per byte, with the texts of Python 3.11.7; 4 minutes and 33 seconds of
    processor time.
  char: not yet measured; it needs an accelerator. A step takes about 20 seconds on these cores.

TFDS's tiny_shakespeare has one text per split. Its `train` is the first 90 % (1,003,854 characters), as nanoGPT's; its
`validation` and `test` are the first and second half of nanoGPT's validation split (55,770 characters each). The loss
over the whole of that is the mean of both.
"""

from ml_collections import ConfigDict

from research.configs.defaults import decoder, defaults, token_rows

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


def _embedded(config: ConfigDict) -> None:
    """The documentation that comes with Python, as bytes. Other versions of Python have other texts."""
    config.model = decoder(128, 4, 4, vocab_size=257, max_positions=128)
    config.data.name = "python_docs"
    config.data.transform = token_rows("byte", 257, 128, end_of_text="<|endoftext|>")
    config.model.position_encoding = "rotary"
    config.optimizer.warmup_fraction = 0.05
    config.train.epochs = 1
    config.train.batch_size = 16
    config.eval.batch_size = 64
    config.eval.every_steps = 200


def _shakespeare(config: ConfigDict) -> None:
    config.data.name = "tiny_shakespeare"
    # 65 characters and one for any other; a split is a single document, and nothing stands between two.
    config.data.transform = token_rows("character", 66, config.model.max_positions, end_of_text="")
    config.data.transform.blocks = "random"
    config.eval.splits = ("validation", "test")


def _char_cpu(config: ConfigDict) -> None:
    """nanoGPT's published settings for a CPU, with two changes: rotary positions, and bfloat16."""
    config.model = decoder(128, 4, 4, vocab_size=66, max_positions=64)
    config.model.position_encoding = "rotary"  # learned ones need more steps than these
    _shakespeare(config)
    config.dtype = "bfloat16"  # faster on a CPU with units for it
    config.optimizer.warmup_fraction = 0.05
    config.train.steps = 2000
    config.train.batch_size = 12
    config.eval.batch_size = 64
    config.eval.every_steps = 500


def _char(config: ConfigDict) -> None:
    """nanoGPT's published settings for a GPU, in bfloat16."""
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
