"""README.md, pyproject.toml, CITATION.cff and the workflow agree on licence, versions and the reading order."""

import re
import tomllib
from pathlib import Path

import pytest

import research

PROJECT = tomllib.loads(Path("pyproject.toml").read_text())["project"]
WORKFLOW = Path(".github/workflows/ci.yml").read_text()


def _cited(key):
    """The value of a single-line key of CITATION.cff."""
    (value,) = re.findall(rf"^{key}: (.+)$", Path("CITATION.cff").read_text(), re.MULTILINE)
    return value


def _matrix(key):
    """The values of a key of the workflow's matrix."""
    (values,) = re.findall(rf"^ +{key}: \[(.+)\]", WORKFLOW, re.MULTILINE)
    return re.findall(r'"(.+?)"', values)


def test_license_file_is_complete_and_matches_the_metadata():
    text = Path("LICENSE").read_text()
    assert text.split()[:6] == ["Apache", "License", "Version", "2.0,", "January", "2004"]
    assert [int(number) for number in re.findall(r"^   (\d)\. ", text, re.MULTILINE)] == list(range(1, 10))
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == _cited("license") == "Apache-2.0"
    assert PROJECT["license-files"] == ["LICENSE"]


def test_version_is_the_same_everywhere():
    assert PROJECT["version"] == research.__version__ == _cited("version")
    assert f"\n## {PROJECT['version']} – {_cited('date-released')}\n" in Path("CHANGELOG.md").read_text()


def test_workflow_covers_the_declared_python_versions():
    declared = [name.split()[-1] for name in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", name)]
    assert _matrix("python") == declared
    assert PROJECT["requires-python"] == f">={declared[0]}"


def test_workflow_covers_the_newest_supported_jax_and_no_excluded_release():
    (jax,) = (line.removeprefix("jax").split(",") for line in PROJECT["dependencies"] if line.startswith("jax>"))
    oldest, newest = _matrix("jax")
    assert newest in jax
    assert oldest.replace("==", "!=") not in jax


def test_reading_order_lists_existing_files_of_the_stated_length():
    readme = Path("README.md").read_text()
    files = [Path(name) for name in re.findall(r"^\| \d+ \| `(.+?)` \|", readme, re.MULTILINE)]
    ((stated, count),) = re.findall(r"core is about ([\d,]+) lines in (\d+) files", readme)
    lines = sum(len(file.read_text().splitlines()) for file in files)
    assert len(files) == int(count)
    assert lines == pytest.approx(int(stated.replace(",", "")), abs=100)
    assert lines <= 2500


@pytest.mark.parametrize("file", ["README.md", "CONTRIBUTING.md"])
def test_paths_and_links_exist(file):
    text = Path(file).read_text()
    paths = re.findall(r"`((?:research|configs|tests|notebooks|benchmarks)/[\w/.]+)`", text)
    links = re.findall(r"\]\(([^#)]+)\)", text)
    placeholder = {"research/core/x.py", "tests/x_test.py"}
    assert [name for name in paths + links if name not in placeholder and not Path(name).exists()] == []
    headings = [re.sub(r"[^\w -]", "", heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors
