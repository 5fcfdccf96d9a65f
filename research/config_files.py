"""Config files: finds the file of a spec, executes it, and explains its errors in one line."""

import dataclasses
import importlib.util
import os
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType, ModuleType

from ml_collections import ConfigDict

from research.base.errors import UserError
from research.base.imports import import_own
from research.base.paths import expanded
from research.base.registry import nearest
from research.overrides import declared

FOLDER = Path(__file__).parent / "configs"  # in a checkout a link to configs/
_NOT_CONFIGS = ("__init__", "__main__", "defaults")


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """An executed config file.

    Attributes:
      path: the file.
      name: what the user called it, "bert_sst2" or "configs/bert_sst2.py", for messages and commands.
      module: its `get_config`, `PRESETS`, `FULL` and, if it has one, `ON_CPU`.
    """

    path: Path
    name: str
    module: ModuleType


def open_file(spec: str) -> tuple[ConfigFile, str]:
    """Executes the file of "bert_sst2:base" or "path/to/file.py:base" -> the file, and the preset or "".

    A name without ".py" and without a folder is that of a config of this package, wherever the command runs.

    Raises UserError if there is no such file, or it is not a config file.
    """
    name, preset = _parts(spec)
    path = _path(name)
    module = _execute(path, name)
    missing = [needed for needed in ("get_config", "PRESETS", "FULL") if not hasattr(module, needed)]
    if missing:
        raise UserError(f"config file {path} lacks {', '.join(missing)}")
    return ConfigFile(path, name, module), preset


def names() -> list[str]:
    """The names of this package's configs."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if path.stem not in _NOT_CONFIGS)


def _parts(spec: str) -> tuple[str, str]:
    """Splits "path/to/file.py:preset" into file and preset. Names of folders may contain colons."""
    folder, slash, last = spec.rpartition("/")
    name, _, preset = last.rpartition(":")
    return (folder + slash + name, preset) if name and not last.endswith(".py") else (spec, "")


def _path(name: str) -> Path:
    """The file that a name or a path means. Raises UserError if it does not exist."""
    path = expanded(name)
    if "/" not in name and not name.endswith(".py"):
        if name in names():
            return FOLDER / f"{name}.py"
        if not os.path.exists(name):
            raise UserError(f"config {name!r} is unknown; {nearest(name, names())}")
    if not os.path.isfile(path):  # also False for an invalid path
        if path.stem in names():
            raise UserError(f"config file {path} does not exist; the name {path.stem} works in any folder")
        beside = [file.name for file in path.parent.glob("*.py") if file.stem not in _NOT_CONFIGS]
        known = [*beside, *names()]
        raise UserError(f"config file {path} does not exist; {nearest(path.name, known, whole=True)}")
    return path


def _execute(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None:
        raise UserError(f"config file {path} is not a Python file (.py)")
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        file, line = _place(path, error)
        where = f" ({file}, line {line})" if line else ""
        raise UserError(f"config file {path} can't be read: {type(error).__name__}: {error}{where}") from error
    return module


def get_config(file: ConfigFile, preset: str) -> ConfigDict:
    """The file's config, locked: keys that it lacks can't be set. Imports the modules in its `imports`.

    Raises UserError for any error in the file.
    """
    path = file.path
    try:
        config = file.module.get_config(preset)
    except UserError:
        raise
    except Exception as error:
        where, line = _place(path, error)
        raise UserError(f"config file {where}, line {line}: {_explained(error)}") from error
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"config file {path}: get_config returns a {type(config).__name__}; it must return a ConfigDict"
        )
    import_own(config.imports)
    # `lock` alone does nothing if the config is locked already, but a section that was replaced may not be.
    return config.unlock().lock()


def _place(path: Path, error: Exception) -> tuple[Path, int | None]:
    """Where an error was raised: the config file, or one in its folder that it imports, and the line, if any."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        file = Path(frame.f_code.co_filename)
        if file.resolve().parent == path.resolve().parent:
            return path.with_name(file.name), line
    return path, None


def _explained(error: Exception) -> str:
    """Explains an error in one line. ConfigDict's own messages take several, and don't name the section."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = frames[-1].f_locals
    section, key = names.get("self"), names.get("key", names.get("attribute"))
    if isinstance(section, ConfigDict) and isinstance(key, str):
        root, prefix = _root(section, frames)
        known = declared(root)
        if key not in section:
            return f"{prefix + key!r} is unknown; {nearest(prefix + key, {*known, *_sections(root)})}"
        if isinstance(error, TypeError) and prefix + key in known:
            return f"{prefix}{key} is {names.get('value')!r}; it must be {known[prefix + key].wanted}"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _root(section: ConfigDict, frames: Iterable[FrameType]) -> tuple[ConfigDict, str]:
    """The whole config that contains `section`, found in some frame, and the section's prefix in it: "train."."""
    for frame in frames:
        for value in frame.f_locals.values():
            if isinstance(value, ConfigDict):
                for name, part in {"": value, **_sections(value)}.items():
                    if part is section:
                        return value, f"{name}." if name else ""
    return section, ""


def _sections(config: ConfigDict) -> dict[str, ConfigDict]:
    return dict(_walk(config))


def _walk(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, ConfigDict]]:
    for key, value in config.items(preserve_field_references=True):
        if isinstance(value, ConfigDict):
            yield prefix + key, value
            yield from _walk(value, f"{prefix}{key}.")
