"""The smaller network of another config, which learns what a run predicts."""

import copy
import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from research.base.errors import UserError, first_line
from research.base.paths import expanded
from research.compress.context import Context
from research.compress.network import Network
from research.data.text.wordpiece import read_tokenizer, tokenizer_of
from research.inference.model import build_module
from research.interop.pretrained import resolve_init_from
from research.runs.rundir import RunDir

# Files of a run's encoder that do not change how it reads an input.
_NOT_INPUTS = ("samples.json", "data_fingerprint.txt", "encoder.json", "own_code.json")


def distill(network: Network, value: None, context: Context) -> Network:
    """A network of the student's config, from random weights or those of its `init_from`, which learns what the run
    predicts.

    It reads the inputs as the run does. Raises UserError if it is not smaller than the run's, or its weights are for
    inputs that are read in another way.
    """
    if context.student is None or not context.trains:
        raise UserError("distill trains the network of another config: give --student=CONFIG, and --epochs above 0")
    start = resolve_init_from(context.student, (), None, say=context.say)
    student, made = start.config, network.but()
    if student.init_from:
        _check_same_inputs(student, network, context)
    _take(made.config, student, network.config)
    found: Network = dataclasses.replace(made, variables=_fresh(made.config, network, context))
    if found.parameters >= network.parameters:
        raise UserError(
            f"the student has {found.parameters:,} parameters and the run {network.parameters:,}; it must be smaller"
        )
    if start.load_variables is not None:
        found = dataclasses.replace(found, variables=dict(start.load_variables(found.variables)))
    if start.note:
        context.say("\n".join(f"  {line}" for line in start.note.splitlines()))
    return dataclasses.replace(found, variables=jax.device_get(found.variables))


def _take(config: ConfigDict, student: ConfigDict, run: ConfigDict) -> None:
    """Gives the config the student's network, optimizer and batches, with the run's classes and tokens."""
    config.model, config.optimizer, config.dtype = (
        copy.deepcopy(student[key]) for key in ("model", "optimizer", "dtype")
    )
    for key in ("batch_rows", "batch_size", "accumulate"):
        config.train[key] = student.train[key]
    # The rows of an embedding may be more than there are tokens.
    keys = ("num_classes",) if student.init_from else ("vocab_size", "num_classes")
    for key in keys:
        if key in run.model and key in config.model:
            config.model[key] = run.model[key]
    if "max_positions" not in config.model or "max_length" not in config.data.transform:
        return
    longest = config.data.transform.max_length
    if student.init_from and config.model.max_positions < longest:
        raise UserError(
            f"the student's weights {student.init_from} have {config.model.max_positions} positions, and the run reads "
            f"up to {longest} tokens; start from weights with as many"
        )
    config.model.max_positions = max(config.model.max_positions, longest)


def _fresh(config: ConfigDict, network: Network, context: Context) -> dict[str, Any]:
    """Random variables of a student. Raises UserError if it does not fit the inputs of the run's network."""
    batch = network.renamed(context.calibration().batches[0])
    init = functools.partial(build_module(config).init, train=False)
    try:
        return dict(jax.jit(init)(jax.random.key(config.seed), batch))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"the student can't read the run's inputs: {first_line(error)}") from error


def _check_same_inputs(student: ConfigDict, network: Network, context: Context) -> None:
    """Raises UserError if the student's weights were trained on inputs that were read in another way than the run's."""
    run = RunDir(expanded(student.init_from), writer=False)
    which = f"the student's weights {student.init_from}"
    if context.tokenizer is not None:
        transform = student.data.transform
        path = str(run.assets / "tokenizer.json") if run.resumable else transform.get("tokenizer")
        if not path:
            raise UserError(f"{which} have no tokenizer; the run reads texts")
        own = tokenizer_of(network.assets.get("tokenizer.json", context.tokenizer)).get_vocab()
        theirs = read_tokenizer(path, lowercase=transform.get("lowercase", False)).get_vocab()
        if theirs != own:
            same = sum(theirs.get(token) == i for token, i in own.items())
            raise UserError(
                f"{which} are for another vocabulary: only {same:,} of the run's {len(own):,} tokens have the same id "
                "there; start from weights with the run's tokenizer, or leave init_from out"
            )
    elif run.resumable:
        for name in sorted(_learnt(run.assets).items() ^ _learnt(context.assets).items()):
            raise UserError(
                f"{which} are for inputs that are read in another way: assets/{name[0]} differs from the run's; start "
                "from a run on the same data, or leave init_from out"
            )


def _learnt(assets: Path) -> dict[str, bytes]:
    """The files of what an encoder learned, by name."""
    files = (path for path in assets.glob("*") if path.is_file() and path.name not in _NOT_INPUTS)
    return {path.name: path.read_bytes() for path in files}
