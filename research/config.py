"""Loads config files: chooses the preset and applies overrides, for the command-line shells and for notebooks."""

import dataclasses
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from research.base.errors import UserError
from research.base.imports import import_own
from research.base.paths import expanded
from research.base.registry import config_keys, nearest
from research.base.trees import flatten
from research.config_files import ConfigFile, get_config, open_file
from research.core.tasks import TASKS
from research.data import load as data
from research.data.files import source as files
from research.data.shards import source as shards
from research.data.text.lengths import following
from research.models import MODELS
from research.overrides import Declared, accepted, by_class, declared, parse
from research.runs.saved_config import RETIRED_KEYS
from research.training.limits import check_values


@dataclasses.dataclass(frozen=True)
class LoadedConfig:
    """A config and the `file` that it comes from.

    `note` says why `embedded` replaces the full size, if it does; `given` are the keys set by overrides. If the config
    has `init_from`, research/interop/pretrained.py resolves it.
    """

    config: ConfigDict
    file: Path
    note: str | None
    given: frozenset[str]


def load(spec: str, overrides: Iterable[str] = ()) -> LoadedConfig:
    """Loads "bert_sst2:base", one of this package's configs in any folder, or "path/to/file.py:base".

    Without a preset, or with ":auto", this is the full size if it is available, else `embedded`.

    Args:
      overrides: "train.steps=10" or "--config.train.steps=10", applied in order.

    Raises:
      UserError: the file, the preset, an overridden key or its value is invalid, or an override asks for data or
        weights that are unavailable.
    """
    file, preset = open_file(spec)
    overrides, note = list(overrides), None
    if preset in ("", "auto"):
        preset, note = _choose(file, overrides)
    elif preset not in file.module.PRESETS:
        raise UserError(f"{file.name} has no preset {preset!r}; {nearest(preset, file.module.PRESETS)}")
    config = preset_config(file, preset)
    given = override(config, overrides)
    check_values(config.to_dict())
    return LoadedConfig(config, file.path.absolute(), note, given)


def preset_config(file: ConfigFile, preset: str) -> ConfigDict:
    """The config of a preset. Raises UserError for any error in the file, and for a key that nothing takes."""
    config = get_config(file, preset)
    for section, function in _built(config).items():
        part, takes = config[section], config_keys(function)
        for key in sorted(set(part) - {"name", *takes}):
            if f"{section}.{key}" not in RETIRED_KEYS:
                raise UserError(
                    f"config file {file.path}: {section}.{key} is not a key of {part.name!r}; "
                    f"{nearest(f'{section}.{key}', [f'{section}.{name}' for name in takes])}"
                )
    return config


def unavailable(config: ConfigDict) -> dict[str, str]:
    """The data and weights that the config needs but are unavailable: key -> reason. Empty if nothing is missing."""
    reasons = {
        "init_from": _missing_weights(config.init_from) if config.init_from else None,
        "data.name": data.missing(config.data),
    }
    return {key: reason for key, reason in reasons.items() if reason}


def _missing_weights(init_from: str) -> str | None:
    from research.interop import source  # imports the libraries that read weights, which few runs need

    return source.missing(init_from)


# What decides whether the full size is available; an override of one counts.
_DECIDING = ("init_from", "needs_accelerator", "data.name", "data.data_dir", "data.train", "imports")

# How to obtain what a key names, and the keys that request it.
_WAYS = {
    "init_from": ("give a folder that holds them: --config.init_from=FOLDER", ("init_from",)),
    "data.name": (
        "prepare it there, or name its folder with --config.data.data_dir=FOLDER",
        ("data.name", "data.data_dir"),
    ),
}


def _choose(file: ConfigFile, overrides: Sequence[str]) -> tuple[str, str | None]:
    """The full-size preset, or `embedded` and a line that says why.

    A config file's ON_CPU names a preset on real data or real weights that needs no accelerator; the line names it too.

    Raises UserError if an override asks for something unavailable: only what the preset itself asks for is replaced.
    """
    module = file.module
    if module.FULL == "embedded":
        return module.FULL, None
    full = preset_config(file, module.FULL)
    given = override(full, [override for override in overrides if _parsed(override)[0] in _DECIDING])
    lacking, others = unavailable(full), [("the full job", module.FULL)]
    for key, reason in lacking.items():
        way, keys = _WAYS[key]
        asked = [f"{key}={flatten(full.to_dict())[key]}" for key in keys if key in given]
        if asked:
            raise UserError(f"{' and '.join(asked)} was requested but is unavailable: {reason}; {way}")
    reasons, kept = list(lacking.values()), sorted(given - {"needs_accelerator", "imports"})
    if full.needs_accelerator and jax.default_backend() == "cpu":
        reasons.insert(0, "no accelerator (JAX sees only the CPU)")
        if hasattr(module, "ON_CPU"):
            others.insert(0, ("made for a CPU", module.ON_CPU))
    if not reasons:
        return module.FULL, None
    return "embedded", (
        f"preset {module.FULL} is unavailable here: {'; '.join(reasons)}. Running preset embedded instead"
        + (f", with the requested {' and '.join(kept)}; " if kept else "; ")
        + "; ".join(
            f"{what}: python -m research.train --config={shlex.quote(f'{file.name}:{preset}')}"
            for what, preset in others
        )
    )


