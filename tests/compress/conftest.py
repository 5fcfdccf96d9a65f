"""A small encoder to compress, hardly trained, whose outputs differ from text to text."""

import pytest

from research.compress.run import Compression
from research.core import pruning, quantization
from research.runs.rundir import RunDir
from research.training.trained_run import TrainedRun
from tests import tiny


@pytest.fixture(autouse=True)
def small_layers(monkeypatch):
    monkeypatch.setattr(quantization, "_SMALLEST", 256)
    monkeypatch.setattr(pruning, "_SMALLEST", 256)


def config(**train):
    """Three layers with large random weights."""
    made = tiny.bert(**{"steps": 2, **train})
    made.model.update(num_layers=3, hidden_size=32, num_heads=4, mlp_size=64, dropout=0.0, attention_dropout=0.0)
    made.model.initializer_range = 0.3
    made.optimizer.learning_rate = 1e-4
    return made


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    """The run directory of such an encoder."""
    folder = tmp_path_factory.mktemp("compress") / "run"
    tiny.run(config(), folder)
    return folder


@pytest.fixture
def compression(workdir):
    return Compression(TrainedRun(RunDir.open(workdir), "last"), "last", say=lambda line: None)
