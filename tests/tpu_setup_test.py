import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def _run(*arguments):
    return subprocess.run(["bash", "tpu_setup.sh", *arguments], capture_output=True, text=True, timeout=60)


def test_shellcheck_passes():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    command = str(shellcheck) if shellcheck.is_file() else shutil.which("shellcheck")
    assert command, "shellcheck is part of the test extra"
    result = subprocess.run([command, "tpu_setup.sh", ".ci/run"], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_dry_run_prints_the_commands_for_every_worker():
    result = _run(
        "--name=my-tpu",
        "--zone=us-central2-b",
        "--project=p",
        "--repository=https://example.com/r.git",
        "--dry-run",
    )
    assert result.returncode == 0, result.stderr
    commands = [line for line in result.stdout.splitlines() if line.startswith("+")]
    assert len(commands) == 4
    for command in commands:
        assert command.startswith("+ gcloud compute tpus tpu-vm ssh my-tpu --zone=us-central2-b --worker=all")
        assert command.endswith("--project=p")
    for command, part in zip(commands, ("clone", "tpu", "jax.devices", "research.train"), strict=True):
        assert part in command


def test_device_check_and_run_are_well_formed(tmp_path):
    """Parses the quoted commands with bash and Python, with a substitute for gcloud that checks them locally."""
    fake = tmp_path / "gcloud"
    fake.write_text(
        "#!/bin/bash\n"
        'for a in "$@"; do case $a in --command=*) echo "${a#--command=}" | bash -n || exit 1;; esac; done\n'
    )
    fake.chmod(0o755)
    result = subprocess.run(
        ["bash", "tpu_setup.sh", "--name=t", "--zone=z", "--repository=r", "--workdir=/mnt/a b/c"],
        capture_output=True,
        text=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )
    assert result.returncode == 0, result.stderr


def test_local_does_not_need_gcloud():
    result = _run("--local", "--dry-run", "--config=")
    assert result.returncode == 0
    assert "gcloud" not in result.stdout
    assert "research.train" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--zone=z"], "--name is missing"),
        (["--name=t"], "--zone is missing"),
        (["--nam=t"], "unknown argument '--nam=t'"),
    ],
)
def test_invalid_input_is_a_one_line_error(arguments, message):
    result = _run(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
