"""The tasks for SkyPilot: known keys, and commands that run with stand-ins."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.recipes import DEPLOY, executable, train_flags, unfitting

SKY = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((DEPLOY / "sky").glob("*.yaml"))}

# Keys of SkyPilot 0.14's tasks (docs.skypilot.co, "SkyPilot YAML") that these use, and the types of their values.
TASK: dict = {
    "name": str,
    "workdir": str,
    "num_nodes": int,
    "resources": {
        "infra": str,
        "accelerators": str,
        "accelerator_args": {"runtime_version": str, "tpu_name": str, "tpu_vm": bool, "gcp_queued_resource": bool},
        "use_spot": bool,
        "job_recovery": {"strategy": str, "max_restarts_on_errors": int, "recover_on_exit_codes": list},
        "disk_size": int,
    },
    "envs": dict,
    "secrets": dict,
    "file_mounts": dict,
    "setup": str,
    "run": str,
}
STORAGE = {"name": str, "source": str, "store": str, "persistent": bool, "mode": ["MOUNT", "COPY", "MOUNT_CACHED"]}


@pytest.mark.parametrize("name", SKY)
def test_sky_tasks_have_only_known_keys(name):
    task = SKY[name]
    assert unfitting(task, TASK) == []
    for path, storage in task["file_mounts"].items():
        assert path.startswith("/")
        assert unfitting(storage, STORAGE) == []
    used = set(re.findall(r"\$\{?([A-Z_]+)", json.dumps(task)))
    assert {each for each in used if not each.startswith("SKYPILOT_")} <= task["envs"].keys()


@pytest.mark.parametrize("name", SKY)
def test_sky_tasks_set_up_and_train(name, tmp_path):
    """Both scripts run as SkyPilot runs them on its second node, with stand-ins for uv and Python."""
    executable(tmp_path / ".venv/bin/python", f'printf "%s\\0" "$@" >>"{tmp_path}/argv"')
    executable(tmp_path / "bin/uv", "exit 0")
    env = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "CONFIG": SKY[name]["envs"]["CONFIG"], "RUN": "my run"}
    env |= {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}

    def run(script):
        (tmp_path / "argv").unlink(missing_ok=True)
        subprocess.run(["bash", "-c", SKY[name][script]], env=env, cwd=tmp_path, check=True)
        return (tmp_path / "argv").read_text().split("\0")[:-1]

    extra = {"gpu": "gpu", "tpu": "tpu"}[name]
    assert run("setup")[-1] == f".[{extra}]"
    argv = run("run")
    assert argv[:2] == ["-m", "research.train"]
    arguments = train_flags(argv[2:])
    (mount,) = SKY[name]["file_mounts"]
    assert arguments.workdir == f"{mount}/my run"
    if name == "gpu":
        found = (arguments.coordinator, arguments.processes, arguments.process_id)
        assert found == ("10.0.0.1:8476", 2, 1)
    else:
        assert arguments.distributed


def test_the_text_names_every_recipe():
    text = (DEPLOY / "README.md").read_text()
    folders = {path.parent.name for path in (*DEPLOY.glob("*/*.sbatch"), *DEPLOY.glob("*/*.yaml"))}
    assert {"slurm", "jobset", "sky"} <= folders
    for path in (*DEPLOY.glob("slurm/*"), *DEPLOY.glob("jobset/*.yaml"), *DEPLOY.glob("sky/*.yaml")):
        assert os.fspath(Path("deploy") / path.relative_to(DEPLOY)) in text
