import numpy as np
import pytest
from sklearn.preprocessing import StandardScaler

from research.base.errors import UserError
from research.data.cache import ArtifactCache
from tests.encoded import standardize


def _splits(rng):
    return {
        name: {"x": 5 + 3 * rng.standard_normal((size, 4)), "y": rng.standard_normal(size)}
        for name, size in (("train", 50), ("test", 20))
    }


def test_standardize_matches_scikit_learn_fitted_on_train(rng, tmp_path):
    splits = _splits(rng)
    examples = standardize(splits, ArtifactCache(tmp_path), inputs=("x",), label="y")
    scaler = StandardScaler().fit(splits["train"]["x"])
    for name, split in splits.items():
        np.testing.assert_allclose(examples[name].columns["features"], scaler.transform(split["x"]), atol=1e-6)
    again = standardize(
        {"train": splits["test"]}, ArtifactCache(tmp_path), inputs=("x",), label="y"
    )  # the saved mean, not a new one
    np.testing.assert_array_equal(again["train"].columns["features"], examples["test"].columns["features"])


def test_constant_column_becomes_zero():
    assert np.full(309, 0.1).std() > 0  # rounding
    examples = standardize(
        {"train": {"x": np.full((309, 2), 0.1), "y": [0] * 309}}, ArtifactCache(), inputs=("x",), label="y"
    )
    np.testing.assert_array_equal(examples["train"].columns["features"], 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("split", ["train", "test"])
def test_values_that_are_not_finite_are_named(rng, bad, split):
    splits = _splits(rng)
    splits[split]["x"][7, 2] = bad
    with pytest.raises(UserError, match=rf"x of split '{split}' holds {bad} at \[7, 2\]"):
        standardize(splits, ArtifactCache(), inputs=("x",), label="y")[split]


def test_booleans_are_classes():
    columns = {"x": np.eye(2), "y": np.array([False, True])}
    labels = standardize({"train": columns}, ArtifactCache(), inputs=("x",), label="y")["train"].labels
    assert np.issubdtype(labels.dtype, np.integer)
    assert labels.tolist() == [0, 1]


def test_features_with_infinite_deviation_are_a_one_line_error():
    columns = {"x": np.array([[1e308], [-1e308]]), "y": [0, 1]}
    with pytest.raises(UserError, match="the std of x"):
        standardize({"train": columns}, ArtifactCache(), inputs=("x",), label="y")["train"]
