import functools
import os

import numpy as np
import pytest

from research.base.paths import cache_folder
from research.data.cache import ArtifactCache


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Counting:
    """Computes an array and a text, and counts how often."""

    def __init__(self):
        self.times = 0

    def arrays(self):
        self.times += 1
        return {"a": np.arange(1000, dtype=np.int32), "empty": np.zeros(0, np.int32)}

    def text(self):
        self.times += 1
        return "wörds\r\n"


def test_arrays_are_computed_once_per_key_and_source():
    make = Counting()
    for _ in range(3):
        arrays = ArtifactCache(source="s").arrays("name", make.arrays, key=(1, "x"))
        np.testing.assert_array_equal(arrays["a"], np.arange(1000))
        assert arrays["empty"].shape == (0,)
    assert make.times == 1
    ArtifactCache(source="s").arrays("name", make.arrays, key=(2, "x"))
    ArtifactCache(source="t").arrays("name", make.arrays, key=(1, "x"))
    ArtifactCache(source="s").arrays("other", make.arrays, key=(1, "x"))
    assert make.times == 4


def test_without_a_source_nothing_is_cached(cache):
    make = Counting()
    for _ in range(2):
        ArtifactCache().arrays("name", make.arrays, key=())
    assert make.times == 2
    assert not cache.exists()


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def _flip_a_bit(at, path):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


FLIPS = [functools.partial(_flip_a_bit, at) for at in (0, 12, 25, 60, -100)]  # in the header, in the values
DAMAGES = [_truncate, *FLIPS, lambda path: path.write_bytes(b""), lambda path: path.unlink()]


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *(("a.npy", damage) for damage in DAMAGES),
        ("checksums.json", _truncate),
        ("checksums.json", lambda path: path.write_text("{}")),
        ("checksums.json", lambda path: path.write_text(path.read_text().replace(": ", ": 1"))),
        ("checksums.json", lambda path: path.unlink()),
    ],
)
def test_damaged_cache_is_recomputed(cache, name, damage):
    make = Counting()
    ArtifactCache(source="s").arrays("name", make.arrays, key=())
    (path,) = cache.rglob(name)
    damage(path)
    for _ in range(2):
        np.testing.assert_array_equal(
            ArtifactCache(source="s").arrays("name", make.arrays, key=())["a"], np.arange(1000)
        )
    assert make.times == 2  # recomputed, and valid again


def test_unwritable_cache_is_skipped(cache):
    cache.write_text("a file where the folder should be")
    np.testing.assert_array_equal(
        ArtifactCache(source="s").arrays("n", Counting().arrays, key=())["a"], np.arange(1000)
    )


def test_text_of_a_run_is_read_from_the_run(tmp_path):
    make = Counting()
    kept = ArtifactCache(tmp_path / "run", "s")
    assert [kept.text("t.txt", make.text, key=(1,)) for _ in range(2)] == ["wörds\r\n"] * 2
    assert make.times == 1
    (tmp_path / "run/t.txt").write_text("of this run")
    assert kept.text("t.txt", make.text, key=(1,)) == "of this run"
    assert ArtifactCache(tmp_path / "other", "s").text("t.txt", make.text, key=(1,)) == "wörds\r\n"
    assert make.times == 1  # another run reads it from the cache
    assert ArtifactCache(tmp_path / "third", "s").text("t.txt", make.text) == "wörds\r\n"
    assert make.times == 2  # without a key it is not shared


def test_the_cache_folder_follows_the_environment(monkeypatch):
    monkeypatch.delenv("RESEARCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert str(cache_folder()) == "/x/research"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert str(cache_folder()) == os.path.expanduser("~/.cache/research")


def test_user_without_a_home_directory_has_a_cache(monkeypatch):
    monkeypatch.delenv("RESEARCH_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def no_home(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.expanduser", no_home)
    assert cache_folder().name == f"research-{os.getuid()}"


def test_array_is_read_from_the_run_or_else_from_the_cache(tmp_path):
    make = Counting()
    for run, source, times in (("a", None, 1), ("a", None, 1), ("b", "s", 2), ("c", "s", 2), ("b", "t", 2)):
        array = ArtifactCache(tmp_path / run, source).array("n", lambda: make.arrays()["a"], key=(1,))
        np.testing.assert_array_equal(array, np.arange(1000))
        assert make.times == times
        assert np.load(tmp_path / run / "n.npy").dtype == np.int32
    ArtifactCache(None, "s").array("n", lambda: make.arrays()["a"], key=(2,))
    assert make.times == 3