# The tables in which a section's `name` is looked up.
_TABLES: dict[str, Mapping[str, Any]] = {"model": MODELS, "task": TASKS, "data.transform": data.TRANSFORMS}


def _built(config: ConfigDict, names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The function that each section of _TABLES calls, by section. `names` ("model.name") override the config's."""
    listed = {key: value.value for key, value in declared(config).items()} | dict(names or {})
    named = {section: table.get(str(listed.get(f"{section}.name"))) for section, table in _TABLES.items()}
    return {section: function for section, function in named.items() if function is not None}


# An empty tuple does not show the type of its items.
_EMPTY = {
    "imports": Declared(tuple, (), optional=False, of=str),
    "data.shards.weights": Declared(tuple, (), optional=False, of=float),
}


def _known(config: ConfigDict, overrides: Sequence[str]) -> dict[str, Declared]:
    """The keys that overrides may set: the config's, and all parameters of its model, task and transform."""
    known: dict[str, Declared] = {}
    for section, function in _built(config, {key: text for key, _, text in map(_parsed, overrides)}).items():
        known |= {f"{section}.{key}": value for key, value in accepted(config_keys(function)).items()}
    own = declared(config)
    for key, one in own.items():  # an empty tuple does not show the type of its items
        if one.kind is tuple and one.items is None and key in known:
            own[key] = dataclasses.replace(one, of=known[key].of)
    return known | own | {key: empty for key, empty in _EMPTY.items() if not own.get(key, empty).value}


# Exactly one key of each pair is given; the other is None.
_INSTEAD = {
    "train.steps": "train.epochs",
    "train.epochs": "train.steps",
    "train.batch_size": "train.batch_rows",
    "train.batch_rows": "train.batch_size",
}
# At most one of these is given; the others are off.
_PENALTIES = {"optimizer.weight_decay": 0.0, "optimizer.C": None, "optimizer.alpha": None}


_PATHS = (
    "init_from",
    "data.data_dir",
    "data.soft_labels",
    "data.unlabelled",
    "data.soft_hidden",
    "data.transform.tokenizer",
    "data.transform.chat_template",
)


def _parsed(override: str) -> tuple[str, str, str]:
    """Splits an override into its key, "=" if present, and its value."""
    return override.removeprefix("--").removeprefix("config.").partition("=")


def _import_given(overrides: Sequence[str]) -> None:
    """Imports the modules of an override of `imports`, as names in other overrides may be theirs."""
    for key, _, text in map(_parsed, overrides):
        if key == "imports":
            import_own(parse(key, text, _EMPTY[key]))


def override(config: ConfigDict, overrides: Sequence[str]) -> frozenset[str]:
    """Applies "key=value" strings in place, and sets what follows from them -> the keys that the strings name."""
    values: dict[str, Any] = {}
    _import_given(overrides)
    known = _known(config, overrides)
    packs = "train.batch_rows" in known and known["train.batch_rows"].value is not None
    unlikely = () if packs else ("train.batch_rows",)
    for override in overrides:
        key, equals, text = _parsed(override)
        if not equals:
            raise UserError(f"override {override!r} has no value; write --config.{key}=VALUE")
        if key in RETIRED_KEYS:
            continue
        if key not in known:
            raise UserError(f"config key {key!r} is unknown; {nearest(key, known, unlikely=unlikely)}")
        if key == "preset":
            raise UserError(f"preset is chosen with the file: --config=FILE:{text}")
        values[key] = parse(key, text, known[key])
        if key in _PATHS and values[key]:
            expanded(values[key])  # an unknown "~user" is an error already here; the key keeps its text
    given = frozenset(values)
    for key, other in _INSTEAD.items():
        if key in given and other not in given:
            if values[key] is None and known[key].value is not None:
                raise UserError(f"{key} can't be None alone; give {other} in its place")
            values[other] = known[other].value if values[key] is None else None
    if values.get("data.train") and config.data.name != shards.NAME:
        values = {"data.name": files.NAME, **values}  # own files take the place of the preset's dataset
    if any(values.get(key) is not None for key in _PENALTIES):
        values = {**_PENALTIES, **values}
    for key, value in values.items():
        _set(config, key, value, known[key])
    for key, value in values.items():
        if isinstance(value, dict):
            _set(config, key, by_class(key, value, config.model.get("num_classes")), known[key])
    for key, value in following(config.to_dict(), given).items():
        _set(config, key, value, known[key])
    return given


def _set(config: ConfigDict, key: str, value: Any, declared: Declared) -> None:
    *sections, name = key.split(".")
    for section in sections:
        config = config[section]
    with config.unlocked():
        if name not in config and declared.optional:
            config[name] = placeholder(declared.kind)
        config[name] = value
