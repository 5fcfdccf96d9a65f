"""The user's own code that a run needs: modules and a config file that register names used by its config."""

import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.base.imports import import_own
from research.core.tasks import TASKS
from research.data import load as data
from research.models import MODELS
from research.runs.rundir import RunDir


def _tables() -> dict[str, Mapping[str, Any]]:
    return {"model": MODELS, "task": TASKS, "data.transform": data.TRANSFORMS, "data": data.SOURCES}


_BUILT_IN = {section: frozenset(table) for section, table in _tables().items()}


def _names(config: Any) -> dict[str, str]:
    return {
        "model": config["model"]["name"],
        "task": config["task"]["name"],
        "data.transform": config["data"]["transform"]["name"],
        "data": config["data"]["name"],
    }


def record(run: RunDir, config: Any, config_file: Path | None) -> None:
    """Imports the config's `imports`, and records where they are and, if the config file registers names, its path."""
    places = import_own(config["imports"], run.own_code()[1])
    tables = _tables()
    registers = any(
        name in tables[section] and name not in _BUILT_IN[section] for section, name in _names(config).items()
    )
    run.write_own_code(config_file if registers else None, places)


def register(run: RunDir, config: Any) -> None:
    """Registers what a run's own code registered: imports it and, if a name is still missing, executes its config file.

    `config`: the run's. Raises UserError if a module is not found where it is now, nor where it was.
    """
    config_file, places = run.own_code()
    import_own(config["imports"], places)
    tables = _tables()
    missing = any(name not in tables[section] for section, name in _names(config).items())
    if missing and config_file is not None and config_file.is_file():
        runpy.run_path(str(config_file))
