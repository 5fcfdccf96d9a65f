"""A small encoder to compress, hardly trained, whose outputs differ from text to text."""

import pytest

from research.compress.run import Compression
from research.config import load
from research.core import pruning, quantization
from research.runs.rundir import RunDir
from research.training.own_files import fill_in
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


def own_config(folder, **model):
    """An encoder of one layer for 60 texts of two classes in texts.csv in the folder, which is written."""
    lines = [f"a {'good' if i % 2 else 'bad'} film number {i},{'yes' if i % 2 else 'no'}" for i in range(60)]
    (folder / "texts.csv").write_text("text,label\n" + "\n".join(lines))
    loaded = load("bert_sst2:embedded", [f"data.train={folder / 'texts.csv'}", "data.transform.inputs=text"])
    made, _ = fill_in(loaded.config, loaded.given)
    made.data.transform.vocab_size = made.model.vocab_size = 200
    made.model.update(num_layers=1, hidden_size=32, num_heads=2, mlp_size=64, dropout=0.0, initializer_range=0.3)
    made.model.update(model)
    made.train.update(epochs=None, steps=1, batch_rows=2)
    made.eval.every_steps = 0
    return made


@pytest.fixture(scope="session")
def own(tmp_path_factory):
    """The folder of such texts and, called `run`, of a run of two layers on them."""
    folder = tmp_path_factory.mktemp("own")
    tiny.run(own_config(folder, num_layers=2), folder / "run")
    return folder


@pytest.fixture
def compression(workdir):
    return Compression(TrainedRun(RunDir.open(workdir), "last"), "last", say=lambda line: None)
