"""A TFDS builder, which must be a package, for a dataset of ten sentences."""

import tensorflow_datasets as tfds


class TinyReviews(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = tfds.features.FeaturesDict(
            {"sentence": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
        )
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(7), "validation": self._generate_examples(3)}

    def _generate_examples(self, size):
        for i in range(size):
            yield i, {"sentence": f"review número {i}", "label": i % 2}
