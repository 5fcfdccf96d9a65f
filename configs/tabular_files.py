"""Own tables: CSV, TSV, JSON lines or Parquet, with columns of numbers and categories.

    python -m research.train --config=configs/tabular_files.py --config.data.train=FILE
    python -m research.train --config=configs/tabular_files.py:linear --config.data.train=FILE

The column called label, target, class or y is what is predicted; --config.data.transform.label=COLUMN names another. A
label of text, or of few whole numbers, has classes; other numbers are a regression. The columns' kinds, the number of
classes and the length of the run follow from the file and are printed; --config.data.kinds=COLUMN=KIND declares a kind.
A tenth of the rows is cut off for validation, unless --config.data.validation=FILE is given.

Hardware: any. Presets:
  embedded: a multilayer perceptron.
  linear: logistic regression, or ridge regression, to the optimum.
"""

from ml_collections import ConfigDict

from research.configs.defaults import classification, defaults

PRESETS = ("embedded", "linear")
FULL = "embedded"


def get_config(preset: str = "") -> ConfigDict:
    """Presets: `embedded`, `linear`."""
    config = defaults()
    config.preset = preset or FULL
    config.task = classification()
    config.data.name = "files"
    config.data.transform = ConfigDict(
        {
            "name": "table",
            "inputs": (),  # columns; empty: all of numbers and categories
            "label": "",
            "missing": "error",  # error, impute: the mean of a number, and a category of its own for text
        }
    )
    {"embedded": _mlp, "linear": _linear}[config.preset](config)
    return config


def _mlp(config: ConfigDict) -> None:
    config.model = ConfigDict(
        {
            "name": "mlp",
            "num_classes": 2,
            "hidden_sizes": (128, 128),
            "dropout": 0.1,
            "mean": (),
            "std": (),
            "output_mean": 0.0,  # of a regression's labels
            "output_std": 1.0,
        }
    )
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_fraction = 0.1
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 1e-2
    config.train.batch_size = 128
    config.train.epochs = 30


def _linear(config: ConfigDict) -> None:
    """As scikit-learn's LogisticRegression(C=1), or Ridge(alpha=1)."""
    config.model = ConfigDict({"name": "logistic", "num_classes": 2})
    config.optimizer.name = "lbfgs"
    config.optimizer.C = 1.0
    config.train.steps = 1
    config.train.batch_size = -1
