"""The recipes for Slurm, JobSet and SkyPilot: they run, what they refer to exists, and their keys are known ones."""

import copy
import importlib.util
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from research import cli, train
from research.config import load
from tests.deploy.conftest import ROOT

DEPLOY = ROOT / "deploy"
SBATCH = DEPLOY / "slurm/train.sbatch"
JOBSETS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((DEPLOY / "jobset").glob("*.yaml"))}
SKY = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((DEPLOY / "sky").glob("*.yaml"))}


def _check(flags):
    """The flags as research.train parses them. Raises UserError for an unknown one; the config must exist."""
    arguments, others = cli.parse(train.parser(), flags, required=("config", "workdir"), passed_on="--config.")
    assert load(f"configs/{arguments.config}.py", others).config
    return arguments


def _script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


# --- Slurm ---

# Options of sbatch (slurm.schedmd.com/sbatch.html) that the script may set.
DIRECTIVES = {
    "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "time", "output", "open-mode", "requeue",
    "signal",
}  # fmt: skip


class Slurm:
    """A folder with an environment and Slurm's commands: srun runs a task for each of SLURM_NTASKS_PER_NODE."""

    def __init__(self, folder, state="RUNNING", code=0):
        self.folder = folder
        record = f'printf "%s\\0" "$SLURM_PROCID" "$@" >"{folder}/argv$SLURM_PROCID"; exit {code}'
        _script(folder / ".venv/bin/python", record)
        _script(
            folder / "bin/srun",
            'options=""; while [[ $1 == --* ]]; do options="$options $1"; shift; done\n'
            f'echo "$options" >"{folder}/options"; worst=0\n'
            'for ((i = 0; i < SLURM_NTASKS_PER_NODE; i++)); do SLURM_PROCID=$i "$@" || worst=$?; done; exit $worst',
        )
        _script(folder / "bin/squeue", f"echo {state}")
        _script(folder / "bin/scontrol", f'echo "$@" >"{folder}/scontrol"')

    def __call__(self, *arguments, **env):
        """Runs the script as sbatch does: a copy, elsewhere."""
        env = {
            "PATH": f"{self.folder}/bin:/usr/bin:/bin",
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_JOB_ID": "7",
            "SLURM_NTASKS_PER_NODE": "2",
            "SLURM_GPUS_PER_NODE": "h100:2",
            "WORKDIR": "/shared/a run",
            **env,
        }
        script = self.folder / "spool"
        script.write_text(SBATCH.read_text())
        return subprocess.run(["bash", script, *arguments], env=env, cwd="/", capture_output=True, text=True)

    def argv(self, process):
        return (self.folder / f"argv{process}").read_text().split("\0")[:-1]


def test_sbatch_runs_a_process_for_each_gpu(tmp_path):
    slurm = Slurm(tmp_path)
    flags = ["--config=bert_sst2", '--config.task.name=it\'s "two words" $HOME']
    result = slurm(*flags)
    assert result.returncode == 0, result.stderr
    for i in range(2):
        assert slurm.argv(i) == [
            str(i), "-m", "research.train", "--distributed", "--workdir=/shared/a run", *flags,
        ]  # fmt: skip
    assert _check(slurm.argv(0)[3:5] + flags[:1]).distributed
    assert "--kill-on-bad-exit=1" in (tmp_path / "options").read_text()


@pytest.mark.parametrize(
    ("state", "code", "requeued"),
    [("RUNNING", 143, True), ("COMPLETING", 143, False), ("CANCELLED", 143, False), ("RUNNING", 1, False)],
)
def test_sbatch_goes_on_only_after_its_time_was_up(tmp_path, state, code, requeued):
    assert Slurm(tmp_path, state, code)("--config=c").returncode == code
    assert (tmp_path / "scontrol").exists() == requeued
    assert not requeued or (tmp_path / "scontrol").read_text() == "requeue 7\n"


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"WORKDIR": ""}, "WORKDIR is missing"),
        ({"SLURM_GPUS_PER_NODE": "8"}, "--gpus-per-node is 8 and --ntasks-per-node is 2"),
        ({"PYTHON": "no/python"}, "there is no no/python"),
    ],
)
def test_sbatch_refuses_what_cannot_run(tmp_path, env, message):
    result = Slurm(tmp_path)("--config=c", **env)
    assert result.returncode == 2
    assert message in result.stderr
    assert not (tmp_path / "argv0").exists()


