"""Runs continued from their directory alone: resumed with their own config, and extended beyond their end."""

import json

import pytest

from research import train
from research.base.errors import UserError
from research.runs.rundir import RunDir
from research.training.loop import train_and_evaluate
from tests import tiny


@pytest.fixture(autouse=True)
def _no_handlers(monkeypatch):
    monkeypatch.setattr(train, "_stop_on_signals", list)


def asked_after(steps):
    """A `should_stop` that is True from its call number `steps` on."""
    calls = iter(range(1, 10**6))
    return lambda: next(calls) >= steps


def _config(**options):
    config = tiny.logistic(**options)
    config.optimizer.schedule = "constant"
    return config


def _train(path, *arguments):
    assert train.main([f"--workdir={path}", *arguments]) == 0
    return RunDir.open(path).summary()


def test_workdir_alone_resumes_with_the_runs_config(tmp_path):
    whole = train_and_evaluate(_config(), tmp_path / "whole", show=False)
    half = train_and_evaluate(_config(), tmp_path / "half", show=False, should_stop=asked_after(4))
    assert (half["status"], half["step"]) == ("preempted", 4)
    config = RunDir.open(tmp_path / "half").config()
    resumed = _train(tmp_path / "half", "--config.train.log_every=2")
    assert (resumed["status"], resumed["params_sha256"]) == ("completed", whole["params_sha256"])
    assert RunDir.open(tmp_path / "half").config() == config
    with pytest.raises(UserError, match="holds another config's run: seed is 0 there and 3 here"):
        _train(tmp_path / "half", "--config.seed=3")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=WORK"], "WORK is not a run directory; .*--config=CONFIG"),
        ([], "--config is missing"),
        (["--config=logistic_digits", "--workdir=WORK", "--extend=3"], "give its --workdir, and no --config"),
        (["--extend=3"], "--config is missing"),
        (["--workdir=gs://bucket/run", "--config=logistic_digits"], "gs://bucket/run is not a local path"),
    ],
)
def test_without_a_run_or_a_config_it_is_refused(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message.replace("WORK", str(tmp_path / "run"))):
        train.main([argument.replace("WORK", str(tmp_path / "run")) for argument in arguments])
    assert not list(tmp_path.iterdir())


def test_run_extended_in_steps_equals_a_longer_run_if_the_rate_is_constant(tmp_path, capsys):
    longer = train_and_evaluate(_config(steps=16), tmp_path / "longer", show=False)
    train_and_evaluate(_config(), tmp_path / "run", show=False)
    extended = _train(tmp_path / "run", "--extend=6")
    assert (extended["status"], extended["step"]) == ("completed", 16)
    assert extended["params_sha256"] == longer["params_sha256"]
    assert extended["extensions"] == [{"step": 10, "unit": "steps", "length": 10, "by": 6}]
    saved = json.loads((tmp_path / "run/config.json").read_text())
    assert (saved["train"]["steps"], saved["extensions"]) == (16, extended["extensions"])
    lines = RunDir.open(tmp_path / "run").metrics()
    assert {(line["step"], line["split"]) for line in lines} >= {(10, "test"), (16, "test")}
    printed = capsys.readouterr().out.splitlines()
    assert f"  extended at step 10 from 10 to 16 steps; the learning rate continues at {0.01:.3g}" in printed


@pytest.mark.extended
def test_extension_that_is_killed_is_resumed(tmp_path):
    longer = train_and_evaluate(_config(steps=16), tmp_path / "longer", show=False)
    run = tmp_path / "run"
    train_and_evaluate(_config(), run, show=False)
    from research.resume import extend, load_run

    extend(run, 6)
    assert RunDir.open(run).summary()["reason_code"] == "extended"  # as if killed before anything else
    extend(run, 6)  # the same command
    with pytest.raises(UserError, match="is not finished"):
        extend(run, 7)
    half = train_and_evaluate(load_run(run).config, run, show=False, should_stop=asked_after(2))
    assert (half["status"], half["step"]) == ("preempted", 12)
    assert _train(run, "--extend=6")["params_sha256"] == longer["params_sha256"]
    assert _train(run)["step"] == 16
    assert _train(run, "--extend=6")["step"] == 22  # finished in between: another extension


def test_run_is_extended_by_epochs_if_its_length_is_in_epochs(tmp_path, capsys):
    config = tiny.logistic(steps=None, epochs=1.0, batch_size=128)
    config.optimizer.schedule = "cosine"
    first = train_and_evaluate(config, tmp_path, show=False)
    capsys.readouterr()
    extended = _train(tmp_path, "--extend=0.5")
    assert RunDir.open(tmp_path).config()["train"]["epochs"] == 1.5
    assert (first["step"], extended["step"]) == (9, 13)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "from 1 to 1.5 epochs" in line]
    assert line.endswith(", by the cosine schedule of all steps")
    rates = {line["step"]: line["learning_rate"] for line in RunDir.open(tmp_path).metrics("train")}
    assert 0 < rates[13] < 0.01


@pytest.mark.parametrize(
    ("by", "message"), [("2.5", "must be a positive integer"), ("-1", "must be a positive integer"), ("nan", "must be")]
)
def test_invalid_extension_changes_nothing(by, message, tmp_path):
    train_and_evaluate(_config(steps=2), tmp_path, show=False)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    with pytest.raises(UserError, match=message):
        _train(tmp_path, f"--extend={by}")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before


def test_stopped_and_solved_runs_are_not_extended(tmp_path):
    config = _config(steps=40)
    config.eval.update(every_steps=2, patience=1, min_delta=1.0)
    assert train_and_evaluate(config, tmp_path / "stalled", show=False)["reason_code"] == "stalled"
    with pytest.raises(UserError, match=r"stopped early at step \d+.*init_from"):
        _train(tmp_path / "stalled", "--extend=3")
    assert train.main(["--config=logistic_iris", f"--workdir={tmp_path / 'solved'}"]) == 0
    with pytest.raises(UserError, match="fitted in one step by 'lbfgs'"):
        _train(tmp_path / "solved", "--extend=3")
