"""The manifests for Kubernetes: what they refer to exists, and they are valid by the published schemas."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from research.serve.app import DRAIN_SECONDS
from research.serve.guard import OPEN_PATHS
from research.serve.metrics import Metrics
from tests.serve.deploy_test import DEPLOY, DOCKERFILE, check_flags

FOLDER = DEPLOY / "kubernetes"
KUSTOMIZE = "kustomize.config.k8s.io/v1beta1"
VERSIONS = ("1.27", "1.37")  # of Kubernetes


def _read(path):
    return yaml.safe_load((FOLDER / path).read_text())


def _merged(base, patch):
    """As kustomize merges: dicts by key, and lists of named items by name."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return {**base, **{key: _merged(base.get(key), value) for key, value in patch.items()}}
    if isinstance(base, list) and all(isinstance(each, dict) for each in patch):
        named = {each["name"]: each for each in patch}
        assert named.keys() <= {each["name"] for each in base}
        return [_merged(each, named.get(each["name"], {})) for each in base]
    return patch


def _resources(folder):
    """The resources of a kustomization by kind, without its labels."""
    kustomization, found = _read(f"{folder}/kustomization.yaml"), {}
    for each in kustomization["resources"]:
        path = Path(folder, each)
        if (FOLDER / path).is_dir():
            found |= _resources(path)
        else:
            resource = _read(path)
            assert resource["kind"] not in found
            found[resource["kind"]] = resource
    for each in kustomization.get("patches", ()):
        patch = _read(Path(folder, each["path"]))
        assert patch["metadata"]["name"] == found[patch["kind"]]["metadata"]["name"]
        found[patch["kind"]] = _merged(found[patch["kind"]], patch)
    return found


BASE = _resources("base")
EXAMPLE = _resources("overlays/example")
KSERVE = _read("kserve/inference-service.yaml")
PODS = {
    "base": BASE["Deployment"]["spec"]["template"]["spec"],
    "example": EXAMPLE["Deployment"]["spec"]["template"]["spec"],
    "kserve": KSERVE["spec"]["predictor"],
}


def test_every_file_is_of_a_kustomization_or_kserve():
    used = {FOLDER / "kserve/inference-service.yaml"}
    for path in FOLDER.rglob("kustomization.yaml"):
        content = yaml.safe_load(path.read_text())
        assert (content["apiVersion"], content["kind"]) == (KUSTOMIZE, "Kustomization")
        listed = [*content["resources"], *(each["path"] for each in content.get("patches", ()))]
        used |= {path, *(path.parent / each for each in listed if each.endswith(".yaml"))}
    assert set(FOLDER.rglob("*.yaml")) == used
    assert (FOLDER / "overlays/example/../../base").is_dir()


@pytest.mark.parametrize("name", PODS)
def test_pods_run_the_image_without_privileges(name):
    (container,) = PODS[name]["containers"]
    check_flags(container["args"])
    pod, own = PODS[name]["securityContext"], container["securityContext"]
    assert f"--uid {pod['runAsUser']} " in DOCKERFILE
    assert pod["runAsNonRoot"]
    assert own["readOnlyRootFilesystem"]
    assert not own["allowPrivilegeEscalation"]
    assert own["capabilities"] == {"drop": ["ALL"]}
    mounts = {each["name"]: each for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in PODS[name]["volumes"]}
    assert mounts.keys() == volumes.keys()
    assert mounts["runs"]["readOnly"]
    assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == BASE["PersistentVolumeClaim"]["metadata"]["name"]
    assert {"/tmp", "/home/research/.cache"} <= {each["mountPath"] for each in mounts.values()}
    assert all(flag.split("=")[-1].startswith("/runs/") for flag in container["args"] if "--workdir" in flag)


@pytest.mark.parametrize("name", PODS)
def test_probes_ask_for_paths_that_need_no_key(name):
    (container,) = PODS[name]["containers"]
    (port,) = container["ports"]
    assert f"--port={port['containerPort']}" in DOCKERFILE
    probes = {key: each["httpGet"] for key, each in container.items() if key.endswith("Probe")}
    assert {"livenessProbe", "readinessProbe"} <= probes.keys()
    assert probes["readinessProbe"]["path"] == "/v2/health/ready"
    for key, probe in probes.items():
        assert probe["path"] in OPEN_PATHS
        assert probe["port"] in (port["name"], port["containerPort"])
        assert key == "readinessProbe" or probe["path"] == "/v2/health/live"  # compiling is no reason to be killed


@pytest.mark.parametrize("name", PODS)
def test_pods_have_the_time_to_answer_what_was_asked(name):
    (container,) = PODS[name]["containers"]
    command = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
    assert command[0] == "sleep"
    assert PODS[name]["terminationGracePeriodSeconds"] >= int(command[1]) + DRAIN_SECONDS + 5


