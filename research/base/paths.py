"""Paths as users give them."""

import os
from pathlib import Path

from research.base.errors import UserError


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with "~" and "~user" replaced by a home directory. Raises UserError for a user without one."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{os.fspath(path)} can't be expanded: no such user, or no home directory") from error
