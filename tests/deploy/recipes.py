"""What the tests of the recipes share: flags of research.train, fields of a format, and stand-ins for commands."""

from research import cli, train
from research.config import load
from tests.deploy.conftest import ROOT

DEPLOY = ROOT / "deploy"


def train_flags(flags):
    """The flags as research.train parses them. Raises UserError for an unknown one; the config must exist."""
    arguments, others = cli.parse(train.parser(), flags, required=("config", "workdir"), passed_on="--config.")
    assert load(f"configs/{arguments.config}.py", others).config
    return arguments


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/bash\n{text}\n")
    path.chmod(0o755)


def unfitting(value, schema, path=""):
    """What does not fit the schema: the paths of unknown fields, and of values of another type."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [path]
        return [
            wrong
            for key, each in value.items()
            for wrong in (unfitting(each, schema[key], f"{path}.{key}") if key in schema else [f"{path}.{key}"])
        ]
    if isinstance(schema, list) and isinstance(schema[0], dict):
        if not isinstance(value, list):
            return [path]
        return [wrong for i, each in enumerate(value) for wrong in unfitting(each, schema[0], f"{path}.{i}")]
    fits = value in schema if isinstance(schema, list) else isinstance(value, schema)
    return [] if fits and (schema is not int or value is not True) else [path]
