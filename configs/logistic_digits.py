"""Multinomial logistic regression on digits (1,797 images of 8×8).

python -m research.train --config=configs/logistic_digits.py

Hardware: any. Measured on 2 CPU cores (AMD EPYC, AVX-512), JAX 0.10.2, seed 0:
8 s; test accuracy 0.9639, validation 0.9694.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs.defaults import defaults

PRESETS = ("embedded",)
FULL = "embedded"


def get_config(preset: str = "") -> ConfigDict:
    """Preset: `embedded`."""
    config = defaults()
    config.preset = preset or FULL
    config.model = ConfigDict({"name": "logistic", "num_classes": 10})
    config.task = ConfigDict({"name": "classification", "label_smoothing": 0.0, "class_weight": placeholder(object)})
    config.data.name = "digits"
    config.data.transform = ConfigDict(
        {"name": "pixels", "inputs": ("features",), "label": "label", "channels": 1, "mean": (4.9,), "std": (6.0,)}
    )
    config.optimizer.name = "lbfgs"
    config.optimizer.C = 0.03
    config.train.steps = 1
    config.train.batch_size = -1
    config.eval.splits = ("validation", "test")
    return config
