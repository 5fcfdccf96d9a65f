"""The schemas of requests."""

import pytest
from pydantic import BaseModel

from research.serve import fill, oip, plain, tei_schema

SCHEMAS = sorted(
    {
        schema
        for module in (fill, oip, plain, tei_schema)
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
    assert sum(1 for schema in SCHEMAS for _ in _lists(schema.__pydantic_core_schema__)) >= 12
