"""The packages of the extra `onnx`, imported where they are used."""

import importlib
from typing import Any

from research.base.errors import UserError


def imported(name: str) -> Any:
    """The module `name`. Raises UserError if its package is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(f"ONNX needs {error.name}, which is not installed: pip install 'research[onnx]'") from error
