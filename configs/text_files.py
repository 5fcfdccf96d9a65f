"""Own texts: CSV, TSV, JSON lines or Parquet with a column of text, or two of pairs.

    python -m research.train --config=configs/text_files.py --config.data.train=FILE   # minilm if available
    python -m research.train --config=configs/text_files.py:embedded --config.data.train=FILE
    python -m research.train --config=configs/text_files.py:bag_of_words --config.data.train=FILE

The column called label, target, class or y is what is predicted, and the column of sentences what it is predicted from;
--config.data.transform.label=COLUMN and --config.data.transform.inputs=COLUMN name others. Text is lowercased unless
--config.data.transform.lowercase=false. A tenth of the rows is cut off for validation, stratified by class, unless
--config.data.validation=FILE is given.

Hardware: any. Presets:
  minilm: BERT of six narrow layers from pretrained weights (Wang et al. 2020, arXiv:2002.10957): for few texts.
  embedded: BERT of two small layers from random weights, with a vocabulary of the texts; it needs thousands of texts.
  bag_of_words: logistic regression on tf-idf of words and pairs of them, to the optimum.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from research.configs import bert_sst2
from research.configs.defaults import classification, defaults

PRESETS = ("embedded", "minilm", "bag_of_words")
FULL = "minilm"
BUCKETS = 2**18


def get_config(preset: str = "") -> ConfigDict:
    """Presets: `embedded`, `minilm`, `bag_of_words`."""
    config = defaults()
    config.preset = preset or FULL
    config.task = classification()
    config.data.name = "files"
    config.optimizer.schedule = "linear"
    config.optimizer.warmup_fraction = 0.1
    config.optimizer.weight_decay = 0.01
    config.optimizer.eps = 1e-6
    config.optimizer.clip_norm = 1.0
    config.train.lora.trains = "^(pooler|classifier)/"
    {"embedded": _embedded, "minilm": _minilm, "bag_of_words": _bag_of_words}[config.preset](config)
    return config


def _bert(config: ConfigDict, hidden_size: int, num_layers: int, num_heads: int, *, vocab_size: int) -> None:
    config.model = bert_sst2.get_config("scratch").model
    config.model.update(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_layers=num_layers,
        num_heads=num_heads,
        mlp_size=4 * hidden_size,
        max_positions=512,
        dropout=0.1,
        initializer_range=0.02,
    )
    config.data.transform = ConfigDict(
        {
            "name": "wordpiece",
            "inputs": (),  # a column of text, or two of pairs; empty: the only one of sentences
            "label": "",
            "tokenizer": placeholder(str),  # a tokenizer.json; None: one is trained on the training split
            "vocab_size": vocab_size,
            "lowercase": True,
            "max_length": 128,
            "pad_to": (32, 64, 128),  # with train.batch_size
            "row_length": 128,  # with train.batch_rows
        }
    )


def _embedded(config: ConfigDict) -> None:
    _bert(config, 128, 2, 2, vocab_size=8000)
    config.model.initializer_range = 0.05
    config.optimizer.learning_rate = 5e-4
    config.train.epochs = 5
    config.train.batch_rows = 16


def _minilm(config: ConfigDict) -> None:
    _bert(config, 384, 6, 12, vocab_size=30_522)
    config.init_from = "sentence-transformers/all-MiniLM-L6-v2"
    config.optimizer.learning_rate = 1e-4
    config.train.epochs = 3
    config.train.batch_rows = 4


def _bag_of_words(config: ConfigDict) -> None:
    config.model = ConfigDict({"name": "sparse_logistic", "num_classes": 2, "num_features": BUCKETS})
    config.data.transform = ConfigDict(
        {
            "name": "bag_of_words",
            "inputs": (),  # columns of text, joined by a space; empty: all of sentences
            "label": "",
            "ngrams": (1, 2),
            "buckets": BUCKETS,
            "max_length": 1024,
            "pad_to": (64, 256, 1024),
            "row_length": 1024,
        }
    )
    config.optimizer.name = "lbfgs"
    config.optimizer.clip_norm, config.optimizer.weight_decay = None, 0.0
    config.optimizer.C = 10.0
    config.train.steps = 1
    config.train.batch_rows = -1  # all
