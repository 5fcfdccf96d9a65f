"""Own images: a folder with a folder per class, or a table with a column of their paths.

    python -m research.train --config=configs/image_files.py --config.data.train=FOLDER
    python -m research.train --config=configs/image_files.py:resnet50 --config.data.train=FOLDER

The classes are called as their folders. Channels, sizes, mean and standard deviation follow from the images and are
printed: images of several sizes, or of more than 96 pixels, are resized to 64×64, unless --config.data.transform.size
and resize are given. A tenth is cut off for validation, unless --config.data.validation=FOLDER is given.

Hardware: any for `embedded`. Presets:
  embedded: a small ResNet from random weights, for simple images or some hundred and more of each class.
  resnet50: ResNet-50 from ImageNet weights, at 224×224, for few photographs; not yet measured.

Measured for `embedded` on 2 CPU cores with other work on the machine, JAX 0.10.1, seed 0, accuracy on held-out images:
180 drawings of three shapes in random colours 0.8800; 200 MNIST digits 0.9220; 200 digits of scikit-learn 0.9480;
200 CIFAR-10 images of two classes 0.8750. The 180 drawings took 1 min 27 s with nothing else on the machine.
"""

from ml_collections import ConfigDict

from research.configs import resnet_digits
from research.configs.defaults import image

PRESETS = ("embedded", "resnet50")
FULL = "embedded"


def get_config(preset: str = "") -> ConfigDict:
    """Presets: `embedded`, `resnet50`."""
    config = resnet_digits.get_config()
    config.preset = preset or FULL
    config.model.update(num_classes=2, mean=(127.5,), std=(64.0,))
    config.data.name = "files"
    config.data.transform = image(channels=3)
    config.data.transform.label = ""
    config.data.transform.inputs = ()
    config.eval.splits, config.eval.every_steps = ("validation",), 0
    {"embedded": _small, "resnet50": _resnet50}[config.preset](config)
    return config


def _small(config: ConfigDict) -> None:
    """Random crops of at least half of an image: without them few images are learned by heart."""
    config.model.width = 16
    config.optimizer.name = "adamw"
    config.optimizer.learning_rate = 2e-3
    config.optimizer.weight_decay = 0.05
    config.data.transform.augment.random_resized_crop = (0.5, 1.0)


def _resnet50(config: ConfigDict) -> None:
    """Fine-tuning of all layers."""
    config.model.update(block="bottleneck", stage_sizes=(3, 4, 6, 3), width=64, stem="imagenet")
    config.init_from = "microsoft/resnet-50"
    config.needs_accelerator = True
    config.optimizer.learning_rate = 0.01
    config.optimizer.weight_decay = 1e-4
    config.data.transform.augment.random_resized_crop = (0.35, 1.0)
    config.data.transform.augment.flip = True
