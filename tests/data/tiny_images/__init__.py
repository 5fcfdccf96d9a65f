"""A TFDS builder, which must be a package, for a dataset of ten small PNG images."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def pixels(index, height=6, width=5):
    """uint8 [H, W, 3], a different image for each index."""
    return np.random.default_rng(index).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(array, file_format="PNG"):
    """The bytes of an image file; array: uint8 [H, W, C] or any other array that Pillow accepts."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, file_format)
    return file.getvalue()


class TinyImages(tfds.core.GeneratorBasedBuilder):
    """Split `train`: seven images of 6×5; `test`: three of 6×5, 7×5 and 8×5."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(None, None, 3)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
        )
        return self.dataset_info_from_configs(features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 7, 0), "test": self._generate_examples(7, 10, 1)}

    def _generate_examples(self, start, stop, grows):
        for index in range(start, stop):
            image = pixels(index, 6 + grows * (index - start))
            yield index, {"image": encoded(image), "label": index}
