"""The files of the page: public, small, and without anything from elsewhere."""

import re
from pathlib import Path

import httpx
import pytest

from research.serve import guard
from research.serve.page_files import HEADERS, PATHS

FOLDER = Path(guard.__file__).parent / "page"


def test_every_file_is_served_and_public(served):
    assert {file.name for file in FOLDER.iterdir()} == {file.name for file in PATHS.values()}
    assert set(PATHS) <= guard.OPEN_PATHS
    with httpx.Client(base_url=served) as client:
        for path, file in PATHS.items():
            answer = client.get(path)
            assert answer.status_code == 200
            assert answer.content == (FOLDER / file.name).read_bytes()
            assert client.head(path).status_code == 200
        assert client.get("/page/none.js").status_code == 404


def test_the_policy_allows_only_the_pages_own_files(served):
    headers = httpx.get(served).headers
    assert headers["content-type"].startswith("text/html")
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert set(policy.values()) == {"'none'", "'self'"}
    assert httpx.get(f"{served}/page/main.js").headers["content-type"].startswith("text/javascript")
    assert HEADERS.items() <= {key.title(): value for key, value in headers.items()}.items()


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_inline_or_from_elsewhere(path):
    text = PATHS[path].read_text()
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert not re.findall(r"\bstyle=|\bon\w+=\"|<script>|<style|innerHTML|eval\(", text)


def test_modules_and_links_exist():
    for file in PATHS.values():
        for name in re.findall(r'from "\./([\w.]+)"|(?:href|src)="page/([\w.]+)"', file.read_text()):
            assert f"/page/{''.join(name)}" in PATHS
