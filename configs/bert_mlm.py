"""BERT pretrained as a masked language model (Devlin et al. 2018, section 3.1), on texts cut into full rows.

python -m research.train --config=configs/bert_mlm.py            # base if available, else embedded
python -m research.train --config=configs/bert_mlm.py:embedded
python -m research.train --config=configs/bert_mlm.py:wikitext
python -m research.train --config=configs/bert_mlm.py:shards --config.data.train='corpus/train*.parquet' \
    --config.data.validation='corpus/validation*.parquet'

Measured on 2 CPU cores (AMD EPYC, AVX-512), JAX 0.10.2, seed 0; perplexity over masked tokens, not comparable with that
of a left-to-right model, nor between vocabularies:
  embedded: validation perplexity 140.9, accuracy 0.219, with the texts of Python 3.11.7; 2 minutes and 37 seconds of
    processor time.
  wikitext: validation perplexity 405.8 (at each 1,000 steps 581.9, 511.7, 470.7, 452.0, 431.4, 418.5, 408.1); 4 minutes
    and 20 seconds, with other work on the machine.
  wikitext with --config.init_from=FOLDER --config.dtype=bfloat16 --config.optimizer.learning_rate=1e-4
    --config.train.steps=800 --config.eval.every_steps=200, FOLDER holding all-MiniLM-L6-v2: 301.3, 175.6, 141.1, 130.2;
    6 minutes, with other work on the machine. (That encoder was made for sentences, and comes without a head.)
  base, shards: not yet measured; they need an accelerator.

TFDS has no builder of WikiText: it must be prepared for TFDS already, with one record per line of the original files.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from research.configs.defaults import WIKITEXT_HEADING, WIKITEXT_REPLACE, defaults

PRESETS = ("embedded", "wikitext", "base", "shards")
FULL = "base"
ON_CPU = "wikitext"

REPLACE = (("<unk>", "[UNK]"), *WIKITEXT_REPLACE)  # which stands for rare words


def get_config(preset: str = "") -> ConfigDict:
    """Presets: `embedded`, `wikitext`, `base`, `shards`."""
    config = defaults()
    config.preset = preset or FULL
    config.task = ConfigDict({"name": "masked_lm"})
    config.optimizer.schedule = "linear"
    config.optimizer.weight_decay = 0.01
    config.optimizer.eps = 1e-6
    config.optimizer.clip_norm = 1.0
    config.eval.metric = "perplexity"
    config.eval.mode = "min"
    {"embedded": _embedded, "wikitext": _wikitext, "base": _base, "shards": _shards}[config.preset](config)
    return config


def _model(hidden_size: int, num_layers: int, num_heads: int, *, vocab_size: int, max_positions: int) -> ConfigDict:
    return ConfigDict(
        {
            "name": "bert_mlm",
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "head_size": placeholder(int),  # None: hidden_size / num_heads
            "mlp_size": 4 * hidden_size,
            "activation": "gelu",  # of the feed-forward layers: gelu, gelu_tanh, relu
            "max_positions": max_positions,
            "position_offset": 0,
            "type_vocab_size": 2,
            "dropout": 0.1,
            "attention_dropout": 0.1,
            "layer_norm_eps": 1e-12,
            "initializer_range": 0.02,
            "remat": False,  # less memory for more computation
            "remat_policy": "nothing",  # what it saves nevertheless: nothing, products
            "scan": False,  # compiles in the same time whatever the number of layers
        }
    )


def _rows(vocab_size: int, row_length: int) -> ConfigDict:
    return ConfigDict(
        {
            "name": "masked_lm",
            "inputs": ("text",),
            "heading": "",  # a regex: a matching record between blank ones begins a document; "": each record is one
            "replace": (),  # (text, replacement), …
            "tokenizer": placeholder(str),  # a tokenizer.json; None: one is trained on the training split
            "vocab_size": vocab_size,
            "lowercase": True,
            "row_length": row_length,
            "mask_rate": 0.15,
            "whole_words": True,
        }
    )


def _small(config: ConfigDict, vocab_size: int) -> None:
    """A model that a CPU can pretrain in minutes: narrow, shallow, and without dropout, as it sees few tokens twice."""
    config.model = _model(128, 2, 2, vocab_size=vocab_size, max_positions=128)
    config.model.initializer_range = 0.05  # 0.02 is for wide layers; a narrow one learns from it much later
    config.model.dropout = 0.0
    config.model.attention_dropout = 0.0
    config.data.transform = _rows(vocab_size, 64)
    config.optimizer.warmup_fraction = 0.05
    config.train.batch_size = 16
    config.eval.batch_size = 64


def _embedded(config: ConfigDict) -> None:
    """The documentation that comes with Python; needs no network. Other versions of Python have other texts."""
    _small(config, 4000)
    config.data.name = "python_docs"
    config.optimizer.learning_rate = 2e-3
    config.train.epochs = 5
    config.eval.every_steps = 200
    config.checkpoint.every_steps = 200


def _wikitext(config: ConfigDict) -> None:
    """WikiText-2: 600 articles for training, two million words."""
    _small(config, 8000)
    config.data.name = "wikitext/wikitext-2-v1"
    config.data.transform.heading = WIKITEXT_HEADING
    config.data.transform.replace = REPLACE
    config.optimizer.learning_rate = 1e-3
    config.train.epochs = 3
    config.eval.every_steps = 1000
    config.checkpoint.every_steps = 1000


def _base(config: ConfigDict) -> None:
    """BERT-base on WikiText-103, a hundred million words: 40 epochs, 131,072 tokens per step."""
    config.model = _model(768, 12, 12, vocab_size=30_522, max_positions=512)
    config.data.name = "wikitext/wikitext-103-v1"
    config.data.transform = _rows(30_522, 512)
    config.data.transform.heading = WIKITEXT_HEADING
    config.data.transform.replace = REPLACE
    config.needs_accelerator = True
    config.dtype = "bfloat16"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.b2 = 0.98  # Liu et al. 2019, section 3.1: more stable with large batches
    config.optimizer.warmup_fraction = 0.05
    config.train.epochs = 40
    config.train.batch_size = 256
    config.eval.batch_size = 64
    config.eval.every_steps = 2000
    config.checkpoint.every_steps = 2000


def _shards(config: ConfigDict) -> None:
    """BERT-base on own texts of any size, in array_record or Parquet files: 100,000 steps of 131,072 tokens."""
    _base(config)
    config.data.name = "shards"
    config.data.transform.heading = ""
    config.data.transform.replace = ()
    config.train.epochs = None
    config.train.steps = 100_000
    config.eval.every_steps = 5000
