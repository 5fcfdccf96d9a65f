"""What GET /models tells of the inputs: enough for a form, and nothing that was trained on."""

import json

import numpy as np
import pytest

from research import api
from research.data.sources.bundled import FEATURE_NAMES
from research.runs.rundir import RunDir
from research.serve.model import ServedModel
from tests import tiny


def test_features_have_names_and_ranges(models):
    found = models["features"].form["features"]
    mean, scale = models["features"].encoder.affine
    assert [each["name"] for each in found] == list(FEATURE_NAMES["diabetes"])
    np.testing.assert_allclose([each["mean"] for each in found], mean)
    np.testing.assert_allclose([each["std"] for each in found], 1 / scale)


def test_names_are_those_of_scikit_learn():
    import sklearn.datasets

    for name, expected in FEATURE_NAMES.items():
        assert tuple(getattr(sklearn.datasets, f"load_{name}")().feature_names) == expected


@pytest.mark.extended
def test_columns_of_tables_have_ranges_or_categories(tmp_path):
    path = tiny.own_file(tmp_path, "table")
    lines = path.read_text().splitlines()
    people = [f"{line},person{i}" for i, line in enumerate(lines[1:])]
    path.write_text("\n".join([f"{lines[0]},person", *people, ""]))
    options = {"data.train": str(path), "data.transform.label": "label", "data.kinds": "text=ignored,person=category"}
    api.fit("tabular_files:linear", workdir=tmp_path / "run", show=False, **options)
    model = ServedModel.open("table", RunDir.open(tmp_path / "run"))
    size, group, person = model.form["features"]
    assert (size["name"], size["mean"].__class__, group) == ("size", float, {"name": "group", "categories": ["a", "b"]})
    assert person == {"name": "person", "categories": None}, "there may be names of people among many values"
    assert "person1" not in json.dumps(model.form)


@pytest.mark.extended
def test_images_have_a_size_and_a_range(models):
    assert models["image"].form["image"] == {
        "height": 8, "width": 8, "channels": 1, "white": 16.0, "resize": None,
    }  # fmt: skip
    assert not models["text"].form
