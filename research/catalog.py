"""Descriptions of what there is: the configs with their presets, and the names that a config can use."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from research import config_files, solvers
from research.base.registry import config_keys
from research.config import preset_config, unavailable
from research.core.optimizers import OPTIMIZERS
from research.core.tasks import TASKS, capabilities
from research.data import load as data
from research.models import MODELS
from research.training import own_files


def configs() -> Iterator[str]:
    """Lines: each config of this package with what it is, then each of its presets with what it trains."""
    known: dict[tuple[Any, ...], dict[str, str]] = {}
    for name in config_files.names():
        file, _ = config_files.open_file(name)
        yield f"{name}: {_description(file.module)}"
        presets = list(file.module.PRESETS)
        width = max(map(len, presets))
        for preset in presets:
            config = preset_config(file, preset)
            needs = (config.init_from, config.data.name, config.data.data_dir)
            if needs not in known:  # several presets need the same data
                known[needs] = unavailable(config)
            yield f"  {preset:{width}}  {_summary(config)} ({_state(config, known[needs])})"
    yield "python -m research.train --config=NAME:PRESET says why something is not here, and how to obtain it"


def _state(config: ConfigDict, lacking: Mapping[str, str]) -> str:
    """What a preset needs that is not here, in some words; `lacking` is the result of `unavailable`."""
    needs = [f"the weights {config.init_from}"] if "init_from" in lacking else []
    needs += [f"the dataset {config.data.name}"] if "data.name" in lacking else []
    if config.needs_accelerator and jax.default_backend() == "cpu":
        needs.append("an accelerator")
    return f"not here: {', '.join(needs)}" if needs else "available"


def _summary(config: ConfigDict) -> str:
    train = config.train
    count, unit = (f"{train.epochs:g}", "epoch") if train.steps is None else (str(train.steps), "step")
    weights = f" from {config.init_from}" if config.init_from else ""
    length = f"{count} {unit}" if count == "1" else f"{count} {unit}s"
    if "train.epochs" in own_files.inferred(config):
        length = "as many epochs as the data need"
    return f"{config.model.name}{weights} on {config.data.name}, {config.optimizer.name}, {length}"


def _description(what: Any) -> str:
    """The first sentence of a docstring, or its first line; empty if there is none of its own."""
    text = inspect.getdoc(what) or ""
    if inspect.isclass(what) and text == (inspect.getdoc(object) or ""):
        return ""
    return text.split("\n\n")[0].replace("\n", " ")


def models() -> Iterator[tuple[str, str, list[str]]]:
    """(name, description, keys of `model`) of each model; the same for the other tables below."""
    return _entries(MODELS, fixed=("dtype",))


def tasks() -> Iterator[tuple[str, str, list[str]]]:
    """(name, description, keys of `task`) of each task."""
    return _entries(TASKS)


def transforms() -> Iterator[tuple[str, str, list[str]]]:
    """(name, description, keys of `data.transform`) of each transform."""
    return _entries(data.TRANSFORMS)


def optimizers() -> Iterator[tuple[str, str, list[str]]]:
    """(name, description, keys of `optimizer` besides those that all share) of each optimizer and solver."""
    for name, optimizer in OPTIMIZERS.items():
        functions = [optimizer.around, optimizer.direction] if optimizer.around else [optimizer.direction]
        keys = {key: None for function in functions for key in _keyword_only(function)}
        yield name, _description(functions[0]), list(keys)
    for name, solver in solvers.SOLVERS.items():
        yield name, _description(solver), [key for key in solvers.KEYS if key in inspect.signature(solver).parameters]


def sources() -> Iterator[tuple[str, str, list[str]]]:
    """(name, description, no keys) of each source that is not a dataset of TFDS."""
    for name, (_, function) in data.SOURCES.items():
        yield name, _description(function), []


def metrics() -> Iterator[tuple[str, str, list[str]]]:
    """(task, what the task predicts, its metrics) of each task: the values of `eval.metric`."""
    for name, task in TASKS.items():
        yield name, f"predicts a {capabilities(task).predicts}" if capabilities(task).predicts else "", _metrics(task)


def _shape(*shape: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def _classes(*shape: int) -> jax.ShapeDtypeStruct:
    return _shape(*shape, dtype=jnp.int32)


# (outputs, batch): shapes of what tasks take. Two classes have most metrics.
_PROBES: tuple[tuple[Any, dict[str, Any]], ...] = (
    (_shape(4, 2), {"labels": _classes(4), "weight": _shape(4)}),
    (_shape(4), {"labels": _shape(4), "weight": _shape(4)}),
    (_shape(4, 2, 3), {"labels": _classes(4, 2), "weight": _shape(4, 1)}),
    (
        {"logits": _shape(4, 2, 3)},
        {"targets": _classes(4, 2), "target_bytes": _classes(4, 2), "weight": _shape(4, 1)},
    ),
)


def _metrics(task: Callable[..., Any]) -> list[str]:
    """The names of a task's metrics; empty for one that takes other outputs than the tasks of this package."""
    built = task()
    for outputs, batch in _PROBES:
        try:
            scores = jax.eval_shape(built.scores, outputs, batch)
        except (ValueError, TypeError, KeyError):
            continue
        return [*scores, *built.split_metrics]
    return []


KINDS: dict[str, Callable[[], Iterator[tuple[str, str, list[str]]]]] = {
    "models": models,
    "tasks": tasks,
    "optimizers": optimizers,
    "transforms": transforms,
    "sources": sources,
    "metrics": metrics,
}


def entries(kind: str) -> Iterator[str]:
    """Two lines for each name of a kind: its description, and its keys (for metrics: their names)."""
    for name, description, keys in KINDS[kind]():
        yield f"{name}: {description}" if description else name
        if keys:
            yield f"  {', '.join(keys)}"


def _entries(table: Mapping[str, Any], fixed: tuple[str, ...] = ()) -> Iterator[tuple[str, str, list[str]]]:
    for name, function in table.items():
        base = getattr(function, "func", function)
        bound = getattr(function, "keywords", {})
        description = _description(base)
        if bound:
            description = f"{description.rstrip('.')}; with {', '.join(f'{k}={v!r}' for k, v in bound.items())}"
        yield name, description, [key for key in config_keys(function) if key not in fixed]


def _keyword_only(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is inspect.Parameter.KEYWORD_ONLY]
