"""The files for deployment: nothing is built here, but what they refer to must exist."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from research.serve.__main__ import parser
from research.serve.guard import OPEN_PATHS
from research.serve.metrics import Metrics

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
DOCKERFILE = re.sub(r"\\\n", " ", (DEPLOY / "Dockerfile").read_text())


def _instructions(name):
    return re.findall(rf"^ *{name} +(.*)$", DOCKERFILE, re.MULTILINE)


def check_flags(flags):
    known = {option for action in parser()._actions for option in action.option_strings}
    assert flags
    assert {flag.split("=")[0] for flag in flags} <= known


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.yaml")), ids=lambda path: path.name)
def test_files_parse(path):
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_what_the_image_copies_exists_and_is_not_ignored():
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    copied = [name for line in _instructions("COPY") for name in shlex.split(line)[:-1]]
    assert {"research", "configs", "constraints.txt"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored


def test_the_image_starts_the_service_without_privileges():
    (entry,) = map(json.loads, _instructions("ENTRYPOINT"))
    assert entry[:3] == ["python", "-m", "research.serve"]
    check_flags(entry[3:])
    assert _instructions("USER") == ["research"]
    assert any("-c constraints.txt '.[serve]'" in line for line in _instructions("RUN"))


def test_the_health_check_needs_no_key():
    (check,) = _instructions("HEALTHCHECK")
    url = re.search(r"http://127.0.0.1:8000(/[\w/]+)", check)
    assert url[1] in OPEN_PATHS
    compile(json.loads(check[check.index("[") :])[2], "check", "exec")


def test_every_package_of_the_extra_is_pinned():
    project = (ROOT / "pyproject.toml").read_text()
    names = re.findall(r'"([\w-]+)', re.search(r"\nserve = \[(.*?)\]", project, re.DOTALL)[1])
    pinned = {line.split("==")[0].replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert names
    assert {name for name in names if name != "sys"} <= pinned


def test_compose_refers_to_what_exists():
    services = COMPOSE["services"]
    build = services["serve"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    check_flags(services["serve"]["command"])
    for service in services.values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source == "../runs":  # which the user has
                assert volume.endswith(":ro")
            elif source.startswith("."):
                assert (DEPLOY / source).exists(), source
            else:
                assert source in COMPOSE["volumes"]


def test_prometheus_and_grafana_find_each_other():
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())["scrape_configs"]
    assert job["static_configs"][0]["targets"] == ["serve:8000"]
    assert job["metrics_path"] in {getattr(route, "path", None) for route in Metrics().router().routes}
    (source,) = yaml.safe_load((DEPLOY / "provisioning/datasources/prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    panels = json.loads((DEPLOY / "grafana.json").read_text())["panels"]
    assert {panel["datasource"]["uid"] for panel in panels} == {source["uid"]}
    (provider,) = yaml.safe_load((DEPLOY / "provisioning/dashboards/research.yaml").read_text())["providers"]
    mounted = [volume.split(":")[1] for volume in COMPOSE["services"]["grafana"]["volumes"]]
    assert f"{provider['options']['path']}/research.json" in mounted
