"""Invalid requests: some of tests/serve_fuzz.py, and those that the OpenAPI description allows or forbids."""

import importlib.util
import subprocess
import sys

import pytest

from tests import serve_fuzz
from tests.serve.conftest import writing

pytestmark = pytest.mark.slow


def test_invalid_requests_end_in_no_server_error_and_disturb_no_other():
    assert serve_fuzz.main(["--count=400", "--attackers=0"]) == 0


@pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="needs the extra `schemas`")
def test_requests_by_the_openapi_description_end_in_no_server_error(models, generator):
    flags = "--checks=not_a_server_error --phases=fuzzing --max-examples=20 --seed=0 --generation-deterministic".split()
    command = [sys.executable, "-c", "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"]
    with writing({"llama": generator}, models={"features": models["features"]}) as (url, _):
        ran = subprocess.run([*command, "run", f"{url}/openapi.json", *flags], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