def test_sbatch_directives_are_known_and_before_the_first_command():
    lines = SBATCH.read_text().splitlines()
    given = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert {re.match(r"#SBATCH --([\w-]+)(=\S+)?$", lines[i])[1] for i in given} == DIRECTIVES
    assert all(line.startswith("#") for line in lines[: max(given)])
    values = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", SBATCH.read_text(), re.MULTILINE))
    assert values["ntasks-per-node"] == values["gpus-per-node"]


# --- JobSet ---

# The fields of JobSet v1alpha2 (kubernetes-sigs/jobset, api/jobset/v1alpha2/jobset_types.go) and their types: a type, a
# list of what it may be, a dict of fields, or a list of one dict for lists of such.
JOBSET: dict = {
    "apiVersion": ["jobset.x-k8s.io/v1alpha2"],
    "kind": ["JobSet"],
    "metadata": {"name": str, "namespace": str, "labels": dict, "annotations": dict},
    "spec": {
        "replicatedJobs": [{"name": str, "groupName": str, "template": dict, "replicas": int, "dependsOn": list}],
        "network": {"enableDNSHostnames": bool, "subdomain": str, "publishNotReadyAddresses": bool},
        "successPolicy": {"operator": ["All", "Any"], "targetReplicatedJobs": list},
        "failurePolicy": {
            "maxRestarts": int,
            "restartStrategy": ["Recreate", "BlockingRecreate", "InPlaceRestart"],
            "rules": [
                {
                    "name": str,
                    "action": ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"],
                    "onJobFailureReasons": list,
                    "targetReplicatedJobs": list,
                }
            ],
        },
        "suspend": bool,
        "coordinator": {"replicatedJob": str, "jobIndex": int, "podIndex": int},
        "managedBy": str,
        "ttlSecondsAfterFinished": int,
    },
}  # fmt: skip
REASONS = {"BackoffLimitExceeded", "DeadlineExceeded", "FailedIndexes", "MaxFailedIndexesExceeded", "PodFailurePolicy"}


