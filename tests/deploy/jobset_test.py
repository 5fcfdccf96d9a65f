"""The JobSets: known fields, pods that find each other, and Jobs that are valid by the published schema."""

import copy
import importlib.util
import re
import shlex

import pytest
import yaml

from tests.deploy.conftest import ROOT
from tests.deploy.recipes import DEPLOY, train_flags, unfitting

JOBSETS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((DEPLOY / "jobset").glob("*.yaml"))}

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


def _parts(jobset):
    """The replicated job, the spec of its Job, and its container."""
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    return replicated, job, container


@pytest.mark.parametrize("name", JOBSETS)
def test_jobset_has_only_known_fields(name):
    assert unfitting(JOBSETS[name], JOBSET) == []
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
    assert unfitting(jobset, JOBSET) == ["".join(f".{key}" for key in (*where, field))]


@pytest.mark.parametrize("name", JOBSETS)
def test_jobset_pods_train_together_and_again(name):
    replicated, job, container = _parts(JOBSETS[name])
    assert container["command"] == ["python", "-m", "research.train"]
    flags = [flag.replace("$(JOB_COMPLETION_INDEX)", "1") for flag in container["args"]]
    arguments = train_flags(flags)
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
