"""The schemas of requests."""

import functools
import json
import operator
import re

import httpx
import pytest
from pydantic import BaseModel

from research.serve import fill, oip, openai_schema, plain, tei_schema
from tests.serve.conftest import serving

SCHEMAS = sorted(
    {
        schema
        for module in (fill, oip, openai_schema, plain, tei_schema)
        for schema in vars(module).values()
        if isinstance(schema, type) and issubclass(schema, BaseModel) and schema is not BaseModel
    },
    key=lambda schema: f"{schema.__module__}.{schema.__qualname__}",
)


def _lists(schema):
    """The schemas of lists within pydantic's own schema of a type."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            yield schema
        for key, value in schema.items():
            if key != "metadata":
                yield from _lists(value)
    elif isinstance(schema, list | tuple):
        for value in schema:
            yield from _lists(value)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_lists_are_read_up_to_the_first_error(schema):
    """All the errors of a list with millions of wrong items would take minutes."""
    assert all(found.get("fail_fast") for found in _lists(schema.__pydantic_core_schema__))


def test_there_are_lists():
    assert sum(1 for schema in SCHEMAS for _ in _lists(schema.__pydantic_core_schema__)) >= 17


def test_the_description_is_whole(models):
    """Its references lead somewhere, and every path says what an error looks like."""
    with serving({"features": models["features"]}) as (url, _):
        found = httpx.get(f"{url}/openapi.json").json()
    references = re.findall(r'"\$ref": "#/([^"]*)"', json.dumps(found))
    for reference in references:
        functools.reduce(operator.getitem, reference.split("/"), found)
    operations = [each for path in found["paths"].values() for each in path.values()]
    assert len(operations) > 20
    assert {"/v1/completions", "/v1/chat/completions"} <= found["paths"].keys()
    for operation in operations:
        assert {"4XX", "5XX"} <= operation["responses"].keys()
    bodies = [each for each in operations if "requestBody" in each]
    assert bodies
    for each in bodies:
        assert each["requestBody"]["content"]["application/json"]["schema"] != {}
