# mypy: disable-error-code="index"
import pytest

from research.base.errors import UserError
from research.configs import linear_diabetes
from research.data import load as data
from research.data.sources import tfds_source


def test_unknown_split_lists_the_splits():
    dataset = data.load(linear_diabetes.get_config().data)
    with pytest.raises(UserError, match="did you mean 'validation'"):
        dataset.split("validaton")


def test_empty_split_is_an_error(monkeypatch):
    columns = data.SOURCES["diabetes"][1]()
    columns["test"] = {name: values[:0] for name, values in columns["test"].items()}
    monkeypatch.setitem(data.SOURCES, "diabetes", ("sklearn", lambda: columns))
    with pytest.raises(UserError, match="split 'test' of dataset diabetes is empty"):
        data.load(linear_diabetes.get_config().data).split("test")


def test_fingerprint_depends_on_every_value(monkeypatch):
    section = linear_diabetes.get_config().data
    before = data.load(section).fingerprint
    assert data.load(section).fingerprint == before
    columns = data.SOURCES["diabetes"][1]()
    columns["test"]["label"] = columns["test"]["label"].copy()
    columns["test"]["label"][0] += 1
    monkeypatch.setitem(data.SOURCES, "diabetes", ("sklearn", lambda: columns))
    assert data.load(section).fingerprint != before


def test_unknown_transform_key_names_the_nearest():
    section = linear_diabetes.get_config().data
    section.transform.inptus = ("features",)
    with pytest.raises(UserError, match=r"data.transform.inptus .* did you mean 'inputs'"):
        data.load(section)


def test_missing_dataset_is_an_error(tmp_path):
    """TFDS itself reports "TFRECORD is not supported", or retries for minutes."""
    with pytest.raises(
        UserError, match=r"glue/sst2 is not prepared in .* and can't be downloaded: https?://.* can't be"
    ):
        tfds_source.load("glue/sst2", str(tmp_path))


def test_unknown_dataset_is_an_error(tmp_path):
    with pytest.raises(UserError, match="TFDS has no builder of that name"):
        tfds_source.load("no_such_thing", str(tmp_path))


def test_missing_checks_only_what_the_config_needs(tmp_path):
    assert data.missing({"name": "digits", "data_dir": str(tmp_path)}) is None
    assert "not prepared" in data.missing({"name": "no_such_thing", "data_dir": str(tmp_path)})
