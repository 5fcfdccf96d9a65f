"""Config files: load one, choose its preset, apply overrides. For the command-line shells and for notebooks alike."""

import dataclasses
import importlib.util
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
from ml_collections import ConfigDict

from research.base.errors import UserError
from research.base.paths import expanded
from research.base.registry import nearest
from research.base.trees import flatten
from research.data import load as data
from research.overrides import by_class, declared, parse
from research.runs.rundir import RETIRED_KEYS
from research.training.limits import check_values


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config; `name` is its file's. `note` says why `embedded` stands in for the full size, if it does; `given` are
    the keys that overrides set. Where the config has `init_from`, research/interop/pretrained.py resolves it."""

    config: ConfigDict
    name: str
    note: str | None
    given: frozenset[str]


def load(spec: str, overrides: Iterable[str] = ()) -> Experiment:
    """Loads "path/to/file.py:preset"; ":auto" and no preset mean the full size where it is available, else `embedded`.

    Args:
      overrides: "train.steps=10" or "--config.train.steps=10", applied in order.

    Raises:
      UserError: the file, the preset, an overridden key or its value is not good, or an override asks for data or
        weights that are unavailable.
    """
    path, preset = _parts(spec)
    module = _import(path)
    overrides, note = list(overrides), None
    if preset in ("", "auto"):
        preset, note = _choose(path, module, overrides)
    elif preset not in module.PRESETS:
        raise UserError(f"{path} has no preset {preset!r}; {nearest(preset, module.PRESETS)}")
    config = module.get_config(preset)
    given = _override(config, overrides)
    check_values(config.to_dict())
    return Experiment(config, path.stem, note, given)


def _parts(spec: str) -> tuple[Path, str]:
    """The file and the preset of "path/to/file.py:preset". Folders may have colons in their names."""
    path = expanded(spec)
    name, _, preset = path.name.rpartition(":")
    return (path.with_name(name), preset) if name and not path.name.endswith(".py") else (path, "")


def unavailable(config: ConfigDict) -> dict[str, str]:
    """What the config needs and is unavailable here: the key that names it -> why. Empty if nothing is missing."""
    reasons = {
        "init_from": _missing_weights(config.init_from) if config.init_from else None,
        "data.name": data.missing(config.data),
    }
    return {key: reason for key, reason in reasons.items() if reason}


def _missing_weights(init_from: str) -> str | None:
    from research.interop import source  # with the libraries that read weights, which few runs need

    return source.missing(init_from)


# What decides whether the full size is available; an override of one counts.
_DECIDING = ("init_from", "needs_accelerator", "data.name", "data.data_dir")

# How to get what a key names, and the keys by which it is asked for.
_WAYS = {
    "init_from": ("give a folder that holds them: --config.init_from=FOLDER", ("init_from",)),
    "data.name": (
        "prepare it there, or name its folder with --config.data.data_dir=FOLDER",
        ("data.name", "data.data_dir"),
    ),
}


def _choose(path: Path, module: ModuleType, overrides: Sequence[str]) -> tuple[str, str | None]:
    """The full-size preset, or `embedded` and a line that says why.

    A config file's ON_CPU names a preset on real data or real weights that needs no accelerator; the line names it too.

    Raises UserError where an override asks for what is unavailable: only what the preset itself asks for is replaced.
    """
    if module.FULL == "embedded":
        return module.FULL, None
    full = module.get_config(module.FULL)
    given = _override(full, [override for override in overrides if _parsed(override)[0] in _DECIDING])
    lacking, others = unavailable(full), [("the full job", module.FULL)]
    for key, reason in lacking.items():
        way, keys = _WAYS[key]
        asked = [f"{key}={flatten(full.to_dict())[key]}" for key in keys if key in given]
        if asked:
            raise UserError(f"{' and '.join(asked)} was asked for and is unavailable: {reason}; {way}")
    reasons, kept = list(lacking.values()), sorted(given - {"needs_accelerator"})
    if full.needs_accelerator and jax.default_backend() == "cpu":
        reasons.insert(0, "no accelerator (JAX sees only the CPU)")
        if hasattr(module, "ON_CPU"):
            others.insert(0, ("made for a CPU", module.ON_CPU))
    if not reasons:
        return module.FULL, None
    return "embedded", (
        f"preset {module.FULL} is unavailable here: {'; '.join(reasons)}. Running preset embedded instead"
        + (f", with the {' and '.join(kept)} asked for; " if kept else "; ")
        + "; ".join(f"{what}: python -m research.train --config={path}:{preset}" for what, preset in others)
    )


def _import(path: Path) -> ModuleType:
    if not os.path.isfile(path):  # False too where the path itself is not valid
        near = nearest(path.name, [file.name for file in path.parent.glob("*.py") if file.stem != "__init__"])
        raise UserError(f"config file {path} does not exist; {near}")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None:
        raise UserError(f"config file {path} is not a Python file (.py)")
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"config file {path} can't be read: {type(error).__name__}: {error}") from error
    missing = [name for name in ("get_config", "PRESETS", "FULL") if not hasattr(module, name)]
    if missing:
        raise UserError(f"config file {path} lacks {', '.join(missing)}")
    return module


# Of each pair one is given, and the other is None.
_INSTEAD = {
    "train.steps": "train.epochs",
    "train.epochs": "train.steps",
    "train.batch_size": "train.batch_rows",
    "train.batch_rows": "train.batch_size",
}
# Of these one is given, and the others are off.
_PENALTIES = {"optimizer.weight_decay": 0.0, "optimizer.C": None, "optimizer.alpha": None}


_PATHS = ("init_from", "data.data_dir", "data.transform.tokenizer")


def _parsed(override: str) -> tuple[str, str, str]:
    """An override's key, "=" if it has one, and value."""
    return override.removeprefix("--").removeprefix("config.").partition("=")


def _override(config: ConfigDict, overrides: Sequence[str]) -> frozenset[str]:
    """Applies "key=value" strings in place -> the keys they set."""
    values: dict[str, Any] = {}
    known = declared(config)
    for override in overrides:
        key, equals, text = _parsed(override)
        if not equals:
            raise UserError(f"override {override!r} has no value; write --config.{key}=VALUE")
        if key in RETIRED_KEYS:
            continue
        if key not in known:
            raise UserError(f"config key {key!r} is unknown; {nearest(key, known)}")
        if key == "preset":
            raise UserError(f"preset is chosen with the file: --config=FILE:{text}")
        values[key] = parse(key, text, known[key])
        if key in _PATHS and values[key]:
            expanded(values[key])  # "~user" of nobody is an error here already; the key keeps its text
    given = frozenset(values)
    for key, other in _INSTEAD.items():
        if key in given and other not in given:
            if values[key] is None and known[key].value is not None:
                raise UserError(f"{key} can't be None alone; give {other} in its place")
            values[other] = known[other].value if values[key] is None else None
    if any(values.get(key) is not None for key in _PENALTIES):
        values = {**_PENALTIES, **values}
    for key, value in values.items():
        _set(config, key, value)
    for key, value in values.items():
        if isinstance(value, dict):
            _set(config, key, by_class(key, value, config.model.get("num_classes")))
    return given


def _set(config: ConfigDict, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        config = config[section]
    config[name] = value
