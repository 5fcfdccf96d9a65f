"""Fuzzes overrides of many configs: each command must train or fail with one line, never with a stack trace.

python -m tests.fuzz --count=2000 [--seed=0] [--show]

A case is a config shrunk by overrides, plus one or two overrides with values of the wrong type, out of range, empty,
huge, not finite, or valid. Each case runs `main` of the command: parsing, `load`, `prepare` (which traces an evaluation
step), batches of data, and a traced training step. One case in EVERY also trains and evaluates.
"""

import argparse
import collections
import contextlib
import dataclasses
import io
import logging
import os
import random
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import jax
import pytest
from ml_collections import FrozenConfigDict

from research import train
from research.base.errors import UserError
from research.config import load
from research.core.optimizers import OPTIMIZERS
from research.devices.platform import x64
from research.overrides import declared
from research.runs.rundir import RunDir
from research.solvers import SOLVERS
from research.training import loop
from research.training.experiment import prepare
from research.training.method import is_deterministic
from tests import tiny

EVERY = 25

_ONE_STEP = ("train.steps=1", "eval.every_steps=0", "checkpoint.every_steps=0", "train.log_every=1")
ENCODER = (
    "model.hidden_size=8",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.mlp_size=8",
    "model.vocab_size=60",
    "data.transform.vocab_size=60",
)
_DECODER = (
    "model.hidden_size=8",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.num_kv_heads=1",
    "model.head_size=4",
    "model.mlp_size=8",
    "train.batch_size=4",
)
_BAG = (
    "data.transform.buckets=64",
    "model.num_features=64",
    "data.transform.max_length=16",
    "optimizer.max_iterations=2",
)

# Overrides that shrink each config; the last configs take longest to trace.
CONFIGS: dict[str, tuple[str, ...]] = {
    "configs/linear_line.py:embedded": _ONE_STEP,
    "configs/linear_diabetes.py:embedded": _ONE_STEP,
    "configs/linear_diabetes.py:closed_form": (),
    "configs/linear_diabetes.py:ridge": (),
    "configs/logistic_iris.py:embedded": ("optimizer.max_iterations=2",),
    "configs/logistic_breast_cancer.py:embedded": ("optimizer.max_iterations=2",),
    "configs/logistic_digits.py:embedded": (*_ONE_STEP, "train.batch_size=8"),
    "configs/mlp_mnist.py:embedded": (*_ONE_STEP, "model.hidden_sizes=(4,)", "train.batch_size=8"),
    "configs/cnn_mnist.py:embedded": (*_ONE_STEP, "train.batch_size=4", "eval.splits=validation"),
    "configs/resnet_digits.py:embedded": (
        *_ONE_STEP,
        "model.stage_sizes=(1,)",
        "model.width=2",
        "train.batch_size=4",
        "eval.splits=validation",
    ),
    "configs/bert_sst2.py:embedded": (*_ONE_STEP, *ENCODER, "train.batch_rows=2"),
    "configs/bert_mlm.py:embedded": (*_ONE_STEP, *ENCODER, "data.transform.row_length=16", "train.batch_size=4"),
    "configs/gpt_shakespeare.py:embedded": (*_ONE_STEP, *_DECODER, "data.transform.row_length=16"),
    "configs/gpt_wikitext.py:embedded": (
        *_ONE_STEP,
        *_DECODER,
        "model.vocab_size=270",
        "data.transform.vocab_size=270",
        "data.transform.row_length=16",
    ),
    "configs/llama_finetune.py:embedded": (
        *(override for override in _DECODER if not override.startswith("train.batch")),
        *_ONE_STEP,
        "train.batch_rows=2",
    ),
    "configs/logistic_newsgroups.py:embedded": (*_BAG, "data.transform.pad_to=(16,)", "data.transform.row_length=64"),
    "configs/logistic_sst2.py:embedded": (*_BAG, "data.transform.pad_to=(16,)", "data.transform.row_length=64"),
    "configs/majority.py:embedded": ("optimizer.max_iterations=2",),
}

