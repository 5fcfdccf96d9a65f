"""GPT, a language model of pairs of bytes merged by frequency (Radford et al. 2019), on articles of Wikipedia.

python -m research.train --config=configs/gpt_wikitext.py            # base if available, else embedded
python -m research.train --config=configs/gpt_wikitext.py:embedded
python -m research.train --config=configs/gpt_wikitext.py:wikitext
python -m research.train --config=configs/gpt_wikitext.py:shards --config.data.train='corpus/train*.parquet' \
    --config.data.validation='corpus/validation*.parquet'

Measured on 2 CPU cores with AMX, JAX 0.10.1, seed 0, with other work on the machine:
  embedded: validation perplexity 124.8, 2.2480 bits per byte, with the texts of Python 3.11.7; 1 minute and 37 seconds
    of processor time.
  wikitext: not yet measured.
  base, shards: not yet measured; they need an accelerator.

Losses are per token, so that those of different vocabularies are not comparable; bits per byte are. WikiText replaces
rare words by <unk>, which here is text like any other, and published perplexities are per word: exp of the loss times
the tokens per word.

TFDS has no builder of WikiText: it must be prepared for TFDS already, with one record per line of the original files.
"""

from ml_collections import ConfigDict

from research.configs.defaults import WIKITEXT_HEADING, WIKITEXT_REPLACE, decoder, defaults, token_rows

PRESETS = ("embedded", "wikitext", "base", "shards")
FULL = "base"
ON_CPU = "wikitext"

END = "<|endoftext|>"


def get_config(preset: str = "") -> ConfigDict:
    """Presets: `embedded`, `wikitext`, `base`, `shards`."""
    config = defaults()
    config.preset = preset or FULL
    config.task = ConfigDict({"name": "language_model"})
    config.optimizer.schedule = "cosine"
    config.optimizer.end_fraction = 0.1
    config.optimizer.b2 = 0.95
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 1.0
    config.optimizer.warmup_fraction = 0.05
    config.eval.metric = "bits_per_byte"
    config.eval.mode = "min"
    {"embedded": _embedded, "wikitext": _wikitext, "base": _base, "shards": _shards}[config.preset](config)
    return config


def _small(config: ConfigDict, vocab_size: int) -> None:
    """A model that a CPU can train in minutes: narrow, shallow, and without dropout, as it sees few tokens twice."""
    config.model = decoder(128, 4, 4, vocab_size=vocab_size, max_positions=128)
    config.model.position_encoding = "rotary"
    config.data.transform = token_rows("bpe", vocab_size, 128, end_of_text=END)
    config.optimizer.learning_rate = 2e-3
    config.train.batch_size = 8
    config.eval.batch_size = 32


def _embedded(config: ConfigDict) -> None:
    """The documentation that comes with Python; needs no network. Other versions of Python have other texts."""
    _small(config, 2000)
    config.data.name = "python_docs"
    config.train.epochs = 1
    config.eval.every_steps = 200


def _wikitext(config: ConfigDict) -> None:
    """WikiText-2: 600 articles for training, two million words."""
    _small(config, 4000)
    config.data.name = "wikitext/wikitext-2-v1"
    config.data.transform.heading = WIKITEXT_HEADING
    config.data.transform.replace = WIKITEXT_REPLACE
    config.train.epochs = 1
    config.eval.every_steps = 1000


def _base(config: ConfigDict) -> None:
    """GPT-2's smallest size on WikiText-103, a hundred million words: 10 epochs, 65,536 tokens per step."""
    config.model = decoder(768, 12, 12, vocab_size=50_257, max_positions=1024)
    config.model.dropout = 0.1
    config.model.attention_dropout = 0.1
    config.data.name = "wikitext/wikitext-103-v1"
    config.data.transform = token_rows("bpe", 50_257, 1024, end_of_text=END)
    config.data.transform.heading = WIKITEXT_HEADING
    config.data.transform.replace = WIKITEXT_REPLACE
    config.data.transform.stride = 512
    config.needs_accelerator = True
    config.dtype = "bfloat16"
    config.optimizer.learning_rate = 6e-4
    config.train.epochs = 10
    config.train.batch_size = 64
    config.eval.batch_size = 16
    config.eval.every_steps = 2000


def _shards(config: ConfigDict) -> None:
    """GPT-2's smallest size on own texts of any size, in array_record or Parquet files: 100,000 steps."""
    _base(config)
    config.data.name = "shards"
    config.data.transform.heading = ""
    config.data.transform.replace = ()
    config.data.shards.rows = 64
    config.train.epochs = None
    config.train.steps = 100_000
    config.eval.every_steps = 5000
