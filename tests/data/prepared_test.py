"""Names of prepared datasets, by the folders that TFDS makes."""

import json
import re

import pytest

from research.base.errors import UserError
from research.data import load as data
from research.data.sources import prepared, tfds_source
from tests.data.tiny_reviews import TinyReviews


def _make(root, *names):
    """Empty stand-ins for prepared datasets."""
    for name in names:
        (root / name).mkdir(parents=True)
        (root / name / "dataset_info.json").write_text("{}")


def _found(name, root):
    folder = tfds_source.folder(name, str(root))
    return folder and str(folder.relative_to(root))


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        # imdb_reviews has one config, its default, known to TFDS.
        ("imdb_reviews", "imdb_reviews/plain_text/1.0.0"),
        ("imdb_reviews/plain_text", "imdb_reviews/plain_text/1.0.0"),
        ("imdb_reviews/plain_text/1.0.0", "imdb_reviews/plain_text/1.0.0"),
        ("imdb_reviews/plain_text:1.0.0", "imdb_reviews/plain_text/1.0.0"),
        ("imdb_reviews:1.0.0", "imdb_reviews/plain_text/1.0.0"),
        ("imdb_reviews/1.0.0", "imdb_reviews/plain_text/1.0.0"),
        ("imdb_reviews:1.0.1", None),
        ("imdb_reviews/bytes", None),
        # No config; the newest of several versions, by number.
        ("mnist", "mnist/3.0.10"),
        ("mnist/3.0.1", "mnist/3.0.1"),
        ("mnist:3.0.1", "mnist/3.0.1"),
        ("mnist/3.0.2", None),
        # glue's default config, cola, is missing: no other task is used instead.
        ("glue", None),
        ("glue/sst2", "glue/sst2/2.0.0"),
        ("glue/sst2:2.0.0", "glue/sst2/2.0.0"),
        # Unknown to TFDS, but its files name the default.
        ("of_ones_own", "of_ones_own/b/1.0.0"),
        ("of_ones_own/a", "of_ones_own/a/1.0.0"),
        # Also unknown, with one config.
        ("alone", "alone/only-1.5/1.0.0"),
        # A config that looks like a version, as in cnn_dailymail.
        ("numbered/3.0.0", "numbered/3.0.0/3.4.0"),
        ("numbered/3.0.0:3.4.0", "numbered/3.0.0/3.4.0"),
        # An interrupted preparation.
        ("cut_off", None),
    ],
)
@pytest.mark.parametrize("written", ["absolute", "~"])
def test_name_resolves_to_a_folder(name, folder, written, tmp_path, monkeypatch):
    _make(tmp_path, "imdb_reviews/plain_text/1.0.0", "mnist/3.0.1", "mnist/3.0.9", "mnist/3.0.10", "glue/sst2/2.0.0")
    _make(tmp_path, "of_ones_own/a/1.0.0", "of_ones_own/b/1.0.0", "alone/only-1.5/1.0.0", "numbered/3.0.0/3.4.0")
    _make(tmp_path, "cut_off/1.0.0.incompleteX1")
    (tmp_path / "of_ones_own/.config").mkdir()
    (tmp_path / "of_ones_own/.config/metadata.json").write_text(json.dumps({"default_config_name": "b"}))
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    data_dir = str(tmp_path) if written == "absolute" else f"~/{tmp_path.name}"
    found = tfds_source.folder(name, data_dir)
    assert found == (tmp_path / folder if folder else None)
    assert (tfds_source.state(name, data_dir) is None) == (folder is None)


def test_of_several_configs_one_must_be_named(tmp_path):
    _make(tmp_path, *(f"mine/{config}/1.0.0" for config in "abcdefg"))
    with pytest.raises(UserError, match=r"mine has several configs in .*: mine/a, mine/b, .* and 2 more$"):
        tfds_source.folder("mine", str(tmp_path))


@pytest.mark.parametrize("name", ["", "..", "../x", "/x", "a//b", "a/", "a/b/c", "a:1", "a b", "a/*", "a/x=1"])
def test_invalid_name_is_a_one_line_error(name, tmp_path):
    with pytest.raises(UserError, match="is not a valid dataset name; write NAME, NAME/CONFIG") as error:
        tfds_source.missing(name, str(tmp_path))
    assert "\n" not in str(error.value)


def test_error_lists_what_is_prepared(tmp_path):
    _make(tmp_path, "imdb_reviews/plain_text/1.0.0", *(f"other_{i}/1.0.0" for i in range(9)))
    reason = tfds_source.missing("imdb_review/text", str(tmp_path))
    assert f"not prepared in {tmp_path} (looked for imdb_review/text/VERSION/dataset_info.json; " in reason
    assert "prepared there: imdb_reviews/plain_text, other_0, other_1, other_2, other_3 and 5 more)" in reason
    assert "mnists/[CONFIG/]1.0.0/dataset_info.json" in tfds_source.missing("mnists:1.0.0", str(tmp_path))
    assert "; there is no such folder)" in tfds_source.missing("mnists", str(tmp_path / "none"))
    assert "; nothing is prepared there)" in tfds_source.missing("mnists", str(tmp_path / "other_0"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("glue/sst", r"TFDS knows no config 'sst' of glue: glue/sst2, .* more$"),
        ("mnist/grey", "TFDS knows no config 'grey' of mnist: it has none$"),
        ("mnist:1.0.0", r"Dataset mnist cannot be loaded at version 1.0.0, only: 3.0.1"),
    ],
)
def test_unknown_to_tfds_is_a_complete_sentence(name, message, tmp_path):
    assert re.search(message, tfds_source.missing(name, str(tmp_path)))


def test_the_first_sentence_of_an_error():
    text = """Failed to construct dataset "a", builder_kwargs "{'version': '1.0.0'}": No version 1.0.0
    there, 3.0.1 is. Here are
      - others."""
    assert tfds_source.first_sentence(ValueError(text)) == "No version 1.0.0 there, 3.0.1 is"
    assert tfds_source.first_sentence(ValueError("Parsing failed:\n - a")) == "Parsing failed: - a"
    assert tfds_source.first_sentence(ValueError()) == "ValueError"


def test_format_that_needs_tensorflow_is_named(tmp_path):
    tfds_source.load("tiny_reviews", str(tmp_path))
    info = tmp_path / "tiny_reviews/1.0.0/dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(UserError, match=r"is prepared as tfrecord, .*download_and_prepare\(file_format="):
        tfds_source.load("tiny_reviews", str(tmp_path))


@pytest.mark.parametrize("name", ["tiny_reviews", "tiny_reviews/1.0.0", "tiny_reviews:1.0.0"])
def test_home_directory_and_version_are_resolved(name, tmp_path, monkeypatch):
    assert TinyReviews.name == "tiny_reviews"
    plain = tfds_source.load("tiny_reviews", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    for data_dir, variable in (("~/data", ""), (None, "~/data")):
        monkeypatch.setenv("TFDS_DATA_DIR", variable)
        columns = data.raw({"name": name, "data_dir": data_dir})
        assert dict(columns) == dict(plain)
        assert data.missing({"name": name, "data_dir": data_dir}) is None
    with pytest.raises(UserError, match="this home directory does not exist"):
        prepared.data_folder("~nobody_of_this_name/data")