# Values for any key, whatever its type.
# fmt: off
NASTY = (
    "", " ", "None", "none", "null", "True", "no", "nan", "inf", "-inf", "1e400", "-1", "0", "1", "2", "0.5", "-0.0",
    "1e-300", "1e300", "28.5", "1e3", "0x10", "007", "1_000", "½", "٣", "1j", "...", "\n", "\\", "'", '"', "(", ")",
    "9223372036854775807", "9223372036854775808", "-9223372036854775809", "1" + "0" * 40, "9" * 5000, "4294967296",
    "2147483647", "2147483648", "1000000007", "65536", "()", "(1,)", "(0,)", "(-1,)", "(1, 2)", "(None,)", "(1, None)",
    "(1.5,)", "(nan,)", "(1e400,)", "(inf,)", "('a', 'b')", "('',)", "('a',)", "[1]", "[]", "((1,),)", "((),)", "(1,",
    "((('x',),),)", "{}", "{0: 1}", "{0: 1, 1: 2}", "{'a': 1}", "{0: None}", "{1, 2}", "b'x'", "(True, False)",
    "(1, 1)", "(1, 1, 1)", "balanced", "a", "a,b", "a,,b", "label", "features", "validation", "test,validation",
    "train[:1]", "../x", "/", "~", "~nosuchuser/x", "x" * 5000, "é", "日本", "\udcff", "%s", "{x}", "$HOME", "a:b",
    "a/b/c", "*", "[", "(?P<", "(a", "a{99999999999}", ".*", "bias", "kernel", "layer", "1" + ",1" * 500, "(" * 200,
    "linear", "(('linear',),)", "(('.*', ('data',)),)", "(('kernel', (None, 'tensor')),)", "(('.', 'data'),)",
    "(('.', ('data', 'data')),)", "(('(', ()),)", "(('.', (('data', 'fsdp'),)),)", "(('.', (0,)),)",
    "((1, ('data',)),)",
    "(('a', 'b'), ('c', 'd'))",
)
# And names that are valid for some key, so that valid combinations are tried too.
NAMES = {
    "name": (*OPTIMIZERS, *SOLVERS, "classification", "squared_hinge", "regression"),
    "model.name": (
        "bert", "bert_mlm", "cnn", "constant", "decoder", "linear", "logistic", "mlp", "resnet", "sparse_logistic",
    ),
    "transform.name": (
        "bag_of_words", "chat", "image", "language_model", "masked_lm", "pixels", "standardize", "wordpiece",
    ),
    "data.name": ("digits", "iris", "diabetes", "line", "sentiment", "breast_cancer", "mnist", "glue/sst2", "no/such"),
    "dtype": ("float32", "bfloat16", "float64", "float16"),
    "compiler": ("default", "convolutions", "fast"),
    "schedule": ("constant", "linear", "cosine", "step"),
    "factorization": ("auto", "qr", "cholesky", "lu"),
    "metric": (
        "accuracy", "loss", "f1", "matthews", "r2", "pearson", "perplexity", "bits_per_byte", "ema_accuracy", "ema_",
    ),
    "mode": ("max", "min"),
    "activation": ("gelu", "gelu_tanh", "relu"),
    "blocks": ("consecutive", "random"),
    "position_encoding": ("learned", "rotary"),
    "pooler": ("tanh", "relu"),
    "norm": ("batch", "group"),
    "stem": ("small", "imagenet"),
    "shortcut": ("projection", "pad"),
    "block": ("basic", "bottleneck"),
    "padding": ("VALID", "SAME"),
    "interpolation": ("bilinear", "bicubic"),
    "crop_border": ("zero", "reflect"),
    "init_from": ("no/such", "/tmp", "tests/data", "configs/bert_sst2.py"),
    "tokenizer": ("bpe", "byte", "character", "/nonexistent.json", "README.md", "/", "pyproject.toml", "README.txt"),
    "heading": ("^=", "^", "a*"),
    "splits": ("train", "validation,test", "test", "validation,validation"),
}
NUMBERS = ("0", "1", "2", "3", "4", "5", "8", "10", "16", "64", "-1", "-2", "0.1", "0.5", "0.9", "1.0", "1.5", "1e-3")
# fmt: on


@dataclasses.dataclass(frozen=True)
class Case:
    """A command line: a config, the overrides that shrink it, and those that are tested."""

    spec: str
    tried: tuple[str, ...]

    @property
    def arguments(self) -> list[str]:
        return [f"--config={self.spec}", *(f"--config.{o}" for o in (*CONFIGS[self.spec], *self.tried))]


