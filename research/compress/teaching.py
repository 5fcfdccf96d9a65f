"""What a run teaches the network that was made of it: files of its predictions and hidden states."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from research.base.errors import UserError
from research.base.paths import atomic_write, expanded
from research.compress.context import Say
from research.core.quantization import applied
from research.core.tasks import capabilities
from research.data.soft_labels import taught
from research.inference.bulk import open_source, predict_rows
from research.inference.predictor import Predictor
from research.training.trained_run import TrainedRun

_KINDS = ("text", "text_pair", "text_or_pair", "features")


def write_soft_labels(source: TrainedRun, path: Path) -> None:
    """Writes the run's predictions for its training split. Raises UserError if the run saw a part of it only."""
    if source.config.data.train_fraction != 1:
        raise UserError(
            f"{source.run.path} was trained on data.train_fraction={source.config.data.train_fraction} of its data; "
            "learning its predictions needs a run on all of it, or --soft_weight=0"
        )
    if capabilities(source.model.task).predicts != "class":
        raise UserError(f"{source.run.path} predicts no classes, so there is nothing to learn but its labels")
    _, records = source.predictions("train")
    lines = (json.dumps({"index": record["index"], "scores": record["scores"]}) for record in records)
    atomic_write(path, "".join(f"{line}\n" for line in lines))


def digest_of(file: str, columns: Mapping[str, str]) -> str:
    """Identifies the contents of a file, and which columns of it are read. Raises UserError if it can't be read."""
    try:
        contents = expanded(file).read_bytes()
    except OSError as error:
        raise UserError(f"--unlabelled={file} can't be read: {error.strerror}") from error
    return hashlib.sha256(contents + json.dumps(sorted(columns.items())).encode()).hexdigest()[:8]


def write_unlabelled(source: TrainedRun, file: str, columns: Mapping[str, str], path: Path, say: Say) -> None:
    """Writes the inputs of a file, as `open_source` reads it, with the run's predictions for them.

    Raises UserError if it has none, or one that the run can't read, naming it.
    """
    predictor = Predictor(source.model.single)
    inputs, kind = predictor.signature.inputs, predictor.signature.kind
    if kind not in _KINDS:
        raise UserError(f"--unlabelled is for texts, pairs of them and features; {source.run.path} reads {kind}")
    lines = []
    for records in predict_rows(predictor, open_source(file, predictor, columns=columns), inputs=True):
        for record in records:
            binary = [name for name in inputs if name not in record]
            if binary:
                raise UserError(f"row {record['row']} (counting from 0) of {file} has bytes in column {binary[0]!r}")
            lines.append(json.dumps({name: record[name] for name in (*inputs, "scores")}, ensure_ascii=False))
    if not lines:
        raise UserError(f"--unlabelled={file} has no inputs")
    say(f"  {len(lines):,} inputs of {file}")
    atomic_write(path, "".join(f"{line}\n" for line in lines))


def check_hidden(source: TrainedRun, config: ConfigDict) -> None:
    """Raises UserError if the [CLS] states of a network of this config can't be compared with the run's."""
    names = (source.config.model.name, config.model.name)
    if names != ("bert", "bert"):
        raise UserError(f"--hidden_weight is for encoders with a classifier, bert; these are {' and '.join(names)}")
    own, theirs = config.model.hidden_size, source.config.model.hidden_size
    if own != theirs:
        raise UserError(
            f"--hidden_weight compares hidden states of one size: the run's model.hidden_size is {theirs}, and that of "
            f"the network to train {own}; leave it out, or choose a student with {theirs}"
        )


def write_hidden(source: TrainedRun, section: Mapping[str, Any], path: Path, say: Say) -> None:
    """Writes the run's [CLS] states after its last layer for what is trained on: float16 [N, D].

    `section`: the `data` of the config that learns them.
    """
    dataset, model = source.dataset(), source.model.single
    learnt = {**source.config.data, **{key: section[key] for key in ("soft_labels", "unlabelled")}}
    examples = taught(dataset.split("train"), {**learnt, "soft_hidden": None}, dataset.encoder)
    states = _program(model)
    found = np.zeros((len(examples), source.config.model.hidden_size), np.float16)
    for members, batch in model.evaluation.batches(model.arrange(examples)):
        real = members >= 0
        found[members[real]] = np.asarray(states(model.variables, batch), np.float32)[real]
    say(f"  hidden states of {len(found):,} examples: {path}, {found.nbytes / 1e6:.1f} MB")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        np.save(file, found)
    part.replace(path)


def _program(model: Any) -> Callable[[Any, Mapping[str, Any]], jax.Array]:
    """The compiled function (variables, batch) -> the [CLS] states [B, E, D]."""

    @jax.jit
    def run(variables: Any, batch: Mapping[str, Any]) -> jax.Array:
        with applied(variables):
            outputs = model.module.apply(variables, {**batch, "soft_hidden": np.zeros(0)}, train=False)
        states: jax.Array = outputs["hidden"]
        return states

    return run
