"""Entry points do not import slow libraries that they do not need."""

import json
import os
import subprocess
import sys

import pytest

from research.data import load

CODE = """
import contextlib, io, json, sys
from research import cli, coefficients, evaluate, export, glue, ladder, plot, predict, train

HEAVY = (
    "flax", "grain", "huggingface_hub", "jax", "matplotlib", "optax", "orbax", "pandas", "requests", "safetensors",
    "scipy.stats", "sklearn", "tensorflow_datasets", "tokenizers", "torch",
)
found = {}

def note(name):
    found[name] = [module for module in HEAVY if module in sys.modules]

for shell in (coefficients, evaluate, export, glue, ladder, plot, predict, train):
    sys.argv = ["shell", "--help"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        cli.run(shell.main)
note("help")

def run(config, *overrides):
    name = config.split("/")[1]
    with contextlib.redirect_stdout(io.StringIO()):
        train.main([f"--config={config}", f"--workdir={FOLDER}/{name}", *overrides])

FOLDER = %r
run("configs/linear_diabetes.py", "--config.train.steps=1")
note("linear")
from research.config import load
from research.data.sources import sentiment
from research.training.experiment import prepare

sentiment.TRAIN_SIZE = sentiment.VALIDATION_SIZE = 100
prepare(load("configs/bert_sst2.py:embedded").config)
note("bert")
json.dump(found, sys.stderr)
"""


@pytest.mark.extended
def test_entry_points_do_not_import_heavy_libraries(tmp_path):
    """Help without JAX; a linear model without libraries for other models; an encoder without scikit-learn."""
    load.raw({"name": "diabetes", "data_dir": None})["train"]  # from here on it is cached
    environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "1", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", CODE % str(tmp_path)], capture_output=True, text=True, timeout=300, env=environment
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stderr[result.stderr.rindex('{"help"') :])
    needed = {"flax", "grain", "jax", "optax", "orbax"}
    assert found["help"] == []
    assert set(found["linear"]) <= needed
    assert set(found["bert"]) <= needed | {"tokenizers"}
