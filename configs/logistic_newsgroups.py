"""Logistic regression on hashed tf-idf of words: 20 Newsgroups, the bydate split.

python -m research.train --config=configs/logistic_newsgroups.py               # if it is prepared, else embedded
python -m research.train --config=configs/logistic_newsgroups.py:embedded      # the generated sentiment corpus
python -m research.train --config=configs/logistic_newsgroups.py:newsgroups

20 Newsgroups has no validation split: the test split is evaluated once, at the end, and not used for any choice.

Hardware: any. Measured on 2 CPU cores (AMD EPYC, AVX-512), seed 0, with JAX 0.10.2 (embedded, times) and 0.10.1:
  embedded: validation accuracy 0.7225, 8 s.
  newsgroups: test accuracy 0.8557, 19 s.
"""

from ml_collections import ConfigDict

from research.configs.defaults import classification, defaults

PRESETS = ("embedded", "newsgroups")
FULL = "newsgroups"

# Preset -> dataset, text column, classes, the split evaluated.
DATA = {
    "embedded": ("sentiment", "sentence", 2, "validation"),
    "newsgroups": ("twenty_newsgroups", "text", 20, "test"),
}
BUCKETS = 2**18


def get_config(preset: str = "") -> ConfigDict:
    """Presets: `embedded`, `newsgroups`."""
    config = defaults()
    config.preset = preset or FULL
    name, column, num_classes, split = DATA[config.preset]
    config.model = ConfigDict({"name": "sparse_logistic", "num_classes": num_classes, "num_features": BUCKETS})
    config.task = classification()
    config.data.name = name
    config.data.transform = ConfigDict(
        {
            "name": "bag_of_words",
            "inputs": (column,),
            "label": "label",
            "ngrams": (1, 1),
            "buckets": BUCKETS,
            "max_length": 8192,  # one message of `test` has 13,321 distinct words; all others have fewer than this
            "pad_to": (128, 512, 2048, 8192),
            "row_length": 8192,
        }
    )
    config.optimizer.name = "lbfgs"
    config.optimizer.C = 10.0
    config.train.steps = 1
    config.train.batch_rows = -1  # all
    config.eval.splits = (split,)
    config.eval.batch_rows = 8
    return config
