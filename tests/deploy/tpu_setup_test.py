"""tpu_setup.sh against a stand-in for gcloud: the slice, and what it says."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.deploy.conftest import ROOT, RUN, URL, WHERE

SCRIPTS = [ROOT / "tpu_setup.sh", *sorted((ROOT / "deploy").rglob("*.sh"))]


def test_shellcheck_passes():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    command = str(shellcheck) if shellcheck.is_file() else shutil.which("shellcheck")
    assert command, "shellcheck is part of the test extra"
    scripts = [*SCRIPTS, *sorted((ROOT / "deploy").rglob("*.sbatch"))]
    result = subprocess.run([command, *scripts, ".ci/run"], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout


def test_functions_and_files_are_short():
    for script in SCRIPTS:
        lines = script.read_text().splitlines()
        assert len(lines) <= 300, script
        starts = [i for i, line in enumerate(lines) if re.match(r"\w+\(\) \{$", line)]
        for start in starts:
            assert lines.index("}", start) - start <= 60, (script, lines[start])


# --- create and delete ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "call"),
    [
        (["--accelerator-type=v6e-8"], "tpu-vm create t --zone=z --accelerator-type=v6e-8 --version=v2-alpha-tpuv6e"),
        (
            ["--accelerator-type=v5litepod-16", "--spot", "--project=p"],
            "tpu-vm create t --zone=z --project=p --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite --spot",
        ),
        (
            ["--accelerator-type=v5p-32", "--queued", "--spot"],
            "queued-resources create t --zone=z --node-id=t --accelerator-type=v5p-32 "
            "--runtime-version=v2-alpha-tpuv5 --spot",
        ),
        (
            ["--accelerator-type=v4-8", "--version=own image"],
            "tpu-vm create t --zone=z --accelerator-type=v4-8 --version=own image",
        ),
    ],
)
def test_create_calls_gcloud(cloud, options, call):
    cloud("create", *WHERE, *options)
    assert cloud.calls("create") == [call]


@pytest.mark.parametrize(("kind", "chips"), [("v3-32", 16), ("v5litepod-16", 16)])
def test_create_says_what_is_billed(cloud, kind, chips):
    said = cloud("create", *WHERE, f"--accelerator-type={kind}", "--dry-run", "--price-per-chip-hour=1.5")
    assert f"{chips} chips x 1.5 = {chips * 1.5:.2f} an hour" in said
    assert f"{chips} chips are billed" in cloud("create", *WHERE, f"--accelerator-type={kind}", "--dry-run")


@pytest.mark.parametrize("queued", [[], pytest.param(["--queued"], marks=pytest.mark.slow)])
def test_creating_what_exists_changes_nothing(cloud, queued):
    create = ("create", *WHERE, "--accelerator-type=v6e-8", *queued)
    cloud(*create)
    assert "nothing to create" in cloud(*create)
    assert "nothing to create" in cloud(*create, "--yes")
    assert len(cloud.calls("create", "delete")) == 1


@pytest.mark.slow
def test_a_slice_of_another_type_is_no_success(cloud):
    cloud.set(node="READY", type="v6e-8")
    assert "exists as v6e-8, not v6e-4" in cloud("create", *WHERE, "--accelerator-type=v6e-4", code=2)


@pytest.mark.slow
def test_a_stopped_slice_is_started(cloud):
    cloud.set(node="STOPPED", type="v6e-8")
    cloud("create", *WHERE, "--accelerator-type=v6e-8")
    assert cloud.calls("create", "delete", "start") == ["tpu-vm start t --zone=z"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("states", "deleted"),
    [
        ({"node": "PREEMPTED"}, "tpu-vm delete t --zone=z --quiet"),
        ({"node": "TERMINATED"}, "tpu-vm delete t --zone=z --quiet"),
        ({"queue": "SUSPENDED"}, "queued-resources delete t --zone=z --force --quiet"),
        ({"queue": "FAILED"}, "queued-resources delete t --zone=z --force --quiet"),
        ({"queue": "ACTIVE", "node": "PREEMPTED"}, "queued-resources delete t --zone=z --force --quiet"),
    ],
)
def test_what_is_gone_is_created_again_only_if_asked(cloud, states, deleted):
    cloud.set(type="v6e-8", **states)
    create = ("create", *WHERE, "--accelerator-type=v6e-8", *(["--queued"] if "queue" in states else []))
    assert "with --yes" in cloud(*create, code=2)
    assert not cloud.calls("create", "delete")
    cloud(*create, "--yes")
    first, second = cloud.calls("create", "delete")
    assert first == deleted
    assert second.split()[:2] == [deleted.split()[0], "create"]


@pytest.mark.slow
@pytest.mark.parametrize("states", [{"node": "DELETING"}, {"queue": "SUSPENDING"}, {"queue": "DELETING"}])
def test_what_is_being_deleted_is_waited_for(cloud, states):
    cloud.set(type="v6e-8", **states)
    assert "run create again" in cloud("create", *WHERE, "--accelerator-type=v6e-8", "--yes", code=2)
    assert not cloud.calls("create", "delete")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("ERROR: RESOURCE_EXHAUSTED: Quota limit 'TPUV6EPerProjectPerZone' has been exceeded.", "quotas"),
        ('There is no more capacity in the zone "z"; you can try in another zone', "--queued"),
        ("ERROR: ALREADY_EXISTS: Resource already exists", "run create again"),
        ("ERROR: INVALID_ARGUMENT: no such version", "see above"),
    ],
)
def test_a_failed_creation_says_what_helps(cloud, error, advice):
    cloud.fail(**{"tpu-vm create": error})
    said = cloud("create", *WHERE, "--accelerator-type=v6e-8", code=2)
    assert error in said
    assert advice in said.split("error: ")[-1]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["create", "delete", "run"])
def test_an_unknown_state_is_not_taken_for_absence(cloud, command):
    cloud.installed()
    cloud.fail(describe="ERROR: PERMISSION_DENIED: Location z is not found or access is unauthorized.")
    options = {"create": ["--accelerator-type=v6e-8"], "run": RUN[3:]}.get(command, [])
    said = cloud(command, *WHERE, "--yes", *options, code=2)
    assert "nothing was changed" in said
    assert cloud.calls() == cloud.calls("describe")


@pytest.mark.parametrize(
    ("states", "call"),
    [
        ({"node": "READY"}, "tpu-vm delete t --zone=z --quiet"),
        pytest.param(
            {"node": "READY", "queue": "ACTIVE"},
            "queued-resources delete t --zone=z --force --quiet",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"queue": "WAITING_FOR_RESOURCES"},
            "queued-resources delete t --zone=z --force --quiet",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_delete_needs_yes_and_can_be_repeated(cloud, states, call):
    cloud.set(type="v6e-8", **states)
    assert "with --yes" in cloud("delete", *WHERE, code=2)
    assert not cloud.calls("delete")
    cloud("delete", *WHERE, "--yes")
    assert "nothing to delete" in cloud("delete", *WHERE, "--yes")
    assert cloud.calls("delete") == [call]


@pytest.mark.slow
def test_a_failed_deletion_warns_of_the_bill(cloud):
    cloud.set(node="READY", type="v6e-8")
    cloud.fail(delete="ERROR: UNAVAILABLE")
    assert "is billed until it is" in cloud("delete", *WHERE, "--yes", code=2)


# --- dry runs and invalid input ---


@pytest.mark.parametrize("command", ["create", "install", "run", "status", "logs", "attach", "stop", "delete"])
def test_a_dry_run_prints_commands_that_bash_can_read(cloud, command):
    options = ["--accelerator-type=v6e-8", "--project=p", "--config=c", "--workdir=it's", f"--repository={URL}"]
    said = cloud(command, *WHERE, *options, "--dry-run")
    commands = [line[2:] for line in said.splitlines() if line.startswith("+ ")]
    assert commands
    for each in commands:
        subprocess.run(["bash", "-n", "-c", each], check=True)
        assert re.match(r"gcloud compute tpus tpu-vm \w+ t --zone=z --project=p", each)
    assert not cloud.calls()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the command is missing"),
        (["creat"], "unknown command 'creat'"),
        (["status", "--zone=z"], "--name is missing"),
        (["status", "--name=t"], "--zone is missing"),
        (["status", "--nam=t"], "unknown argument '--nam=t'"),
        (["status", "run"], "two commands"),
        (["create", "--local"], "can't be used with --local"),
        (["create", *WHERE], "--accelerator-type is missing"),
        (["create", *WHERE, "--accelerator-type=v6e"], "--accelerator-type is 'v6e'"),
        (["create", *WHERE, "--accelerator-type=tpu7x-8"], "TPU7x is for deploy/jobset"),
        (["create", *WHERE, "--accelerator-type=v6e-8", "--price-per-chip-hour=a"], "--price-per-chip-hour is 'a'"),
        (["run", *WHERE], "--config is missing"),
        (["run", *WHERE, "--config=c"], "--workdir is missing"),
        (["run", *WHERE, "--config.train.steps=1"], "write it after --"),
        (["status", *WHERE, "--", "--config.a=1"], "only run takes flags"),
        (["logs", *WHERE, "--lines=a"], "--lines is 'a'"),
        (["logs", *WHERE, "--worker=all"], "--worker is 'all'"),
        (["run", *WHERE, "--config=c", "--workdir=w"], "t does not exist in z; create makes it"),
    ],
)
def test_invalid_input_is_a_one_line_error(cloud, arguments, message):
    said = cloud(*arguments, code=2)
    assert message in said
    assert len(said.splitlines()) == 1


def test_without_gcloud_it_says_so(cloud):
    (cloud.folder / "bin/gcloud").unlink()
    cloud.env["PATH"] = str(cloud.folder / "few")
    (cloud.folder / "few").mkdir()
    for tool in ("bash", "dirname"):
        (cloud.folder / "few" / tool).symlink_to(shutil.which(tool))
    assert "gcloud is not installed" in cloud("status", *WHERE, code=2)


def test_help_names_every_option():
    text = subprocess.run(["bash", ROOT / "tpu_setup.sh", "--help"], capture_output=True, text=True, check=True).stdout
    options = re.findall(r"^      (--[\w-]+)=?\*?\)", (ROOT / "tpu_setup.sh").read_text(), re.MULTILINE)
    assert len(options) > 15
    assert [option for option in options if option not in text] == []


def test_the_python_is_that_of_the_project():
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert f"({needs.removeprefix('>=').replace('.', ', ')})" in (ROOT / "deploy/tpu/worker.sh").read_text()
