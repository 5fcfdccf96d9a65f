"""The runs in a folder, as rows of a table: what was trained, what differs, the best metric, status and time."""

import collections
import datetime
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.api import Comparison
from research.base.errors import UserError
from research.base.paths import expanded
from research.base.trees import flatten
from research.runs.rundir import RunDir

_SHOWN = 4  # the most keys that a row says to differ


def list_runs(folder: str | Path) -> Comparison:
    """The runs in `folder` and its subfolders, oldest first: a row each, shown as a table.

    "differs" has the keys whose value is not the usual one among the listed runs of the same model, data and preset.
    A run inside another one, such as a refit, is not listed. Raises UserError if there is no such folder.
    """
    top = expanded(folder)
    if not top.is_dir():
        raise UserError(f"{top} is not a folder; name the one that holds the runs: python -m research.runs FOLDER")
    runs = sorted(_runs(top), key=lambda run: run.changed)
    configs = [_readable(run) for run in runs]
    usual = _usual(configs)
    return Comparison(
        {
            "run": os.path.relpath(run.path, top),
            "trains": " ".join(_trains(config)) if config else "config.json can't be read",
            "differs": _differing(config, usual.get(_trains(config), {})) if config else "",
            **_outcome(run),
            "changed": datetime.datetime.fromtimestamp(run.changed).strftime("%Y-%m-%d %H:%M"),
        }
        for run, config in zip(runs, configs, strict=True)
    )


def _runs(top: Path) -> Iterator[RunDir]:
    for folder, inner, _ in os.walk(top):
        run = RunDir(folder)
        if run.is_run:
            inner.clear()
            yield run


def _readable(run: RunDir) -> dict[str, Any] | None:
    try:
        return flatten(run.config())
    except UserError:
        return None


def _trains(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What a flat config trains: model, data and preset."""
    return str(config.get("model.name")), "on", str(config.get("data.name")), f"({config.get('preset')})"


def _usual(configs: Sequence[Mapping[str, Any] | None]) -> dict[tuple[str, ...], dict[str, str]]:
    """The most frequent value of each key, among the configs that train the same."""
    groups = collections.defaultdict(list)
    for config in configs:
        if config:
            groups[_trains(config)].append(config)
    return {
        what: {
            key: collections.Counter(repr(config.get(key)) for config in group).most_common(1)[0][0]
            for key in dict.fromkeys(key for config in group for key in config)
        }
        for what, group in groups.items()
    }


def _differing(config: Mapping[str, Any], usual: Mapping[str, str]) -> str:
    differing = [f"{key}={config.get(key)}" for key, value in usual.items() if repr(config.get(key)) != value]
    more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    return " ".join(differing[:_SHOWN]) + more


def _outcome(run: RunDir) -> dict[str, Any]:
    try:
        summary = run.summary() or {}
    except UserError:
        summary = {}
    best = summary.get("best")
    status = "running" if run.in_use else summary.get("status", "not ended")
    return {
        "best": f"{best['metric']} {best['value']:.4f}" if best else None,
        "step": summary.get("step"),
        "status": status,
    }
