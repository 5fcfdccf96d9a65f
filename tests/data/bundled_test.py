import numpy as np
import pytest
import sklearn.datasets

from research.data.sources.bundled import BUNDLED, CLASS_NAMES


@pytest.mark.parametrize("name", BUNDLED)
def test_splits_partition_the_dataset(name):
    splits = BUNDLED[name]()
    features, labels = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    together = np.concatenate([split["features"].reshape(len(split["features"]), -1) for split in splits.values()])
    assert together.shape == features.shape
    np.testing.assert_array_equal(np.sort(together.sum(axis=1)), np.sort(features.sum(axis=1)))
    shares = [len(split["label"]) / len(labels) for split in splits.values()]
    np.testing.assert_allclose(shares, [0.6, 0.2, 0.2], atol=0.01)


def test_the_splits_never_change():
    again = [BUNDLED["digits"]()["validation"]["label"] for _ in range(2)]
    np.testing.assert_array_equal(*again)


def test_splits_are_stratified():
    for split in BUNDLED["digits"]().values():
        assert np.bincount(split["label"]).min() >= 0.09 * len(split["label"])


def test_class_names_are_those_of_scikit_learn():
    import sklearn.datasets

    named = {}
    for name in BUNDLED:
        found = getattr(getattr(sklearn.datasets, f"load_{name}")(), "target_names", ())
        names = tuple(str(of_class) for of_class in found if isinstance(of_class, str))
        named |= {name: names} if names else {}
    assert named == CLASS_NAMES
