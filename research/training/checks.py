"""Checks of a config, and of a dataset against it, before anything is built. Each raises UserError in one line."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jax.flatten_util import ravel_pytree

from research import solvers
from research.base.errors import UserError
from research.base.registry import lookup, regex
from research.core.metrics import AVERAGE
from research.core.tasks import TASKS, Capabilities, Regression, Task, capabilities
from research.data.checks import check_inputs, check_labels
from research.data.examples import AugmentedExamples, Examples, MixedExamples
from research.data.pipeline import Stream
from research.training.limits import RANGES, check_values


def _capabilities(config: Any) -> Capabilities:
    return capabilities(TASKS[config.task.name])


def check_keys(config: Any) -> None:
    """Raises UserError where a value is out of its range, or two are incompatible."""
    check_values(config.to_dict())
    if config["eval"]["metric"].startswith(AVERAGE) and config["train"]["ema_decay"] == 0:
        raise UserError(
            f"eval.metric is {config['eval']['metric']!r}, a metric of the averaged parameters, but train.ema_decay is "
            "0, which keeps no average; it must be above 0"
        )
    if config["train"]["seeds"] is not None and config["data"]["train_fraction"] != 1:
        raise UserError(
            f"train.seeds is {config['train']['seeds']} and data.train_fraction {config['data']['train_fraction']}; "
            "each seed draws a different part of the data, so train them one after another"
        )
    last = config["seed"] + (config["train"]["seeds"] or 1) - 1
    if last > RANGES["seed"].high:
        raise UserError(
            f"seed={config['seed']} with train.seeds={config['train']['seeds']} goes up to {last}; the largest seed is "
            f"{RANGES['seed'].high}"
        )
    if config["eval"]["mode"] not in ("max", "min"):
        raise UserError(f"eval.mode is {config['eval']['mode']!r}; known: max, min")
    if not config["eval"]["splits"]:
        raise UserError("eval.splits is empty; name at least one split")


def check_split(config: Any, split: str, examples: Examples, *, training: bool) -> None:
    """Raises UserError where a split's examples do not fit the model or, with `training`, can't be trained on."""
    assert examples.labels is not None
    # A model with one output is a regression.
    num_classes = config.model.get("num_classes")
    check_labels(
        split,
        examples.labels,
        None if num_classes == 1 else num_classes,
        training=training,
        hidden=config.task.get("hidden_label"),
    )
    check_inputs(
        split,
        examples,
        vocab_size=config.model.get("vocab_size"),
        max_positions=config.model.get("max_positions"),
        num_features=config.model.get("num_features"),
    )


def check_data(config: Any, streams: Callable[[str], Stream]) -> None:
    """Raises UserError where the data does not fit the model or the task. Only `train` and `eval.splits` are checked.

    `streams`: a split's name -> its rows; raises UserError for a split that does not fit the model.
    """
    transform = config.data.transform
    buckets, features = transform.get("buckets"), config.model.get("num_features")
    if buckets is not None and features is not None and buckets != features:
        raise UserError(f"data.transform.buckets is {buckets} and model.num_features {features}; they must be equal")
    if isinstance(streams("train").examples, MixedExamples) and not _capabilities(config).takes_mixed_labels:
        raise UserError(
            f"data.transform mixes the labels of two examples, which task {config.task.name!r} does not take"
        )
    main, *_ = [streams(split) for split in config.eval.splits]
    hidden = config.task.get("hidden_label", -1)
    if "num_classes" in config.model and (main.labels == hidden).all():
        raise UserError(
            f"the labels of split {config.eval.splits[0]!r} are hidden; name another one first in eval.splits"
        )


def check_metric(config: Any, task: Task, known: Mapping[str, Any], streams: Callable[[str], Stream]) -> None:
    """Raises UserError where eval.metric is not in `known`, or is undefined on the first of eval.splits."""
    lookup(known, config.eval.metric, "eval.metric")
    labels = streams(config.eval.splits[0]).labels
    metric = task.split_metrics.get(config.eval.metric.removeprefix(AVERAGE))
    if metric is not None and metric({"prediction": np.zeros(len(labels))}, labels) is None:
        raise UserError(
            f"eval.metric is {config.eval.metric!r}, which has no value on the {len(labels)} labels of split "
            f"{config.eval.splits[0]!r}: fewer than two of them, hidden ones left out, differ; name another metric, or "
            "another split first in eval.splits"
        )


def check_classes(config: Any, labels: np.ndarray) -> None:
    """Raises UserError where the labels [N] that a classifier would be trained on are all of one class."""
    if _capabilities(config).predicts == "class" and (labels == labels[0]).all():
        raise UserError(
            f"all {len(labels)} training examples of {config.data.name} have the label {labels[0]}; a classifier needs "
            "two classes"
        )


def check_lora(config: Any, params: Mapping[str, Any]) -> None:
    """Raises UserError where only some of the layers that model.scan compiles as one have low-rank additions."""
    layers = [set(flatten_dict(layer)) for name, layer in params.items() if name.startswith("layer_")]
    if config.model.get("scan") and any(layer != layers[0] for layer in layers):
        raise UserError(
            f"train.lora.targets={config.train.lora.targets!r} finds kernels of some layers only, which "
            "model.scan=True does not support; set it to False"
        )


def check_exact(config: Any, model_state: Mapping[str, Any], batch_rows: int, parts: int) -> None:
    """Raises UserError where train.exact_shards does not suit the model, the batch or its `parts` on devices."""
    shards, key = config.train.exact_shards, f"train.exact_shards={config.train.exact_shards}"
    if shards is None:
        return
    for name, given in (
        ("mesh.rules", config.mesh.rules not in (None, (), "replicated")),
        ("train.accumulate", config.train.accumulate > 1),
        ("train.seeds", config.train.seeds is not None),
        ("a solver", config.optimizer.name in solvers.SOLVERS),
        ("batch statistics", bool(model_state)),
    ):
        if given:
            raise UserError(f"{key} does not support {name}; set train.exact_shards=None")
    if shards % parts or batch_rows % shards:
        raise UserError(
            f"{key} must be a multiple of the {parts} devices that share a batch, and divide its {batch_rows} rows"
        )


def check_solver(config: Any, *, task: Task, examples: Examples, full_batch: bool, total_steps: int) -> None:
    """Raises UserError for settings that the solver named in `config` does not support."""
    section, name = config.optimizer, config.optimizer.name
    if isinstance(examples, AugmentedExamples | MixedExamples):
        raise UserError(
            f"data.transform {config.data.transform.name!r} augments training examples at random, but {name!r} sees "
            "each of them once; turn augmentation off (data.transform.augment)"
        )
    if not full_batch or total_steps != 1:
        raise UserError(
            f"optimizer {name!r} fits all training examples in one step; give train.batch_size=-1 and train.steps=1 "
            f"({total_steps} steps were requested)"
        )
    if config.train.lora.rank is not None:
        raise UserError(f"train.lora.rank is {config.train.lora.rank}, unsupported by {name!r}; set it to None")
    for key, off in (("clip_norm", None), ("layer_decay", 1), ("freeze", "")):
        if section[key] != off:
            raise UserError(f"optimizer.{key} is {section[key]!r}, unsupported by {name!r}; set it to {off!r}")
    regex("optimizer.decay_exclude", section.decay_exclude)
    for key, rate in config.model.items():
        if (key.endswith("dropout") or key == "stochastic_depth") and rate:
            raise UserError(f"model.{key} is {rate}, unsupported by {name!r}; set it to 0")
    if config.train.seeds is not None:
        raise UserError(f"train.seeds is {config.train.seeds}, unsupported by {name!r}, which makes one fit; omit it")
    if config.train.ema_decay:
        raise UserError(
            f"train.ema_decay is {config.train.ema_decay}, unsupported by {name!r}, which makes one step; set it to 0"
        )
    lookup(solvers.FACTORIZATIONS, section.factorization, "optimizer.factorization")
    if name == "closed_form" and not isinstance(task, Regression):  # closed_form solves least squares
        raise UserError(f"task.name is {config.task.name!r}; 'closed_form' supports regression only, 'lbfgs' any task")


def check_solved(name: str, module: nn.Module, batch: Mapping[str, Any]) -> None:
    """Raises UserError if the model has other state than parameters, or must be linear in them and is not.

    Linearity is tested on `batch`, a few examples: along a line of parameters the outputs must lie on a line.
    """

    def init() -> Any:
        return module.init({"params": jax.random.key(0)}, batch, train=False)

    variables = jax.eval_shape(init)
    if set(variables) != {"params"}:
        raise UserError(
            f"optimizer {name!r} fits parameters only, but the model also has state: {', '.join(variables)}"
        )
    if name != "closed_form":
        return
    start, unravel = ravel_pytree(jax.jit(init)()["params"])
    direction = jax.random.normal(jax.random.key(1), start.shape, start.dtype)

    def outputs(distance: float) -> np.ndarray:
        params = unravel(start + distance * direction)
        return np.asarray(jax.jit(lambda: module.apply({"params": params}, batch, train=False))(), np.float64)

    zero, one, two = map(outputs, (0.0, 1.0, 2.0))
    if np.abs(two - 2 * one + zero).max() > 1e-2 * (np.abs(two).max() + np.abs(zero).max()):
        raise UserError(
            "optimizer 'closed_form' solves models that are linear in their parameters, and this one is not"
        )