def cases(count: int, seed: int, specs: tuple[str, ...] = tuple(CONFIGS)) -> list[Case]:
    """Deterministic for a given seed."""
    rng = random.Random(seed)
    keys = {spec: sorted(set(declared(load(spec).config)) - {"preset"}) for spec in specs}
    weights = [1 if any(slow in spec for slow in ("bert", "cnn", "resnet", "news", "sst2")) else 2 for spec in specs]
    return [_case(rng, spec, keys[spec]) for spec in rng.choices(specs, weights, k=count)]


def _case(rng: random.Random, spec: str, keys: list[str]) -> Case:
    tried = rng.sample(keys, rng.choice((1, 1, 2)))
    return Case(spec, tuple(f"{key}={_value(rng, key)}" for key in tried))


def _value(rng: random.Random, key: str) -> str:
    if key == "data.workers":  # each starts a process
        return rng.choice(("-1", "1025", "None", "a", "", "1.5"))
    if key == "compiler":
        return rng.choice(NAMES["compiler"] + NASTY)
    names = [name for ending, known in NAMES.items() if f".{key}".endswith(f".{ending}") for name in known]
    return rng.choice(rng.choice((NASTY, names or NUMBERS, NUMBERS)))


def traced(config: Any, workdir: str | Path, **_: Any) -> dict[str, Any]:
    """Replaces `research.training.loop.train_and_evaluate`: everything except compilation and execution."""
    config = FrozenConfigDict(config)
    run = RunDir(workdir)
    run.start(config.to_dict())
    try:
        with x64(config.dtype):
            experiment = prepare(config, run.assets)
            batch = next(experiment.training_batches(0))
            if not is_deterministic(config.optimizer.name):  # whose programs are the largest
                jax.eval_shape(experiment.train_step, experiment.state, _shapes(batch))
            for split in config.eval.splits:
                stream = experiment.streams(split)
                next(experiment.evaluation.batches(stream))
    finally:
        run.close()
    return {"status": "completed"}


def _shapes(batch: Any) -> Any:
    return {k: jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype)) for k, x in batch.items()}


def run(case: Case, workdir: str, *, whole: bool) -> str:
    """ "accepted", "refused", or the stack trace of a command. `whole`: trains accepted cases."""
    out = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(out),
            warnings.catch_warnings(),
            pytest.MonkeyPatch.context() as patch,
        ):
            warnings.simplefilter("ignore")
            patch.setattr(train, "_stop_on_signals", list)  # so that Ctrl-C stops the fuzzing
            if not whole:
                patch.setattr(loop, "train_and_evaluate", traced)
            train.main([*case.arguments, f"--workdir={workdir}"])
    except UserError as error:
        lines = str(error).splitlines()
        return "refused" if len(lines) == 1 and lines[0].strip() else f"a message of {len(lines)} lines: {error}"
    except Exception:
        return traceback.format_exc()
    return "accepted"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0, help="the first case to run")
    parser.add_argument("--show", action="store_true", help="print each case when it finishes")
    arguments = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    jax.config.update("jax_disable_most_optimizations", True)
    counts: collections.Counter[str] = collections.Counter()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        tiny.few_sentences(patch, 40, 20)
        tiny.few_documents(patch, 6)
        os.environ["RESEARCH_CACHE"] = str(Path(folder) / "cache")
        for i, case in list(enumerate(cases(arguments.count, arguments.seed)))[arguments.start :]:
            begun = time.monotonic()
            if arguments.show:
                print(f"{i} {case.spec} {' '.join(case.tried)[:200]!r}", end=" ", flush=True)
            result = run(case, f"{folder}/{i}", whole=i % EVERY == 0)
            kind = result if result in ("accepted", "refused") else "trace"
            counts[kind] += 1
            if arguments.show:
                print(f"{kind} {time.monotonic() - begun:.1f}s", flush=True)
            if kind == "trace":
                print(f"{i} {case.spec} {case.tried!r}\n{result}", flush=True)
    print(
        f"{sum(counts.values())} commands in {time.monotonic() - start:.0f} s: {counts['accepted']} accepted, "
        f"{counts['refused']} refused in one line, {counts['trace']} stack traces"
    )
    return 1 if counts["trace"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
