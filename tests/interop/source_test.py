import os
import subprocess
import sys
import time

import pytest
import requests
from huggingface_hub import constants

from research.base.errors import UserError
from research.interop import source
from tests.interop import tiny_encoder


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty cache of hub files."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def online(monkeypatch):
    """Sets whether requests to the hub are allowed; each request is recorded in the list and fails."""
    asked = []

    def head(url, timeout):
        asked.append((url, timeout))
        raise requests.ConnectionError

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(requests, "head", head)
    return asked


def _downloaded(cache, hub_id):
    """Files in the layout of the hub's client."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("c0ffee")
    tiny_encoder.write(repository / "snapshots/c0ffee")
    return repository / "snapshots/c0ffee"


def test_folder_is_used_unchanged(tmp_path, monkeypatch):
    assert source.missing(str(tmp_path)) is None
    assert source.folder(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert source.folder("~") == tmp_path


def test_downloaded_files_are_used_without_a_request(hub_cache, online):
    folder = _downloaded(hub_cache, "some/model")
    assert source.missing("some/model") is None
    assert source.folder("some/model").resolve() == folder.resolve()
    assert online == []


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocab.txt"])
def test_partial_download_is_ignored(name, hub_cache, online):
    folder = _downloaded(hub_cache, "some/model")
    (folder / name).unlink()
    assert "can't be reached" in source.missing("some/model")


def test_missing_network_is_a_one_line_error(hub_cache, online):
    with pytest.raises(UserError, match=r"some/model' is not a folder, not in the local hub cache, and \S+ can't be"):
        source.folder("some/model")
    ((url, timeout),) = online
    assert "some/model" in url
    assert timeout <= 5


def test_offline_mode_makes_no_request(hub_cache, online, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE forbids to download it"):
        source.folder("some/model")
    assert online == []


def test_missing_folder_is_a_one_line_error(hub_cache):
    with pytest.raises(UserError, match=r"/no/such/folder' is not a folder, nor a hub id \(OWNER/NAME\)"):
        source.folder("/no/such/folder")


def test_failed_download_is_a_one_line_error(hub_cache, online, monkeypatch):
    """The hub answers only the first request."""
    monkeypatch.setattr(requests, "head", lambda url, timeout: None)
    with pytest.raises(UserError, match="pretrained weights some/model can't be downloaded: ") as caught:
        source.folder("some/model")
    assert "\n" not in str(caught.value)


@pytest.mark.extended
def test_command_without_network_fails_within_seconds(tmp_path):
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path),
        "JAX_NUM_CPU_DEVICES": "1",
    }
    start = time.monotonic()
    command = ["-m", "research.train", "--config=configs/bert_sst2.py:base", f"--workdir={tmp_path / 'run'}"]
    result = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert time.monotonic() - start < 20
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert "google-bert/bert-base-uncased" in line
    assert "http://127.0.0.1:9 can't be reached" in line
    assert not (tmp_path / "run").exists()
