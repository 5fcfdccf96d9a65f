"""A small ResNet (three stages of one basic block) on MNIST (LeCun et al. 1998); `embedded` on scikit-learn's digits.

python -m research.train --config=configs/resnet_mnist.py
python -m research.train --config=configs/resnet_mnist.py:embedded

Hardware: any. Measured on 2 CPU cores (AMD EPYC, AVX-512), JAX 0.10.2, seed 0:
  mnist: test accuracy 0.9916; 2 minutes and 10 seconds. embedded: that of resnet_digits.
MNIST has no validation split: the final parameters are evaluated on `test` once, and it is not used for any choice.
"""

from ml_collections import ConfigDict

from research.configs import resnet_digits

PRESETS = ("embedded", "mnist")
FULL = "mnist"


def get_config(preset: str = "") -> ConfigDict:
    """Presets: `embedded`, which is resnet_digits, and `mnist`."""
    config = resnet_digits.get_config("embedded")
    config.preset = preset or FULL
    if config.preset == "mnist":
        _mnist(config)
    return config


def _mnist(config: ConfigDict) -> None:
    """70,000 digits of 28×28, randomly shifted by up to two pixels."""
    config.model.update(stage_sizes=(1, 1, 1), width=16, mean=(33.3,), std=(78.6,))
    config.data.name = "mnist"
    config.data.transform.inputs = ("image",)
    config.data.transform.augment.crop_padding = 2
    config.train.epochs = 3
    config.train.batch_size = 128
    config.eval.splits = ("test",)
    config.eval.every_steps = 0
