"""Config files: load one, choose its preset, apply overrides. For the command-line shells and for notebooks alike."""

import dataclasses
import importlib.util
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from research.build import nearest
from research.data import load as data
from research.errors import UserError
from research.rundir import flatten


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A config; `name` is its file's. `note` says why `embedded` stands in for the full size, if it does; `given` are
    the keys that overrides set. Where the config has `init_from`, research/interop/pretrained.py resolves it."""

    config: ConfigDict
    name: str
    note: str | None
    given: frozenset[str]


def load(spec: str, overrides: Iterable[str] = ()) -> Experiment:
    """Loads "path/to/file.py:preset", or ":auto" or no preset for the full size where it can be had, else `embedded`.

    Args:
      overrides: "train.steps=10" or "--config.train.steps=10", applied in order.

    Raises:
      UserError: the file, the preset, an overridden key or its value is not good.
    """
    path, _, preset = spec.partition(":")
    module = _import(Path(path))
    overrides, note = list(overrides), None
    if preset in ("", "auto"):
        preset, note = _choose(path, module, overrides)
    elif preset not in module.PRESETS:
        raise UserError(f"{path} has no preset {preset!r}; {nearest(preset, module.PRESETS)}")
    config = module.get_config(preset)
    given = _override(config, overrides)
    return Experiment(config, Path(path).stem, note, given)


def unavailable(config: ConfigDict) -> list[str]:
    """What the config needs and can't be had here: pretrained weights, the dataset. Empty if nothing is missing."""
    reasons = (_missing_weights(config.init_from) if config.init_from else None, data.missing(config.data))
    return [reason for reason in reasons if reason]


def _missing_weights(init_from: str) -> str | None:
    from research.interop import source  # with the libraries that read weights, which few runs need

    return source.missing(init_from)


# What decides whether the full size can be had; an override of one counts.
_DECIDING = ("init_from", "needs_accelerator", "data.name", "data.data_dir")


def _choose(path: str, module: ModuleType, overrides: Sequence[str]) -> tuple[str, str | None]:
    """The full-size preset, or `embedded` and a line that says why.

    A config file's ON_CPU names a preset on real data or real weights that needs no accelerator; the line names it too.
    """
    if module.FULL == "embedded":
        return module.FULL, None
    full = module.get_config(module.FULL)
    _override(full, [override for override in overrides if _parsed(override)[0] in _DECIDING])
    reasons, others = unavailable(full), [("the full job", module.FULL)]
    if full.needs_accelerator and jax.default_backend() == "cpu":
        reasons.insert(0, "no accelerator (JAX sees only the CPU)")
        if hasattr(module, "ON_CPU"):
            others.insert(0, ("made for a CPU", module.ON_CPU))
    if not reasons:
        return module.FULL, None
    return "embedded", (
        f"preset {module.FULL} can't be had here: {'; '.join(reasons)}. Running preset embedded instead; "
        + "; ".join(f"{what}: python -m research.train --config={path}:{preset}" for what, preset in others)
    )


def _import(path: Path) -> ModuleType:
    if not path.is_file():
        near = nearest(path.name, [file.name for file in path.parent.glob("*.py") if file.stem != "__init__"])
        raise UserError(f"config file {path} does not exist; {near}")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec is not None
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
    "train.steps": "epochs",
    "train.epochs": "steps",
    "train.batch_size": "batch_rows",
    "train.batch_rows": "batch_size",
}


def _parsed(override: str) -> tuple[str, str, str]:
    """An override's key, "=" if it has one, and value."""
    return override.removeprefix("--").removeprefix("config.").partition("=")


def _override(config: ConfigDict, overrides: Sequence[str]) -> frozenset[str]:
    """Applies "key=value" strings in place -> the keys they set."""
    arguments, keys, unset = [""], set(), set()
    known = flatten(config.to_dict())
    for override in overrides:
        key, equals, value = _parsed(override)
        if not equals:
            raise UserError(f"override {override!r} has no value; write --config.{key}=VALUE")
        if key not in known:
            raise UserError(f"config key {key!r} is unknown; {nearest(key, known)}")
        if key == "preset":
            raise UserError(f"preset is chosen with the file: --config=FILE:{value}")
        keys.add(key)
        if value == "None" and (known[key] is None or key in ("optimizer.C", "optimizer.alpha")):
            unset.add(key)
            continue
        if value == "None" and key in _INSTEAD:
            raise UserError(f"{key} can't be unset alone; give train.{_INSTEAD[key]} in its place")
        if (
            isinstance(known[key], tuple)
            and known[key]
            and all(isinstance(item, str) for item in known[key])
            and value[:1] != "("
        ):
            value = repr(tuple(value.split(",")))  # "validation,test", without a shell's quotes around quotes
        arguments.append(f"--config.{key}={value}")
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
    except (flags.Error, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"override not understood: {str(error).splitlines()[0]}") from error
    for key, other in _INSTEAD.items():
        if key in keys and f"train.{other}" not in keys:
            config.train[other] = None
    penalties = {"weight_decay": 0.0, "C": None, "alpha": None}
    replaced = any(f"optimizer.{key}" in keys for key in penalties)
    for key, off in penalties.items():
        if f"optimizer.{key}" in unset or (replaced and f"optimizer.{key}" not in keys):
            config.optimizer[key] = off
    return frozenset(keys - unset)
