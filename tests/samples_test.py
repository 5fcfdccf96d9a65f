"""The sample inputs of a run."""

import numpy as np
import pytest

from research.data.encoder import Signature
from research.inference.samples import LEAST, MOST, read_samples, write_samples
from research.runs.rundir import RunDir


@pytest.fixture
def run(tmp_path):
    found = RunDir(tmp_path)
    found.start({"dtype": "float32"})
    return found


def _written(run, values, kind="features"):
    """The samples of a run that has written its predictions, each the index of the input, for these inputs."""
    records = [{"index": i, "prediction": i, "label": 0} for i in range(len(values))]
    write_samples(run, {"x": values}, Signature(kind, ("x",), "y", {}), records, step=3)
    samples = read_samples(run)
    return samples and (samples.columns["x"], [record["prediction"] for record in samples.predictions["3"]])


@pytest.mark.parametrize("count", [1, 5, MOST, MOST + 1, 1000])
def test_samples_are_from_all_over_the_split(run, count):
    inputs, predictions = _written(run, [f"text {i}" for i in range(count)])
    assert inputs == [f"text {i}" for i in predictions]
    assert len(predictions) == min(count, MOST) == len(set(predictions))
    assert (predictions[0], predictions[-1]) == (0, count - 1)


def test_samples_of_large_images_are_few(run):
    for size, count in ((8, MOST), (100, MOST), (256, 11), (1000, LEAST)):
        images = np.resize(np.arange(40, dtype=np.uint8), (size, size, 1, 40)).transpose(3, 0, 1, 2)
        inputs, predictions = _written(run, images)
        assert len(inputs) == len(predictions) == count
        assert [image[0, 0, 0] for image in inputs] == predictions
        assert predictions[-1] == 39


def test_documents_have_no_samples(run):
    assert _written(run, ["a text"], "documents") is None
