"""The package as users install it: a wheel and an editable install, run from a repository of their own."""

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _setuptools():
    """Whether this environment can build a package without network access."""
    command = [sys.executable, "-c", "import setuptools; assert int(setuptools.__version__.split('.')[0]) >= 77"]
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.extended
@pytest.mark.skipif(not _setuptools(), reason="needs setuptools 77 or newer")
@pytest.mark.parametrize("editable", [False, True], ids=["wheel", "editable"])
def test_installed_package_runs_in_a_repository_that_has_configs_too(editable, tmp_path):
    venv.create(tmp_path / "env", symlinks=True)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    python = tmp_path / "env/bin/python"

    def run(*arguments, cwd):
        return subprocess.run([python, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)

    (packages,) = (tmp_path / "env").glob("lib/python*/site-packages")
    # This environment's packages, without the project: its own .pth files are not read.
    (packages / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    source = tmp_path / "source"
    source.mkdir()
    subprocess.run(["cp", "-r", *(ROOT / name for name in PARTS), source], check=True)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--ignore-installed", "--quiet"]
    installed = run("-m", "pip", "install", *options, *(["-e"] if editable else []), ".", cwd=source)
    assert installed.returncode == 0, installed.stderr

    lab = tmp_path / "lab"
    (lab / "configs").mkdir(parents=True)
    (lab / "configs/__init__.py").write_text("mine = True\n")
    code = "import configs, research; print(configs.mine, research.__file__)"
    assert run("-c", code, cwd=lab).stdout.split()[0] == "True"
    home = source if editable else packages
    assert run("-c", code, cwd=lab).stdout.split()[1] == str(home / "research/__init__.py")
    page = "import research.serve.page_files as page; print(*page.PATHS)"
    assert {"/", "/page/main.js"} <= set(run("-c", page, cwd=lab).stdout.split())
    assert run("-c", "import configs", cwd=tmp_path).returncode == 1  # no top-level name besides `research`

    trained = run("-m", "research.train", "--config=majority:embedded", "--workdir=run", cwd=lab)
    assert trained.returncode == 0, trained.stderr
    assert (lab / "run/summary.json").is_file()
    listed = run("-m", "research.configs", cwd=lab)
    assert "\nmajority: " in listed.stdout, listed.stderr


PARTS = ("pyproject.toml", "README.md", "LICENSE", "research", "configs")
