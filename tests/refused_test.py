"""A start that is refused leaves nothing behind; what a run prints along the way."""

import pytest

from research import train
from research.base.errors import DivergedError, UserError
from research.data.load import SOURCES
from research.runs.rundir import RunDir
from research.training.loop import train_and_evaluate
from tests import tiny


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_stop_on_signals", list)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "data"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


REFUSED = {
    "key": ["--config=logistic_digits", "--config.seeed=1"],
    "value": ["--config=logistic_digits", "--config.optimizer.learning_rate=-1"],
    "metric": ["--config=logistic_digits", "--config.eval.metric=r2"],
    "labels": ["--config=logistic_digits", "--config.model.num_classes=3"],
    "data": ["--config=logistic_digits", "--config.data.name=no_such_dataset"],
    "imports": ["--config=logistic_digits", "--config.imports=no_such_module_at_all"],
    "weights": ["--config=logistic_digits", "--config.init_from=gone"],
    "long": ["--config=logistic_digits", f"--workdir=made/{'x' * 300}"],
    "workdir": ["--config=logistic_digits", "--workdir=s3://bucket/run"],
}


@pytest.mark.parametrize("workdir", [None, "deep/er/run"], ids=["default", "named"])
@pytest.mark.parametrize("refused", REFUSED)
def test_nothing_is_left_of_a_new_run(refused, workdir, here):
    arguments = [*([f"--workdir={workdir}"] if workdir else []), *REFUSED[refused]]
    with pytest.raises(UserError):
        train.main(arguments)
    assert not list(here.iterdir())


def test_folder_that_was_there_stays(here):
    (here / "run").mkdir()
    (here / "other").touch()
    with pytest.raises(UserError):
        train.main([*REFUSED["labels"], "--workdir=run"])
    assert {path.name for path in here.iterdir()} == {"run", "other"}
    assert not list((here / "run").iterdir())


def test_run_that_failed_in_training_is_kept(here):
    config = tiny.logistic()
    config.optimizer.learning_rate = 1e30
    config.optimizer.name = "sgd"
    with pytest.raises(DivergedError):
        train_and_evaluate(config, "run", show=False)
    assert RunDir.open("run").summary()["status"] == "failed"


def test_resumed_run_that_is_refused_is_kept(here, monkeypatch):
    train_and_evaluate(tiny.logistic(), "run", show=False, should_stop=lambda: True)
    monkeypatch.delitem(SOURCES, "digits")
    with pytest.raises(UserError):
        train_and_evaluate(tiny.logistic(), "run", show=False)
    assert RunDir.open("run").resumable


def test_evaluations_during_training_and_the_commands_that_follow_are_printed(here, capsys):
    config = tiny.logistic()
    config.eval.every_steps = 4
    train_and_evaluate(config, "run")
    lines = capsys.readouterr().out.splitlines()
    evaluations = [line for line in lines if line.startswith("  step ")]
    assert [line.split(":")[0] for line in evaluations] == ["  step 4", "  step 8"]
    values = {line["step"]: line for line in RunDir.open("run").metrics("validation")}
    assert f"validation: accuracy {values[4]['accuracy']:.4f}, loss {values[4]['loss']:.4f}" in evaluations[0]
    assert "  predict: python -m research.predict --workdir=run --input=FILE" in lines
    assert "  serve: python -m research.serve --workdir=run" in lines


def test_start_line_says_how_many_examples_a_packed_step_holds(here, capsys, monkeypatch):
    tiny.few_sentences(monkeypatch)
    train_and_evaluate(tiny.bert(steps=1), "run")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("bert (")]
    rows = int(line.split("packed into ")[1].split()[0])
    assert f"% full, about {round(200 / rows * 8)} examples a step)" in line
