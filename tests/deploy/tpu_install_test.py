"""What tpu_setup.sh installs on the workers: which code, which Python, which devices."""

import re
import subprocess
import sys

import pytest

from tests.deploy.conftest import ROOT, URL, WHERE, git


def test_install_brings_code_python_and_packages(cloud):
    cloud.set(node="READY", type="v3-32")
    said = cloud("install", *WHERE)
    head = git("rev-parse", "HEAD", at=cloud.checkout)
    for i in range(2):
        assert git("rev-parse", "HEAD", at=cloud.home(i) / "research") == head
        done = (cloud.home(i) / "installed").read_text().splitlines()
        assert done[0] == "uv venv --seed --python 3.12 .venv-tpu"
        assert done[-1] == "-m pip install --quiet -e .[tpu]"
    assert said.count("Python 3.10.6 is older than 3.11") == 2
    assert said.count("\ndevices 32") == 2  # v3 has a device for each of its TensorCores


@pytest.mark.slow
def test_install_updates_the_code(cloud):
    cloud.set(node="READY", type="v6e-8", workers=1)
    cloud("install", *WHERE)
    first = git("rev-parse", "HEAD", at=cloud.checkout)
    (cloud.checkout / "new").touch()
    git("add", "new", at=cloud.checkout)
    git("commit", "--quiet", "-m", "second", at=cloud.checkout)
    git("push", "--quiet", "origin", f"HEAD:refs/heads/{cloud.folder.name}", at=cloud.checkout, env=cloud.env)
    assert "the environment exists: Python 3.12.0" in cloud("install", *WHERE)
    assert (cloud.home() / "research/new").exists()
    cloud("install", *WHERE, f"--ref={first}")
    assert not (cloud.home() / "research/new").exists()
    cloud("install", *WHERE, f"--ref={cloud.folder.name}")  # a branch of origin
    assert (cloud.home() / "research/new").exists()


@pytest.mark.slow
def test_wrong_devices_are_an_error(cloud):
    cloud.set(node="READY", type="v6e-8")
    (cloud.folder / "no devices").touch()
    assert "the devices are not what they should be" in cloud("install", *WHERE, code=2)


@pytest.mark.slow
def test_the_check_of_devices_counts_them(cloud):
    """The real check, with a stand-in for jax."""
    code = re.search(r"<<'PYTHON'\n(.*?)^PYTHON", (ROOT / "deploy/tpu/worker.sh").read_text(), re.M | re.S)[1]
    fake = (
        "import types\nclass D: platform, device_kind = 'tpu', 'TPU v6'\n"
        "distributed = types.SimpleNamespace(initialize=lambda: None)\n"
        "devices = lambda: [D]\ndevice_count = lambda: 8\nlocal_device_count = lambda: 4\n"
        "process_index = lambda: 1\nprocess_count = lambda: 2\n"
    )
    (cloud.folder / "jax.py").write_text(fake)
    env = {"PYTHONPATH": str(cloud.folder), "PYTHONDONTWRITEBYTECODE": "1"}

    def check(*count):
        return subprocess.run([sys.executable, "-", *count], input=code, env=env, capture_output=True, text=True)

    assert check("8").stdout == "worker 1 of 2: 4 of 8 x TPU v6\n"
    assert check("").returncode == 0
    assert check("16").stderr == "error: JAX sees 8 devices; this type of slice has 16\n"
    (cloud.folder / "jax.py").write_text(fake.replace("'tpu'", "'cpu'"))
    assert "JAX sees cpu, not TPU" in check("8").stderr


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ("/home/me/repository", "is on this machine"),
        ("../repository", "is on this machine"),
        ("file:///home/me/repository", "is on this machine"),
        ("repository", "is not a URL"),
        (None, "has no remote 'origin'"),
    ],
)
def test_what_workers_cannot_clone_is_refused(cloud, origin, message):
    cloud.set(node="READY", type="v6e-8")
    git(*(["remote", "set-url", "origin", origin] if origin else ["remote", "remove", "origin"]), at=cloud.checkout)
    assert message in cloud("install", *WHERE, code=2)
    assert not cloud.calls("ssh")


@pytest.mark.slow
@pytest.mark.parametrize(
    "url", ["git@github.com:me/r.git", "ssh://git@github.com/me/r.git", "ssh://git@github.com:22/me/r.git"]
)
def test_a_url_that_needs_a_key_is_warned_of(cloud, url):
    cloud.set(node="READY", type="v6e-8", workers=1)
    said = cloud("install", *WHERE, f"--repository={url}", "--dry-run")
    assert "with a key of their own" in said
    assert "--repository=https://github.com/me/r.git" in said


@pytest.mark.slow
def test_a_repository_that_workers_cannot_read_is_an_error(cloud):
    cloud.set(node="READY", type="v6e-8")
    git("config", "--file", cloud.folder / "gitconfig", "--rename-section", *_sections(cloud), at=cloud.folder)
    said = cloud("install", *WHERE, code=2)
    assert f"a worker could not get {git('rev-parse', 'HEAD', at=cloud.checkout)} from {URL}" in said
    assert not (cloud.home() / "installed").exists()


def _sections(cloud):
    """The name of the only section of the git config, and one for a repository that is not there."""
    (name,) = re.findall(r'"(.+)"', (cloud.folder / "gitconfig").read_text())
    return f"url.{name}", f"url.{name}-gone"


def test_what_does_not_reach_the_workers_is_warned_of(cloud):
    cloud.set(node="READY", type="v6e-8", workers=1)
    first = git("rev-parse", "--short", "HEAD", at=cloud.checkout)
    assert "warning" not in cloud("install", *WHERE, "--dry-run")
    (cloud.checkout / "tpu_setup.sh").open("a").write("\n# changed\n")
    assert "uncommitted changes" in cloud("install", *WHERE, "--dry-run")
    git("commit", "--quiet", "-am", "second", at=cloud.checkout)
    said = cloud("install", *WHERE, "--dry-run")
    assert f"1 commits are not pushed: workers get {first} (first)" in said
    assert "uncommitted" not in said
    assert "--ref=HEAD is not on a branch of origin" in cloud("install", *WHERE, "--dry-run", "--ref=HEAD")
