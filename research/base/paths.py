"""User-given paths, the cache folder, JSON files, and atomic writes."""

import json
import os
import re
import tempfile
import uuid
from pathlib import Path
from typing import Any

from research.base.errors import UserError


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with "~" and "~user" replaced by a home directory. Raises UserError for a user without one."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{os.fspath(path)} can't be expanded: no such user, or no home directory") from error


def shown(path: Path) -> Path:
    """The path relative to the current folder, if it is in it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


# A URL such as gs://bucket/run, also after `Path` has made one slash of two.
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]+:/")


def local(path: str | os.PathLike[str]) -> Path:
    """`expanded`, for folders that are written. Raises UserError for a URL, such as gs://bucket/run, too."""
    if _REMOTE.match(os.fspath(path)) and not os.path.isdir(path):
        raise UserError(f"{os.fspath(path)} is not a local path; runs are written to local or mounted folders only")
    return expanded(path)


def same_source(one: str | None, other: str | None) -> bool:
    """Whether two values of `init_from` name the same weights, even if written with "~" or as relative paths."""
    if one is None or other is None:
        return one is other
    return one == other or len({os.path.realpath(os.path.expanduser(name)) for name in (one, other)}) == 1


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises UserError if the file is missing or not a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is not a JSON object")
    return value


def atomic_write(path: Path, content: str | bytes) -> None:
    """Writes the file, text as UTF-8, completely or not at all, whatever other processes write."""
    part = temporary(path)
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(path)


def temporary(path: Path) -> Path:
    """A path to be renamed to `path`. Not by process id: hosts that share a disk may share ids."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")


def cache_folder() -> Path:
    """The user's cache folder; it need not exist yet."""
    own = os.environ.get("RESEARCH_CACHE")
    if own:
        return Path(own).expanduser()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "research"
    except RuntimeError:  # a user without a home, as in some containers
        return Path(tempfile.gettempdir()) / f"research-{os.getuid()}"
