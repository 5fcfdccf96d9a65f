"""The repository's standing files say the same of licence, version and what is supported."""

import re
import tomllib
from pathlib import Path

import research

PROJECT = tomllib.loads(Path("pyproject.toml").read_text())["project"]
WORKFLOW = Path(".github/workflows/ci.yml").read_text()


def _cited(key):
    """The value of a key of CITATION.cff that stands on one line."""
    (value,) = re.findall(rf"^{key}: (.+)$", Path("CITATION.cff").read_text(), re.MULTILINE)
    return value


def _matrix(key):
    """The values of a key of the workflow's matrix."""
    (values,) = re.findall(rf"^ +{key}: \[(.+)\]", WORKFLOW, re.MULTILINE)
    return re.findall(r'"(.+?)"', values)


def test_the_licence_is_whole_and_the_one_that_is_declared():
    text = Path("LICENSE").read_text()
    assert text.split()[:6] == ["Apache", "License", "Version", "2.0,", "January", "2004"]
    assert [int(number) for number in re.findall(r"^   (\d)\. ", text, re.MULTILINE)] == list(range(1, 10))
    assert "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == _cited("license") == "Apache-2.0"
    assert PROJECT["license-files"] == ["LICENSE"]


def test_the_version_is_the_same_everywhere():
    assert PROJECT["version"] == research.__version__ == _cited("version")
    assert f"\n## {PROJECT['version']} – {_cited('date-released')}\n" in Path("CHANGELOG.md").read_text()


def test_the_workflow_tests_the_pythons_that_are_declared():
    declared = [name.split()[-1] for name in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", name)]
    assert _matrix("python") == declared
    assert PROJECT["requires-python"] == f">={declared[0]}"


def test_the_workflow_tests_the_newest_jax_that_is_supported_and_none_that_is_excluded():
    (jax,) = (line.removeprefix("jax").split(",") for line in PROJECT["dependencies"] if line.startswith("jax>"))
    oldest, newest = _matrix("jax")
    assert newest in jax
    assert oldest.replace("==", "!=") not in jax