def _wrong(value, schema, path=""):
    """What does not fit the schema: the paths of unknown fields, and of values of another type."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [path]
        return [
            wrong
            for key, each in value.items()
            for wrong in (_wrong(each, schema[key], f"{path}.{key}") if key in schema else [f"{path}.{key}"])
        ]
    if isinstance(schema, list) and isinstance(schema[0], dict):
        if not isinstance(value, list):
            return [path]
        return [wrong for i, each in enumerate(value) for wrong in _wrong(each, schema[0], f"{path}.{i}")]
    fits = value in schema if isinstance(schema, list) else isinstance(value, schema)
    return [] if fits and (schema is not int or value is not True) else [path]


def _parts(jobset):
    """The replicated job, the spec of its Job, and its container."""
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    return replicated, job, container


@pytest.mark.parametrize("name", JOBSETS)
def test_jobset_has_only_known_fields(name):
    assert _wrong(JOBSETS[name], JOBSET) == []
    for rule in JOBSETS[name]["spec"]["failurePolicy"]["rules"]:
        assert set(rule["onJobFailureReasons"]) <= REASONS
        assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])


@pytest.mark.parametrize(
    ("where", "field", "value"),
    [
        (("spec",), "replicatedJob", []),
        (("spec", "network"), "enableDnsHostnames", True),
        (("spec", "failurePolicy"), "maxRestarts", "20"),
        (("spec", "failurePolicy", "rules", 0), "action", "Fail"),
        (("spec", "replicatedJobs", 0), "replica", 1),
        ((), "apiVersion", "jobset.x-k8s.io/v1alpha1"),
    ],
)
def test_a_wrong_field_of_a_jobset_is_found(where, field, value):
    jobset = inner = copy.deepcopy(JOBSETS["gpu"])
    for key in where:
        inner = inner[key]
    inner[field] = value
    assert _wrong(jobset, JOBSET) == ["".join(f".{key}" for key in (*where, field))]


@pytest.mark.parametrize("name", JOBSETS)
def test_jobset_pods_train_together_and_again(name):
    replicated, job, container = _parts(JOBSETS[name])
    assert container["command"] == ["python", "-m", "research.train"]
    flags = [flag.replace("$(JOB_COMPLETION_INDEX)", "1") for flag in container["args"]]
    arguments = _check(flags)
    assert job["completions"] == job["parallelism"] > 1
    assert job["completionMode"] == "Indexed"  # so that pods have a name and JOB_COMPLETION_INDEX
    if arguments.coordinator:
        network = JOBSETS[name]["spec"]["network"]
        host, port = arguments.coordinator.split(":")
        # JobSet's name of the first pod, in the headless service that it makes.
        assert host == f"{JOBSETS[name]['metadata']['name']}-{replicated['name']}-0-0.{network['subdomain']}"
        assert network["enableDNSHostnames"]
        assert network["publishNotReadyAddresses"]
        assert int(port) in {each["containerPort"] for each in container["ports"]}
        assert arguments.processes == replicated["replicas"] * job["parallelism"]
        assert "--process_id=$(JOB_COMPLETION_INDEX)" in container["args"]
    else:
        assert arguments.distributed
    # A pod that is lost ends its Job, and JobSet starts all again; what the user must mend is not tried again.
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert JOBSETS[name]["spec"]["failurePolicy"]["maxRestarts"] > 0
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule == {
        "action": "FailJob",
        "onExitCodes": {"containerName": container["name"], "operator": "In", "values": [2]},
    }
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert mounts.keys() == {each["name"] for each in job["template"]["spec"]["volumes"]}
    assert arguments.workdir.startswith(f"{mounts['runs']}/")


def test_jobset_of_a_tpu_has_a_pod_for_each_host_of_the_slice():
    _, job, container = _parts(JOBSETS["tpu"])
    rows, columns = map(int, job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"))
    assert rows * columns == container["resources"]["limits"]["google.com/tpu"] * job["parallelism"]


def test_the_image_for_training_copies_what_exists():
    folder = DEPLOY / "jobset"
    text = (folder / "Dockerfile").read_text()
    ignored = (folder / "Dockerfile.dockerignore").read_text().split()
    copied = [name for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for name in shlex.split(line)[:-1]]
    assert {"research", "configs", "pyproject.toml"} <= set(copied)
    assert all((ROOT / name).exists() and f"!{name}" in ignored for name in copied)
    (image,) = re.findall(r"-t (\S+) \.", text)
    assert {_parts(jobset)[2]["image"] for jobset in JOBSETS.values()} == {image}


needs_schemas = pytest.mark.skipif(
    importlib.util.find_spec("kubernetes_validate") is None, reason="needs the extra `schemas`"
)


def _job(jobset):
    """The Job that JobSet makes of its template."""
    replicated = jobset["spec"]["replicatedJobs"][0]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, **replicated["template"]}


@needs_schemas
@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.31", "1.37"])  # of Kubernetes, since pod failure policies are stable
@pytest.mark.parametrize("name", JOBSETS)
def test_jobs_are_valid_by_the_published_schema(name, version):
    import kubernetes_validate

    kubernetes_validate.validate(_job(JOBSETS[name]), version, strict=True)
    wrong = _job(copy.deepcopy(JOBSETS[name]))
    wrong["spec"]["template"]["spec"]["containers"][0]["arg"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="arg"):
        kubernetes_validate.validate(wrong, version, strict=True)


# --- SkyPilot ---

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
    assert _wrong(task, TASK) == []
    for path, storage in task["file_mounts"].items():
        assert path.startswith("/")
        assert _wrong(storage, STORAGE) == []
    used = set(re.findall(r"\$\{?([A-Z_]+)", json.dumps(task)))
    assert {each for each in used if not each.startswith("SKYPILOT_")} <= task["envs"].keys()


@pytest.mark.parametrize("name", SKY)
def test_sky_tasks_set_up_and_train(name, tmp_path):
    """Both scripts run as SkyPilot runs them on its second node, with stand-ins for uv and Python."""
    _script(tmp_path / ".venv/bin/python", f'printf "%s\\0" "$@" >>"{tmp_path}/argv"')
    _script(tmp_path / "bin/uv", "exit 0")
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
    arguments = _check(argv[2:])
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
    for path in (SBATCH, *(DEPLOY / "jobset").glob("*.yaml"), *(DEPLOY / "sky").glob("*.yaml")):
        assert os.fspath(Path("deploy") / path.relative_to(DEPLOY)) in text