def test_resources_select_the_pods_of_the_deployment():
    deployment = BASE["Deployment"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        BASE["Service"]["spec"]["selector"],
        BASE["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        PODS["base"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
        assert selector
    (port,) = BASE["Service"]["spec"]["ports"]
    assert port["targetPort"] in {each["name"] for each in PODS["base"]["containers"][0]["ports"]}
    target = BASE["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["apiVersion"], target["kind"]) == (deployment["apiVersion"], "Deployment")
    assert target["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"]  # applying it again would undo the autoscaler


def test_the_autoscaler_and_prometheus_ask_for_metrics_that_the_service_has():
    metrics = Metrics()
    (metric,) = BASE["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] in {
        each.name for each in metrics.registry.collect() if each.type == "gauge"
    }
    annotations = BASE["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/path"] in {getattr(route, "path", None) for route in metrics.router().routes}
    assert annotations["prometheus.io/port"] == str(PODS["base"]["containers"][0]["ports"][0]["containerPort"])


def test_the_example_replaces_what_the_base_has():
    (image,) = _read("overlays/example/kustomization.yaml")["images"]
    assert image["name"] == PODS["base"]["containers"][0]["image"]
    assert EXAMPLE["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert PODS["example"]["containers"][0]["args"] != PODS["base"]["containers"][0]["args"]


def test_kserve_is_told_the_protocol():
    (container,) = PODS["kserve"]["containers"]
    assert {"name": "PROTOCOL", "value": "v2"} in container["env"]
    assert container["name"] == "kserve-container"


def _in_kubernetes(name):
    """A type of KServe's models as a schema: of Kubernetes, of KServe or simple."""
    if name.startswith("list["):
        return {"type": "array", "items": _in_kubernetes(name[5:-1])}
    if name.startswith("dict("):
        return {"type": "object"}
    simple = {"str": "string", "int": "integer", "bool": "boolean"}
    if name in simple:
        return {"type": simple[name]}
    if name in KSERVE_MODELS:
        return {
            "type": "object",
            "properties": {key: _in_kubernetes(each) for key, each in KSERVE_MODELS[name].items()},
            "additionalProperties": False,
        }
    if name == "V1ObjectMeta":
        return {"$ref": "_definitions.json#/$defs/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}
    if name.startswith("V1") and not name.startswith("V1beta1"):
        return {"$ref": f"_definitions.json#/$defs/io.k8s.api.core.v1.{name[2:]}"}
    return False  # what the manifest does not use


# The names and types of the fields of KServe 0.21's Python models, which are generated from its OpenAPI description.
KSERVE_MODELS = json.loads(Path(__file__).with_name("kserve.json").read_text())["models"]

needs_schemas = pytest.mark.skipif(
    importlib.util.find_spec("kubernetes_validate") is None, reason="needs the extra `schemas`"
)


def _errors(resource, version):
    """What is wrong with a resource, each as the path of the field and a message."""
    import kubernetes_validate

    if resource["kind"] != "InferenceService":
        try:
            kubernetes_validate.validate(resource, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            return [f"{'.'.join(map(str, error.path))}: {error.message}"]
        return []
    import jsonschema
    import referencing.jsonschema

    package = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
    definitions = json.loads((package / f"v{version}.0-local-strict/_definitions.json").read_text())
    found = referencing.jsonschema.DRAFT202012.create_resource(definitions)
    validator = jsonschema.Draft202012Validator(
        _in_kubernetes("V1beta1InferenceService"),
        registry=referencing.Registry().with_resource("_definitions.json", found),
    )
    return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(resource)]


RESOURCES = {
    **{f"base {kind}": each for kind, each in BASE.items()},
    **{f"example {kind}": each for kind, each in EXAMPLE.items()},
    "kserve": KSERVE,
}


@needs_schemas
@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", RESOURCES)
def test_resources_are_valid_by_the_published_schemas(name, version):
    assert _errors(RESOURCES[name], version) == []


WRONG = [
    ("base Deployment", ("spec", "template", "spec", "containers", 0), "readynessProbe", {}),
    ("base Deployment", ("spec", "template", "spec"), "terminationGracePeriodSeconds", "60"),
    ("base HorizontalPodAutoscaler", ("spec", "metrics", 0, "pods"), "metrics", {}),
    ("base PodDisruptionBudget", ("spec",), "maxUnavailble", 1),
    ("base Service", ("spec", "ports", 0), "targetport", "http"),
    ("base PersistentVolumeClaim", ("spec",), "accessMode", "ReadOnlyMany"),
    ("kserve", ("spec",), "predictors", {}),
    ("kserve", ("spec", "predictor"), "minReplica", 1),
    ("kserve", ("spec", "predictor"), "minReplicas", "1"),
    ("kserve", ("spec", "predictor", "containers", 0), "readynessProbe", {}),
]


@needs_schemas
@pytest.mark.slow
@pytest.mark.parametrize(("name", "where", "field", "value"), WRONG)
def test_a_wrong_field_is_named(name, where, field, value):
    resource = inner = copy.deepcopy(RESOURCES[name])
    for key in where:
        inner = inner[key]
    inner[field] = value
    (error,) = _errors(resource, VERSIONS[-1])
    assert field in error
