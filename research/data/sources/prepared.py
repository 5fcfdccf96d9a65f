"""Resolves a TFDS name to a prepared dataset: a folder DATA_DIR/NAME/[CONFIG/]VERSION with a dataset_info.json."""

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from research.base.errors import UserError

_NAME = re.compile(r"(?P<family>[A-Za-z]\w*)(?:/(?P<config>[\w+.-]+?))?(?:[:/](?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_HANDFUL = 5


@dataclasses.dataclass(frozen=True)
class Name:
    """The parts of a dataset's name; `config` and `version` are None if it does not contain them."""

    family: str
    config: str | None
    version: str | None

    def __str__(self) -> str:
        """The name as TFDS writes it."""
        return self.family + (f"/{self.config}" if self.config else "") + (f":{self.version}" if self.version else "")


def data_folder(data_dir: str | None) -> Path:
    """The folder of TFDS data: `data_dir`, or else TFDS_DATA_DIR or ~/tensorflow_datasets; "~" is expanded."""
    folder = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise UserError(f"data.data_dir is {folder!r}, but this home directory does not exist") from error


def readings(name: str) -> tuple[Name, ...]:
    """The possible readings of a name, likeliest first: "a/1.0.0" is the config 1.0.0 of a, or else the version 1.0.0.

    Raises UserError if it is not a valid name of a dataset.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f"{name!r} is not a valid dataset name; write NAME, NAME/CONFIG or NAME/CONFIG:VERSION")
    first = Name(**match.groupdict())
    if first.config and _VERSION.fullmatch(first.config) and first.version is None:
        return first, Name(first.family, None, first.config)
    return (first,)


def find(name: str, data_dir: str | None, default_config: Callable[[str], str | None]) -> Path | None:
    """The folder of the prepared dataset, with the newest version if there are several; None if there is none.

    Args:
      default_config: a dataset's NAME -> its default config, if known.

    Raises:
      UserError: the name is not valid, or several configs are prepared and it does not name one.
    """
    root = data_folder(data_dir)
    for reading in readings(name):
        folder = root / reading.family
        found = _versions(folder / reading.config if reading.config else folder, reading.version)
        if not (found or reading.config):
            config = _config_of(folder, root, default_config)
            found = _versions(folder / config, reading.version) if config else []
        if found:
            return found[-1]
    return None


def _versions(folder: Path, version: str | None = None) -> list[Path]:
    """The prepared versions in a folder, ascending; only `version` if it is given."""
    found = [
        path.parent
        for path in folder.glob("*/dataset_info.json")
        if _VERSION.fullmatch(path.parent.name) and version in (None, path.parent.name)
    ]
    return sorted(found, key=lambda path: [int(part) for part in path.name.split(".")])


def _config_of(folder: Path, root: Path, default_config: Callable[[str], str | None]) -> str | None:
    """The config that a dataset's name without a config means."""
    configs = sorted(path.name for path in folder.glob("*") if _versions(path))
    if not configs:
        return None
    try:
        default = json.loads((folder / ".config/metadata.json").read_text())["default_config_name"]
    except (OSError, ValueError, KeyError, TypeError):
        default = default_config(folder.name)
    if default or len(configs) == 1:
        return default or configs[0]
    raise UserError(
        f"dataset {folder.name} has several configs in {root}; name one: {handful(configs, '', folder.name)}"
    )


def _all(root: Path) -> Iterator[str]:
    """The names of all prepared datasets."""
    for family in root.glob("[A-Za-z]*"):
        if _versions(family):
            yield family.name
        yield from (f"{family.name}/{config.name}" for config in family.glob("*") if _versions(config))


def handful(names: Iterable[str], near: str, family: str | None = None) -> str:
    """At most five of the names, most similar to `near` first; each as a config of `family`, if given."""

    def likeness(name: str) -> float:
        return max(difflib.SequenceMatcher(None, near, part).ratio() for part in (name, name.split("/")[0]))

    ordered = sorted(sorted(names), key=likeness, reverse=True)
    shown = [f"{family}/{name}" if family else name for name in ordered[:_HANDFUL]]
    return ", ".join(shown) + (f" and {len(ordered) - _HANDFUL} more" if len(ordered) > _HANDFUL else "")


def not_prepared(name: str, data_dir: str | None) -> str:
    """The message that a dataset is not prepared, with the expected layout and the prepared ones, nearest first."""
    root = data_folder(data_dir)
    *_, reading = readings(name)
    layout = "/".join((reading.family, reading.config or "[CONFIG", reading.version or "VERSION", "dataset_info.json"))
    layout = layout.replace("[CONFIG/", "[CONFIG/]")
    names = list(_all(root))
    there = f"prepared there: {handful(names, name)}" if names else "nothing is prepared there"
    there = there if root.is_dir() else "there is no such folder"
    return f"the dataset {name} is not prepared in {root} (looked for {layout}; {there})"
